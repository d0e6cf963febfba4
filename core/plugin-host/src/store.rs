//! One plugin opened with one configuration: its keys as the host believes them, and calls that can't hang anybody.

use std::{
    collections::{BTreeSet, HashSet},
    fmt, mem,
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use crate::{
    Class, Description, Failure, Finding, Host, Surroundings,
    instance::{Call, Instance, RawKey, SPKI_MAX},
    outbound::Grant,
    process::{Placed, PluginFile, Remote, Wish},
    services::{Secrets, Services},
    threads::Threads,
    verify::{Challenge, PublicKey},
};
use keystead_plugin_api::{Algorithm, CallClass, Isolation, Severity, abi::KEY_ID_MAX, algorithm::Family};
use tokio::runtime::Handle;

/// How much memory an instance of a component may have, where the configuration says nothing: 64 MiB.
const INSTANCE_MEMORY: u64 = 64 << 20;

/// Which results are verified before they leave: signatures, and those of the raw RSA operation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "a setting with three values")]
pub enum VerifySignatures {
    /// Those of RSA keys, where it costs 3 % of a signature and stops fault attacks on CRT.
    #[default]
    Rsa,
    /// All.
    Always,
    /// None.
    Never,
}

/// What one store may use.
#[derive(Clone, Copy, Debug)]
#[expect(clippy::exhaustive_structs, reason = "the server fills it in as a literal")]
pub struct Limits {
    /// Lanes: calls to blocking keys that run at once. A plugin that can use fewer gets fewer; without a number, it gets
    /// as many as it advises, or else [`Limits::LANES`].
    pub lanes: Option<u32>,
    /// Calls that wait for a lane; more are shed.
    pub queue: usize,
}

/// What makes a store.
#[expect(clippy::exhaustive_structs, reason = "the server fills it in as a literal")]
pub struct StoreSpec {
    /// The name in logs, metrics and output.
    pub name: String,
    /// The plugin's name.
    pub plugin: String,
    /// What the plugin gets as its configuration. May hold secrets.
    pub config: serde_json::Value,
    /// The secrets that the plugin may ask for.
    pub secrets: Box<dyn Secrets>,
    /// The services that it may reach through the host.
    pub grants: Vec<Grant>,
    /// What it may use.
    pub limits: Limits,
    /// The most instances of a component: each takes one lane, and there is one beside them for housekeeping. As many as
    /// there are lanes without a number.
    pub instances: Option<u32>,
    /// Which signatures are verified.
    pub verify_signatures: VerifySignatures,
    /// Where the plugin runs; `None` for where it would rather.
    pub isolation: Option<Isolation>,
    /// What its process gets, where it has one of its own.
    pub surroundings: Surroundings,
}

/// A store: closed at first, then open, for as long as its keys are served.
pub struct Store {
    name: String,
    plugin: String,
    host: Arc<Host>,
    services: &'static Services,
    slot: RwLock<Slot>,
    description: Mutex<Option<Description>>,
    threads: Threads,
    verify_signatures: VerifySignatures,
    instances: Option<u32>,
    isolation: Option<Isolation>,
    surroundings: Surroundings,
}

/// A key whose description was checked: its parts fit each other.
pub struct Key {
    id: Vec<u8>,
    spki: Vec<u8>,
    label: String,
    algorithms: Vec<Algorithm>,
    class: CallClass,
    public: PublicKey,
    proven: AtomicBool,
}

/// The keys of a store, and what was wrong with the rest.
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct Listing {
    /// The keys.
    pub keys: Vec<Arc<Key>>,
    /// What the operator should know, from the plugin and from the host's checks.
    pub findings: Vec<Finding>,
}

/// How busy a store is at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Load {
    /// Lanes inside a call.
    pub busy: u32,
    /// Lanes that there are, or would be started.
    pub lanes: u32,
    /// Calls that wait for a lane.
    pub waiting: usize,
    /// Calls that may wait; more are shed.
    pub queue: usize,
}

/// What came of a challenge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "it was met or it wasn't")]
pub enum Proof {
    /// The answer was right.
    Met,
    /// The answer was wrong: the key isn't what it says it is.
    Failed,
}

