//! The stores in service: each is opened, listed, proven and watched by a task of its own, and retried with back-off
//! while it is down. What they list together is the keyring.
//!
//! A reload [prepares](Stores::prepare) what is new beside what serves, then [swaps](Stores::swap): the keyring changes
//! at one moment, and a store that went is closed when nobody uses it any more.

mod keeper;

use std::{
    collections::BTreeMap,
    panic::AssertUnwindSafe,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use futures_util::FutureExt;
use keystead_plugin_host::{Class, Failure, Host};
use tokio::{
    sync::watch,
    task::{AbortHandle, JoinSet, spawn_blocking},
    time::{sleep, timeout, timeout_at},
};

use crate::{
    config,
    failures::{Cause, Failures},
    keyring::{Holder, Keyring},
    metrics::Metrics,
    status::{self, KeyStatus, StoreState, StoreStatus},
    store::ManagedStore,
};
use keeper::{Keeper, Listed, Look, opened};

/// How often is looked whether a store that went is still used.
const DRAIN_EVERY: Duration = Duration::from_millis(20);

/// How long closing a store may take once nobody uses it.
const CLOSE_GRACE: Duration = Duration::from_secs(2);

/// Every store of the configuration, and the keyring over them.
pub struct Stores {
    host: Arc<Host>,
    metrics: Arc<Metrics>,
    entries: Mutex<Vec<Entry>>,
    keyring: ArcSwap<Keyring>,
    /// Requests for keys that no store has.
    missing: Failures,
    /// Stores of refused reloads whose backend refused their credentials.
    refused: Mutex<Vec<Arc<ManagedStore>>>,
    fatal: watch::Sender<Option<(String, Failure)>>,
    /// Tells that a store was tried.
    changes: watch::Sender<()>,
    /// Whether they were closed; then none is put into service any more. Changed with the entries locked.
    closed: AtomicBool,
}

/// One store in service.
struct Entry {
    store: Arc<ManagedStore>,
    /// What it lists; `None` until it has.
    list: Option<Vec<Holder>>,
    /// Asks its keeper to look at once, and tells that it has.
    look: Arc<Look>,
    keeper: Option<AbortHandle>,
}

/// What a configuration makes of the stores: those that stay as they are, and new ones, open and listed.
pub struct Prepared(Vec<Planned>);

enum Planned {
    Kept(Arc<ManagedStore>),
    Opened(Arc<ManagedStore>, Listed),
}

/// What a swap changed, by the names of stores.
#[derive(Clone, Debug, Default, serde::Deserialize, PartialEq, Eq, serde::Serialize)]
#[expect(clippy::exhaustive_structs, reason = "plain data; the names are those of the output")]
pub struct Change {
    /// Those that are new.
    pub added: Vec<String>,
    /// Those that were opened anew, because their settings or secrets changed.
    pub changed: Vec<String>,
    /// Those that are no more.
    pub removed: Vec<String>,
}

impl Stores {
    /// The stores of a configuration, none of them open.
    #[must_use]
    pub fn new(host: &Arc<Host>, metrics: &Arc<Metrics>, stores: &[config::Store]) -> Arc<Self> {
        let entries =
            stores.iter().map(|store| Entry::new(ManagedStore::new(host, store, metrics).into(), None));
        Arc::new(Self {
            host: Arc::clone(host),
            metrics: Arc::clone(metrics),
            entries: Mutex::new(entries.collect()),
            keyring: ArcSwap::from_pointee(Keyring::new([], stores.is_empty())),
            missing: Failures::new("none"),
            refused: Mutex::default(),
            fatal: watch::Sender::new(None),
            changes: watch::Sender::new(()),
            closed: AtomicBool::new(false),
        })
    }

    /// Keeps every store in service from now on.
    pub fn start(self: &Arc<Self>) {
        for entry in &mut *self.lock() {
            entry.keep(self, None);
        }
    }

    /// Waits until a critical store fails to open for the first time; answers its name and why.
    pub async fn critical_failure(&self) -> (String, Failure) {
        let mut fatal = self.fatal.subscribe();
        match fatal.wait_for(Option::is_some).await.map(|failure| failure.clone()) {
            Ok(Some(failure)) => failure,
            _ => std::future::pending().await, // the sender lives as long as this does
        }
    }

    /// The keys that are served at this moment.
    #[must_use]
    pub fn keyring(&self) -> arc_swap::Guard<Arc<Keyring>> {
        self.keyring.load()
    }

    /// Whether the server can do its work: every critical store serves, or where none is critical at least one.
    #[must_use]
    pub fn are_ready(&self) -> bool {
        let stores = self.all();
        let critical: Vec<_> = stores.iter().filter(|store| store.is_critical()).collect();
        match critical.is_empty() {
            true => stores.iter().any(|store| store.is_up()),
            false => critical.iter().all(|store| store.is_up()),
        }
    }

    /// How each store is, in the order of the configuration.
    #[must_use]
    pub fn status(&self) -> Vec<StoreStatus> {
        let stores = self.each(|entry| (Arc::clone(&entry.store), entry.list.as_ref().map_or(0, Vec::len)));
        stores.iter().map(|(store, keys)| store.status(*keys)).collect()
    }

    /// Name, state and number of keys of each store.
    #[must_use]
    pub fn overview(&self) -> Vec<(String, StoreState, usize)> {
        self.each(|entry| {
            let keys = entry.list.as_ref().map_or(0, Vec::len);
            (entry.store.name().to_owned(), entry.store.state(), keys)
        })
    }

    /// Every key of every store, in the order of the configuration.
    #[must_use]
    pub fn keys(&self) -> Vec<KeyStatus> {
        let holders: Vec<_> = self.each(|entry| entry.list.clone()).into_iter().flatten().flatten().collect();
        let allowed = |store: &ManagedStore| store.operations().iter().copied().collect::<Vec<_>>();
        let described =
            |holder: &Holder| KeyStatus::new(holder.store().name(), holder.key(), &allowed(holder.store()));
        holders.iter().map(described).collect()
    }

    /// The plugins that are loaded, with the stores of each: one that runs both in the server and in processes is there
    /// twice.
    #[must_use]
    pub fn plugins(&self) -> Vec<status::Plugin> {
        let mut plugins: BTreeMap<(String, &str), status::Plugin> = BTreeMap::new();
        for managed in self.all() {
            let store = managed.store();
            let (Some(description), Some(isolation)) = (store.description(), store.isolation()) else {
                continue;
            };
            let isolation = status::isolation(isolation);
            let plugin =
                plugins.entry((store.plugin().to_owned(), isolation)).or_insert_with(|| status::Plugin {
                    name: store.plugin().to_owned(),
                    version: description.version,
                    vendor: description.vendor,
                    isolation: isolation.to_owned(),
                    stores: Vec::new(),
                });
            plugin.stores.push(store.name().to_owned());
        }
        plugins.into_values().collect()
    }

    /// The processes that plugins run in, where they don't run in the server.
    #[must_use]
    pub fn processes(&self) -> Vec<status::Process> {
        self.host.processes().into_iter().map(status::Process::of).collect()
    }

    /// What has failed, by the name of the store and the cause; `none` for keys that no store has.
    pub(crate) fn failures(&self) -> Vec<(String, Cause)> {
        let stores = self.all();
        let of_stores = stores.iter().map(|store| (store.name(), store.failures()));
        let all = of_stores.chain([("none", &self.missing)]);
        all.flat_map(|(name, failures)| failures.causes().into_iter().map(|cause| (name.to_owned(), cause)))
            .collect()
    }

    /// Where requests for keys that no store has are noted.
    pub(crate) fn missing(&self) -> &Failures {
        &self.missing
    }

    /// Takes a sample of every store's figures, and tells what goes on failing.
    pub(crate) fn tick(&self) {
        self.all().iter().for_each(|store| store.tick());
        self.missing.tell();
    }

    /// Opens, lists and proves the stores of a configuration that are new, or are configured otherwise than those that
    /// serve, beside these. Changes nothing.
    ///
    /// # Errors
    ///
    /// Which store can't serve, and why. Those that were opened are closed again.
    pub async fn prepare(&self, stores: &[config::Store]) -> Result<Prepared, (String, Failure)> {
        let mut plan = self.plan(stores).await;
        let mut fresh = Vec::new();
        for (position, config) in stores.iter().enumerate() {
            if matches!(plan.get(position), Some(None)) {
                fresh.push((position, self.not_refused(config)?));
            }
        }
        let mut opening = JoinSet::new();
        for (position, store) in fresh {
            opening.spawn(async move { (position, opened(Arc::clone(&store)).await, store) });
        }
        let mut failed = None;
        while let Some(ended) = opening.join_next().await {
            let Ok((position, listed, store)) = ended else { continue };
            let listed = listed.and_then(|listed| self.not_emptied(store.name(), listed));
            match (listed, plan.get_mut(position)) {
                (Ok(listed), Some(place)) => *place = Some(Planned::Opened(store, listed)),
                (Err(failure), _) => {
                    if store.is_refused() {
                        self.refused.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(&store));
                    }
                    store.store().close(CLOSE_GRACE).await;
                    if self.all().iter().all(|other| other.name() != store.name()) {
                        self.metrics.forget_store(store.name());
                    }
                    failed.get_or_insert((store.name().to_owned(), failure));
                }
                (Ok(_), None) => {}
            }
        }
        let complete = plan.iter().all(Option::is_some);
        let prepared = Prepared(plan.into_iter().flatten().collect());
        match failed {
            None if complete => Ok(prepared),
            failed => {
                prepared.discard().await;
                Err(failed.unwrap_or_else(|| {
                    ("?".to_owned(), Failure::new(Class::Internal, "opening it panicked"))
                }))
            }
        }
    }

    /// Refuses a listing without a key for a store that serves some: an entry that was changed chooses none of them.
    fn not_emptied(&self, name: &str, listed: Listed) -> Result<Listed, Failure> {
        let entries = self.lock();
        let before = entries.iter().find(|entry| entry.store.name() == name);
        let served = before.and_then(|entry| entry.list.as_ref()).map_or(0, Vec::len);
        if served == 0 || !listed.holders.is_empty() {
            return Ok(listed);
        }
        let what = format!("it would serve no key, and serves {served} now; look at what its entry chooses");
        Err(Failure::new(Class::NotFound, what))
    }

    /// Puts what was prepared into service, and closes what went: when no request uses it any more, within `grace`.
    pub fn swap(self: &Arc<Self>, prepared: Prepared, grace: Duration) -> Change {
        let mut change = Change::default();
        let mut entries = self.lock();
        if self.closed.load(Ordering::Relaxed) {
            tokio::spawn(prepared.discard());
            return change;
        }
        let mut before = std::mem::take(&mut *entries);
        for planned in prepared.0 {
            entries.push(match planned {
                Planned::Kept(store) => {
                    let position = before.iter().position(|entry| Arc::ptr_eq(&entry.store, &store));
                    let entry = position.map(|position| before.swap_remove(position));
                    entry.unwrap_or_else(|| Entry::new(store, None))
                }
                Planned::Opened(store, Listed { holders, generation }) => {
                    let is_new = before.iter().all(|entry| entry.store.name() != store.name());
                    let names = if is_new { &mut change.added } else { &mut change.changed };
                    names.push(store.name().to_owned());
                    store.recovered();
                    let mut entry = Entry::new(store, Some(holders));
                    entry.keep(self, Some(generation));
                    entry
                }
            });
        }
        self.publish(&entries);
        self.changes.send_replace(());
        let names: Vec<_> = entries.iter().map(|entry| entry.store.name().to_owned()).collect();
        drop(entries);
        for entry in before {
            let name = entry.store.name().to_owned();
            if !names.contains(&name) {
                self.metrics.forget_store(&name);
                change.removed.push(name);
            } else {
                entry.store.failures().tell();
                entry.store.failures().end(); // the one that replaces it serves
            }
            tokio::spawn(entry.retire(grace));
        }
        self.refused.lock().unwrap_or_else(PoisonError::into_inner).clear();
        change
    }

    /// Has every store that serves look whether its keys have changed, and waits until those have, or the time is up.
    /// Answers what came in between.
    pub async fn look(&self, patience: Duration) -> Vec<String> {
        let serving = |entry: &Entry| entry.store.is_up() && !entry.store.is_refused();
        let looks: Vec<_> = self
            .lock()
            .iter()
            .map(|entry| (entry, entry.look.want())) // one that is down is tried at once
            .filter(|(entry, _)| serving(entry))
            .map(|(entry, number)| (entry.store.name().to_owned(), Arc::clone(&entry.look), number))
            .collect();
        let until = tokio::time::Instant::now() + patience;
        let mut missing = self.refusals();
        for (name, look, number) in looks {
            match timeout_at(until, look.wait(number)).await {
                Ok(None) => {}
                Ok(Some(failure)) => {
                    missing.push(format!("the keys of store `{name}` can't be listed again: {failure}"))
                }
                Err(_) => {
                    missing.push(format!("store `{name}` has not listed its keys again within {patience:?}"))
                }
            }
        }
        missing
    }

    /// Stores that have refused their credentials, which nothing presents again.
    fn refusals(&self) -> Vec<String> {
        let line = |store: &ManagedStore| {
            let failure = store.refusal()?;
            let cure = "its secret is the same, and isn't presented again; give it another one, or restart the server";
            Some(format!("store `{}` stays down: {failure}; {cure}", store.name()))
        };
        self.all().iter().filter_map(|store| line(store)).collect()
    }

    /// Waits until every store has been tried, or the time is up; answers whether it was.
    pub async fn were_tried(&self, patience: Duration) -> bool {
        let mut changes = self.changes.subscribe();
        let tried = async {
            while !self.all().iter().all(|store| store.was_tried()) {
                let _ = changes.changed().await;
            }
        };
        timeout(patience, tried).await.is_ok()
    }

    /// Ends the watch over the stores, and closes every one within `grace`.
    pub async fn close(&self, grace: Duration) {
        let going = {
            let mut entries = self.lock();
            self.closed.store(true, Ordering::Relaxed);
            std::mem::take(&mut *entries)
        };
        let mut closing = JoinSet::new();
        for entry in going {
            entry.keeper.inspect(AbortHandle::abort);
            closing.spawn(async move { entry.store.store().close(grace).await });
        }
        closing.join_all().await;
    }

    fn all(&self) -> Vec<Arc<ManagedStore>> {
        self.each(|entry| Arc::clone(&entry.store))
    }

    /// Something of each entry; whatever takes long is done with it once nobody waits for the lock.
    fn each<T>(&self, of: impl Fn(&Entry) -> T) -> Vec<T> {
        self.lock().iter().map(of).collect()
    }

    /// Which stores stay, by their position in the configuration. Reads secrets, from files that may be far away.
    async fn plan(&self, stores: &[config::Store]) -> Vec<Option<Planned>> {
        let (serving, stores) = (self.all(), stores.to_vec());
        let kept = move |config: &config::Store| {
            serving.iter().find(|store| store.is_as_configured(config)).cloned().map(Planned::Kept)
        };
        let count = stores.len();
        let plan = spawn_blocking(move || stores.iter().map(kept).collect());
        plan.await.unwrap_or_else(|_| std::iter::repeat_with(|| None).take(count).collect())
    }

    /// A store to be opened; not one whose credentials were refused before, as they are.
    fn not_refused(&self, config: &config::Store) -> Result<Arc<ManagedStore>, (String, Failure)> {
        let refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        match refused.iter().find(|store| store.is_as_configured(config)).and_then(|store| store.refusal()) {
            Some(failure) => Err((config.name.clone(), failure)),
            None => Ok(ManagedStore::new(&self.host, config, &self.metrics).into()),
        }
    }

    /// Joins the keys of all stores, and swaps the keyring.
    fn publish(&self, entries: &[Entry]) {
        let complete = entries.iter().all(|entry| entry.list.is_some());
        let holders = entries.iter().flat_map(|entry| entry.list.iter().flatten()).cloned();
        self.keyring.store(Arc::new(Keyring::new(holders, complete)));
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entry {
    fn new(store: Arc<ManagedStore>, list: Option<Vec<Holder>>) -> Self {
        Self { store, list, look: Arc::default(), keeper: None }
    }

    /// Starts its keeper; `listed` is the generation of a listing that there is already.
    fn keep(&mut self, stores: &Arc<Stores>, listed: Option<u64>) {
        let keeper = Keeper::new(stores, &self.store, &self.look, listed);
        let store = Arc::downgrade(&self.store);
        let kept = async move {
            let panicked = AssertUnwindSafe(keeper.run()).catch_unwind().await.is_err();
            if let Some(store) = store.upgrade().filter(|_| panicked) {
                store.fell(Failure::new(Class::Internal, "it is no longer watched; restart the server"));
            }
        };
        self.keeper = Some(tokio::spawn(kept).abort_handle());
    }

    /// Closes the store when nobody uses it any more, or the time is up.
    async fn retire(self, grace: Duration) {
        let Self { store, list, keeper, look: _ } = self;
        drop(list);
        keeper.inspect(AbortHandle::abort);
        let used = async {
            while Arc::strong_count(&store) > 1 {
                sleep(DRAIN_EVERY).await;
            }
        };
        if timeout(grace, used).await.is_err() {
            tracing::warn!(
                store = store.name(),
                "closed with requests in flight that took more than {grace:?}"
            );
        }
        store.store().close(CLOSE_GRACE).await;
        tracing::info!(store = store.name(), "closed");
    }
}

impl Prepared {
    /// Closes what was opened.
    async fn discard(self) {
        for planned in self.0 {
            if let Planned::Opened(store, _) = planned {
                store.store().close(CLOSE_GRACE).await;
            }
        }
    }
}
