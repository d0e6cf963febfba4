//! One store as the server sees it: the plugin host's store, what the configuration decided about it, and how it is.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use keystead_plugin_host as host;
use keystead_plugin_host::{Class, Failure, Host, Key};
use zeroize::Zeroizing;

use crate::config::{self, Operation, Prove};

/// How long a store that didn't answer comes after others that hold the same key.
const SUSPECT_FOR: Duration = Duration::from_secs(30);

/// A store with what the server decided about it.
pub struct ManagedStore {
    store: host::Store,
    operations: BTreeSet<Operation>,
    critical: bool,
    prove: Prove,
    deadline: Duration,
    state: Mutex<State>,
    up: AtomicBool, // what `state` says, for every request to read
    refused: OnceLock<Failure>,
    suspect_since: Mutex<Option<Instant>>,
    suspect: AtomicBool, // whether there is a time in `suspect_since`, for every request to read
}

/// How a store is.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub enum State {
    /// It has not been tried yet.
    #[default]
    Opening,
    /// It serves.
    Up,
    /// It can't serve, for this reason.
    Down(Failure),
}

impl ManagedStore {
    /// A store as configured, not open yet.
    #[must_use]
    pub fn new(host: &Arc<Host>, config: &config::Store) -> Self {
        let spec = host::StoreSpec {
            name: config.name.clone(),
            plugin: config.plugin.clone(),
            config: config.config.clone(),
            secrets: Box::new(Sources(config.secrets.clone())),
            limits: host::Limits {
                lanes: config
                    .limits
                    .lanes
                    .and_then(|lanes| u32::try_from(lanes).ok())
                    .unwrap_or_else(default_lanes),
                queue: config.limits.queue,
            },
            verify_signatures: match config.verify_signatures {
                config::VerifySignatures::Auto => host::VerifySignatures::Rsa,
                config::VerifySignatures::On => host::VerifySignatures::Always,
                config::VerifySignatures::Off => host::VerifySignatures::Never,
            },
        };
        Self {
            store: host::Store::new(host, spec),
            operations: config.operations.clone(),
            critical: config.critical,
            prove: config.prove,
            deadline: config.limits.deadline,
            state: Mutex::default(),
            up: AtomicBool::new(false),
            refused: OnceLock::new(),
            suspect_since: Mutex::default(),
            suspect: AtomicBool::new(false),
        }
    }

    /// The name.
    #[must_use]
    pub fn name(&self) -> &str {
        self.store.name()
    }

    /// The open store.
    #[must_use]
    pub fn store(&self) -> &host::Store {
        &self.store
    }

    /// What it may be used for.
    #[must_use]
    pub fn operations(&self) -> &BTreeSet<Operation> {
        &self.operations
    }

    /// Whether the server can't do without it.
    #[must_use]
    pub fn is_critical(&self) -> bool {
        self.critical
    }

    /// When its keys have to prove themselves.
    #[must_use]
    pub fn prove(&self) -> Prove {
        self.prove
    }

    /// How long one request to it may take.
    #[must_use]
    pub fn deadline(&self) -> Duration {
        self.deadline
    }

    /// How it is.
    #[must_use]
    pub fn state(&self) -> State {
        self.lock().clone()
    }

    /// Whether it serves.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.up.load(Ordering::Relaxed)
    }

    /// Whether a key has to prove itself before it is used.
    pub(crate) fn wants_proof(&self, key: &Key) -> bool {
        self.prove != Prove::Never && !key.is_proven()
    }

    /// Makes a call to the backend, unless it has refused its credentials before: nothing presents them again.
    pub(crate) async fn ask<T>(&self, call: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
        if let Some(refused) = self.refused.get() {
            return Err(refused.clone());
        }
        let outcome = call.await;
        match &outcome {
            Ok(_) => self.suspect.store(false, Ordering::Relaxed),
            Err(failure) => self.failed(failure),
        }
        outcome
    }

    fn failed(&self, failure: &Failure) {
        match failure.class {
            Class::Credentials if self.refused.set(failure.clone()).is_ok() => self.fell(failure.clone()),
            Class::Deadline | Class::Unavailable => {
                *self.suspect_since.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
                self.suspect.store(true, Ordering::Relaxed);
            }
            _ => {}
        }
    }

    /// Whether requests should go to it before others that hold the key: it is up, and hasn't just let a request wait
    /// in vain.
    pub(crate) fn is_preferred(&self) -> bool {
        self.is_up() && !(self.suspect.load(Ordering::Relaxed) && self.is_suspect())
    }

    fn is_suspect(&self) -> bool {
        let since = *self.suspect_since.lock().unwrap_or_else(PoisonError::into_inner);
        since.is_some_and(|since| since.elapsed() < SUSPECT_FOR)
    }

    /// Whether the backend has refused its credentials; then nothing but a new start helps.
    pub(crate) fn is_refused(&self) -> bool {
        self.refused.get().is_some()
    }

    pub(crate) fn recovered(&self) {
        let before = self.set(State::Up);
        if let State::Down(failure) = before {
            tracing::info!(store = self.name(), "the store is back; it was down because: {failure}");
        }
    }

    /// Notes that it is down; says so once for each reason.
    pub(crate) fn fell(&self, failure: Failure) {
        let before = self.set(State::Down(failure.clone()));
        if !matches!(before, State::Down(same) if same == failure) {
            tracing::warn!(store = self.name(), class = failure.class.name(), "the store is down: {failure}");
        }
    }

    /// Answers the state before.
    fn set(&self, state: State) -> State {
        let mut current = self.lock();
        self.up.store(matches!(state, State::Up), Ordering::Relaxed);
        std::mem::replace(&mut *current, state)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Lanes of a store that sets none: what network HSMs want for their full throughput (20 to 30, by their vendors'
/// documents), which costs little where it is too many.
fn default_lanes() -> u32 {
    24
}

/// The secrets of a store, by name.
struct Sources(BTreeMap<String, config::SecretSource>);

impl host::Secrets for Sources {
    fn read(&self, name: &str) -> Option<Result<Zeroizing<Vec<u8>>, String>> {
        self.0.get(name).map(|source| source.read().map_err(|error| error.to_string()))
    }
}
