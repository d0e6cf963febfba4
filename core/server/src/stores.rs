//! The stores in service: each is opened, listed, proven and watched by a task of its own, and retried with back-off
//! while it is down. What they list together is the keyring.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use keystead_plugin_host::{Class, Failure, Finding, Host, Listing, Severity};
use tokio::task::JoinSet;

use crate::{
    config::{self, Prove},
    keyring::{Holder, Keyring},
    store::ManagedStore,
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
        let critical: Vec<_> = self.all.iter().filter(|store| store.is_critical()).collect();
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
            match ended {
                Ok(failure) => return Err(failure),
                Err(error) => tracing::error!(%error, "a store is no longer watched; restart the server"),
            }
        }
        std::future::pending().await
    }

    /// Closes every store within `grace`.
    pub async fn close(&self, grace: Duration) {
        let mut closing = JoinSet::new();
        for store in &self.all {
            let store = Arc::clone(store);
            closing.spawn(async move { store.store().close(grace).await });
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
                Err(failure) if self.store.is_critical() => return (self.store.name().to_owned(), failure),
                Err(failure) => self.down(failure).await,
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(BACK_OFF.1);
        }
    }

    /// Opens and serves; comes back only when opening or the first listing failed.
    async fn serve(&self) -> Result<std::convert::Infallible, Failure> {
        let started = Instant::now();
        self.store.ask(self.store.store().open()).await?;
        let mut generation = self.store.ask(self.store.store().health()).await.ok(); // before the listing, so that no change is missed
        self.list().await?;
        tracing::info!(
            store = self.store.name(),
            plugin = self.store.store().plugin(),
            keys = self.holders().len(),
            "the store serves, after {:.1?}",
            started.elapsed()
        );
        loop {
            let mut proofs = JoinSet::new(); // ended by being dropped, at the next listing
            if self.store.prove() == Prove::Background {
                proofs.spawn(prove_all(self.holders()));
            }
            self.changed(&mut generation).await;
            if let Err(failure) = self.list().await {
                generation = None; // the next look after its health lists again
                tracing::warn!(store = self.store.name(), "the keys can't be listed again: {failure}");
            }
        }
    }

    /// Waits until the listing has changed; meanwhile asks for the store's health.
    async fn changed(&self, generation: &mut Option<u64>) {
        loop {
            tokio::select! {
                () = self.store.store().keys_changed() => return,
                () = tokio::time::sleep(HEALTH_EVERY) => {}
            }
            if self.store.is_refused() {
                std::future::pending::<()>().await;
            }
            match self.store.ask(self.store.store().health()).await {
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
        let Listing { keys, findings, .. } = self.store.ask(self.store.store().keys()).await?;
        for finding in &findings {
            report(self.store.name(), finding);
        }
        let mut holders: Vec<Holder> =
            keys.into_iter().map(|key| Holder::new(Arc::clone(&self.store), key)).collect();
        if self.store.prove() == Prove::Start {
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

/// Has a key prove itself, unless it has; that it can't is for the log.
async fn prove(holder: &Holder) {
    if let Err(failure) = holder.prove(Instant::now() + PROOF_DEADLINE).await {
        let (store, key) = (holder.store().name(), holder.key().label());
        tracing::warn!(store, key, "the key could not prove itself: {failure}");
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
