//! Keystead in a machine, as an operator installs it: the units of `config/`, a user, certificates, and a key in a file
//! and one in a token.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::process::Command;

use super::files::{Access, Files};
use crate::failure::{Failure, Result};
use crate::{process, system};

/// How a client in the machine reaches the server.
pub(super) const CLIENT: [&str; 10] = [
    "--server",
    "localhost:2407",
    "--server-name",
    "keys.test",
    "--ca",
    "/etc/keystead/ca.pem",
    "--cert",
    "/etc/keystead/server.pem",
    "--key",
    "/etc/keystead/server-key.pem",
];
/// The public halves of the keys.
pub(super) const FILE_KEY: &str = "/etc/keystead/file.pem";
pub(super) const TOKEN_KEY: &str = "/etc/keystead/token.pem";
/// The one that [`Installation::add_key`] adds.
pub(super) const NEW_KEY: &str = "/etc/keystead/new.pem";

const CONFIGURATION: &str = "/etc/keystead/keystead.yaml";
/// The unit of the service.
pub(super) const SERVICE: &str = "/etc/systemd/system/keystead.service";
const SOCKET: &str = "/etc/systemd/system/keystead.socket";
/// The user `keystead`, and a group of SoftHSM2's files.
const KEYSTEAD: u32 = 990;
const SOFTHSM: u32 = 991;
/// What only the user `keystead` reads.
const KEYSTEADS: Access = Access { owner: KEYSTEAD, group: KEYSTEAD, mode: 0o400 };
const TOKENS: &str = "/var/lib/softhsm/tokens";

/// What only this test knows of the installation.
pub(super) struct Installation {
    pin: String,
}

impl Installation {
    /// Installs what was built into the folder `binaries`.
    pub(super) fn put_into(files: &Files, binaries: &Path) -> Result<Self> {
        files.copy(&binaries.join("keystead"), "/usr/bin/keystead", Access::PROGRAM)?;
        for plugin in ["libkeystead_plugin_file.so", "libkeystead_plugin_pkcs11.so"] {
            let there = format!("/usr/lib/keystead/plugins/{plugin}");
            files.copy(&binaries.join(plugin), &there, Access::PUBLIC)?;
        }
        let units = process::root().join("config");
        files.copy(&units.join("keystead.service"), SERVICE, Access::PUBLIC)?;
        files.copy(&units.join("keystead.socket"), SOCKET, Access::PUBLIC)?;
        users(files)?;
        certificates(files)?;
        key(files, "file", FILE_KEY)?;
        let pin = token(files)?;
        // What the comments of the unit tell an operator who has SoftHSM2.
        override_unit(
            files,
            "softhsm",
            "LoadCredential=pin:/etc/keystead/credentials/pin\n\
             ReadWritePaths=/var/lib/softhsm/tokens\nSupplementaryGroups=softhsm\n",
        )?;
        files.write(CONFIGURATION, &configuration()?, Access::PUBLIC)?;
        Ok(Self { pin })
    }

    /// Whether a text shows the PIN.
    pub(super) fn is_given_away_by(&self, text: &str) -> bool {
        text.contains(&self.pin)
    }
}

/// Writes a drop-in for the service.
pub(super) fn override_unit(files: &Files, name: &str, settings: &str) -> Result<()> {
    let path = format!("{SERVICE}.d/{name}.conf");
    files.write(&path, &format!("[Service]\n{settings}"), Access::PUBLIC)
}

/// Puts another key where the server looks for keys in files.
pub(super) fn add_key(files: &Files) -> Result<()> {
    key(files, "new", NEW_KEY)
}

/// Makes the configuration one that must be refused because of `word`, which is the key of no option.
pub(super) fn break_configuration(files: &Files, word: &str) -> Result<()> {
    files.write(CONFIGURATION, &format!("{}{word}: 1\n", configuration()?), Access::PUBLIC)
}

/// Undoes [`break_configuration`].
pub(super) fn mend_configuration(files: &Files) -> Result<()> {
    files.write(CONFIGURATION, &configuration()?, Access::PUBLIC)
}

fn configuration() -> Result<String> {
    Ok(format!(
        r#"listen: "127.0.0.1:2407"
metrics_listen: "127.0.0.1:2406"
auth_cert: /etc/keystead/server.pem
auth_key: /etc/keystead/server-key.pem
client_ca: /etc/keystead/ca.pem
private_key_stores:
- {{plugin: file, name: files, config: {{dir: /etc/keystead/keys}}}}
- plugin: pkcs11
  name: token
  config: {{module: {}, uris: ["pkcs11:token=keys;object=www"]}}
  secrets: {{pin: {{credential: pin}}}}
"#,
        system::softhsm_module()?.display()
    ))
}

fn users(files: &Files) -> Result<()> {
    let passwd = format!(
        "root:x:0:0::/root:/bin/sh\nkeystead:x:{KEYSTEAD}:{KEYSTEAD}::/etc/keystead:/usr/sbin/nologin\n\
         nobody:x:65534:65534::/:/usr/sbin/nologin\n"
    );
    let group = format!("root:x:0:\nkeystead:x:{KEYSTEAD}:\nsofthsm:x:{SOFTHSM}:\nnogroup:x:65534:\n");
    files.write("/etc/passwd", &passwd, Access::PUBLIC)?;
    files.write("/etc/group", &group, Access::PUBLIC)
}

