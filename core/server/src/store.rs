//! One store as the server sees it: the plugin host's store, what the configuration decided about it, and how it is.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, LazyLock, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use arc_swap::ArcSwap;
use aws_lc_rs::{hmac, rand::SystemRandom};
use keystead_plugin_host as host;
use keystead_plugin_host::{Algorithm, Class, Failure, Finding, Host, Key, Listing, Severity};
use tokio::sync::Notify;
use zeroize::Zeroizing;

use crate::{
    config::{self, Operation, Prove},
    failures::{self, About, Failures},
    history::History,
    metrics::{Figures, Metrics},
    status::{self, LastError, StoreState, StoreStatus, VendorCode},
};

/// How long a store that didn't answer comes after others that hold the same key.
const SUSPECT_FOR: Duration = Duration::from_secs(30);

/// A store with what the server decided about it.
pub struct ManagedStore {
    store: host::Store,
    /// What it was made of, to be held against a later configuration.
    config: config::Store,
    /// A keyed hash of its secrets as they were when it was last opened; zeros where they can't be hashed.
    secrets: Mutex<[u8; 32]>,
    state: ArcSwap<Dated>,
    refused: OnceLock<Failure>,
    /// Until when requests go to other stores first: milliseconds since the process started, 0 for not at all.
    suspect_until: AtomicU64,
    /// Told when a call failed in a way that its health may explain.
    ails: Notify,
    failures: Failures,
    figures: Figures,
    history: Mutex<History>,
}

/// How a store is.
#[derive(Clone)]
enum State {
    /// It has not been tried yet.
    Opening,
    /// It serves.
    Up,
    /// It can't serve, for this reason.
    Down(Failure),
}

/// A state, and since when.
struct Dated {
    state: State,
    since: SystemTime,
}

