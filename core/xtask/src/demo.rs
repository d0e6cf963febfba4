//! `cargo xtask demo`: TLS handshakes whose signatures are made inside a token, from nothing to a page.
//!
//! ```text
//! curl, openssl  --TLS-->  edge  --Keyless SSL over mutual TLS-->  key server  --plugin-->  PKCS#11 token
//! ```
//!
//! With `--backend c` the keys follow from a sealed seed, and the plugin is the example in C. With `--backend azure` or
//! `gcp` they are in a fake of the cloud's service, and the plugin is a component.
//!
//! Everything that is made lies in one temporary folder, which is removed at the end.

mod cloud;
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
use keys::{Backend, Keys, Place};
use servers::{Servers, Setup};
use story::{Notes, Story};

/// Name of the key server in its certificate.
const KEY_SERVER: &str = "keys.demo.test";

/// How the demo is done.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Options {
    keep: bool,
    backend: &'static Backend,
}

impl Default for Options {
    fn default() -> Self {
        Self { keep: false, backend: &Backend::PKCS11 }
    }
}

impl Options {
    /// With each backend.
    pub(crate) fn all() -> impl Iterator<Item = Self> {
        Backend::ALL.iter().map(|backend| Self { keep: false, backend })
    }

    /// Reads the words behind `demo`.
    pub(crate) fn parse(words: &[&str]) -> Result<Self> {
        let mut options = Self::default();
        let mut words = words.iter();
        while let Some(word) = words.next() {
            match *word {
                "--keep" => options.keep = true,
                "--backend" => options.backend = backend(words.next().copied())?,
                other => return Err(Failure::usage(format!("unexpected argument `{other}`"))),
            }
        }
        Ok(options)
    }
}

fn backend(name: Option<&str>) -> Result<&'static Backend> {
    let known = Backend::ALL.iter().copied().find(|known| Some(known.name) == name);
    known.ok_or_else(|| {
        let names: Vec<_> = Backend::ALL.iter().map(|backend| backend.name).collect();
        let got = name.map_or_else(|| "nothing".to_owned(), |name| format!("`{name}`"));
        Failure::usage(format!("--backend: expected one of {}, got {got}", names.join(", ")))
    })
}

/// Does the demo, and fails unless everything about it was as it should be.
pub(crate) fn run(options: &Options) -> Result<()> {
    let interrupt = Interrupt::listen()?;
    let backend = options.backend;
    let mut story = Story::begin(backend.title);
    system::ensure(&[system::FOR_DEMO, backend.needs].concat())?;
    let programs = story.step(backend.building, |_| build(backend))?;

    let folder = file::temporary_folder("demo")?;
    let place = Place { folder: folder.path(), programs: &programs, interrupt: &interrupt };
    let keys = story.step(backend.making, |notes| (backend.make)(&place, notes))?;
    let setup = set_up(backend, programs, folder.path(), keys, &mut story)?;
    let mut servers = Servers::start(setup, &interrupt, &mut story)?;
    story.step("Shake hands as any client would", |notes| shake_hands(&servers, notes))?;
    let search = format!("Look for the {} where it must not be", backend.secret);
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
    story.end(backend.end);
    Ok(())
}

fn build(backend: &Backend) -> Result<Programs> {
    let packages: Vec<_> = ["keystead", "keystead-edge"].into_iter().chain(backend.package).collect();
    (backend.build)(&packages)
}

/// From the keys to all that the servers need.
fn set_up(
    backend: &'static Backend,
    programs: Programs,
    folder: &Path,
    keys: Box<dyn Keys>,
    story: &mut Story,
) -> Result<Setup> {
    let pki = story.step("Make certificates", |notes| Pki::create(folder, backend.origin, &*keys, notes))?;
    let plugins = story.step("Put the plugin into a directory of its own", |notes| {
        let plugins = file::make_folder(&folder.join("plugins"))?;
        notes.add(keys.install_plugin(&programs, &plugins)?.display());
        Ok(plugins)
    })?;
    Ok(Setup { folder: folder.to_owned(), programs, keys, pki, plugins, backend })
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
