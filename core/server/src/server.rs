//! The daemon, put together: bind, open the stores, serve, stop.

use std::{
    fmt, fs,
    future::Future,
    io,
    sync::Arc,
    time::{Duration, SystemTime},
};

use keystead_plugin_host::{Failure, Host, Settings, search_path};
use tokio::{net::TcpListener, sync::watch};

use crate::{
    config::{self, Config},
    http::Pages,
    listener::{self, Listener},
    metrics::Metrics,
    service::Service,
    stores::Stores,
    tls,
};

/// How long closing the stores may take once every connection has ended.
const CLOSE_GRACE: Duration = Duration::from_secs(2);

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

fn processors() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

/// The plugin host of a configuration.
#[must_use]
pub fn plugin_host(plugins: &config::Plugins) -> Arc<Host> {
    let executable = std::env::current_exe().ok();
    Host::new(Settings {
        path: search_path(&plugins.path, executable.as_deref()),
        sha256: plugins.sha256.clone(),
        require_sha256: plugins.require_sha256,
        inline_calls: processors(),
    })
}

/// Runs the server until `stopped` resolves; then accepts no more, finishes what is in flight within the grace period,
/// and closes the stores.
///
/// # Errors
///
/// What kept it from starting, or a critical store's failure.
pub async fn run(config: &Config, stopped: impl Future<Output = ()>) -> Result<(), Error> {
    let tls = tls::server_config(config)?;
    let metrics = Arc::new(Metrics::new()?);
    let certificates = tls::expiries(config);
    metrics.certificates(&certificates);
    certificates.iter().filter_map(expires_soon).for_each(|warning| tracing::warn!("{warning}"));
    let sockets = bind(&config.listen)?;
    let pages = bind(config.metrics.as_deref().unwrap_or_default())?;
    if let Some(file) = &config.pid_file {
        fs::write(file, std::process::id().to_string())
            .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", file.display())))?;
    }
    let stores = Stores::new(&plugin_host(&config.plugins), &config.stores);
    for socket in pages {
        tracing::info!("metrics and health on {}", socket.local_addr()?);
        let pages = Arc::new(Pages { metrics: Arc::clone(&metrics), stores: Arc::clone(&stores) });
        tokio::spawn(pages.serve(socket));
    }
    announce(config, &sockets);
    let service = Arc::new(Service::new(Arc::clone(&stores), Arc::clone(&metrics), config));
    let (stop, stopping) = watch::channel(false);
    let serving = Listener { tls, service, metrics, limits: config.limits.clone() }.run(sockets, stopping);
    let mut serving = tokio::spawn(serving);
    let mut keeping = tokio::spawn(Arc::clone(&stores).keep());
    let outcome = tokio::select! {
        () = stopped => Ok(()),
        Ok(Err((store, failure))) = &mut keeping => Err(Error::Critical { store, failure }),
    };
    tracing::info!("stopping; what is in flight has {:?}", config.limits.grace);
    stop.send_replace(true);
    if tokio::time::timeout(config.limits.grace, &mut serving).await.is_err() {
        tracing::warn!("some requests were not finished within {:?}", config.limits.grace);
        serving.abort();
    }
    keeping.abort();
    stores.close(CLOSE_GRACE).await;
    outcome
}

/// What the operator should know of a certificate that has expired, or will within 30 days.
#[must_use]
pub fn expires_soon(certificate: &tls::Expiry) -> Option<String> {
    const DAY: i64 = 24 * 60 * 60;
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).ok()?;
    let left = certificate.expires - i64::try_from(now.as_secs()).ok()?;
    let what = format!("the certificate `{}` of {}", certificate.common_name, certificate.source);
    match left / DAY {
        _ if left < 0 => Some(format!("{what} has expired; nobody accepts it")),
        days if days < 30 => Some(format!("{what} expires in {days} days; renew it")),
        _ => None,
    }
}

fn bind(addresses: &[std::net::SocketAddr]) -> io::Result<Vec<TcpListener>> {
    addresses.iter().map(|address| listener::bind(*address)).collect()
}

fn announce(config: &Config, sockets: &[TcpListener]) {
    for socket in sockets {
        if let Ok(address) = socket.local_addr() {
            tracing::info!(
                "listening on {address} with the certificate {}, for clients of {}; {} stores",
                config.auth_cert.display(),
                config.client_ca.display(),
                config.stores.len()
            );
        }
    }
    if config.stores.is_empty() {
        tracing::warn!("no private key stores are configured, so that no request can be answered");
    }
}
