//! The configuration: one YAML file, a superset of `gokeyless.yaml`, with flags and `KEYLESS_*` variables above it.
//!
//! ```text
//! text -> outline (limits, positions, duplicates) -> decoded tree -> typed reading -> Config
//! ```
//!
//! Precedence is flag, then variable, then file, then built-in default. Whatever comes out of [`load`] is in range and
//! free of contradictions, so that the rest of the server checks nothing again. Relative paths are relative to the
//! working directory, as in the reference.

mod file;
mod flags;
mod notice;
mod secret;
mod settings;
mod store;
mod table;
mod units;
mod yaml;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use file::Source;

pub use flags::Flags;
pub use notice::{Error, Notice, Position};
pub use secret::{Secret, SecretError, SecretSource};
pub use store::{Isolation, Operation, Prove, Store, StoreLimits, VerifySignatures};
pub use units::duration;

/// Everything the operator decided, checked and in range.
///
/// The `Debug` form holds neither secrets nor the configuration of a store, which may contain some.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Config {
    /// The file that was read; `None` when there is none and everything is flag, variable or default.
    pub file: Option<PathBuf>,
    /// Addresses that serve the key protocol; at least one. Default `[::]:2407`, all interfaces, both families.
    pub listen: Vec<SocketAddr>,
    /// Addresses that serve metrics and health over plain HTTP; `None` when switched off. Default `[::]:2406`.
    pub metrics: Option<Vec<SocketAddr>>,
    /// Whether the metrics port shows the status page. Default yes.
    pub status_page: bool,
    /// Where the administrator's commands reach the server, a Unix socket; `None` when switched off.
    pub admin_socket: Option<AdminSocket>,
    /// How often the configuration's files are looked at for changes, 1 s to 1 h; `None` for never, the default.
    pub watch: Option<Duration>,
    /// The server's own certificate chain, PEM. Default `server.pem`.
    pub auth_cert: PathBuf,
    /// The private key of [`Config::auth_cert`], PEM. Default `server-key.pem`.
    pub auth_key: PathBuf,
    /// The authorities that client certificates must chain to, PEM. Default `keyless_cacert.pem`.
    pub client_ca: PathBuf,
    /// Where to write the process id, in decimal without a newline; `None` for nowhere.
    pub pid_file: Option<PathBuf>,
    /// What is logged, and in which form.
    pub log: Log,
    /// The TLS of the key protocol.
    pub tls: Tls,
    /// Bounds on what clients may make the server hold.
    pub limits: Limits,
    /// How long one attempt at a hash signature may take; `None` for as long as the deadline allows.
    pub sign_timeout: Option<Duration>,
    /// How often a failed hash signature is tried again, within the deadline. Default 0.
    pub sign_retry_count: u32,
    /// Where plugins come from and which are trusted.
    pub plugins: Plugins,
    /// The stores, in order of preference. Names are unique.
    pub stores: Vec<Store>,
    /// What the operator should know, though it stops nothing; in the order it was met.
    pub warnings: Vec<Notice>,
}

/// The administrator's Unix socket.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct AdminSocket {
    /// Where it is.
    pub path: PathBuf,
    /// Whether the operator named it: then the server doesn't start without it.
    pub named: bool,
}

/// What is logged, and in which form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Log {
    /// The least severe level that is written.
    pub level: Level,
    /// The form of a line.
    pub format: LogFormat,
}

/// Severity of a log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
#[non_exhaustive]
pub enum Level {
    /// Everything, packets included (never secrets).
    Trace,
    /// Per connection and per request. The reference's 0.
    Debug,
    /// Starts, stops, reloads. The reference's 1, and the default.
    #[default]
    Info,
    /// Something degraded, or will. The reference's 2.
    Warn,
    /// An operator must act. The reference's 3, 4 and 5.
    Error,
}

/// Form of a log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// The TLS of the key protocol.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Tls {
    /// The versions offered; at least one. Default both.
    pub versions: BTreeSet<TlsVersion>,
    /// Whether sessions may be resumed. Default no: a resumed session doesn't verify the certificate again.
    pub resumption: bool,
    /// Revocation list for client certificates, PEM or DER; `None` for no check.
    pub crl: Option<PathBuf>,
}

/// A version of TLS, oldest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum TlsVersion {
    /// TLS 1.2, RFC 5246.
    Tls12,
    /// TLS 1.3, RFC 8446.
    Tls13,
}

/// Bounds on what clients may make the server hold.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limits {
    /// Open connections, all clients together; 1 to 1,000,000, default 4,096.
    pub connections: usize,
    /// Open connections of one client certificate; 1 to 1,000,000. Default: as many as of all clients together, since
    /// a fleet of edges may share a certificate.
    pub connections_per_peer: usize,
    /// TLS handshakes that are not finished yet; 1 to 1,000,000, default 1,024. The oldest makes room for a new one.
    pub handshakes: usize,
    /// Requests being worked on per connection; 1 to 65,536, default 1,024 as the reference. Beyond it the connection
    /// isn't read further.
    pub in_flight: usize,
    /// From accept to the end of the TLS handshake; 10 ms to 1 h, default 30 s.
    pub handshake_timeout: Duration,
    /// Without a request in flight or arriving; 10 ms to 1 h, default 30 s as the reference.
    pub idle_timeout: Duration,
    /// From the first byte of a frame to its last; 10 ms to 1 h, default 30 s.
    pub frame_timeout: Duration,
    /// For a client to take what is being written to it; 10 ms to 1 h, default 30 s.
    pub write_timeout: Duration,
    /// From the arrival of a request to its answer; 10 ms to 10 min, default 8 s, because the reference's client gives
    /// up after 10.
    pub deadline: Duration,
    /// For what is in flight when the server is told to stop; 0 to 1 h, default 30 s.
    pub grace: Duration,
}

