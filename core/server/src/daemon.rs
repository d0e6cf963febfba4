//! The running server as its operator sees it: how it is, and what it can be told.

use std::{
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use arc_swap::ArcSwap;
use keystead_plugin_host::Host;
use tokio::{sync::watch, time::sleep};

use crate::{
    config::{self, AdminSocket, Config, Level, LogFormat},
    failures::Cause,
    listener::Listener,
    metrics::Metrics,
    service::Service,
    status::{self, Configuration, Failed, KeyStatus, LastReload, Phase, Status, StoreState, VendorCode},
    stores::Stores,
    telemetry::Verbosity,
    tls::Identity,
};

/// How many recent failures are shown.
const FAILURES: usize = 32;

/// Reads the configuration anew, as at the start.
pub type Loader = Box<dyn Fn() -> Result<Config, config::Error> + Send + Sync>;

/// A server that runs.
pub struct Daemon {
    pub(crate) load: Loader,
    /// What can't be changed while it runs.
    pub(crate) fixed: Fixed,
    pub(crate) config: Arc<ArcSwap<Config>>,
    pub(crate) identity: Arc<ArcSwap<Identity>>,
    pub(crate) host: Arc<Host>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) stores: Arc<Stores>,
    pub(crate) service: Arc<Service>,
    pub(crate) listener: Arc<Listener>,
    pub(crate) verbosity: Verbosity,
    pub(crate) addresses: Vec<SocketAddr>,
    pub(crate) life: Life,
}

