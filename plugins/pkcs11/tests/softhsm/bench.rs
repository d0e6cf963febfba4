//! A workbench: throw-away tokens, of SoftHSM2 unless a test says otherwise, in a process of its own.
//!
//! SoftHSM2 reads `SOFTHSM2_CONF` from the environment of the process that loads it. So each test runs twice: the test
//! as the harness calls it makes a folder and runs itself again in a child process with that environment, and the child
//! does what the test says.

use std::{
    env,
    fmt::Write as _,
    fs,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use keystead_plugin_api::{
    Algorithm, Finding, Key, Listing, Severity,
    abi::BackendTable,
    conformance::{Session, Subject},
    kit,
};
use keystead_plugin_host::testing::{InProcess, PluginDir};
use keystead_plugin_pkcs11::Pkcs11;
use serde_json::json;

/// The table of the plugin, as the server sees it.
pub(crate) static TABLE: BackendTable = kit::table::<Pkcs11>();

/// The user PIN of every token made here: as long as Kryoptic's must be, and opencryptoki's may be.
pub(crate) const PIN: &str = "4711-pin";

/// The PIN of the security officer: what a new token of opencryptoki has.
const SO_PIN: &str = "87654321";

/// The socket of p11-kit's server, in a test's folder.
pub(crate) const REMOTE: &str = "p11-kit";

/// Where tpm2-pkcs11 keeps what it knows, in a test's folder.
pub(crate) const TPM_STORE: &str = "tpm";

/// Where Kryoptic keeps its token, in a test's folder.
const KRYOPTIC: &str = "kryoptic.sql";

/// Where the child finds its folder.
const FOLDER: &str = "KEYSTEAD_TEST_FOLDER";

/// Defines a test that gets a [`Bench`].
macro_rules! on_softhsm {
    ($name:ident, $test:expr) => {
        #[test]
        fn $name() {
            $crate::bench::run(concat!(module_path!(), "::", stringify!($name)), $test);
        }
    };
}
pub(crate) use on_softhsm;

/// Runs a test in a child process on a fresh folder, or, in that process, for real.
pub(crate) fn run(path: &str, test: fn(&Bench)) {
    run_by(|| Command::new(env::current_exe().unwrap()), path, test);
}

/// Likewise, where it takes more than its name to start this program again.
pub(crate) fn run_by(this_program: fn() -> Command, path: &str, test: fn(&Bench)) {
    let (_crate, name) = path.split_once("::").unwrap();
    match env::var_os(FOLDER) {
        Some(folder) => test(&Bench { folder: folder.into() }),
        None => run_in_child(this_program(), name),
    }
}

fn run_in_child(mut this_program: Command, name: &str) {
    let folder = tempfile::tempdir().unwrap();
    let tokens = folder.path().join("tokens");
    fs::create_dir(&tokens).unwrap();
    let config = folder.path().join("softhsm2.conf");
    fs::write(&config, format!("directories.tokendir = {}\nlog.level = ERROR\n", tokens.display())).unwrap();
    let tpm = format!("swtpm:host=127.0.0.1,port={}", two_free_ports());
    let output = this_program
        .args([name, "--exact", "--nocapture"])
        .env("SOFTHSM2_CONF", config)
        .env("KEYSTEAD_TEST_MODULE_CONTROL", folder.path().join("control"))
        .env("PKCS11SPY", softhsm())
        .env("PKCS11SPY_OUTPUT", folder.path().join("spy"))
        .env("P11_KIT_SERVER_ADDRESS", format!("unix:path={}", folder.path().join(REMOTE).display()))
        .env("TPM2_PKCS11_STORE", folder.path().join(TPM_STORE))
        .env("KRYOPTIC_CONF", folder.path().join(KRYOPTIC))
        .envs(["TPM2_PKCS11_TCTI", "TPM2TOOLS_TCTI"].map(|name| (name, tpm.clone())))
        .env(FOLDER, folder.path())
        .output()
        .unwrap();
    let said = said(&output);
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
}

/// The first of two free ports that follow each other.
fn two_free_ports() -> u16 {
    let bind = |port| TcpListener::bind(("127.0.0.1", port));
    loop {
        let first = bind(0).unwrap();
        let port = first.local_addr().unwrap().port();
        if port < u16::MAX && bind(port + 1).is_ok() {
            return port;
        }
    }
}

/// A folder for tokens, and what it takes to fill them.
pub(crate) struct Bench {
    folder: PathBuf,
}

impl Bench {
    /// Makes a token with [`PIN`].
    pub(crate) fn token(&self, label: &str) {
        command("softhsm2-util")
            .args(["--init-token", "--free", "--label", label, "--pin", PIN, "--so-pin", SO_PIN])
            .succeed();
    }

    /// Generates a key pair in a token; it can't leave it.
    pub(crate) fn generate(&self, token: &str, key_type: &str, label: &str, id: &str) {
        Token { module: softhsm(), label: token.to_owned() }.generate(key_type, label, id);
    }

    /// Runs `pkcs11-tool` with a login on a token, and answers what it prints.
    pub(crate) fn tool(&self, token: &str, arguments: &[&str]) -> String {
        Token { module: softhsm(), label: token.to_owned() }.tool(arguments)
    }

    /// A file of the folder.
    pub(crate) fn file(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.folder.join(name);
        fs::write(&path, content).unwrap();
        path
    }

    /// Where a file of the folder is, or would be.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Takes every token away, as if the device were unplugged.
    pub(crate) fn unplug(&self) {
        fs::rename(self.folder.join("tokens"), self.folder.join("unplugged")).unwrap();
    }

    /// Brings them back.
    pub(crate) fn plug_in(&self) {
        fs::rename(self.folder.join("unplugged"), self.folder.join("tokens")).unwrap();
    }

    /// How often a function was called through [`spy`].
    pub(crate) fn calls(&self, function: &str) -> usize {
        let log = fs::read_to_string(self.folder.join("spy")).unwrap_or_default();
        log.lines().filter(|line| line.split_once(": ").is_some_and(|(_, called)| called == function)).count()
    }
}

/// A token of any module, as `pkcs11-tool` works with it.
pub(crate) struct Token {
    module: PathBuf,
    label: String,
}

impl Token {
    /// Makes a token with [`PIN`] in a module's first slot.
    pub(crate) fn make(module: PathBuf, label: &str) -> Self {
        let so_pin = ["--so-pin", SO_PIN];
        let token = Self { module, label: label.to_owned() };
        token.run(&[&["--init-token", "--slot-index", "0", "--label", label], &so_pin[..]].concat());
        let init_pin =
            ["--token-label", label, "--login", "--login-type", "so", "--init-pin", "--new-pin", PIN];
        token.run(&[&init_pin[..], &so_pin].concat());
        token
    }

    /// Generates a key pair in it, that can't leave it.
    pub(crate) fn generate(&self, key_type: &str, label: &str, id: &str) {
        self.tool(&["--keypairgen", "--key-type", key_type, "--sensitive", "--label", label, "--id", id]);
    }

    /// Runs `pkcs11-tool` with a login, and answers what it prints.
    pub(crate) fn tool(&self, arguments: &[&str]) -> String {
        self.run(&[&["--token-label", &self.label, "--login", "--pin", PIN], arguments].concat())
    }

    /// A URI for it with [`PIN`].
    pub(crate) fn uri(&self, key: &str) -> String {
        uri_at(&self.module, &self.label, key, PIN)
    }

    fn run(&self, arguments: &[&str]) -> String {
        command("pkcs11-tool").arg("--module").arg(&self.module).args(arguments).succeed()
    }
}

/// SoftHSM2's module.
pub(crate) fn softhsm() -> PathBuf {
    installed("softhsm2", &["/usr/lib/softhsm/libsofthsm2.so", "/usr/lib64/softhsm/libsofthsm2.so"])
}

/// OpenSC's module that logs each call and hands it on to SoftHSM2.
pub(crate) fn spy() -> PathBuf {
    installed("opensc", &["/usr/lib/x86_64-linux-gnu/pkcs11-spy.so", "/usr/lib64/pkcs11-spy.so"])
}

pub(crate) fn installed(package: &str, places: &[&str]) -> PathBuf {
    let found = places.iter().map(Path::new).find(|path| path.exists());
    found
        .unwrap_or_else(|| panic!("these tests need the package {package}: none of {places:?} is there"))
        .into()
}

pub(crate) fn command(program: &str) -> Command {
    let mut command = Command::new(program);
    command.env("LC_ALL", "C");
    command
}

pub(crate) trait Succeed {
    fn succeed(&mut self) -> String;
}

impl Succeed for Command {
    fn succeed(&mut self) -> String {
        let output = self
            .output()
            .unwrap_or_else(|error| panic!("these tests need {:?}: {error}", self.get_program()));
        assert!(output.status.success(), "{self:?}: {}", said(&output));
        said(&output)
    }
}

fn said(output: &Output) -> String {
    [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text).into_owned()).concat()
}