/// What goes with a call.
#[derive(Clone, Copy, Debug)]
#[expect(clippy::exhaustive_structs, reason = "the server fills it in as a literal")]
pub struct Request<'a> {
    /// For logs; may be empty.
    pub id: &'a str,
    /// When nobody waits for the answer any more.
    pub deadline: Instant,
}

impl Limits {
    /// Lanes of a store where neither its configuration nor its plugin says how many: what network HSMs want for their
    /// full throughput (20 to 30, by their vendors' documents), which costs little where it is too many.
    pub const LANES: u32 = 24;

    /// How many lanes there are where a plugin advises some, and can use no more than others.
    pub(crate) fn lanes(self, advised: Option<u32>, most: Option<u32>) -> u32 {
        self.lanes.or(advised).unwrap_or(Self::LANES).min(most.unwrap_or(u32::MAX)).max(1)
    }
}

impl Store {
    /// A store that isn't open yet. Nothing of the plugin is touched.
    #[must_use]
    pub fn new(host: &Arc<Host>, spec: StoreSpec) -> Self {
        let services = Services::new(
            &spec.name,
            &spec.plugin,
            &spec.config,
            (spec.secrets, spec.grants),
            Arc::clone(&host.latch),
        );
        Self {
            threads: Threads::new(&spec.name, spec.limits, &host.turns),
            host: Arc::clone(host),
            slot: RwLock::new(Slot::Empty),
            description: Mutex::default(),
            services,
            verify_signatures: spec.verify_signatures,
            instances: spec.instances,
            isolation: spec.isolation,
            surroundings: spec.surroundings,
            name: spec.name,
            plugin: spec.plugin,
        }
    }

    /// The name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The plugin's name.
    #[must_use]
    pub fn plugin(&self) -> &str {
        &self.plugin
    }

    /// What it may use; no more lanes than the plugin can, once that is known.
    #[must_use]
    pub fn limits(&self) -> Limits {
        match self.opened() {
            Ok(Opened::Child(remote)) => remote.limits(),
            _ => self.threads.limits(),
        }
    }

