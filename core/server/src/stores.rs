//! The stores in service: each is opened, listed, proven and watched by a task of its own, and retried with back-off
//! while it is down. What they list together is the keyring.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use keystead_plugin_host as host;
use keystead_plugin_host::{Class, Failure, Finding, Host, Key, Listing, Severity};
use tokio::task::JoinSet;
use zeroize::Zeroizing;

use crate::{
    config::{self, Operation, Prove},
    keyring::{Holder, Keyring},
};

/// How often a store is asked how it is.
const HEALTH_EVERY: Duration = Duration::from_secs(30);

/// The first and the longest pause before a store that is down is tried again.
const BACK_OFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// Between two proofs in the background: an HSM has better things to do.
const PROOF_EVERY: Duration = Duration::from_millis(100);

/// How long one proof may take.
const PROOF_DEADLINE: Duration = Duration::from_secs(30);

/// Every store of the configuration, and the keyring over them.
pub struct Stores {
    all: Vec<Arc<ManagedStore>>,
    keyring: ArcSwap<Keyring>,
}

/// A store with what the server decided about it.
pub struct ManagedStore {
    store: host::Store,
    operations: BTreeSet<Operation>,
    critical: bool,
    prove: Prove,
    deadline: Duration,
    proving: tokio::sync::Mutex<()>,
    state: Mutex<State>,
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

impl Stores {
    /// The stores of a configuration, none of them open.
    #[must_use]
    pub fn new(host: &Arc<Host>, stores: &[config::Store]) -> Arc<Self> {
        Arc::new(Self {
            all: stores.iter().map(|store| Arc::new(ManagedStore::new(host, store))).collect(),
            keyring: ArcSwap::from_pointee(Keyring::new([], stores.is_empty())),
        })
    }

    /// The stores, in the order of the configuration.
    #[must_use]
    pub fn all(&self) -> &[Arc<ManagedStore>] {
        &self.all
    }

    /// The keys that are served at this moment.
    #[must_use]
    pub fn keyring(&self) -> arc_swap::Guard<Arc<Keyring>> {
        self.keyring.load()
    }

    /// Whether the server can do its work: every critical store serves, or where none is critical at least one.
    #[must_use]
    pub fn are_ready(&self) -> bool {
        let critical: Vec<_> = self.all.iter().filter(|store| store.critical).collect();
        match critical.is_empty() {
            true => self.all.iter().any(|store| store.is_up()),
            false => critical.iter().all(|store| store.is_up()),
        }
    }

    /// Keeps every store in service until dropped.
    ///
    /// # Errors
    ///
    /// A critical store's first failure, with its name.
    pub async fn keep(self: Arc<Self>) -> Result<(), (String, Failure)> {
        let mut tasks = JoinSet::new();
        let lists = Arc::new(Mutex::new(vec![None; self.all.len()]));
        for (position, store) in self.all.iter().enumerate() {
            let keeper = Keeper {
                stores: Arc::clone(&self),
                store: Arc::clone(store),
                position,
                lists: Arc::clone(&lists),
            };
            tasks.spawn(keeper.run());
        }
        while let Some(ended) = tasks.join_next().await {
            if let Ok(failure) = ended {
                return Err(failure);
            }
        }
        std::future::pending().await
    }