/// Where plugins come from and which are trusted.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Plugins {
    /// Directories to look in, in order; empty for the plugin host's own default.
    pub path: Vec<PathBuf>,
    /// Whether a plugin without an entry in [`Plugins::sha256`] is refused. Default no.
    pub require_sha256: bool,
    /// SHA-256 that a plugin's file must have, by the plugin's name.
    pub sha256: BTreeMap<String, [u8; 32]>,
    /// Where compiled components are kept; `None` for the service manager's cache directory, if it gives one.
    pub cache: Option<PathBuf>,
}

/// The environment as [`load`] sees it: variables by name.
pub type Environment<'a> = &'a dyn Fn(&str) -> Option<OsString>;

/// Loads the configuration: flag, then variable, then file, then default.
///
/// A file named by a flag must exist; else the first of `./keystead.yaml`, `./gokeyless.yaml`,
/// `/etc/keystead/keystead.yaml` and `/etc/keyless/gokeyless.yaml` that exists is read (or its like ending in `.yml`
/// or `.json`), and none is fine. In production `env` is `&|name| std::env::var_os(name)`.
///
/// # Errors
/// The first thing that is wrong, with its place and its cure.
pub fn load(flags: &Flags, env: Environment<'_>) -> Result<Config, Error> {
    let mut config = load_from(&file::LOCATIONS, flags, env)?;
    store::hand_on(&mut config.stores, std::env::vars_os());
    Ok(config)
}

/// The configuration file of a new installation: every option, explained, at its default.
#[must_use]
pub fn default_config() -> &'static str {
    include_str!("../../../config/keystead.yaml")
}

fn load_from(locations: &[impl AsRef<Path>], flags: &Flags, env: Environment<'_>) -> Result<Config, Error> {
    let source = match &flags.config_file {
        Some(path) => Some(file::named(path)?),
        None => file::first_of(locations)?,
    };
    let Some(Source { path, text, world_readable }) = source else {
        return Ok(settings::resolve("", flags, env)?);
    };
    let in_file = |notice: Notice| Notice { file: notice.position.map(|_| path.clone()), ..notice };
    let mut config = settings::resolve(&text, flags, env).map_err(|notice| Error(in_file(notice)))?;
    config.warnings = config.warnings.into_iter().map(in_file).collect();
    if world_readable && config.stores.iter().any(Store::has_secret_in_file) {
        config.warnings.push(readable_secret(path.clone()));
    }
    config.file = Some(path);
    Ok(config)
}

fn readable_secret(path: PathBuf) -> Notice {
    let notice = Notice::new("every user of this machine can read the secrets in the configuration");
    Notice { file: Some(path), ..notice }
        .hint("change its mode to 0600, or name a file or credential in their place")
}

impl Level {
    const EXPECTED: &str = "0 to 5, `trace`, `debug`, `info`, `warn` or `error`";

    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Trace => "trace",
            Self::Debug => "debug",
            Self::Info => "info",
            Self::Warn => "warn",
            Self::Error => "error",
        }
    }
}

impl FromStr for Level {
    type Err = &'static str;

    /// Reads a name or one of the reference's numbers, 0 to 5.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.to_ascii_lowercase().as_str() {
            "trace" => Ok(Self::Trace),
            "0" | "debug" => Ok(Self::Debug),
            "1" | "info" => Ok(Self::Info),
            "2" | "warn" | "warning" => Ok(Self::Warn),
            "3" | "4" | "5" | "error" => Ok(Self::Error),
            _ => Err(Self::EXPECTED),
        }
    }
}

impl AdminSocket {
    /// Where the service unit's `RuntimeDirectory=` makes room for it.
    pub const DEFAULT: &str = "/run/keystead/admin.sock";
}

impl Default for AdminSocket {
    fn default() -> Self {
        Self { path: Self::DEFAULT.into(), named: false }
    }
}

impl Default for Tls {
    fn default() -> Self {
        Self {
            versions: BTreeSet::from([TlsVersion::Tls12, TlsVersion::Tls13]),
            resumption: false,
            crl: None,
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        const THIRTY_SECONDS: Duration = Duration::from_secs(30);
        Self {
            connections: 4_096,
            connections_per_peer: 4_096,
            handshakes: 1_024,
            in_flight: 1_024,
            handshake_timeout: THIRTY_SECONDS,
            idle_timeout: THIRTY_SECONDS,
            frame_timeout: THIRTY_SECONDS,
            write_timeout: THIRTY_SECONDS,
            deadline: Duration::from_secs(8),
            grace: THIRTY_SECONDS,
        }
    }
}