    /// Whether it is open.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.opened().is_ok()
    }

    /// How busy it is.
    #[must_use]
    pub fn load(&self) -> Load {
        match self.opened() {
            Ok(Opened::Child(remote)) => remote.load(),
            _ => self.threads.load(),
        }
    }

    /// What the plugin says it is; `None` until it has been loaded.
    #[must_use]
    pub fn description(&self) -> Option<Description> {
        self.description.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Where its plugin runs; `None` until it is open.
    #[must_use]
    pub fn isolation(&self) -> Option<Isolation> {
        match self.opened().ok()? {
            Opened::Here(_) => Some(Isolation::Inline),
            Opened::Child(_) => Some(Isolation::Process),
        }
    }

    /// Loads the plugin where that hasn't happened yet, and opens the store, unless it is open.
    ///
    /// # Errors
    ///
    /// What the plugin's file is refused for, or what the plugin answered. Only a failure that
    /// [`is_transient`](Class::is_transient) is worth another try.
    pub async fn open(&self) -> Result<(), Failure> {
        if self.is_open() {
            return Ok(());
        }
        self.services.run_on(Handle::current());
        let mut opening = match self.place().await? {
            None => self.open_here().await?,
            Some(placed) => self.open_there(placed).await?,
        };
        let mut slot = self.slot.write().unwrap_or_else(PoisonError::into_inner);
        if matches!(*slot, Slot::Closed) {
            return Err(closed()); // meanwhile; the plugin is told by what was opened being dropped
        }
        if let Some(opened) = opening.0.take() {
            *slot = Slot::Open(opened);
        }
        Ok(())
    }

    /// The process that the plugin is to run in; `None` for this one.
    async fn place(&self) -> Result<Option<Placed>, Failure> {
        let Some(launcher) = self.host.settings().launcher else { return self.only_here() };
        if self.isolation == Some(Isolation::Inline) {
            return Ok(None);
        }
        let (host, plugin) = (Arc::clone(&self.host), self.plugin.clone());
        let file = self.threads.housekeep(move |_| host.locate(&plugin)).await?;
        if file.is_component() {
            return self.only_sandboxed(&file);
        }
        let wish = Wish {
            launcher: &launcher,
            file: &file,
            surroundings: &self.surroundings,
            isolation: self.isolation,
        };
        self.host.processes.place(wish, self.services).await
    }

    /// A component needs no process: the sandbox holds it.
    fn only_sandboxed(&self, file: &PluginFile) -> Result<Option<Placed>, Failure> {
        match self.isolation {
            Some(Isolation::Process) => Err(Failure::invalid(format!(
                "{} is a component, which runs in a sandbox of the server's own process; remove `isolation: process`, and \
                 what is for a process",
                file.file.display()
            ))),
            _ => Ok(None),
        }
    }

    fn only_here(&self) -> Result<Option<Placed>, Failure> {
        match self.isolation {
            Some(Isolation::Process) => Err(Failure::invalid("this program starts no processes for plugins")),
            _ => Ok(None),
        }
    }

    async fn open_here(&self) -> Result<Opening, Failure> {
        let (host, plugin, services) = (Arc::clone(&self.host), self.plugin.clone(), self.services);
        let plugin = self.threads.housekeep(move |_| host.plugin(&plugin)).await?;
        self.is_described(&plugin.description);
        let most = [plugin.description.lanes_max, self.instances].into_iter().flatten().min();
        let memory = self.surroundings.memory.unwrap_or(INSTANCE_MEMORY);
        let memory = usize::try_from(memory).unwrap_or(usize::MAX);
        let opening = move |_: &Call<'_>| {
            let opened = plugin.open(services, memory)?;
            let advice = opened.advice();
            Ok::<_, keystead_plugin_api::Error>((Opening(Some(Opened::Here(opened))), advice))
        };
        let (opening, advice) = self.threads.housekeep(opening).await?;
        self.threads.settle(advice.lanes, most);
        Ok(opening)
    }

    async fn open_there(&self, placed: Placed) -> Result<Opening, Failure> {
        self.is_described(&placed.description);
        let remote = Remote::open(&self.name, placed, self.threads.configured(), self.services).await?;
        Ok(Opening(Some(Opened::Child(remote))))
    }

    fn is_described(&self, description: &Description) {
        self.threads.settle(None, description.lanes_max);
        *self.description.lock().unwrap_or_else(PoisonError::into_inner) = Some(description.clone());
    }

    /// Lists the keys. A key whose parts don't fit each other becomes a finding.
    ///
    /// # Errors
    ///
    /// What the plugin answered, or that the store isn't open.
    pub async fn keys(&self) -> Result<Listing, Failure> {
        let raw = match self.opened()? {
            Opened::Here(instance) => self.threads.housekeep(move |call| instance.keys(call)).await?,
            Opened::Child(remote) => remote.keys().await?,
        };
        let mut listing =
            Listing { keys: Vec::new(), findings: raw.findings.into_iter().map(Finding::from).collect() };
        let mut seen = HashSet::new();
        for key in raw.keys {
            let label = key.label.clone();
            match Key::check(key, &mut seen) {
                Ok(key) => listing.keys.push(Arc::new(key)),
                Err(message) => listing.findings.push(Finding {
                    severity: Severity::Error,
                    subject: label,
                    failure: Failure::internal(message),
                    hint: format!("this is a defect of the plugin `{}`; tell its vendor", self.plugin),
                }),
            }
        }
        Ok(listing)
    }

    /// Asks the plugin how it is; the answer changes whenever the listing of keys has changed.
    ///
    /// # Errors
    ///
    /// What the plugin answered, or that the store isn't open.
    pub async fn health(&self) -> Result<u64, Failure> {
        match self.opened()? {
            Opened::Here(instance) => self.threads.housekeep(move |call| instance.health(call)).await,
            Opened::Child(remote) => remote.health().await,
        }
    }

    /// Waits until the plugin says that its keys have changed.
    pub async fn keys_changed(&self) {
        self.services.changed().await;
    }

    /// Signs or decrypts with a key of this store's listing, as the algorithm says. Inline keys are called right here;
    /// others on the store's lanes.
    ///
    /// # Errors
    ///
    /// [`Class::Unsupported`] where the key can't do the algorithm, [`Class::InvalidInput`] for an input of the wrong
    /// length, [`Class::Shed`] where the queue is full, [`Class::Deadline`], and what the plugin answered.
    pub async fn perform(
        &self,
        key: &Arc<Key>,
        algorithm: Algorithm,
        input: &[u8],
        request: Request<'_>,
    ) -> Result<Vec<u8>, Failure> {
        let result = self.obtain(key, algorithm, input, request).await?;
        self.believe(key, algorithm, input, result)
    }

    /// Has the key answer a fresh challenge.
    ///
    /// # Errors
    ///
    /// What the plugin answered instead; it says nothing about the key.
    pub async fn prove(&self, key: &Arc<Key>, deadline: Instant) -> Result<Proof, Failure> {
        if let Some(algorithm) = key.provable() {
            let challenge = Challenge::new(&key.public, algorithm)
                .ok_or_else(|| Failure::internal("no challenge could be made"))?;
            let request = Request { id: "proof", deadline };
            let answer = self.obtain(key, algorithm, &challenge.input, request).await?;
            if !challenge.is_met(&key.public, &answer) {
                return Ok(Proof::Failed);
            }
        }
        key.proven.store(true, Ordering::Release);
        Ok(Proof::Met)
    }

    /// Closes the store within `grace`, for good: its configuration is forgotten. Calls that hang are left to
    /// themselves, and no other starts.
    pub async fn close(&self, grace: Duration) {
        let slot =
            mem::replace(&mut *self.slot.write().unwrap_or_else(PoisonError::into_inner), Slot::Closed);
        let in_time = match slot {
            Slot::Open(Opened::Here(instance)) => self.threads.close(instance, grace).await,
            Slot::Open(Opened::Child(remote)) => remote.close(grace).await,
            Slot::Empty | Slot::Closed => true,
        };
        if !in_time {
            tracing::warn!(store = self.name, "the store did not close within {grace:?}");
        }
        self.services.forget();
    }

    fn opened(&self) -> Result<Opened, Failure> {
        match &*self.slot.read().unwrap_or_else(PoisonError::into_inner) {
            Slot::Open(opened) => Ok(opened.clone()),
            Slot::Empty => Err(Failure::new(Class::Unavailable, "the store is not open")),
            Slot::Closed => Err(closed()),
        }
    }

    /// What the plugin gives, believed or not.
    async fn obtain(
        &self,
        key: &Arc<Key>,
        algorithm: Algorithm,
        input: &[u8],
        request: Request<'_>,
    ) -> Result<Vec<u8>, Failure> {
        key.accepts(algorithm, input)?;
        match self.opened()? {
            Opened::Here(instance) => self.threads.perform(instance, key, algorithm, input, request).await,
            Opened::Child(remote) => remote.perform(key, algorithm, input, request).await,
        }
    }

    /// Lets a result leave only in the shape that its algorithm has, and, where asked for, only if it verifies.
    fn believe(
        &self,
        key: &Key,
        algorithm: Algorithm,
        input: &[u8],
        result: Vec<u8>,
    ) -> Result<Vec<u8>, Failure> {
        let verify = match self.verify_signatures {
            VerifySignatures::Rsa => key.family() == Family::Rsa,
            VerifySignatures::Always => true,
            VerifySignatures::Never => false,
        };
        let shaped = match key.family() {
            Family::Ecdsa => !result.is_empty(),
            _ => result.len() == key.public.result_max(),
        };
        if !shaped || (verify && !key.public.verifies(algorithm, input, &result)) {
            return Err(lie(key, algorithm));
        }
        Ok(result)
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, plugin, threads, .. } = self;
        f.debug_struct("Store")
            .field("name", name)
            .field("plugin", plugin)
            .field("limits", &threads.limits())
            .finish_non_exhaustive()
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.services.forget();
    }
}

