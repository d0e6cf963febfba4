//! A fake of a cloud's key service as a program, for the demo and for benchmarks: no cloud, nothing that is paid for, and
//! nothing that guards a key.
//!
//! ```text
//! keystead-fakes azure|gcp --folder DIR [--delay MS]
//! ```
//!
//! It makes a key on P-256 and one of RSA-2048. In DIR are then the public halves (`ecdsa.pem`, `rsa.pem`), the fake's
//! authority (`ca.pem`), the credential, and in `store.yaml` what a store of the key server has below `plugin:`. One line on
//! standard output says that it serves. `--delay` has each signature take so long, from the request's arrival on. It ends
//! by SIGTERM or Ctrl-C, or with whoever started it.

#![forbid(unsafe_code)]
#![expect(clippy::print_stderr, clippy::print_stdout, reason = "a command-line tool")]

use std::{
    env, fs,
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use keystead_fakes::{
    Disturbance,
    azure::{Azure, Type},
    gcp::{Gcp, RING},
};
use openssl::{error::ErrorStack, pkey::PKey, rsa::Rsa};
use rustix::process::{Signal, set_parent_process_death_signal};
use tokio::{
    runtime::Builder,
    signal::unix::{SignalKind, signal},
};

const USAGE: &str = "usage: keystead-fakes azure|gcp --folder DIR [--delay MS]";

/// The vault of Azure that has the keys.
const VAULT: &str = "demo.vault.azure.net";

fn main() -> ExitCode {
    let words: Vec<String> = env::args().skip(1).collect();
    let Some(wanted) = Wanted::parse(&words) else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    match serve(&wanted) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("keystead-fakes: error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// What the command line says.
struct Wanted {
    cloud: Cloud,
    folder: PathBuf,
    delay: Duration,
}

enum Cloud {
    Azure,
    Gcp,
}

impl Wanted {
    fn parse(words: &[String]) -> Option<Self> {
        let (cloud, mut options) = words.split_first()?;
        let cloud = match cloud.as_str() {
            "azure" => Cloud::Azure,
            "gcp" => Cloud::Gcp,
            _ => return None,
        };
        let (mut folder, mut delay) = (None, Duration::ZERO);
        while let [name, value, rest @ ..] = options {
            match name.as_str() {
                "--folder" => folder = Some(PathBuf::from(value)),
                "--delay" => delay = Duration::from_millis(value.parse().ok()?),
                _ => return None,
            }
            options = rest;
        }
        options.is_empty().then_some(Self { cloud, folder: folder?, delay })
    }
}

/// Serves until it is to end.
fn serve(wanted: &Wanted) -> io::Result<()> {
    set_parent_process_death_signal(Some(Signal::TERM))?;
    let folder = wanted.folder.canonicalize().map_err(|error| naming(&wanted.folder, &error))?;
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let _inside = runtime.enter();
    let (mut terminated, mut interrupted) =
        (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let fake: Box<dyn Fake> = match wanted.cloud {
        Cloud::Azure => Box::new(azure(&folder)?),
        Cloud::Gcp => Box::new(gcp(&folder)?),
    };
    if !wanted.delay.is_zero() {
        fake.delay_signatures(wanted.delay);
    }
    println!("{}", fake.place());
    runtime.block_on(async {
        tokio::select! {
            _ = terminated.recv() => {}
            _ = interrupted.recv() => {}
        }
    });
    Ok(())
}

/// What is done with either.
trait Fake {
    /// Where it is, for people.
    fn place(&self) -> String;

    /// Has each signature take so long.
    fn delay_signatures(&self, delay: Duration);
}

impl Fake for Azure {
    fn place(&self) -> String {
        format!("a fake of Azure serves as https://{VAULT}, by way of the proxy {}", self.proxy())
    }

    fn delay_signatures(&self, delay: Duration) {
        self.vaults().disturb(Disturbance::delay("/sign?", delay));
    }
}

impl Fake for Gcp {
    fn place(&self) -> String {
        format!(
            "a fake of Google Cloud serves as https://cloudkms.googleapis.com, by way of the proxy {}",
            self.proxy()
        )
    }

    fn delay_signatures(&self, delay: Duration) {
        self.server().disturb(Disturbance::delay(":asymmetricSign", delay));
    }
}

fn azure(folder: &Path) -> io::Result<Azure> {
    let azure = Azure::start(folder);
    write_public_key(folder, "ecdsa", &azure.make_key(VAULT, "ecdsa", Type::P256))?;
    write_public_key(folder, "rsa", &azure.make_key(VAULT, "rsa", Type::RsaHsm(2048)))?;
    let secret = folder.join("client-secret");
    write_secret(&secret, azure.client_secret())?;
    let way = way(folder, &azure.proxy());
    let store = format!(
        "  config:
    uris: [\"https://{VAULT}/keys\"]
    credential: {{type: client_secret, tenant: {}, client_id: {}}}
  secrets:
    client_secret: {{file: {}}}
  grants:
    http:
    - {{url: \"https://{VAULT}\", methods: [GET, POST], {way}}}
    - {{url: \"https://login.microsoftonline.com\", methods: [POST], secrets: [client_secret], {way}}}
",
        azure.tenant(),
        azure.client_id(),
        secret.display()
    );
    write(&folder.join("store.yaml"), store.as_bytes())?;
    Ok(azure)
}

/// A version of a key in Cloud KMS has one padding, so the RSA key is there twice.
fn gcp(folder: &Path) -> io::Result<Gcp> {
    let gcp = Gcp::start(folder);
    write_public_key(folder, "ecdsa", &gcp.make_key("ecdsa", "EC_SIGN_P256_SHA256"))?;
    let rsa = rsa_2048()?;
    write_public_key(folder, "rsa", &gcp.import_key("rsa", "RSA_SIGN_PSS_2048_SHA256", &rsa))?;
    gcp.import_key("rsa-pkcs1", "RSA_SIGN_PKCS1_2048_SHA256", &rsa);
    let account = folder.join("service-account.json");
    write_secret(&account, &gcp.service_account().to_string())?;
    let store = format!(
        "  config:
    uris: [\"{RING}\"]
    credential: {{type: service_account}}
  secrets:
    private_key: {{file: {0}, pointer: /private_key}}
    client_email: {{file: {0}, pointer: /client_email, expose: true}}
    private_key_id: {{file: {0}, pointer: /private_key_id, expose: true}}
  grants:
    http:
    - {{url: \"https://cloudkms.googleapis.com\", methods: [GET, POST], {1}}}
",
        account.display(),
        way(folder, &gcp.proxy())
    );
    write(&folder.join("store.yaml"), store.as_bytes())?;
    Ok(gcp)
}

/// What a grant says beside that, so that the service's own name leads to the fake.
fn way(folder: &Path, proxy: &str) -> String {
    format!("proxy: \"{proxy}\", ca: {}", folder.join("ca.pem").display())
}

/// A new key in PKCS#8, DER.
fn rsa_2048() -> Result<Vec<u8>, ErrorStack> {
    PKey::from_rsa(Rsa::generate(2048)?)?.private_key_to_pkcs8()
}

/// Writes a public half as `NAME.pem`.
fn write_public_key(folder: &Path, name: &str, spki: &[u8]) -> io::Result<()> {
    let pem = PKey::public_key_from_der(spki)?.public_key_to_pem()?;
    write(&folder.join(format!("{name}.pem")), &pem)
}

fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    fs::write(path, bytes).map_err(|error| naming(path, &error))
}

/// Writes a file that only this user may read, from the first moment on.
fn write_secret(path: &Path, text: &str) -> io::Result<()> {
    let mut options = fs::OpenOptions::new();
    let file = options.write(true).create_new(true).mode(0o600).open(path);
    file.and_then(|mut file| file.write_all(text.as_bytes())).map_err(|error| naming(path, &error))
}

/// An error that says where.
fn naming(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}
