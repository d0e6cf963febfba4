//! Keystead in a machine, as an operator installs it: the units of `config/`, a user, certificates, and a key in a file
//! and one in a token.

use std::path::Path;
use std::process::Command;

use super::files::{Access, Files};
use crate::authority::{Authority, Usage};
use crate::failure::Result;
use crate::key_pair::{self, KeyPair};
use crate::token::{self, Key, Places, Token};
use crate::workspace::{self, Programs};
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
/// The one that [`add_key`] adds.
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
/// The key in the token.
const KEY: Key = Key::p256("www", "01");

/// Installs what was built, and gives the token.
pub(super) fn put_into(files: &Files, programs: &Programs) -> Result<Token> {
    files.copy(&programs.path("keystead"), "/usr/bin/keystead", Access::PROGRAM)?;
    let plugins = files.folder("/usr/lib/keystead/plugins")?;
    for name in ["file", "pkcs11"] {
        programs.install_plugin(name, &plugins)?;
    }
    let units = workspace::root().join("config");
    files.copy(&units.join("keystead.service"), SERVICE, Access::PUBLIC)?;
    files.copy(&units.join("keystead.socket"), SOCKET, Access::PUBLIC)?;
    users(files)?;
    certificates(files)?;
    key(files, "file", FILE_KEY)?;
    let token = token(files)?;
    // What the comments of the unit tell an operator who has SoftHSM2.
    override_unit(
        files,
        "softhsm",
        "LoadCredential=pin:/etc/keystead/credentials/pin\n\
         ReadWritePaths=/var/lib/softhsm/tokens\nSupplementaryGroups=softhsm\n",
    )?;
    files.write(CONFIGURATION, &configuration()?, Access::PUBLIC)?;
    Ok(token)
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
  # After a restart comes at once what was asked meanwhile: 300 calls and more, which the usual queue would shed in part.
  limits: {{queue: 1024}}
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
    let authority = Authority::create(&files.folder("/etc/keystead")?, "Machine test CA")?;
    authority.issue("server", "keys.test", Usage::Both)?;
    files.give("/etc/keystead/server-key.pem", KEYSTEADS)
}

/// Makes a key in a file where the server looks for such, and its public half.
fn key(files: &Files, name: &str, public: &str) -> Result<()> {
    let pair = KeyPair::generate(key_pair::ED25519)?;
    files.write(public, &pair.public, Access::PUBLIC)?;
    files.write(&format!("/etc/keystead/keys/{name}.key"), &pair.private, KEYSTEADS)
}

/// Makes a token with a key inside where SoftHSM2 has its tokens; its PIN is where root keeps credentials.
fn token(files: &Files) -> Result<Token> {
    files.write("/etc/softhsm/softhsm2.conf", &token::configuration(Path::new(TOKENS)), Access::PUBLIC)?;
    let places = Places {
        tokens: files.folder(TOKENS)?,
        // The same, as seen from here.
        configuration: files.path("/etc/softhsm/outside.conf"),
        pin: files.folder("/etc/keystead/credentials")?.join("pin"),
    };
    // As on Debian: the folder belongs to a group, and what is in it to whoever made it.
    let mut chown = Command::new("chown");
    chown.arg("--recursive").arg(format!("{KEYSTEAD}:{SOFTHSM}")).arg(&places.tokens);
    let token = Token::create("keys", places)?;
    token.generate(&KEY)?;
    token.write_public_key(&KEY, &files.path(TOKEN_KEY))?;
    process::output(&mut chown)?;
    files.give(TOKENS, Access { owner: 0, group: SOFTHSM, mode: 0o2770 })?;
    files.give("/etc/softhsm", Access { owner: 0, group: SOFTHSM, mode: 0o750 })?;
    Ok(token)
}