    /// Closes every store within `grace`.
    pub async fn close(&self, grace: Duration) {
        let mut closing = JoinSet::new();
        for store in &self.all {
            let store = Arc::clone(store);
            closing.spawn(async move { store.store.close(grace).await });
        }
        closing.join_all().await;
    }
}

/// What each store lists; `None` until it has.
type Lists = Arc<Mutex<Vec<Option<Vec<Holder>>>>>;

/// The life of one store.
struct Keeper {
    stores: Arc<Stores>,
    store: Arc<ManagedStore>,
    position: usize,
    lists: Lists,
}

impl Keeper {
    /// Ends only with the failure of a critical store.
    async fn run(self) -> (String, Failure) {
        let mut pause = BACK_OFF.0;
        loop {
            match self.serve().await {
                Ok(never) => match never {},
                Err(failure) if self.store.critical => return (self.store.name().to_owned(), failure),
                Err(failure) => self.down(failure).await,
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(BACK_OFF.1);
        }
    }

    /// Opens and serves; comes back only when opening or the first listing failed.
    async fn serve(&self) -> Result<std::convert::Infallible, Failure> {
        let started = Instant::now();
        self.store.store.open().await?;
        let mut generation = self.store.store.health().await.ok(); // before the listing, so that no change is missed
        self.list().await?;
        tracing::info!(
            store = self.store.name(),
            plugin = self.store.store.plugin(),
            keys = self.holders().len(),
            "the store serves, after {:.1?}",
            started.elapsed()
        );
        let mut proofs = JoinSet::new();
        loop {
            if self.store.prove == Prove::Background {
                proofs.abort_all();
                proofs.spawn(prove_all(self.holders()));
            }
            self.changed(&mut generation).await;
            if let Err(failure) = self.list().await {
                tracing::warn!(store = self.store.name(), "the keys can't be listed again: {failure}");
            }
        }
    }

    /// Waits until the listing has changed; meanwhile asks for the store's health.
    async fn changed(&self, generation: &mut Option<u64>) {
        loop {
            tokio::select! {
                () = self.store.store.keys_changed() => return,
                () = tokio::time::sleep(HEALTH_EVERY) => {}
            }
            match self.store.store.health().await {
                Ok(now) => {
                    self.store.recovered();
                    if generation.replace(now) != Some(now) {
                        return;
                    }
                }
                Err(failure) => self.store.fell(failure),
            }
        }
    }

    async fn list(&self) -> Result<(), Failure> {
        let Listing { keys, findings, .. } = self.store.store.keys().await?;
        for finding in &findings {
            report(self.store.name(), finding);
        }
        let mut holders: Vec<Holder> =
            keys.into_iter().map(|key| Holder::new(Arc::clone(&self.store), key)).collect();
        if self.store.prove == Prove::Start {
            for holder in &holders {
                prove(holder).await;
            }
            holders.retain(|holder| !holder.is_disproven());
        }
        self.publish(holders);
        self.store.recovered();
        Ok(())
    }

    /// Joins this store's keys to those of the others, and swaps the keyring.
    fn publish(&self, holders: Vec<Holder>) {
        let mut lists = self.lists.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(list) = lists.get_mut(self.position) {
            *list = Some(holders);
        }
        let complete = lists.iter().all(Option::is_some);
        let keyring = Keyring::new(lists.iter().flatten().flatten().cloned(), complete);
        self.stores.keyring.store(Arc::new(keyring));
    }

    async fn down(&self, failure: Failure) {
        let hopeless = failure.class == Class::Credentials;
        self.store.fell(failure);
        if hopeless {
            // No second attempt with the same secret: it could lock the token. A new secret comes with a new start.
            std::future::pending::<()>().await;
        }
    }

    fn holders(&self) -> Vec<Holder> {
        let lists = self.lists.lock().unwrap_or_else(PoisonError::into_inner);
        lists.get(self.position).cloned().flatten().unwrap_or_default()
    }
}

async fn prove_all(holders: Vec<Holder>) {
    for holder in holders {
        prove(&holder).await;
        tokio::time::sleep(PROOF_EVERY).await;
    }
}

/// Has a key prove itself, unless it has. A key that is caught lying is not used any more.
async fn prove(holder: &Holder) {
    let deadline = Instant::now() + PROOF_DEADLINE;
    if let Err(failure) = holder.store().proof(holder.key(), deadline).await {
        if failure.class == Class::Internal {
            holder.disprove();
        }
        tracing::warn!(
            store = holder.store().name(),
            key = holder.key().label(),
            "the key could not prove itself: {failure}"
        );
    }
}

/// Logs a finding, one line.
pub(crate) fn report(store: &str, finding: &Finding) {
    let Finding { subject, failure, hint, .. } = finding;
    match finding.severity {
        Severity::Warning => tracing::warn!(store, subject, hint, "{failure}"),
        Severity::Error => tracing::warn!(store, subject, hint, "not served: {failure}"),
    }
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
            proving: tokio::sync::Mutex::default(),
            state: Mutex::default(),
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
        matches!(*self.lock(), State::Up)
    }

    /// Whether a key has to prove itself before it is used.
    pub(crate) fn wants_proof(&self, key: &Key) -> bool {
        self.prove != Prove::Never && !key.is_proven()
    }

    /// Has a key prove itself, unless it has by now; one key at a time.
    pub(crate) async fn proof(&self, key: &Arc<Key>, deadline: Instant) -> Result<(), Failure> {
        let _one_at_a_time = self.proving.lock().await;
        if key.is_proven() {
            return Ok(());
        }
        self.store.prove(key, deadline).await
    }

    fn recovered(&self) {
        let before = std::mem::replace(&mut *self.lock(), State::Up);
        if let State::Down(failure) = before {
            tracing::info!(store = self.name(), "the store is back; it was down because: {failure}");
        }
    }

    /// Notes that it is down; says so once for each reason.
    fn fell(&self, failure: Failure) {
        let before = std::mem::replace(&mut *self.lock(), State::Down(failure.clone()));
        if !matches!(before, State::Down(same) if same == failure) {
            tracing::warn!(store = self.name(), class = failure.class.name(), "the store is down: {failure}");
        }
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
struct Sources(std::collections::BTreeMap<String, config::SecretSource>);

impl host::Secrets for Sources {
    fn read(&self, name: &str) -> Option<Result<Zeroizing<Vec<u8>>, String>> {
        self.0.get(name).map(|source| source.read().map_err(|error| error.to_string()))
    }
}
