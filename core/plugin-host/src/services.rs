//! What the host offers to a plugin: log, configuration, secrets, news of changed keys, the memory of refused
//! credentials. One set for every store; it lives until the process ends, because a plugin may call it at any time.
//!
//! [`Services`] is the host's side where the configuration is. A plugin in a process of its own talks to a side there
//! that passes everything on.

mod extensions;
mod table;

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Instant,
};

use keystead_plugin_api::{Code, Error};
use serde::{Deserialize, Serialize};
use tokio::{runtime::Handle, sync::Notify};
use zeroize::Zeroizing;

use crate::{
    failure::tame,
    latch::{Digest, Latch},
    outbound::{Grant, by_the_system},
    reach::{Ask, Reach, Reached},
};

#[cfg(feature = "wasm")]
pub(crate) use table::config_at;
pub(crate) use table::table;

/// How many secrets one store may be presenting at once; there is one for each of its tokens.
const PRESENTING_MAX: usize = 1024;

/// How many refused secrets are remembered for one store. Once there are as many, every further one counts as refused:
/// a plugin that guesses gets no further, and no memory.
const REFUSALS_MAX: usize = 1024;

/// Where a store's secrets come from; read afresh at each call.
pub trait Secrets: Send + Sync {
    /// The value of a secret; `None` where the configuration names none.
    ///
    /// # Errors
    ///
    /// Where its source can't be read: a sentence without the secret.
    fn read(&self, name: &str) -> Option<Result<Zeroizing<Vec<u8>>, String>>;

    /// Whether a sandboxed plugin may have its value; where not, it is used by the host alone.
    fn exposed(&self, name: &str) -> bool {
        let _ = name;
        false
    }
}

/// What the host offers to one store, wherever the plugin runs. Calls come from any thread, at any time.
pub(crate) trait HostSide: Send + Sync {
    /// Whether events of a level are wanted.
    fn wants(&self, level: u32) -> bool;

    /// Takes an event.
    fn log(&self, event: &Event<'_>);

    /// The whole configuration as JSON; `None` once the store is closed.
    fn config(&self) -> Option<Zeroizing<Vec<u8>>>;

    /// The value of a secret, read afresh; `None` where the configuration names none.
    fn secret(&self, name: &str) -> Option<Result<Zeroizing<Vec<u8>>, String>>;

    /// The plugin says that its keys have changed.
    fn keys_changed(&self);

    /// Whether this token has refused this secret before. If not, the plugin is about to present it.
    fn was_refused(&self, token: &[u8], secret: &[u8]) -> bool;

    /// What came of presenting it.
    fn presented(&self, token: &[u8], secret: &[u8], accepted: bool);

    /// What the store reaches, and the runtime to do it on; `None` once it is closed, and where the host is elsewhere.
    fn reaching(&self) -> Option<(Arc<Reach>, Handle)>;

    /// Has the host do what a plugin can't or mustn't do itself, until `deadline`. Blocks.
    fn reach(&self, ask: Ask, deadline: Instant) -> Result<Reached, Error> {
        let closed = || Error::new(Code::Unavailable, "the store is closed");
        let (reach, runtime) = self.reaching().ok_or_else(closed)?;
        // Where waiting isn't allowed, on the lane of inline calls, tokio panics.
        let forbidden = Err(Error::new(Code::Internal, "a call of class inline may not wait for the host"));
        contain(forbidden, || runtime.block_on(reach.ask(ask, deadline)))
    }
}

/// One event of a plugin's log; text of a stranger.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
pub(crate) struct Event<'a> {
    pub(crate) level: u32,
    #[serde(with = "serde_bytes")]
    pub(crate) target: &'a [u8],
    #[serde(with = "serde_bytes")]
    pub(crate) message: &'a [u8],
    #[serde(with = "serde_bytes")]
    pub(crate) fields: &'a [u8],
    #[serde(with = "serde_bytes")]
    pub(crate) request: &'a [u8],
}

