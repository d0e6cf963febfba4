//! The daemon, put together: bind, open the stores, serve, reload, stop.

use std::{
    fmt, fs, io,
    net::SocketAddr,
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwap;
use keystead_plugin_host::{Failure, Host, Launcher, Settings, search_path};
use rustix::process::{Resource, getrlimit};
use tokio::{
    net::TcpListener,
    sync::mpsc,
    task::{JoinHandle, JoinSet},
    time::{interval, timeout},
};

use crate::{
    admin,
    config::{self, Config},
    daemon::{Daemon, Fixed, Life, Loader},
    failures, http,
    listener::{self, Listener},
    metrics::Metrics,
    service::Service,
    status::{self, Certificate, Phase, ROLE_CRL},
    stores::Stores,
    systemd::{self, Sockets},
    telemetry::Verbosity,
    tls::{self, Identity},
};

/// How long closing the stores may take once every connection has ended.
const CLOSE_GRACE: Duration = Duration::from_secs(2);

/// How long systemd is let wait for stores that take their time, before it is told that the server serves.
const START: Duration = Duration::from_secs(5);

/// How often is looked whether a connected client's certificate has expired, or the revocation list has.
const TRUST_EVERY: Duration = Duration::from_secs(60);

/// How often certificates that will expire are warned of.
const WARN_EVERY: Duration = Duration::from_secs(24 * 60 * 60);

/// How often systemd is told how the server is, where that has changed.
const TELL_EVERY: Duration = Duration::from_secs(2);

/// The command that makes this program be a process for plugins, and nothing else.
pub const PLUGIN_PROCESS: &str = "plugin-process";

/// This very program, also where another has taken its place on the disk meanwhile.
const OWN_PROGRAM: &str = "/proc/self/exe";

/// How many orders may wait for the one before them.
pub const ORDERS: usize = 4;

/// What the process is told by its owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Order {
    /// To reload, as on SIGHUP.
    Reload,
    /// To finish what is in flight and to end.
    Stop,
}

/// What a server starts with.
#[expect(clippy::exhaustive_structs, reason = "the command line fills it in as a literal")]
pub struct Launch {
    /// The configuration.
    pub config: Config,
    /// Reads it again.
    pub load: Loader,
    /// The log's level.
    pub verbosity: Verbosity,
    /// Sockets that were opened before.
    pub sockets: Sockets,
    /// What its owner tells it; the end of them is as an order to stop.
    pub orders: mpsc::Receiver<Order>,
}

