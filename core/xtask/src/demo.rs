//! `cargo xtask demo`: TLS handshakes whose signatures are made inside a token, from nothing to a page.
//!
//! ```text
//! curl, openssl  --TLS-->  edge  --Keyless SSL over mutual TLS-->  key server  --plugin-->  PKCS#11 token
//! ```
//!
//! Everything that is made lies in one temporary folder, which is removed at the end.

mod authority;
mod daemon;
mod handshake;
mod metrics;
mod servers;
mod site;
mod story;
mod token;

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::failure::{Failure, Result};
use crate::{process, system};
use authority::Authority;
use daemon::Interrupt;
use handshake::Handshake;
use servers::{Servers, Setup};
use site::Site;
use story::{Notes, Story};
use token::Token;

/// Name of the key server in its certificate.
const KEY_SERVER: &str = "keys.demo.test";

/// Plugins that the demo can be done with.
const PLUGINS: &[&str] = &["pkcs11"];

/// How the demo is done.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Options {
    keep: bool,
    plugin: &'static str,
}

impl Default for Options {
    fn default() -> Self {
        Self { keep: false, plugin: "pkcs11" }
    }
}

impl Options {
    /// Reads the words behind `demo`.
    pub(crate) fn parse(words: &[&str]) -> Result<Self> {
        let mut options = Self::default();
        let mut words = words.iter();
        while let Some(word) = words.next() {
            match *word {
                "--keep" => options.keep = true,
                "--plugin" => options.plugin = plugin(words.next().copied())?,
                other => return Err(Failure::usage(format!("unexpected argument `{other}`"))),
            }
        }
        Ok(options)
    }
}

fn plugin(name: Option<&str>) -> Result<&'static str> {
    let known = PLUGINS.iter().copied().find(|known| Some(*known) == name);
    known.ok_or_else(|| {
        let got = name.map_or_else(|| "nothing".to_owned(), |name| format!("`{name}`"));
        Failure::usage(format!("--plugin: expected one of {}, got {got}", PLUGINS.join(", ")))
    })
}

/// Does the demo, and fails unless everything about it was as it should be.
pub(crate) fn run(options: &Options) -> Result<()> {
    let interrupt = Interrupt::listen()?;
    let mut story = Story::begin("A TLS handshake signed inside a token that never gives its keys away.");
    system::ensure(system::FOR_DEMO)?;
    story.step("Build the key server, its PKCS#11 plugin and the edge", |_| build(options))?;

    let folder = tempfile::Builder::new()
        .prefix("keystead-demo-")
        .tempdir()
        .map_err(|error| Failure::new(format!("cannot make a temporary folder: {error}")))?;
    let setup = set_up(options, folder.path(), &mut story)?;
    let mut servers = Servers::start(setup, &interrupt, &mut story)?;
    story.step("Shake hands as any client would", |notes| shake_hands(&servers, notes))?;
    story.step("Look for the PIN where it must not be", |notes| servers.look_for_the_pin(notes))?;
    if options.keep {
        story.aside(&servers.things_to_try()?);
        interrupt.wait_unless(|| servers.have_ended())?;
    }
    story.step("Stop", |notes| servers.stop(notes))?;
    story.step("Clean up", |notes| {
        notes.add(format!("removed {}", folder.path().display()));
        folder.close().map_err(|error| Failure::new(format!("cannot remove the temporary folder: {error}")))
    })?;
    story.end("Done: every signature was made in the token, and every client was satisfied.");
    Ok(())
}

fn build(options: &Options) -> Result<()> {
    let plugin = format!("keystead-plugin-{}", options.plugin);
    let packages = ["--package", "keystead", "--package", "keystead-edge", "--package", &plugin];
    process::run(process::cargo().args(["build", "--locked"]).args(packages))
}

/// From the token to all that the servers need.
fn set_up(options: &Options, folder: &Path, story: &mut Story) -> Result<Setup> {
    let token = story.step("Make a token, and keys inside it", |notes| {
        let token = Token::create(&folder.join("token"))?;
        notes.add(format!("SoftHSM2 token `{}` in {}", token::LABEL, token.folder().display()));
        for site in Site::ALL {
            notes.add(format!("{:<8} made inside: {}", site.key_type, token.generate(site)?));
        }
        Ok(token)
    })?;
    let pki = story.step("Make certificates", |notes| Pki::create(folder, &token, notes))?;
    let plugins = story.step("Put the plugin into a directory of its own", |notes| {
        install_plugin(options.plugin, &folder.join("plugins"), notes)
    })?;
    Ok(Setup { folder: folder.to_owned(), token, pki, plugins, plugin: options.plugin })
}

/// The certificates of the demo.
struct Pki {
    /// Who vouches for the machines: the key server and the edge.
    machines: Authority,
    /// Who vouches for the sites, and whom the clients trust.
    sites: Authority,
    key_server: authority::Identity,
    edge: authority::Identity,
    /// Certificates over the token's keys, in the order of [`Site::ALL`].
    chains: Vec<PathBuf>,
}

impl Pki {
    fn create(folder: &Path, token: &Token, notes: &mut Notes) -> Result<Self> {
        let folder = make_folder(&folder.join("pki"))?;
        let machines = Authority::create(&folder, "machines")?;
        let sites = Authority::create(&folder, "sites")?;
        let key_server = machines.issue(KEY_SERVER, authority::Usage::Server)?;
        let edge = machines.issue("edge.demo.test", authority::Usage::Client)?;
        notes.add(format!("{KEY_SERVER} and edge.demo.test, by the authority of machines"));
        let mut chains = Vec::new();
        for site in Site::ALL {
            let chain = sites.certify(site.name, &token.public_key(site, &folder)?)?;
            notes.add(format!(
                "{} over the token's {} key, by the authority of sites",
                site.name, site.key_type
            ));
            chains.push(chain);
        }
        Ok(Self { machines, sites, key_server, edge, chains })
    }
}

fn install_plugin(name: &str, folder: &Path, notes: &mut Notes) -> Result<PathBuf> {
    let library = format!("libkeystead_plugin_{name}.so");
    let folder = make_folder(folder)?;
    let (from, to) = (process::built()?.join(&library), folder.join(&library));
    fs::copy(&from, &to).map_err(|error| Failure::file("copy", &from, &error))?;
    // The key server loads no code that others could have written.
    set_mode(&to, 0o644)?;
    notes.add(to.display());
    Ok(folder)
}

fn shake_hands(servers: &Servers, notes: &mut Notes) -> Result<()> {
    for handshake in Handshake::ALL {
        notes.add(servers.shake(handshake)?);
    }
    Ok(())
}

/// Makes a folder that only this user may write to.
fn make_folder(path: &Path) -> Result<PathBuf> {
    fs::create_dir_all(path).map_err(|error| Failure::file("make", path, &error))?;
    set_mode(path, 0o700)?;
    Ok(path.to_owned())
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).map_err(|error| Failure::file("write", path, &error))
}

/// Writes a file that only this user may read, from the first moment on.
fn write_secret(path: &Path, text: &str) -> Result<()> {
    use std::os::unix::fs::OpenOptionsExt;
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(|error| Failure::file("make", path, &error))?;
    io::Write::write_all(&mut file, text.as_bytes()).map_err(|error| Failure::file("write", path, &error))
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).map_err(|error| Failure::file("read", path, &error))
}

fn set_mode(path: &Path, mode: u32) -> Result<()> {
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
        .map_err(|error| Failure::file("set the mode of", path, &error))
}