/// The host's side of one store, in the process that has the configuration.
pub(crate) struct Services {
    store: String,
    plugin: String,
    private: Mutex<Option<Private>>,
    latch: Arc<Latch>,
    /// Tokens and secrets that are being presented, and of which nothing came back yet, by the latch's digest.
    presenting: Mutex<Vec<Digest>>,
    /// How many it has added to the latch.
    refusals: AtomicUsize,
    changed: Notify,
    /// Where what the store reaches is waited for.
    runtime: OnceLock<Handle>,
}

/// What is forgotten when the store is closed.
#[derive(Clone)]
struct Private {
    config: Zeroizing<Vec<u8>>,
    secrets: Arc<dyn Secrets>,
    reach: Arc<Reach>,
}

impl Services {
    pub(crate) fn new(
        store: &str,
        plugin: &str,
        config: &serde_json::Value,
        (secrets, grants): (Box<dyn Secrets>, Vec<Grant>),
        latch: Arc<Latch>,
    ) -> &'static Self {
        let config = Zeroizing::new(config.to_string().into_bytes());
        let secrets: Arc<dyn Secrets> = secrets.into();
        let reach = Arc::new(Reach::new(store, grants, Arc::clone(&secrets), &by_the_system()));
        Box::leak(Box::new(Self {
            store: store.to_owned(),
            plugin: plugin.to_owned(),
            private: Mutex::new(Some(Private { config, secrets, reach })),
            latch,
            presenting: Mutex::default(),
            refusals: AtomicUsize::new(0),
            changed: Notify::new(),
            runtime: OnceLock::new(),
        }))
    }

    /// What the store reaches is waited for on this runtime from now on.
    pub(crate) fn run_on(&self, runtime: Handle) {
        let _ = self.runtime.set(runtime); // once: a store that is opened again has one
    }

    /// Waits until the plugin says that its keys have changed.
    pub(crate) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Forgets the configuration, which may hold secrets, and the way to the secrets, once the store is closed.
    pub(crate) fn forget(&self) {
        *self.private.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    fn private(&self) -> Option<Private> {
        self.private.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The store is open: whatever was presented for that was accepted.
    pub(crate) fn opened(&self) {
        self.presenting().clear();
    }

    /// Whether a secret is being presented, and nothing came of it yet.
    pub(crate) fn is_presenting(&self) -> bool {
        !self.presenting().is_empty()
    }

    /// The plugin's process has died. What it was presenting to a token counts as refused, since the token may have
    /// counted it. Answers whether there was any.
    pub(crate) fn died(&self) -> bool {
        let presenting = std::mem::take(&mut *self.presenting());
        presenting.iter().for_each(|digest| self.refuse(*digest));
        !presenting.is_empty()
    }

    fn refuse(&self, digest: Digest) {
        if self.refusals.load(Ordering::Relaxed) < REFUSALS_MAX && self.latch.remember(digest) {
            self.refusals.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn presenting(&self) -> MutexGuard<'_, Vec<Digest>> {
        self.presenting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl HostSide for Services {
    fn wants(&self, level: u32) -> bool {
        macro_rules! enabled {
            ($level:ident) => {
                tracing::enabled!(target: "keystead::plugin", tracing::Level::$level)
            };
        }
        match level {
            1 => enabled!(ERROR),
            2 => enabled!(WARN),
            3 => enabled!(INFO),
            4 => enabled!(DEBUG),
            _ => enabled!(TRACE),
        }
    }

    fn log(&self, event: &Event<'_>) {
        let (plugin, store) = (&self.plugin, &self.store);
        let (module, message) = (tame(event.target, 128), tame(event.message, 1024));
        let (fields, request) = (tame(event.fields, 1024), tame(event.request, 128));
        macro_rules! event {
            ($level:ident) => {
                tracing::$level!(target: "keystead::plugin", plugin, store, request, module, fields, "{message}")
            };
        }
        match event.level {
            1 => event!(error),
            2 => event!(warn),
            3 => event!(info),
            4 => event!(debug),
            _ => event!(trace),
        }
    }

    fn config(&self) -> Option<Zeroizing<Vec<u8>>> {
        Some(self.private()?.config)
    }

    fn secret(&self, name: &str) -> Option<Result<Zeroizing<Vec<u8>>, String>> {
        let private = self.private()?;
        let secret = contain(Some(Err("reading it panicked".to_owned())), || private.secrets.read(name));
        if let Some(Err(error)) = &secret {
            tracing::warn!(
                store = self.store,
                secret = tame(name.as_bytes(), 64),
                "a secret can't be read: {error}"
            );
        }
        secret
    }

    fn keys_changed(&self) {
        self.changed.notify_one();
    }

    fn was_refused(&self, token: &[u8], secret: &[u8]) -> bool {
        let Some(digest) = self.latch.digest(&self.plugin, token, secret) else { return false };
        let mut presenting = self.presenting();
        let too_many =
            presenting.len() >= PRESENTING_MAX || self.refusals.load(Ordering::Relaxed) >= REFUSALS_MAX;
        let refused = too_many || self.latch.is_refused(digest);
        if !refused && !presenting.contains(&digest) {
            presenting.push(digest);
        }
        refused
    }

    fn presented(&self, token: &[u8], secret: &[u8], accepted: bool) {
        let Some(digest) = self.latch.digest(&self.plugin, token, secret) else { return };
        self.presenting().retain(|presenting| *presenting != digest);
        if !accepted {
            self.refuse(digest);
        }
    }

    fn reaching(&self) -> Option<(Arc<Reach>, Handle)> {
        Some((self.private()?.reach, self.runtime.get()?.clone()))
    }
}

/// Runs code of the server's, a subscriber or a source of secrets: a panic there must not end the process, which it
/// would at the boundary to the plugin.
fn contain<T>(otherwise: T, body: impl FnOnce() -> T) -> T {
    catch_unwind(AssertUnwindSafe(body)).unwrap_or(otherwise)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct NoSecrets;

    impl Secrets for NoSecrets {
        fn read(&self, _name: &str) -> Option<Result<Zeroizing<Vec<u8>>, String>> {
            None
        }
    }

    fn services(latch: &Arc<Latch>) -> &'static Services {
        Services::new(
            "store",
            "plugin",
            &serde_json::json!({}),
            (Box::new(NoSecrets), Vec::new()),
            Arc::clone(latch),
        )
    }

    #[test]
    fn a_plugin_that_presents_without_end_is_stopped_and_takes_no_more_memory() {
        let services = services(&Arc::new(Latch::new()));
        let allowed = (0..10_000_u32).filter(|pin| !services.was_refused(b"token", &pin.to_le_bytes()));
        assert_eq!(allowed.count(), PRESENTING_MAX);
        assert_eq!(services.presenting().len(), PRESENTING_MAX);
        services.opened();
        for _ in 0..10_000 {
            assert!(!services.was_refused(b"token", b"1234"), "one that is presented again counts once");
        }
    }

    #[test]
    fn a_plugin_that_guesses_is_refused_after_a_while_and_its_neighbour_is_not() {
        let latch = Arc::new(Latch::new());
        let (guessing, neighbour) = (services(&latch), services(&latch));
        (0..10_000_u32).for_each(|pin| guessing.presented(b"token", &pin.to_le_bytes(), false));
        assert_eq!(latch.len(), REFUSALS_MAX);
        assert!(guessing.was_refused(b"token", b"another"));
        assert!(!neighbour.was_refused(b"token", b"another"));
        assert!(
            neighbour.was_refused(b"token", &7_u32.to_le_bytes()),
            "what one token refused is known to all"
        );
    }

    #[test]
    fn a_refusal_that_is_told_again_and_again_counts_once() {
        let services = services(&Arc::new(Latch::new()));
        (0..10_000).for_each(|_| services.presented(b"token", b"1234", false));
        assert!(services.was_refused(b"token", b"1234"));
        assert!(!services.was_refused(b"token", b"4321"));
    }
}
