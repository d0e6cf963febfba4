//! What every test here needs: a host, stores of the hostile plugin, and what was logged.

use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, LazyLock, Mutex, PoisonError},
    time::{Duration, Instant},
};

use keystead_plugin_host::{
    Algorithm, Failure, Host, Key, Limits, Listing, Request, Secrets, Settings, Store, StoreSpec,
    Surroundings, VerifySignatures,
    testing::{self, PluginDir},
};
use serde_json::Value;
use tracing_subscriber::{filter::LevelFilter, fmt::MakeWriter};
use zeroize::Zeroizing;

pub(crate) const HOSTILE: &str = "keystead-plugin-hostile";

/// Long enough for any call that comes back at all, on any machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// For calls that don't come back: how long the test wants to wait for that.
pub(crate) const BRIEF: Duration = Duration::from_millis(150);

/// One digest for all: what is signed doesn't matter here.
pub(crate) const DIGEST: [u8; 32] = [7; 32];

/// A host with one directory of plugins, of which `hostile` is one.
pub(crate) struct Rig {
    pub(crate) host: Arc<Host>,
    pub(crate) directory: PluginDir,
}

impl Rig {
    pub(crate) fn new() -> Self {
        Self::with(|_| ())
    }

    /// A host that has a launcher for processes.
    pub(crate) fn with_processes() -> Self {
        Self::with(|settings| settings.launcher = Some(testing::launcher()))
    }

    pub(crate) fn with(change: impl FnOnce(&mut Settings)) -> Self {
        LazyLock::force(&LOG);
        Self::silent(change)
    }

    /// A host of which nothing is logged.
    pub(crate) fn silent(change: impl FnOnce(&mut Settings)) -> Self {
        let directory = PluginDir::with(&[HOSTILE]);
        let mut settings =
            Settings { path: vec![directory.path().to_owned()], inline_calls: 2, ..Settings::default() };
        change(&mut settings);
        Self { host: Host::new(settings), directory }
    }

    /// A store of the hostile plugin that isn't open yet. Its name should be the test's own, for the log is everybody's.
    pub(crate) fn store(&self, name: &str, config: Value) -> Arc<Store> {
        self.store_with(name, config, |_| ())
    }

    pub(crate) fn store_with(
        &self,
        name: &str,
        config: Value,
        change: impl FnOnce(&mut StoreSpec),
    ) -> Arc<Store> {
        let mut spec = StoreSpec {
            name: name.to_owned(),
            plugin: "hostile".to_owned(),
            config,
            secrets: Box::new(Known::default()),
            grants: Vec::new(),
            limits: Limits { lanes: Some(2), queue: 4 },
            instances: None,
            verify_signatures: VerifySignatures::Always,
            isolation: None,
            surroundings: Surroundings::default(),
        };
        change(&mut spec);
        Arc::new(Store::new(&self.host, spec))
    }

    /// An open store and its listing.
    pub(crate) async fn open(&self, name: &str, config: Value) -> (Arc<Store>, Listing) {
        let store = self.store(name, config);
        let listing = opened(&store).await;
        (store, listing)
    }
}

pub(crate) async fn opened(store: &Store) -> Listing {
    store.open().await.unwrap();
    store.keys().await.unwrap()
}

/// The key of a label.
pub(crate) fn key(listing: &Listing, label: &str) -> Arc<Key> {
    Arc::clone(listing.keys.iter().find(|key| key.label() == label).unwrap())
}

/// A signature with a key, within a time.
pub(crate) async fn sign(
    store: &Store,
    key: &Arc<Key>,
    id: &str,
    time: Duration,
) -> Result<Vec<u8>, Failure> {
    let request = Request { id, deadline: Instant::now() + time };
    store.perform(key, Algorithm::EcdsaSha256, &DIGEST, request).await
}

/// A call that goes on by itself.
pub(crate) fn spawn_sign(
    store: &Arc<Store>,
    key: &Arc<Key>,
    id: &str,
    time: Duration,
) -> tokio::task::JoinHandle<Result<Vec<u8>, Failure>> {
    let (store, key, id) = (Arc::clone(store), Arc::clone(key), id.to_owned());
    tokio::spawn(async move { sign(&store, &key, &id, time).await })
}

/// The future has been polled once: its call has been submitted.
pub(crate) async fn submitted<T>(future: &mut (impl Future<Output = T> + Unpin)) {
    tokio::select! {
        biased;
        _ = future => panic!("the call is done already"),
        () = std::future::ready(()) => (),
    }
}

/// Secrets that are known beforehand.
#[derive(Default)]
pub(crate) struct Known(pub(crate) BTreeMap<&'static str, &'static str>);

impl Secrets for Known {
    fn read(&self, name: &str) -> Option<Result<Zeroizing<Vec<u8>>, String>> {
        self.0.get(name).map(|value| Ok(Zeroizing::new(value.as_bytes().to_vec())))
    }
}

/// The lines logged so far, at any level, in which every one of `parts` occurs.
pub(crate) fn logged(parts: &[&str]) -> Vec<String> {
    let log = LOG.0.lock().unwrap_or_else(PoisonError::into_inner);
    let log = String::from_utf8_lossy(&log);
    log.lines().filter(|line| parts.iter().all(|part| line.contains(part))).map(str::to_owned).collect()
}

/// Everything that this process logs, from its first test on.
static LOG: LazyLock<Log> = LazyLock::new(|| {
    let log = Log::default();
    tracing_subscriber::fmt()
        .with_max_level(LevelFilter::TRACE)
        .with_ansi(false)
        .with_writer(log.clone())
        .init();
    log
});

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Log {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}
