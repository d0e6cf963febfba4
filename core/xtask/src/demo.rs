//! `cargo xtask demo`: TLS handshakes whose signatures are made inside a token, from nothing to a page.
//!
//! ```text
//! curl, openssl  --TLS-->  edge  --Keyless SSL over mutual TLS-->  key server  --plugin-->  PKCS#11 token
//! ```
//!
//! Everything that is made lies in one temporary folder, which is removed at the end.

mod handshake;
mod metrics;
mod servers;
mod site;
mod story;

use std::path::{Path, PathBuf};

use crate::authority::{Authority, Identity, Usage};
use crate::failure::{Failure, Result};
use crate::interrupt::Interrupt;
use crate::token::{Places, Token};
use crate::workspace::Programs;
use crate::{file, system};
use handshake::Handshake;
use servers::{Servers, Setup};
use site::Site;
use story::{Notes, Story};

/// Name of the key server in its certificate.
const KEY_SERVER: &str = "keys.demo.test";
/// Label of the token.
const TOKEN: &str = "keystead-demo";

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
    let programs = story.step("Build the key server, its PKCS#11 plugin and the edge", |_| build(options))?;

    let folder = file::temporary_folder("demo")?;
    let setup = set_up(options, programs, folder.path(), &mut story)?;
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

fn build(options: &Options) -> Result<Programs> {
    Programs::build(&["keystead", "keystead-edge", &format!("keystead-plugin-{}", options.plugin)])
}

/// From the token to all that the servers need.
fn set_up(options: &Options, programs: Programs, folder: &Path, story: &mut Story) -> Result<Setup> {
    let token =
        story.step("Make a token, and keys inside it", |notes| make_token(&folder.join("token"), notes))?;
    let pki = story.step("Make certificates", |notes| Pki::create(folder, &token, notes))?;
    let plugins = story.step("Put the plugin into a directory of its own", |notes| {
        let plugins = file::make_folder(&folder.join("plugins"))?;
        notes.add(programs.install_plugin(options.plugin, &plugins)?.display());
        Ok(plugins)
    })?;
    Ok(Setup { folder: folder.to_owned(), programs, token, pki, plugins, plugin: options.plugin })
}

fn make_token(folder: &Path, notes: &mut Notes) -> Result<Token> {
    let folder = file::make_folder(folder)?;
    let tokens = file::make_folder(&folder.join("tokens"))?;
    let [configuration, pin] = ["softhsm2.conf", "pin"].map(|name| folder.join(name));
    let token = Token::create(TOKEN, Places { tokens, configuration, pin })?;
    notes.add(format!("SoftHSM2 token `{TOKEN}` in {}", folder.display()));
    for site in Site::ALL {
        notes.add(format!("{:<8} made inside: {}", site.key.key_type, token.generate(&site.key)?));
    }
    Ok(token)
}

/// The certificates of the demo.
struct Pki {
    /// Who vouches for the machines: the key server and the edge.
    machines: Authority,
    /// Who vouches for the sites, and whom the clients trust.
    sites: Authority,
    key_server: Identity,
    edge: Identity,
    /// Certificates over the token's keys, in the order of [`Site::ALL`].
    chains: Vec<PathBuf>,
}

impl Pki {
    fn create(folder: &Path, token: &Token, notes: &mut Notes) -> Result<Self> {
        let folder = file::make_folder(&folder.join("pki"))?;
        let authority = |name: &str| {
            let title = format!("Keystead demo authority of {name}");
            Authority::create(&file::make_folder(&folder.join(name))?, title)
        };
        let (machines, sites) = (authority("machines")?, authority("sites")?);
        let key_server = machines.issue("key-server", KEY_SERVER, Usage::Server)?;
        let edge = machines.issue("edge", "edge.demo.test", Usage::Client)?;
        notes.add(format!("{KEY_SERVER} and edge.demo.test, by the authority of machines"));
        let mut chains = Vec::new();
        for site in Site::ALL {
            let public_key = folder.join(format!("{}-public.pem", site.key.label));
            token.write_public_key(&site.key, &public_key)?;
            chains.push(sites.certify(site.name, &public_key)?);
            let (name, key_type) = (site.name, site.key.key_type);
            notes.add(format!("{name} over the token's {key_type} key, by the authority of sites"));
        }
        Ok(Self { machines, sites, key_server, edge, chains })
    }
}

fn shake_hands(servers: &Servers, notes: &mut Notes) -> Result<()> {
    for handshake in Handshake::ALL {
        notes.add(servers.shake(handshake)?);
    }
    Ok(())
}