/// Where a store is in its life.
enum Slot {
    Empty,
    Open(Opened),
    /// For good.
    Closed,
}

/// An open store: in this process, or in one for plugins.
#[derive(Clone)]
enum Opened {
    Here(Arc<dyn Instance>),
    Child(Arc<Remote>),
}

/// What an opening gave. Where nobody waits for it any more, the plugin is told.
struct Opening(Option<Opened>);

impl Drop for Opening {
    fn drop(&mut self) {
        match self.0.take() {
            Some(Opened::Here(instance)) => instance.close(Duration::ZERO),
            Some(Opened::Child(remote)) => remote.abandon(),
            None => {}
        }
    }
}

fn closed() -> Failure {
    Failure::new(Class::Unavailable, "the store is closed")
}

impl Key {
    /// Believes a key only if its parts fit each other.
    fn check(raw: RawKey, seen: &mut HashSet<Vec<u8>>) -> Result<Self, String> {
        if raw.id.is_empty() || raw.id.len() > KEY_ID_MAX {
            return Err(format!("the key's id does not have 1 to {KEY_ID_MAX} bytes"));
        }
        if !seen.insert(raw.id.clone()) {
            return Err("two keys have the same id".to_owned());
        }
        if raw.spki.len() > SPKI_MAX {
            return Err(format!("the public key has more than {SPKI_MAX} bytes"));
        }
        let public = PublicKey::parse(&raw.spki)
            .ok_or("the public key is not a SubjectPublicKeyInfo of an RSA, EC or Ed25519 key")?;
        let algorithms: BTreeSet<Algorithm> = raw
            .algorithms
            .iter()
            .filter_map(|number| Algorithm::from_number(*number))
            .filter(|algorithm| algorithm.family() == public.family())
            .collect();
        if algorithms.is_empty() {
            return Err("the key has no algorithm that fits its type".to_owned());
        }
        let proven = AtomicBool::new(false);
        Ok(Self {
            id: raw.id,
            spki: raw.spki,
            label: raw.label,
            algorithms: algorithms.into_iter().collect(),
            class: raw.class,
            public,
            proven,
        })
    }

