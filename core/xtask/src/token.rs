//! A throw-away token: SoftHSM2, with a configuration and a folder of its own.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::failure::{Failure, Result};
use crate::{file, process, system};

/// What pkcs11-tool says of a private key that was made in the token and can't leave it: `CKA_SENSITIVE`,
/// `CKA_ALWAYS_SENSITIVE`, `CKA_NEVER_EXTRACTABLE` and `CKA_LOCAL` (PKCS#11 v3.0, section 4.9).
const ACCESS: &str = "sensitive, always sensitive, never extractable, local";

/// The variable by which SoftHSM2 finds its configuration.
const SOFTHSM2_CONF: &str = "SOFTHSM2_CONF";

/// A token with its PIN.
pub(crate) struct Token {
    label: &'static str,
    module: &'static Path,
    places: Places,
    pin: String,
}

/// Where a token is, and what belongs to it; each in a folder that exists.
pub(crate) struct Places {
    /// The folder of SoftHSM2's tokens, which exists itself.
    pub(crate) tokens: PathBuf,
    /// The file that leads SoftHSM2 to them.
    pub(crate) configuration: PathBuf,
    /// The file that holds the PIN.
    pub(crate) pin: PathBuf,
}

/// A key in a token.
#[derive(Debug)]
pub(crate) struct Key {
    /// Its label.
    pub(crate) label: &'static str,
    /// Its `CKA_ID`, in hexadecimal.
    id: &'static str,
    /// Its type, for people.
    pub(crate) key_type: &'static str,
    /// Its type, for pkcs11-tool.
    tool_type: &'static str,
}

impl Token {
    /// Makes an empty token. Its PIN is random, and lies in a file that only this user may read.
    pub(crate) fn create(label: &'static str, places: Places) -> Result<Self> {
        file::write(&places.configuration, &configuration(&places.tokens))?;
        let token = Self { label, module: system::softhsm_module()?, places, pin: random_pin()? };
        file::write_secret(token.pin_file(), &token.pin)?;
        token.initialize()?;
        Ok(token)
    }

    /// The PKCS#11 module that speaks for the token.
    pub(crate) fn module(&self) -> &'static Path {
        self.module
    }

    /// The file that holds the PIN.
    pub(crate) fn pin_file(&self) -> &Path {
        &self.places.pin
    }

    /// Whether a text shows the PIN.
    pub(crate) fn is_given_away_by(&self, text: &str) -> bool {
        text.contains(&self.pin)
    }

    /// The variable by which a program finds the token, as YAML.
    pub(crate) fn variable(&self) -> String {
        format!("{SOFTHSM2_CONF}: {}", self.places.configuration.display())
    }

    /// Lets a program find the token. No other program does.
    pub(crate) fn show_to(&self, command: &mut Command) {
        command.env(SOFTHSM2_CONF, &self.places.configuration);
    }

    /// Makes a key inside the token, and says what its access rights are: never to leave it.
    pub(crate) fn generate(&self, key: &Key) -> Result<&'static str> {
        let new = ["--key-type", key.tool_type, "--id", key.id, "--label", key.label];
        self.tool(&["--login", "--pin", "env:PIN", "--keypairgen"], &new)?;
        let find = ["--list-objects", "--type", "privkey", "--id", key.id];
        let found = self.tool(&["--login", "--pin", "env:PIN"], &find)?;
        let access =
            found.lines().find_map(|line| line.trim().strip_prefix("Access:")).unwrap_or("unknown").trim();
        if access == ACCESS {
            return Ok(ACCESS);
        }
        Err(Failure::new(format!("the {} key: expected access `{ACCESS}`, got `{access}`", key.key_type)))
    }

    /// Reads the public half of a key, and writes it into a file as PEM, and beside it as DER.
    pub(crate) fn write_public_key(&self, key: &Key, pem: &Path) -> Result<()> {
        let der = pem.with_extension("der").display().to_string();
        self.tool(&["--read-object", "--type", "pubkey"], &["--id", key.id, "--output-file", &der])?;
        let mut convert = Command::new("openssl");
        convert.args(["pkey", "-pubin", "-inform", "DER", "-in", &der, "-out"]).arg(pem);
        process::output(&mut convert).map(drop)
    }

    fn initialize(&self) -> Result<()> {
        let mut command = self.command();
        command.args(["--init-token", "--slot-index", "0", "--label", self.label, "--so-pin", "env:SO_PIN"]);
        process::output(&mut command)?;
        let login = ["--login", "--login-type", "so", "--so-pin", "env:SO_PIN"];
        self.tool(&login, &["--init-pin", "--new-pin", "env:PIN"]).map(drop)
    }

    /// Runs pkcs11-tool on the token.
    fn tool(&self, before: &[&str], after: &[&str]) -> Result<String> {
        let mut command = self.command();
        command.args(["--token-label", self.label]).args(before).args(after);
        process::output(&mut command).map(|output| output.stdout)
    }

    /// pkcs11-tool, which finds PINs in its environment, and never in its arguments.
    fn command(&self) -> Command {
        let mut command = Command::new("pkcs11-tool");
        command.arg("--module").arg(self.module);
        // One PIN serves both roles: the token is gone in a minute.
        command.env("PIN", &self.pin).env("SO_PIN", &self.pin);
        self.show_to(&mut command);
        command
    }
}

impl Key {
    /// With an elliptic curve.
    pub(crate) const fn p256(label: &'static str, id: &'static str) -> Self {
        Self { label, id, key_type: "P-256", tool_type: "EC:prime256v1" }
    }

    /// With RSA.
    pub(crate) const fn rsa_2048(label: &'static str, id: &'static str) -> Self {
        Self { label, id, key_type: "RSA-2048", tool_type: "rsa:2048" }
    }
}

/// A configuration of SoftHSM2 that leads it to a folder of tokens.
pub(crate) fn configuration(tokens: &Path) -> String {
    format!("directories.tokendir = {}\nlog.level = ERROR\n", tokens.display())
}

/// Sixteen digits from the kernel: some tokens' PINs have digits only. Nothing else in a log is as long.
fn random_pin() -> Result<String> {
    let source = Path::new("/dev/urandom");
    let mut bytes = [0; 16];
    File::open(source)
        .and_then(|mut file| file.read_exact(&mut bytes))
        .map_err(|error| Failure::file("read", source, &error))?;
    Ok(bytes.iter().map(|byte| char::from(b'0' + byte % 10)).collect())
}