/// Makes an authority, and one certificate for the server and its clients alike.
fn certificates(files: &Files) -> Result<()> {
    const OPTIONS: &str = "[req]\nprompt = no\ndistinguished_name = name\n[name]\nCN = keys.test\n\
        [authority]\nbasicConstraints = critical, CA:TRUE\nkeyUsage = critical, keyCertSign\n\
        [machine]\nbasicConstraints = critical, CA:FALSE\nkeyUsage = critical, digitalSignature\n\
        extendedKeyUsage = serverAuth, clientAuth\nsubjectAltName = DNS:keys.test\n";
    files.write("/etc/keystead/openssl.cnf", OPTIONS, Access::PUBLIC)?;
    let at = |name: &str| files.path(&format!("/etc/keystead/{name}"));
    let make = |extensions: &str, name: &str| {
        let mut command = Command::new("openssl");
        command.args(["req", "-x509", "-days", "90", "-noenc", "-newkey", "ec"]);
        command.args(["-pkeyopt", "ec_paramgen_curve:P-256", "-extensions", extensions, "-config"]);
        command.arg(at("openssl.cnf")).arg("-out").arg(at(&format!("{name}.pem")));
        command.arg("-keyout").arg(at(&format!("{name}-key.pem")));
        command
    };
    process::output(&mut make("authority", "ca"))?;
    let mut server = make("machine", "server");
    process::output(server.arg("-CA").arg(at("ca.pem")).arg("-CAkey").arg(at("ca-key.pem")))?;
    files.give("/etc/keystead/server-key.pem", KEYSTEADS)
}

/// Makes a key in a file where the server looks for such, and its public half.
fn key(files: &Files, name: &str, public: &str) -> Result<()> {
    let private =
        process::output(Command::new("openssl").args(["genpkey", "-quiet", "-algorithm", "ed25519"]))?;
    let public_half =
        process::output_for(Command::new("openssl").args(["pkey", "-pubout"]), &private.stdout)?;
    files.write(public, &public_half.stdout, Access::PUBLIC)?;
    files.write(&format!("/etc/keystead/keys/{name}.key"), &private.stdout, KEYSTEADS)
}

/// Makes a token with a key inside where SoftHSM2 has its tokens, and gives its PIN, which is in a file as well.
fn token(files: &Files) -> Result<String> {
    let tokens = files.folder(TOKENS)?;
    files.write("/etc/softhsm/softhsm2.conf", &softhsm(Path::new(TOKENS)), Access::PUBLIC)?;
    let pin = random_pin()?;
    files.write("/etc/keystead/credentials/pin", &pin, Access::SECRET)?;
    // The same, as seen from here.
    let outside = "/etc/softhsm/outside.conf";
    files.write(outside, &softhsm(&tokens), Access::PUBLIC)?;
    let tool = |words: &[&str]| -> Result<process::Output> {
        let mut command = Command::new("pkcs11-tool");
        command.arg("--module").arg(system::softhsm_module()?).args(words);
        command.env("PIN", &pin).env("SOFTHSM2_CONF", files.path(outside));
        process::output(&mut command)
    };
    let der = files.path("/etc/keystead/token.der").display().to_string();
    tool(&["--init-token", "--slot-index", "0", "--label", "keys", "--so-pin", "env:PIN"])?;
    tool(&["--login", "--login-type", "so", "--so-pin", "env:PIN", "--init-pin", "--new-pin", "env:PIN"])?;
    let new = ["--keypairgen", "--key-type", "EC:prime256v1", "--id", "01", "--label", "www"];
    tool(&[&["--login", "--pin", "env:PIN"], &new[..]].concat())?;
    tool(&["--read-object", "--type", "pubkey", "--id", "01", "--output-file", &der])?;
    let public =
        process::output(Command::new("openssl").args(["pkey", "-pubin", "-inform", "DER", "-in", &der]))?;
    files.write(TOKEN_KEY, &public.stdout, Access::PUBLIC)?;
    // As on Debian: the folder belongs to a group, and what is in it to whoever made it.
    process::output(
        Command::new("chown").arg("--recursive").arg(format!("{KEYSTEAD}:{SOFTHSM}")).arg(&tokens),
    )?;
    files.give(TOKENS, Access { owner: 0, group: SOFTHSM, mode: 0o2770 })?;
    files.give("/etc/softhsm", Access { owner: 0, group: SOFTHSM, mode: 0o750 })?;
    Ok(pin)
}

fn softhsm(tokens: &Path) -> String {
    format!("directories.tokendir = {}\nlog.level = ERROR\n", tokens.display())
}

/// Sixteen digits from the kernel, which nothing else in a journal is.
fn random_pin() -> Result<String> {
    let source = Path::new("/dev/urandom");
    let mut bytes = [0; 16];
    File::open(source)
        .and_then(|mut file| file.read_exact(&mut bytes))
        .map_err(|error| Failure::file("read", source, &error))?;
    Ok(bytes.iter().map(|byte| char::from(b'0' + byte % 10)).collect())
}
