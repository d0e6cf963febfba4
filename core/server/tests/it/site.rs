//! From curl to a key that is elsewhere: a server, an edge in front of it with a site for each of its keys, and certificates
//! over these.

use std::{
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
};

use keystead_plugin_host::testing;
use openssl::pkey::{Id, PKey};
use rcgen::{
    CertificateParams, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ED25519, PKCS_RSA_SHA256,
    PublicKeyData, SignatureAlgorithm,
};
use x509_parser::prelude::{FromDer, SubjectPublicKeyInfo};

use crate::world::{Files, Server, authority};

/// A key by its name, which is its site's too, and its public half as DER SubjectPublicKeyInfo.
pub(crate) type Public = (&'static str, Vec<u8>);

/// All of it, running.
pub(crate) struct Site<'a> {
    files: &'a Files,
    pub(crate) server: Server,
    edge: Child,
    /// The port of the edge.
    port: u16,
}

impl<'a> Site<'a> {
    /// Starts `keystead run` as it was prepared, and an edge with a site `NAME.test` for each key.
    pub(crate) fn start(files: &'a Files, keystead: Command, keys: &[Public]) -> Self {
        let server = Server::spawn(keystead);
        server.wait_until_ready();
        let mut command = Command::new(testing::program("keystead-edge"));
        command.args(["--listen", "127.0.0.1:0", "--server", &server.address.to_string()]);
        command.args(["--server-name", "localhost"]);
        for (flag, file) in [("--ca", "ca.pem"), ("--cert", "client.pem"), ("--key", "client-key.pem")] {
            command.arg(flag).arg(files.path(file));
        }
        let (sites, root) = authority("sites");
        files.write("sites.pem", root.as_bytes());
        for (name, spki) in keys {
            let leaf = CertificateParams::new([format!("{name}.test")]).unwrap();
            let leaf = leaf.signed_by(&Elsewhere::new(spki), &sites).unwrap();
            command.arg("--site").arg(files.write(&format!("{name}.test.pem"), leaf.pem().as_bytes()));
        }
        let mut edge = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut ready = String::new();
        BufReader::new(edge.stdout.take().unwrap()).read_line(&mut ready).unwrap();
        let port = ready.trim_end().rsplit(':').next().unwrap().parse().unwrap();
        Self { files, server, edge, port }
    }

    /// Has curl visit a site, which must succeed.
    pub(crate) fn must_serve(&self, name: &str, version: &str, signature: &str) {
        let page = self.visit(name, version, signature);
        let page = page
            .unwrap_or_else(|error| panic!("{name} {version} {signature}: {error}\n{}", self.server.log()));
        assert!(page.contains(&format!("<h1>{name}.test</h1>")), "{page}");
        assert!(page.contains(&format!("<dd>TLSv{}</dd>", version.replace('.', "_"))), "{page}");
    }

    /// Has curl shake hands as a version has it, with a signature of no other algorithm, and get the page. OpenSSL takes
    /// the algorithms from its configuration.
    pub(crate) fn visit(&self, name: &str, version: &str, signature: &str) -> Result<String, String> {
        let sections = "openssl_conf = all\n[all]\nssl_conf = ssl\n[ssl]\nsystem_default = tls\n[tls]\n";
        let openssl = format!("{sections}SignatureAlgorithms = {signature}\n");
        let mut curl = Command::new("curl");
        curl.env("OPENSSL_CONF", self.files.write("openssl.cnf", openssl.as_bytes()));
        curl.args(["--disable", "--silent", "--show-error", "--fail", "--max-time", "20", "--noproxy", "*"]);
        curl.args([&format!("--tlsv{version}"), "--tls-max", version, "--cacert"])
            .arg(self.files.path("sites.pem"));
        curl.args(["--resolve", &format!("{name}.test:{}:127.0.0.1", self.port)]);
        let output = curl.arg(format!("https://{name}.test:{}/", self.port)).output();
        let output = output.expect("curl runs; `apt-get install curl`");
        let text = |bytes| String::from_utf8(bytes).unwrap();
        if output.status.success() { Ok(text(output.stdout)) } else { Err(text(output.stderr)) }
    }
}

impl Drop for Site<'_> {
    fn drop(&mut self) {
        let _ = self.edge.kill(); // it may have ended already
        let _ = self.edge.wait();
    }
}

/// The public half of a key that is elsewhere.
struct Elsewhere {
    bits: Vec<u8>,
    algorithm: &'static SignatureAlgorithm,
}

impl Elsewhere {
    fn new(spki: &[u8]) -> Self {
        let key = PKey::public_key_from_der(spki).unwrap();
        let (_, info) = SubjectPublicKeyInfo::from_der(spki).unwrap();
        let bits = info.subject_public_key.data.to_vec();
        let algorithm = match (key.id(), key.bits()) {
            (Id::RSA, _) => &PKCS_RSA_SHA256,
            (Id::EC, 256) => &PKCS_ECDSA_P256_SHA256,
            (Id::EC, _) => &PKCS_ECDSA_P384_SHA384,
            _ => &PKCS_ED25519,
        };
        Self { bits, algorithm }
    }
}

impl PublicKeyData for Elsewhere {
    fn der_bytes(&self) -> &[u8] {
        &self.bits
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        self.algorithm
    }
}
