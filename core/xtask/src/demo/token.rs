//! A throw-away token: SoftHSM2, with a configuration and a folder of its own.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::site::Site;
use crate::failure::{Failure, Result};
use crate::{process, system};

/// Label of the token.
pub(super) const LABEL: &str = "keystead-demo";

/// What pkcs11-tool says of a private key that was made in the token and can't leave it: `CKA_SENSITIVE`,
/// `CKA_ALWAYS_SENSITIVE`, `CKA_NEVER_EXTRACTABLE` and `CKA_LOCAL` (PKCS#11 v3.0, section 4.9).
const ACCESS: &str = "sensitive, always sensitive, never extractable, local";

/// A token with its PIN.
pub(super) struct Token {
    folder: PathBuf,
    module: &'static Path,
    pin: String,
}

impl Token {
    /// Makes an empty token in a new folder. Its PIN is random and lies in a file that only this user may read.
    pub(super) fn create(folder: &Path) -> Result<Self> {
        let folder = super::make_folder(folder)?;
        let tokens = super::make_folder(&folder.join("tokens"))?;
        let configuration = format!("directories.tokendir = {}\nlog.level = ERROR\n", tokens.display());
        super::write(&folder.join("softhsm2.conf"), &configuration)?;
        let token = Self { folder, module: system::softhsm_module()?, pin: random_pin()? };
        super::write_secret(&token.pin_file(), &token.pin)?;
        token.initialize()?;
        Ok(token)
    }

    /// Where the token and what belongs to it is.
    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// The PKCS#11 module that speaks for the token.
    pub(super) fn module(&self) -> &'static Path {
        self.module
    }

    /// The file that holds the PIN.
    pub(super) fn pin_file(&self) -> PathBuf {
        self.folder.join("pin")
    }

    /// Whether a text shows the PIN.
    pub(super) fn is_given_away_by(&self, text: &str) -> bool {
        text.contains(&self.pin)
    }

    /// Lets a program find the token. No other program does.
    pub(super) fn show_to(&self, command: &mut Command) {
        command.env("SOFTHSM2_CONF", self.folder.join("softhsm2.conf"));
    }

    /// Makes the key of a site inside the token, and says what its access rights are: never to leave it.
    pub(super) fn generate(&self, site: &Site) -> Result<&'static str> {
        let key = ["--key-type", site.tool_type, "--id", site.id, "--label", site.label];
        self.tool(&["--token-label", LABEL, "--login", "--pin", "env:PIN", "--keypairgen"], &key)?;
        let find = ["--list-objects", "--type", "privkey", "--id", site.id];
        let found = self.tool(&["--token-label", LABEL, "--login", "--pin", "env:PIN"], &find)?;
        let access =
            found.lines().find_map(|line| line.trim().strip_prefix("Access:")).unwrap_or("unknown").trim();
        if access == ACCESS {
            return Ok(ACCESS);
        }
        Err(Failure::new(format!("the {} key: expected access `{ACCESS}`, got `{access}`", site.key_type)))
    }

    /// Reads the public half of a site's key, and writes it as PEM into a folder.
    pub(super) fn public_key(&self, site: &Site, folder: &Path) -> Result<PathBuf> {
        let [der, pem] = ["der", "pem"].map(|form| folder.join(format!("{}-public.{form}", site.label)));
        let file = der.display().to_string();
        let read = ["--read-object", "--type", "pubkey", "--id", site.id, "--output-file", &file];
        self.tool(&["--token-label", LABEL], &read)?;
        let mut convert = Command::new("openssl");
        convert.args(["pkey", "-pubin", "-inform", "DER", "-in"]).arg(&der).arg("-out").arg(&pem);
        process::output(&mut convert)?;
        Ok(pem)
    }

    fn initialize(&self) -> Result<()> {
        self.tool(&["--init-token", "--slot-index", "0", "--label", LABEL], &["--so-pin", "env:SO_PIN"])?;
        let login = ["--token-label", LABEL, "--login", "--login-type", "so", "--so-pin", "env:SO_PIN"];
        self.tool(&login, &["--init-pin", "--new-pin", "env:PIN"]).map(drop)
    }

    /// Runs pkcs11-tool, which finds PINs in its environment, and never in its arguments.
    fn tool(&self, before: &[&str], after: &[&str]) -> Result<String> {
        let mut command = Command::new("pkcs11-tool");
        command.arg("--module").arg(self.module).args(before).args(after);
        // One PIN serves both roles: the token is gone in a minute.
        command.env("PIN", &self.pin).env("SO_PIN", &self.pin);
        self.show_to(&mut command);
        process::output(&mut command).map(|output| output.stdout)
    }
}

/// Sixteen digits from the kernel: some tokens' PINs have digits only.
fn random_pin() -> Result<String> {
    let source = Path::new("/dev/urandom");
    let mut bytes = [0; 16];
    File::open(source)
        .and_then(|mut file| file.read_exact(&mut bytes))
        .map_err(|error| Failure::file("read", source, &error))?;
    Ok(bytes.iter().map(|byte| char::from(b'0' + byte % 10)).collect())
}
