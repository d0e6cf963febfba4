//! Finds, checks, loads and distrusts key plugins.
//!
//! ```text
//! search -> load (one descriptor: owner, mode, hash, symbols, then code) -> native (the C table as an `Instance`)
//!        -> store (lanes, deadlines, validated keys) -> verify (does the key do what it says?)
//! ```
//!
//! The server sees three things: a [`Host`], which holds what the whole process shares; a [`Store`], one plugin with one
//! configuration; and a [`Key`] of a store. Whatever a plugin says is checked before it is believed, its text is cut
//! and escaped, and its calls can hang without hanging anything else.
//!
//! This crate holds the host's only unsafe code: calling a plugin, and verifying with AWS-LC.

mod expiring;
mod failure;
mod instance;
mod lanes;
mod latch;
mod load;
mod native;
mod outbound;
mod process;
mod quota;
mod reach;
mod search;
mod services;
mod store;
#[cfg(feature = "test-support")]
pub mod testing;
mod threads;
mod turns;
mod verify;
mod waiting;
#[cfg(feature = "wasm")]
mod wasm;

#[cfg(feature = "wasm")]
use std::sync::OnceLock;
use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError, RwLock},
};

use tokio::task::spawn_blocking;

pub use failure::{Class, Failure, tame};
pub use instance::{Description, Finding};
pub use keystead_plugin_api::{Algorithm, CallClass, Input, Isolation, Severity, Vendor, algorithm::Family};
pub use outbound::{ClientCertificate, Grant, Network, Origin};
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub use process::fuzzing;
pub use process::{Launcher, ProcessStatus, Surroundings, process_main};
pub use search::{Found, plugin_name, search_path};
pub use services::Secrets;
pub use store::{Key, Limits, Listing, Load, Proof, Request, Store, StoreSpec, VerifySignatures};
pub use verify::PublicKey;

#[cfg(feature = "wasm")]
use crate::wasm::Sandbox;
use crate::{
    latch::Latch,
    load::{FileIdentity, Opened, Plugin},
    process::{PluginFile, Processes},
    turns::Turns,
};

/// What the stores of one process share: loaded plugins, refused credentials, and the bound on inline calls.
pub struct Host {
    settings: RwLock<Settings>,
    /// By device and inode, with those that were refused after their code had run.
    plugins: Mutex<BTreeMap<FileIdentity, Loaded>>,
    latch: Arc<Latch>,
    turns: Arc<Turns>,
    processes: Processes,
    #[cfg(feature = "wasm")]
    sandbox: OnceLock<Result<Arc<Sandbox>, String>>,
}

/// What became of a library whose code has run.
type Loaded = Result<Arc<Plugin>, Failure>;

/// How plugins are found and run.
#[derive(Clone, Debug, Default)]
#[expect(clippy::exhaustive_structs, reason = "the server fills it in as a literal")]
pub struct Settings {
    /// Directories to look in, and files of plugins, in order; see [`search_path`].
    pub path: Vec<PathBuf>,
    /// SHA-256 that a plugin's file must have, by the plugin's name.
    pub sha256: BTreeMap<String, [u8; 32]>,
    /// Whether a plugin without an entry in `sha256` is refused.
    pub require_sha256: bool,
    /// How many inline calls run at once in the whole process. Keep it below the number of the runtime's workers: then
    /// inline calls that hang can't take all of them.
    pub inline_calls: usize,
    /// How processes for plugins are started. Without it, every plugin runs in this process.
    pub launcher: Option<Launcher>,
    /// Where compiled components are kept, a directory of this user alone; without one, each start compiles them anew.
    pub cache: Option<PathBuf>,
}

impl Host {
    /// A host with nothing loaded yet.
    #[must_use]
    pub fn new(settings: Settings) -> Arc<Self> {
        Arc::new(Self {
            turns: Turns::new(settings.inline_calls),
            latch: Arc::new(Latch::new()),
            plugins: Mutex::default(),
            processes: Processes::default(),
            #[cfg(feature = "wasm")]
            sandbox: OnceLock::new(),
            settings: RwLock::new(settings),
        })
    }

    /// Takes another search path and other hashes, for the stores that are opened from now on. The bound on inline
    /// calls stays as it is.
    pub fn configure(&self, settings: Settings) {
        *self.settings.write().unwrap_or_else(PoisonError::into_inner) = settings;
    }

    /// How each process for plugins is, by its name.
    #[must_use]
    pub fn processes(&self) -> Vec<ProcessStatus> {
        self.processes.status()
    }