    /// Whether a later listing says the same of a key, so that what is known of this one holds for that one.
    #[must_use]
    pub fn is_same_as(&self, other: &Self) -> bool {
        let Self { id, spki, label, algorithms, class, public: _, proven: _ } = self;
        (id, spki, label) == (&other.id, &other.spki, &other.label)
            && (algorithms, class) == (&other.algorithms, &other.class)
    }

    /// What the plugin calls it; unique within a listing.
    #[must_use]
    pub fn id(&self) -> &[u8] {
        &self.id
    }

    /// DER SubjectPublicKeyInfo.
    #[must_use]
    pub fn spki(&self) -> &[u8] {
        &self.spki
    }

    /// What the operator calls it.
    #[must_use]
    pub fn label(&self) -> &str {
        &self.label
    }

    /// The key's type.
    #[must_use]
    pub fn family(&self) -> Family {
        self.public.family()
    }

    /// Bits of the modulus, or of the curve's field.
    #[must_use]
    pub fn bits(&self) -> u32 {
        self.public.bits()
    }

    /// What the key can do.
    #[must_use]
    pub fn algorithms(&self) -> &[Algorithm] {
        &self.algorithms
    }

    /// How it is called.
    #[must_use]
    pub fn call_class(&self) -> CallClass {
        self.class
    }

    /// Whether it has met a challenge since it was listed.
    #[must_use]
    pub fn is_proven(&self) -> bool {
        self.proven.load(Ordering::Acquire)
    }

    /// Bytes that the longest result takes.
    pub(crate) fn result_max(&self) -> usize {
        self.public.result_max()
    }

    fn accepts(&self, algorithm: Algorithm, input: &[u8]) -> Result<(), Failure> {
        if !self.algorithms.contains(&algorithm) {
            return Err(Failure::new(
                Class::Unsupported,
                format!("{algorithm} is not supported by this key"),
            ));
        }
        if !algorithm.takes(input) {
            let len = input.len();
            return Err(Failure::invalid(format!("{algorithm} does not take an input of {len} bytes")));
        }
        Ok(())
    }

    /// The strongest signing algorithm, or, for a key that only decrypts, decryption.
    fn provable(&self) -> Option<Algorithm> {
        let preferred = [Algorithm::RsaPkcs1Sha256, Algorithm::EcdsaSha256, Algorithm::RsaPssSha256];
        preferred
            .into_iter()
            .find(|algorithm| self.algorithms.contains(algorithm))
            .or_else(|| self.algorithms.first().copied())
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Key")
            .field("label", &self.label)
            .field("family", &self.family())
            .field("bits", &self.bits())
            .field("class", &self.class)
            .field("proven", &self.is_proven())
            .finish_non_exhaustive()
    }
}

fn lie(key: &Key, algorithm: Algorithm) -> Failure {
    Failure::internal(format!("the answer of key `{}` for {algorithm} is wrong; it was held back", key.label))
}
