//! Plugins in processes of their own: a vendor's library that crashes takes nobody along, and no other store's secrets
//! are within its reach.
//!
//! ```text
//! store -> remote (lanes, opened anew after a death) -> registry (who shares a process; restarts, breaker) -> launch
//!       -> link (calls in batches, distrusted answers) == wire, a socketpair == child (confined; the same loader)
//! ```

mod breaker;
mod calls;
mod child;
mod confine;
mod crash;
mod desk;
#[cfg(feature = "test-support")]
mod door;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod gate;
mod launch;
mod link;
mod registry;
mod remote;
mod wire;

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fmt,
    path::PathBuf,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use crate::{load::FileIdentity, search};

pub use child::process_main;
#[cfg(feature = "test-support")]
pub use door::InProcess;
pub(crate) use registry::{Placed, Processes, Wish, describe};
pub(crate) use remote::Remote;

/// Locks a mutex, whoever panicked with it.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The file of a plugin, and what makes it the one that is meant.
#[derive(Clone, Debug)]
pub(crate) struct PluginFile {
    pub(crate) name: String,
    pub(crate) file: PathBuf,
    pub(crate) sha256: Option<[u8; 32]>,
    pub(crate) identity: FileIdentity,
}

impl PluginFile {
    pub(crate) fn is_component(&self) -> bool {
        search::is_component(&self.file)
    }
}

/// How a process for plugins is started: a program that does nothing but call [`process_main`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_structs, reason = "the server fills it in as a literal")]
pub struct Launcher {
    /// The program; the server's own, so that host and child are always of one build.
    pub program: PathBuf,
    /// What makes it be a child. Never a secret.
    pub arguments: Vec<OsString>,
}

/// What the process of a store gets. Only stores that want the same share a process.
#[derive(Clone, Default, PartialEq, Eq)]
#[expect(clippy::exhaustive_structs, reason = "the server fills it in as a literal")]
pub struct Surroundings {
    /// Stores that name the same group share one process, whatever their plugins; without it, those of one plugin do
    /// whose configurations have one isolation group by the plugin's own word (one PKCS#11 module, for one).
    pub group: Option<String>,
    /// All that is in its environment. May hold what isn't for everybody's eyes.
    pub env: BTreeMap<String, String>,
    /// Its working directory; `/` without one.
    pub workdir: Option<PathBuf>,
    /// The user it runs as, by name or number; the server's own without one.
    pub user: Option<String>,
    /// Its supplementary groups, by name or number. Without any, and with a `user`, those of the user.
    pub groups: Vec<String>,
    /// The most memory that it may have, in bytes, all its stores together; [`Surroundings::MEMORY`] without one.
    pub memory: Option<u64>,
    /// Whether it may leave core dumps, which hold keys and PINs.
    pub core_dumps: bool,
    /// How long no call may come back while all lanes of a store are in one, before it is ended and started anew. Without
    /// one, as long as the plugin advises, or else [`Surroundings::STUCK_AFTER`].
    pub stuck_after: Option<Duration>,
}

/// How one process is.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ProcessStatus {
    /// What it is called in logs: the plugin, and what sets it apart from others of that plugin.
    pub name: String,
    /// The plugins in it.
    pub plugins: Vec<String>,
    /// The stores in it.
    pub stores: Vec<String>,
    /// Its id, while it runs.
    pub pid: Option<u32>,
    /// Since when it runs, or doesn't.
    pub since: SystemTime,
    /// How often it was started again after it had died.
    pub restarts: u64,
    /// How it died last, in one line.
    pub last_death: Option<String>,
}

impl Surroundings {
    /// [`Self::stuck_after`] where neither the configuration nor the plugin says: an HSM that fails over takes some 20 s,
    /// and this is 8 times what clients wait.
    pub const STUCK_AFTER: Duration = Duration::from_secs(60);

    /// [`Self::memory`] where the configuration says nothing: 1 GiB.
    pub const MEMORY: u64 = 1 << 30;
}

impl fmt::Debug for Surroundings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Surroundings")
            .field("group", &self.group)
            .field("env", &self.env.keys())
            .field("workdir", &self.workdir)
            .field("user", &self.user)
            .field("groups", &self.groups)
            .finish_non_exhaustive()
    }
}