/// A URI for SoftHSM2 with [`PIN`].
pub(crate) fn uri(token: &str, key: &str) -> String {
    uri_at(&softhsm(), token, key, PIN)
}

/// A URI for any module and PIN.
pub(crate) fn uri_at(module: &Path, token: &str, key: &str, pin: &str) -> String {
    format!("pkcs11:token={token};{key}?module-path={}&pin-value={pin}", module.display())
}

/// A store of URIs. The decoy makes the test host look for [`PIN`] in all that the plugin says.
pub(crate) fn store(uris: &[String]) -> Subject {
    of_uris(Subject::new(&TABLE), uris)
}

/// Likewise, of the plugin as a library in a process of its own.
pub(crate) fn in_process(uris: &[String]) -> Subject {
    let plugins = PluginDir::with(&["keystead-plugin-pkcs11"]);
    let library = plugins.path().join("libkeystead_plugin_pkcs11.so");
    let door = InProcess::load_with(&library, |surroundings| {
        let names =
            ["SOFTHSM2_CONF", "KEYSTEAD_TEST_MODULE_CONTROL", "P11_KIT_SERVER_ADDRESS", "KRYOPTIC_CONF"];
        surroundings.env.extend(names.map(|name| (name.to_owned(), env::var(name).unwrap())));
    });
    of_uris(Subject::behind(door), uris)
}

