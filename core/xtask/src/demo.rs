//! `cargo xtask demo`: TLS handshakes whose signatures are made inside a token, from nothing to a page.
//!
//! ```text
//! curl, openssl  --TLS-->  edge  --Keyless SSL over mutual TLS-->  key server  --plugin-->  PKCS#11 token
//! ```
//!
//! With `--plugin c` the keys follow from a sealed seed, and the plugin is the example in C.
//!
//! Everything that is made lies in one temporary folder, which is removed at the end.

mod handshake;
mod keys;
mod metrics;
mod servers;
mod site;
mod story;

use std::path::{Path, PathBuf};

use crate::authority::{Authority, Identity, Usage};
use crate::failure::{Failure, Result};
use crate::interrupt::Interrupt;
use crate::workspace::Programs;
use crate::{file, system};
use keys::{Keys, Plugin};
use servers::{Servers, Setup};
use story::{Notes, Story};

/// Name of the key server in its certificate.
const KEY_SERVER: &str = "keys.demo.test";

/// How the demo is done.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Options {
    keep: bool,
    plugin: &'static Plugin,
}

impl Default for Options {
    fn default() -> Self {
        Self { keep: false, plugin: &Plugin::PKCS11 }
    }
}

impl Options {
    /// With the example of a plugin in C.
    pub(crate) const IN_C: Self = Self { keep: false, plugin: &Plugin::C };

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

fn plugin(name: Option<&str>) -> Result<&'static Plugin> {
    let known = Plugin::ALL.iter().copied().find(|known| Some(known.name) == name);
    known.ok_or_else(|| {
        let names: Vec<_> = Plugin::ALL.iter().map(|plugin| plugin.name).collect();
        let got = name.map_or_else(|| "nothing".to_owned(), |name| format!("`{name}`"));
        Failure::usage(format!("--plugin: expected one of {}, got {got}", names.join(", ")))
    })
}

/// Does the demo, and fails unless everything about it was as it should be.
pub(crate) fn run(options: &Options) -> Result<()> {
    let interrupt = Interrupt::listen()?;
    let plugin = options.plugin;
    let mut story = Story::begin(plugin.title);
    system::ensure(&[system::FOR_DEMO, plugin.needs].concat())?;
    let programs = story.step(plugin.building, |_| build(plugin))?;

    let folder = file::temporary_folder("demo")?;
    let setup = set_up(plugin, programs, folder.path(), &mut story)?;
    let mut servers = Servers::start(setup, &interrupt, &mut story)?;
    story.step("Shake hands as any client would", |notes| shake_hands(&servers, notes))?;
    let search = format!("Look for the {} where it must not be", plugin.secret);
    story.step(&search, |notes| servers.look_for_the_secret(notes))?;
    if options.keep {
        story.aside(&servers.things_to_try()?);
        interrupt.wait_unless(|| servers.have_ended())?;
    }
    story.step("Stop", |notes| servers.stop(notes))?;
    story.step("Clean up", |notes| {
        notes.add(format!("removed {}", folder.path().display()));
        folder.close().map_err(|error| Failure::new(format!("cannot remove the temporary folder: {error}")))
    })?;
    story.end(plugin.end);
    Ok(())
}

fn build(plugin: &Plugin) -> Result<Programs> {
    let packages: Vec<_> = ["keystead", "keystead-edge"].into_iter().chain(plugin.package).collect();
    Programs::build(&packages)
}

/// From the keys to all that the servers need.
fn set_up(plugin: &'static Plugin, programs: Programs, folder: &Path, story: &mut Story) -> Result<Setup> {
    let keys = story.step(plugin.making, |notes| (plugin.make)(folder, notes))?;
    let pki = story.step("Make certificates", |notes| Pki::create(folder, plugin.origin, &*keys, notes))?;
    let plugins = story.step("Put the plugin into a directory of its own", |notes| {
        let plugins = file::make_folder(&folder.join("plugins"))?;
        notes.add(keys.install_plugin(&programs, &plugins)?.display());
        Ok(plugins)
    })?;
    Ok(Setup { folder: folder.to_owned(), programs, keys, pki, plugins, plugin })
}

/// The certificates of the demo.
struct Pki {
    /// Who vouches for the machines: the key server and the edge.
    machines: Authority,
    /// Who vouches for the sites, and whom the clients trust.
    sites: Authority,
    key_server: Identity,
    edge: Identity,
    /// Certificates over the keys, in the order of the sites.
    chains: Vec<PathBuf>,
}

impl Pki {
    fn create(folder: &Path, origin: &str, keys: &dyn Keys, notes: &mut Notes) -> Result<Self> {
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
        for site in keys.sites() {
            let public_key = folder.join(format!("{}-public.pem", site.key.label));
            keys.write_public_key(site, &public_key)?;
            chains.push(sites.certify(site.name, &public_key)?);
            let (name, key_type) = (site.name, site.key.key_type);
            notes.add(format!("{name} over the {origin}'s {key_type} key, by the authority of sites"));
        }
        Ok(Self { machines, sites, key_server, edge, chains })
    }
}

fn shake_hands(servers: &Servers, notes: &mut Notes) -> Result<()> {
    for handshake in servers.handshakes() {
        notes.add(servers.shake(handshake)?);
    }
    Ok(())
}