impl Daemon {
    /// How it is.
    #[must_use]
    pub fn status(&self) -> Status {
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            started: status::seconds(self.life.started.0),
            uptime_seconds: self.life.started.1.elapsed().as_secs(),
            state: self.phase(),
            ready: self.is_ready(),
            configuration: self.configuration(),
            listeners: self.addresses.iter().map(ToString::to_string).collect(),
            connections: self.connections(),
            certificates: self.identity.load().certificates().to_vec(),
            stores: self.stores.status(),
            plugins: self.stores.plugins(),
            processes: self.stores.processes(),
            failures: self.failures(),
        }
    }

    /// The keys that are served.
    #[must_use]
    pub fn keys(&self) -> Vec<KeyStatus> {
        self.stores.keys()
    }

    /// How it is, in one line.
    #[must_use]
    pub fn summary(&self) -> String {
        let stores = self.stores.overview();
        let keys: usize = stores.iter().map(|(_, _, keys)| keys).sum();
        let ill = stores.iter().filter(|(_, state, _)| *state != StoreState::Up);
        let mut line = format!("{}: {keys} keys of {} stores", self.phase().name(), stores.len());
        for (name, state, _) in ill.take(4) {
            line.push_str(&format!("; {name} {}", state.name()));
        }
        line
    }

    /// Whether it takes connections and can do its work.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.phase() == Phase::Serving && self.stores.are_ready()
    }

    /// Whether it serves, drains or stops.
    #[must_use]
    pub fn phase(&self) -> Phase {
        match (self.life.stopping.load(Ordering::Relaxed), *self.life.stop.borrow()) {
            (true, _) => Phase::Stopping,
            (false, true) => Phase::Draining,
            (false, false) => Phase::Serving,
        }
    }

    /// Takes no more connections, and ends those that there are when what is in flight is answered. The process stays,
    /// so that it can be looked at; stopping it is for whoever started it. Waits for `limits.grace` at the most, and
    /// answers how many connections are still open.
    pub async fn drain(&self) -> u64 {
        tracing::info!("draining: no more connections are taken");
        self.life.stop.send_replace(true);
        let until = Instant::now() + self.config.load().limits.grace;
        loop {
            let (open, handshakes) = self.listener.counts();
            if open + handshakes == 0 || Instant::now() >= until {
                tracing::info!(open, "drained; stop the server, or start it again to serve");
                return open;
            }
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// Logs from now on what is at least this severe, until a reload brings the configuration's level back.
    pub fn set_level(&self, level: Level) {
        self.verbosity.set(level);
        tracing::info!("the log's level is now {}", level.name());
    }

    /// Whether the page of the metrics port is shown.
    #[must_use]
    pub fn shows_page(&self) -> bool {
        self.config.load().status_page
    }

    /// Becomes true when connections are to end.
    pub(crate) fn stopped(&self) -> watch::Receiver<bool> {
        self.life.stop.subscribe()
    }

    pub(crate) fn stop(&self) {
        self.life.stopping.store(true, Ordering::Relaxed);
        self.life.stop.send_replace(true);
    }

    /// Notes what became of a reload; answers the generation in force.
    pub(crate) fn reloaded(&self, refused: Option<&str>) -> u64 {
        let now = SystemTime::now();
        self.metrics.reloaded(refused.is_none());
        let mut generation = self.generation();
        if refused.is_none() {
            generation.number += 1;
            generation.loaded = now;
        }
        generation.last = Some(LastReload {
            result: if refused.is_none() { "ok" } else { "refused" }.to_owned(),
            at: status::seconds(now),
            error: refused.map(ToOwned::to_owned),
        });
        generation.number
    }

    fn configuration(&self) -> Configuration {
        let generation = self.generation();
        Configuration {
            file: self.config.load().file.as_ref().map(|file| file.display().to_string()),
            generation: generation.number,
            loaded: status::seconds(generation.loaded),
            last_reload: generation.last.clone(),
        }
    }

    fn connections(&self) -> status::Connections {
        let (open, handshakes) = self.listener.counts();
        status::Connections {
            open,
            handshakes,
            limit: self.config.load().limits.connections as u64,
            ..self.listener.peers.status()
        }
    }

    fn failures(&self) -> Vec<Failed> {
        let mut failures = self.stores.failures();
        failures.sort_by_key(|(_, cause)| std::cmp::Reverse(cause.at));
        failures.truncate(FAILURES);
        failures.into_iter().map(|(store, cause)| failed(store, cause)).collect()
    }

    fn generation(&self) -> MutexGuard<'_, Generation> {
        self.life.generation.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What becomes of a server while it runs.
pub(crate) struct Life {
    /// One reload at a time.
    pub(crate) reloading: tokio::sync::Mutex<()>,
    /// One look at everything at a time: it takes a moment, and anybody may ask for it.
    pub(crate) looking: tokio::sync::Mutex<()>,
    generation: Mutex<Generation>,
    started: (SystemTime, Instant),
    /// Tells the listener to take no more connections and to end those that there are.
    stop: watch::Sender<bool>,
    stopping: AtomicBool,
}

impl Life {
    /// A life that begins now.
    pub(crate) fn new() -> Self {
        Self {
            reloading: tokio::sync::Mutex::default(),
            looking: tokio::sync::Mutex::default(),
            generation: Mutex::new(Generation { number: 1, loaded: SystemTime::now(), last: None }),
            started: (SystemTime::now(), Instant::now()),
            stop: watch::Sender::new(false),
            stopping: AtomicBool::new(false),
        }
    }
}

/// What a configuration says that only a start takes in.
#[derive(PartialEq)]
pub(crate) struct Fixed {
    pub(crate) file: Option<PathBuf>,
    pub(crate) listen: Vec<SocketAddr>,
    pub(crate) metrics: Option<Vec<SocketAddr>>,
    pub(crate) admin_socket: Option<AdminSocket>,
    pub(crate) pid_file: Option<PathBuf>,
    pub(crate) log_format: LogFormat,
}

impl Fixed {
    pub(crate) fn of(config: &Config) -> Self {
        Self {
            file: config.file.clone(),
            listen: config.listen.clone(),
            metrics: config.metrics.clone(),
            admin_socket: config.admin_socket.clone(),
            pid_file: config.pid_file.clone(),
            log_format: config.log.format,
        }
    }
}

/// Which configuration is in force.
struct Generation {
    number: u64,
    loaded: SystemTime,
    last: Option<LastReload>,
}

fn failed(store: String, Cause { failure, about, at, count, .. }: Cause) -> Failed {
    Failed {
        at: status::seconds(at),
        store,
        class: failure.class.name().to_owned(),
        vendor: VendorCode::of(&failure),
        message: status::brief(&failure.message),
        ski: about.ski.map(|ski| ski.to_string()),
        peer: about.peer,
        request: about.request,
        count,
    }
}