    fn settings(&self) -> Settings {
        self.settings.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Every plugin on the search path, loaded, or why it is refused. A name that is found twice is listed twice, but
    /// the first is the one that serves. With a launcher, each is loaded in a process of its own.
    pub async fn plugins(self: &Arc<Self>) -> Vec<Found> {
        let Settings { path, launcher, .. } = self.settings();
        let mut plugins = Vec::new();
        for (name, file) in search::all(&path) {
            let examined = self.examine(&name, file.clone());
            let description = match (examined, &launcher) {
                (Err(failure), _) => Err(failure),
                (Ok(plugin), Some(launcher)) if !plugin.is_component() => {
                    process::describe(launcher, &plugin).await
                }
                (Ok(plugin), _) => self.load_elsewhere(plugin).await,
            };
            plugins.push(Found { name, file, description });
        }
        plugins
    }

    async fn load_elsewhere(self: &Arc<Self>, plugin: PluginFile) -> Result<Description, Failure> {
        let host = Arc::clone(self);
        let loaded =
            spawn_blocking(move || host.load(&plugin).map(|plugin| plugin.description.clone())).await;
        loaded.unwrap_or_else(|_| Err(Failure::internal("loading it panicked")))
    }

    /// Loads the first plugin of a name on the search path, or hands out the one loaded before.
    fn plugin(&self, name: &str) -> Result<Arc<Plugin>, Failure> {
        self.load(&self.locate(name)?)
    }

    /// The first plugin of a name on the search path: a file that can be trusted by its owner and mode.
    fn locate(&self, name: &str) -> Result<PluginFile, Failure> {
        self.examine(name, search::first(&self.settings().path, name)?)
    }

    fn examine(&self, name: &str, file: PathBuf) -> Result<PluginFile, Failure> {
        let sha256 = self.pin(name)?;
        let identity = Opened::open(&file)?.identity();
        Ok(PluginFile { name: name.to_owned(), file, sha256, identity })
    }

    fn load(&self, plugin: &PluginFile) -> Result<Arc<Plugin>, Failure> {
        match plugin.is_component() {
            true => self.load_component(plugin),
            false => self.load_library(plugin),
        }
    }

    /// A file with new content is a new plugin here, which a library can't be.
    #[cfg(feature = "wasm")]
    fn load_component(&self, plugin: &PluginFile) -> Result<Arc<Plugin>, Failure> {
        let opened = Opened::open(&plugin.file)?;
        let identity = opened.identity();
        let content = opened.component(plugin.sha256.as_ref())?;
        let mut plugins = self.plugins.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(Ok(known)) = plugins.get(&identity)
            && known.pinned(&plugin.file, Some(&content.sha256)).is_ok()
        {
            return Ok(Arc::clone(known));
        }
        let cache = self.settings().cache;
        let sandbox = self.sandbox.get_or_init(|| Sandbox::new(cache)).clone();
        let loaded = Arc::new(content.load(&sandbox.map_err(Failure::internal)?)?);
        plugins.insert(identity, Ok(Arc::clone(&loaded)));
        Ok(loaded)
    }

    #[cfg(not(feature = "wasm"))]
    fn load_component(&self, plugin: &PluginFile) -> Result<Arc<Plugin>, Failure> {
        let file = plugin.file.display();
        Err(Failure::invalid(format!("{file}: this server was built without the sandbox for components")))
    }

    fn load_library(&self, plugin: &PluginFile) -> Result<Arc<Plugin>, Failure> {
        let opened = Opened::open(&plugin.file)?;
        let mut plugins = self.plugins.lock().unwrap_or_else(PoisonError::into_inner);
        let identity = opened.identity();
        if let Some(known) = plugins.get(&identity) {
            let known = known.clone()?;
            known.pinned(&plugin.file, plugin.sha256.as_ref())?;
            return Ok(known);
        }
        let loaded = opened.check(plugin.sha256.as_ref())?.map()?.examine().map(Arc::new);
        plugins.insert(identity, loaded.clone());
        loaded
    }

    fn pin(&self, name: &str) -> Result<Option<[u8; 32]>, Failure> {
        let settings = self.settings();
        let pin = settings.sha256.get(name).copied();
        if pin.is_none() && settings.require_sha256 {
            return Err(Failure::denied(format!(
                "plugin `{name}` has no entry in `plugins.sha256`, and `plugins.require_sha256` is on"
            )));
        }
        Ok(pin)
    }
}