fn of_uris(subject: Subject, uris: &[String]) -> Subject {
    subject.config(json!({"uris": uris})).secret("decoy", PIN.as_bytes())
}

/// A key of a listing by its label.
pub(crate) fn key<'a>(listing: &'a Listing, label: &str) -> &'a Key {
    listing
        .keys
        .iter()
        .find(|key| key.label == label)
        .unwrap_or_else(|| panic!("no key {label}: {listing:?}"))
}

/// Signs with a key of any type, and verifies.
pub(crate) fn prove(session: &Session, key: &Key) {
    let algorithm = key.algorithms.iter().copied().find(|algorithm| algorithm.takes(&[0x5a; 32])).unwrap();
    let signature = session.sign(key, algorithm, &[0x5a; 32]).unwrap();
    keystead_plugin_api::conformance::verify(&key.spki, algorithm, &[0x5a; 32], &signature).unwrap();
    assert_ne!(algorithm, Algorithm::RsaRaw);
}

/// The findings of a severity, one line each.
pub(crate) fn lines(findings: &[Finding], severity: Severity) -> String {
    findings.iter().filter(|finding| finding.severity == severity).fold(
        String::new(),
        |mut lines, finding| {
            let Finding { subject, error, hint, .. } = finding;
            writeln!(lines, "{}: {subject}: {error}; {hint}", error.code).unwrap();
            lines
        },
    )
}