impl ManagedStore {
    /// A store as configured, not open yet.
    #[must_use]
    pub fn new(host: &Arc<Host>, config: &config::Store, metrics: &Metrics) -> Self {
        let spec = host::StoreSpec {
            name: config.name.clone(),
            plugin: config.plugin.clone(),
            config: config.config.clone(),
            secrets: Box::new(Sources { sources: config.secrets.clone(), exposed: config.exposed.clone() }),
            grants: config.grants.clone(),
            limits: host::Limits {
                lanes: config.limits.lanes.and_then(|lanes| u32::try_from(lanes).ok()),
                queue: config.limits.queue,
            },
            instances: config.limits.instances,
            verify_signatures: match config.verify_signatures {
                config::VerifySignatures::Auto => host::VerifySignatures::Rsa,
                config::VerifySignatures::On => host::VerifySignatures::Always,
                config::VerifySignatures::Off => host::VerifySignatures::Never,
            },
            isolation: config.isolation.map(|isolation| match isolation {
                config::Isolation::Inline => host::Isolation::Inline,
                config::Isolation::Process => host::Isolation::Process,
            }),
            surroundings: config.surroundings.clone(),
        };
        let figures = metrics.store(&config.name);
        Self {
            store: host::Store::new(host, spec),
            secrets: Mutex::new(fingerprint(&config.secrets)),
            config: config.clone(),
            state: ArcSwap::from_pointee(Dated { state: State::Opening, since: SystemTime::now() }),
            refused: OnceLock::new(),
            suspect_until: AtomicU64::new(0),
            ails: Notify::new(),
            failures: Failures::new(&config.name),
            history: Mutex::new(History::new(&figures)),
            figures,
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
        &self.config.operations
    }

    /// Whether the server can't do without it.
    #[must_use]
    pub fn is_critical(&self) -> bool {
        self.config.critical
    }

    /// When its keys have to prove themselves.
    #[must_use]
    pub fn prove(&self) -> Prove {
        self.config.prove
    }

    /// How long one request to it may take, where it has a bound of its own.
    #[must_use]
    pub fn deadline(&self) -> Option<Duration> {
        self.config.limits.deadline
    }

    /// How often it is asked how it is.
    #[must_use]
    pub fn health_interval(&self) -> Duration {
        self.config.limits.health_interval
    }

    /// Whether a configuration would make the same store again: its settings are the same, wherever they stand in the
    /// file, and so are the secrets that they name.
    #[must_use]
    pub fn is_as_configured(&self, config: &config::Store) -> bool {
        let config = config::Store { position: self.config.position, ..config.clone() };
        self.config == config && *self.secrets() == fingerprint(&config.secrets)
    }

    /// Opens it, unless it is open, with its secrets as they are now.
    pub(crate) async fn open(&self) -> Result<(), Failure> {
        if !self.store.is_open() {
            *self.secrets() = fingerprint(&self.config.secrets);
        }
        self.ask(self.store.open()).await
    }

    fn secrets(&self) -> MutexGuard<'_, [u8; 32]> {
        self.secrets.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether it serves.
    #[must_use]
    pub fn is_up(&self) -> bool {
        matches!(self.state.load().state, State::Up)
    }

    /// Whether it has been tried.
    #[must_use]
    pub fn was_tried(&self) -> bool {
        !matches!(self.state.load().state, State::Opening)
    }

    /// How it is, in a word.
    #[must_use]
    pub fn state(&self) -> StoreState {
        match self.state.load().state {
            State::Opening => StoreState::Opening,
            State::Up if self.failures.are_going_on() => StoreState::Failing,
            State::Up => StoreState::Up,
            State::Down(_) => StoreState::Down,
        }
    }

    /// How it is, with the number of keys that it serves.
    #[must_use]
    pub fn status(&self, keys: usize) -> StoreStatus {
        let since = self.state.load().since;
        let load = self.store.load();
        let count = self.figures.count();
        let history = self.history.lock().unwrap_or_else(PoisonError::into_inner);
        StoreStatus {
            name: self.name().to_owned(),
            plugin: self.store.plugin().to_owned(),
            critical: self.is_critical(),
            state: self.state(),
            since: status::seconds(since),
            credentials_refused: self.is_refused(),
            last_error: self.last_error(),
            lanes: status::Lanes { busy: load.busy, total: load.lanes },
            queue: status::Queue { waiting: load.waiting as u64, limit: load.queue as u64 },
            keys: keys as u64,
            requests: status::Requests { ok: count.ok, failed: count.failed },
            latency_ms: history.latency(&count),
            history: history.samples(),
        }
    }

    /// What has failed.
    pub(crate) fn failures(&self) -> &Failures {
        &self.failures
    }

    /// Takes a sample of the figures, and tells what goes on failing.
    pub(crate) fn tick(&self) {
        self.history.lock().unwrap_or_else(PoisonError::into_inner).take(&self.figures);
        self.failures.tell();
    }

    /// Whether a key has to prove itself before it is used.
    pub(crate) fn wants_proof(&self, key: &Key) -> bool {
        self.prove() != Prove::Never && !key.is_proven()
    }

    /// A listing, with what the configuration wants of it and it hasn't.
    #[must_use]
    pub fn reviewed(&self, mut listing: Listing) -> Listing {
        listing.findings.extend(self.lack(&listing));
        listing
    }

    fn lack(&self, listing: &Listing) -> Option<Finding> {
        if listing.keys.is_empty() {
            let silent = listing.findings.iter().all(|finding| finding.severity == Severity::Note);
            let what = Failure::new(Class::NotFound, "it has no key to serve");
            let hint = "look at what its entry chooses: names, a prefix, labels or tags";
            return silent.then(|| Finding::warning(self.name(), what, hint));
        }
        let wants = !self.config.legacy && self.operations().contains(&Operation::Decrypt);
        if !wants || listing.keys.iter().any(|key| key.algorithms().contains(&Algorithm::RsaRaw)) {
            return None;
        }
        let what =
            Failure::new(Class::Unsupported, "`operations` has `decrypt`, and no key of the store can");
        let hint = "write `operations: [sign]`: raw RSA is all that decrypts, and clouds, elliptic curves and many \
                    tokens lack it";
        let mut finding = Finding::warning(self.name(), what, hint);
        if !self.operations().contains(&Operation::Sign) {
            finding.severity = Severity::Error; // nothing is left
        }
        Some(finding)
    }

    /// Makes a call to the backend, unless it has refused its credentials before: nothing presents them again.
    pub(crate) async fn ask<T>(&self, call: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
        if let Some(refused) = self.refused.get() {
            return Err(refused.clone());
        }
        let outcome = call.await;
        if let Err(failure) = &outcome {
            self.failed(failure);
        }
        outcome
    }

    /// As [`Self::ask`], for what a client asked.
    pub(crate) async fn serve<T>(
        &self,
        algorithm: Algorithm,
        call: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        let started = Instant::now();
        let outcome = self.ask(call).await;
        if outcome.is_ok() {
            self.failures.succeeded();
            self.trust();
        }
        self.figures.note(
            algorithm,
            outcome.as_ref().map(drop).map_err(|failure| failure.class),
            started.elapsed(),
        );
        outcome
    }

    /// One that has not been tried before doesn't fall: whoever tries it says what came of that.
    fn failed(&self, failure: &Failure) {
        match failure.class {
            Class::Credentials if self.refused.set(failure.clone()).is_ok() && self.was_tried() => {
                self.fell(failure.clone());
            }
            Class::Deadline | Class::Unavailable => {
                self.suspect_until.store(uptime(SUSPECT_FOR), Ordering::Relaxed);
                self.ails.notify_one();
            }
            _ => {}
        }
    }

    fn trust(&self) {
        if self.suspect_until.load(Ordering::Relaxed) != 0 {
            self.suspect_until.store(0, Ordering::Relaxed);
        }
    }

    /// Waits until a call has failed in a way that its health may explain.
    pub(crate) async fn ails(&self) {
        self.ails.notified().await;
    }

    /// Whether requests should go to it before others that hold the key: it is up, and hasn't just let a request wait
    /// in vain.
    pub(crate) fn is_preferred(&self) -> bool {
        let suspect_until = self.suspect_until.load(Ordering::Relaxed);
        self.is_up() && (suspect_until == 0 || suspect_until <= uptime(Duration::ZERO))
    }

    /// Whether the backend has refused its credentials; then nothing but another secret helps.
    pub(crate) fn is_refused(&self) -> bool {
        self.refused.get().is_some()
    }

    /// Why it has.
    pub(crate) fn refusal(&self) -> Option<Failure> {
        self.refused.get().cloned()
    }

    /// Notes that it answers for its health or lists its keys. Where it was down, that ends the outage; where it was up
    /// all along while requests fail, only a request that succeeds does.
    pub(crate) fn recovered(&self) {
        if self.is_refused() {
            return; // whatever was asked before that says nothing any more
        }
        if !self.is_up() {
            self.failures.end();
            self.trust();
        }
        self.set(State::Up);
    }

    /// Notes that it is down; says so once for each reason.
    pub(crate) fn fell(&self, failure: Failure) {
        if !matches!(&self.state.load().state, State::Down(before) if failures::same(before, &failure)) {
            self.failures.note(&failure, About::default());
        }
        self.set(State::Down(failure));
    }

    fn set(&self, state: State) {
        self.state.rcu(|before| {
            let same = std::mem::discriminant(&before.state) == std::mem::discriminant(&state);
            let since = if same { before.since } else { SystemTime::now() };
            Dated { state: state.clone(), since }
        });
    }

    fn last_error(&self) -> Option<LastError> {
        let state = self.state.load();
        let why = |failure: &Failure| match &state.state {
            State::Down(why) => failures::same(failure, why),
            _ => failure.class.blames_the_backend(),
        };
        let blamed = self.failures.causes().into_iter().filter(|cause| why(&cause.failure));
        blamed.max_by_key(|cause| cause.at).map(|cause| LastError {
            at: status::seconds(cause.at),
            class: cause.failure.class.name().to_owned(),
            vendor: VendorCode::of(&cause.failure),
            message: status::brief(&cause.failure.message),
        })
    }
}

/// Milliseconds since the process started, some time from now.
fn uptime(from_now: Duration) -> u64 {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    let since = START.elapsed().saturating_add(from_now);
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// The secrets of a store, by name.
struct Sources {
    sources: BTreeMap<String, config::SecretSource>,
    exposed: BTreeSet<String>,
}

impl host::Secrets for Sources {
    fn read(&self, name: &str) -> Option<Result<Zeroizing<Vec<u8>>, String>> {
        self.sources.get(name).map(|source| source.read().map_err(|error| error.to_string()))
    }

    fn exposed(&self, name: &str) -> bool {
        self.exposed.contains(name)
    }
}

/// Tells whether secrets have changed, and nothing else about them: a hash under a key that lives with the process.
/// What can't be read counts as absent.
fn fingerprint(secrets: &BTreeMap<String, config::SecretSource>) -> [u8; 32] {
    static KEY: LazyLock<Option<hmac::Key>> =
        LazyLock::new(|| hmac::Key::generate(hmac::HMAC_SHA256, &SystemRandom::new()).ok());
    let Some(key) = &*KEY else { return [0; 32] };
    let mut context = hmac::Context::with_key(key);
    for (name, source) in secrets {
        let value = source.read().unwrap_or_default();
        for part in [name.as_bytes(), &value] {
            context.update(&(part.len() as u64).to_be_bytes());
            context.update(part);
        }
    }
    context.sign().as_ref().try_into().unwrap_or_default()
}