/// Why the server could not start, or had to stop.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// A store that the configuration calls critical can't serve.
    Critical {
        /// The store's name.
        store: String,
        /// Why.
        failure: Failure,
    },
    /// A socket or a file.
    Io(io::Error),
    /// Two metrics have one name.
    Metrics(prometheus::Error),
    /// A certificate, key or revocation list.
    Tls(tls::Error),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Critical { store, failure } => {
                write!(f, "the critical store `{store}` can't serve: {failure}")
            }
            Self::Io(error) => error.fmt(f),
            Self::Metrics(error) => error.fmt(f),
            Self::Tls(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for Error {}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<tls::Error> for Error {
    fn from(error: tls::Error) -> Self {
        Self::Tls(error)
    }
}

impl From<prometheus::Error> for Error {
    fn from(error: prometheus::Error) -> Self {
        Self::Metrics(error)
    }
}

/// How many threads the runtime has: one for each processor, and one more, so that the calls of inline keys, which are
/// bounded to the number of processors, can never hold all of them.
#[must_use]
pub fn workers() -> usize {
    processors() + 1
}

/// Processors that this process may use.
#[must_use]
pub fn processors() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

/// The plugin host of a configuration.
#[must_use]
pub fn plugin_host(plugins: &config::Plugins) -> Arc<Host> {
    Host::new(plugin_settings(plugins))
}

/// How a configuration says that plugins are found and run.
pub(crate) fn plugin_settings(plugins: &config::Plugins) -> Settings {
    let executable = std::env::current_exe().ok();
    Settings {
        path: search_path(&plugins.path, executable.as_deref()),
        sha256: plugins.sha256.clone(),
        require_sha256: plugins.require_sha256,
        inline_calls: processors(),
        cache: plugins.cache.clone().or_else(service_cache),
        launcher: Some(Launcher { program: OWN_PROGRAM.into(), arguments: vec![PLUGIN_PROCESS.into()] }),
    }
}

/// The part of the service manager's cache directory for compiled components (systemd.exec(5), `CacheDirectory=`).
fn service_cache() -> Option<PathBuf> {
    let directories = std::env::var_os("CACHE_DIRECTORY")?;
    std::env::split_paths(&directories).next().map(|directory| directory.join("components"))
}

/// Runs the server until it is told to stop; then accepts no more, finishes what is in flight within the grace period,
/// and closes the stores.
///
/// # Errors
///
/// What kept it from starting, or a critical store's failure.
pub async fn run(launch: Launch) -> Result<(), Error> {
    let Launch { config, load, verbosity, sockets, mut orders } = launch;
    let identity = Identity::load(&config)?;
    let doors = Doors::open(&config, sockets)?;
    if let Some(file) = &config.pid_file {
        fs::write(file, std::process::id().to_string())
            .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", file.display())))?;
    }
    let daemon = assemble(config, identity, load, verbosity, addresses(&doors.keys))?;
    daemon.warn_of_expiry();
    let mut tasks = JoinSet::new(); // ended by being dropped
    let mut serving = doors.serve(&daemon, &mut tasks)?;
    daemon.stores.start();
    look_after(&daemon, &mut tasks);
    let outcome = tokio::select! {
        () = obey(&daemon, &mut orders) => Ok(()),
        (store, failure) = daemon.stores.critical_failure() => Err(Error::Critical { store, failure }),
        () = gone(&daemon, &mut serving) => {
            Err(io::Error::other("no connections are accepted any more; that is a defect, please report it").into())
        }
    };
    stop(&daemon, serving, tasks).await;
    outcome
}

/// What a server listens on.
struct Doors {
    keys: Vec<TcpListener>,
    pages: Vec<TcpListener>,
    admin: Option<admin::Socket>,
}

impl Doors {
    fn open(config: &Config, mut sockets: Sockets) -> io::Result<Self> {
        let pages = match &config.metrics {
            Some(addresses) => listening(sockets.take_bound_to(addresses), addresses)?,
            None => Vec::new(),
        };
        let Sockets { tcp, unix } = sockets;
        let keys = listening(tcp, &config.listen)?;
        Ok(Self { keys, pages, admin: admin::Socket::open(config.admin_socket.as_ref(), unix)? })
    }

    /// Serves on all of them; says so.
    fn serve(self, daemon: &Arc<Daemon>, tasks: &mut JoinSet<()>) -> io::Result<JoinHandle<()>> {
        for socket in self.pages {
            tracing::info!("metrics and health on {}", socket.local_addr()?);
            tasks.spawn(http::serve(Arc::clone(daemon), socket));
        }
        if let Some(admin) = self.admin {
            tracing::info!("administration on {}", admin.path().display());
            tasks.spawn(admin.serve(Arc::clone(daemon)));
        }
        announce(daemon);
        Ok(tokio::spawn(Arc::clone(&daemon.listener).run(self.keys, daemon.stopped())))
    }
}

/// Puts the parts together.
fn assemble(
    config: Config,
    identity: Identity,
    load: Loader,
    verbosity: Verbosity,
    addresses: Vec<SocketAddr>,
) -> Result<Arc<Daemon>, Error> {
    let metrics = Arc::new(Metrics::new()?);
    let host = plugin_host(&config.plugins);
    let stores = Stores::new(&host, &metrics, &config.stores);
    let service = Arc::new(Service::new(Arc::clone(&stores), Arc::clone(&metrics), &config));
    let fixed = Fixed::of(&config);
    let config = Arc::new(ArcSwap::from_pointee(config));
    let identity = Arc::new(ArcSwap::from_pointee(identity));
    let listener =
        Listener::new(Arc::clone(&config), Arc::clone(&identity), Arc::clone(&service), Arc::clone(&metrics));
    Ok(Arc::new(Daemon {
        load,
        fixed,
        config,
        identity,
        host,
        metrics,
        stores,
        service,
        listener,
        verbosity,
        addresses,
        life: Life::new(),
    }))
}

/// Accepts no more, finishes what is in flight within the grace period, and closes the stores.
async fn stop(daemon: &Arc<Daemon>, mut serving: JoinHandle<()>, mut tasks: JoinSet<()>) {
    let grace = daemon.config.load().limits.grace;
    systemd::stopping();
    tracing::info!("stopping; what is in flight has {grace:?}");
    daemon.stop();
    // One that was drained has ended already, and been waited for.
    if !serving.is_finished() && timeout(grace, &mut serving).await.is_err() {
        tracing::warn!("some requests were not finished within {grace:?}");
        serving.abort();
    }
    // A reload that is going on would open stores behind the closing.
    let _no_reload = timeout(CLOSE_GRACE, daemon.life.reloading.lock()).await;
    daemon.stores.close(CLOSE_GRACE).await;
    let _ = timeout(CLOSE_GRACE, tasks.shutdown()).await; // with its task goes the admin socket's file
}

/// Waits until nobody accepts connections, though nobody said so.
async fn gone(daemon: &Daemon, serving: &mut JoinHandle<()>) {
    let _ = serving.await;
    if daemon.phase() != Phase::Serving {
        std::future::pending::<()>().await;
    }
}

/// Does what the owner says, until that is to stop.
async fn obey(daemon: &Arc<Daemon>, orders: &mut mpsc::Receiver<Order>) {
    let mut reloads = JoinSet::new();
    while let Some(Order::Reload) = orders.recv().await {
        while reloads.try_join_next().is_some() {}
        // One that waits reads everything after this order came: more of them would do the same again.
        if reloads.len() < 2 {
            let daemon = Arc::clone(daemon);
            reloads.spawn(async move { drop(daemon.reload().await) });
        }
    }
}

/// What has to be done once every store has been tried, and every so often.
fn look_after(daemon: &Arc<Daemon>, tasks: &mut JoinSet<()>) {
    let starting = Arc::clone(daemon);
    tasks.spawn(async move {
        starting.stores.were_tried(START).await;
        systemd::ready(&starting.summary());
    });
    every(tasks, failures::EVERY, daemon, |daemon| async move { daemon.stores.tick() });
    every(tasks, TRUST_EVERY, daemon, |daemon| async move { daemon.dismiss().await });
    every(tasks, WARN_EVERY, daemon, |daemon| async move { daemon.warn_of_expiry() });
    if let Some(patience) = systemd::watchdog() {
        every(tasks, patience / 3, daemon, |_| async { systemd::alive() });
    }
    tasks.spawn(Arc::clone(daemon).watch());
    let daemon = Arc::clone(daemon);
    tasks.spawn(async move {
        let mut said = String::new();
        loop {
            let summary = daemon.summary();
            if summary != said {
                systemd::status(&summary);
                said = summary;
            }
            tokio::time::sleep(TELL_EVERY).await;
        }
    });
}

fn every<F: Future<Output = ()> + Send>(
    tasks: &mut JoinSet<()>,
    period: Duration,
    daemon: &Arc<Daemon>,
    what: impl Fn(Arc<Daemon>) -> F + Send + 'static,
) {
    let daemon = Arc::clone(daemon);
    tasks.spawn(async move {
        let mut ticks = interval(period);
        ticks.tick().await; // the first comes at once
        loop {
            ticks.tick().await;
            what(Arc::clone(&daemon)).await;
        }
    });
}

/// What the operator should know of a certificate that has expired, or will within 30 days; of a revocation list, which
/// is made anew every few days, within one.
#[must_use]
pub fn expires_soon(certificate: &Certificate) -> Option<String> {
    const DAY: u64 = 24 * 60 * 60;
    let Certificate { file, name, role, expires, .. } = certificate;
    let (what, days, expired) = match role == ROLE_CRL {
        true => (format!("the revocation list of `{name}` in {file}"), 1, "everybody is refused"),
        false => (format!("the certificate `{name}` of {file}"), 30, "nobody accepts it"),
    };
    match expires.checked_sub(status::seconds(SystemTime::now())) {
        None => Some(format!("{what} has expired; {expired}")),
        Some(left) if left < days * DAY => match left / DAY {
            0 => Some(format!("{what} expires in {} hours; renew it", left / 3_600)),
            left => Some(format!("{what} expires in {left} days; renew it")),
        },
        Some(_) => None,
    }
}

/// The sockets that were handed over, or else those of the configuration.
fn listening(
    inherited: Vec<std::net::TcpListener>,
    addresses: &[SocketAddr],
) -> io::Result<Vec<TcpListener>> {
    match inherited.is_empty() {
        true => addresses.iter().map(|address| listener::bind(*address)).collect(),
        false => inherited.into_iter().map(TcpListener::from_std).collect(),
    }
}

fn addresses(sockets: &[TcpListener]) -> Vec<SocketAddr> {
    sockets.iter().filter_map(|socket| socket.local_addr().ok()).collect()
}

/// Warns where connections alone would use up the file descriptors; stores and the metrics port need some, too.
fn warn_of_few_descriptors(limits: &config::Limits) {
    const OTHERS: u64 = 100;
    let (Some(most), wanted) = (getrlimit(Resource::Nofile).current, limits.connections as u64) else {
        return;
    };
    if wanted.saturating_add(OTHERS) > most {
        tracing::warn!(
            "`limits.connections` is {wanted}, and the system allows {most} file descriptors: raise LimitNOFILE= of the \
             unit, or lower the limit"
        );
    }
}

fn announce(daemon: &Daemon) {
    let config = daemon.config.load();
    for address in &daemon.addresses {
        tracing::info!(
            "listening on {address} with the certificate {}, for clients of {}; {} stores",
            config.auth_cert.display(),
            config.client_ca.display(),
            config.stores.len()
        );
    }
    if config.stores.is_empty() {
        tracing::warn!("no private key stores are configured, so that no request can be answered");
    }
    warn_of_few_descriptors(&config.limits);
}
