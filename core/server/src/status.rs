//! How the server is at one moment: what `keystead status`, the status page and the metrics all show.
//!
//! Times are whole seconds since 1970. Nothing here is secret, and all text of plugins and clients has been cut and
//! escaped where it came in.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use keystead_plugin_host::{Algorithm, Failure, Family, Isolation, Key, ProcessStatus};
use keystead_protocol::Ski;
use serde::{Deserialize, Serialize};

use crate::config::Operation;

/// How the server is.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[expect(missing_docs, clippy::exhaustive_structs, reason = "plain data; the names are those of the output")]
pub struct Status {
    pub version: String,
    pub pid: u32,
    pub started: u64,
    pub uptime_seconds: u64,
    pub state: Phase,
    pub ready: bool,
    pub configuration: Configuration,
    pub listeners: Vec<String>,
    pub connections: Connections,
    pub certificates: Vec<Certificate>,
    pub stores: Vec<StoreStatus>,
    pub plugins: Vec<Plugin>,
    pub processes: Vec<Process>,
    pub failures: Vec<Failed>,
}

/// What the server is doing.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Phase {
    /// It serves.
    #[default]
    Serving,
    /// It takes no more connections, and stays.
    Draining,
    /// It takes no more connections, and will end.
    Stopping,
}

/// The configuration in force.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[expect(missing_docs, clippy::exhaustive_structs, reason = "plain data; the names are those of the output")]
pub struct Configuration {
    pub file: Option<String>,
    pub generation: u64,
    pub loaded: u64,
    pub last_reload: Option<LastReload>,
}

/// What became of the last reload.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[expect(missing_docs, clippy::exhaustive_structs, reason = "plain data; the names are those of the output")]
pub struct LastReload {
    pub result: String,
    pub at: u64,
    pub error: Option<String>,
}

/// Who is connected.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[expect(missing_docs, clippy::exhaustive_structs, reason = "plain data; the names are those of the output")]
pub struct Connections {
    pub open: u64,
    pub limit: u64,
    pub handshakes: u64,
    pub peers: Vec<PeerStatus>,
    pub more_peers: u64,
}

/// A client certificate with open connections.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[expect(missing_docs, clippy::exhaustive_structs, reason = "plain data; the names are those of the output")]
pub struct PeerStatus {
    pub name: String,
    pub subject: String,
    pub fingerprint: String,
    pub connections: u64,
    pub expires: u64,
    #[serde(skip)]
    pub serial: String,
    #[serde(skip)]
    pub hostnames: String,
}

/// The roles of certificates: the server's own, an authority of clients, and a revocation list.
pub const ROLE_SERVER: &str = "server";
/// See [`ROLE_SERVER`].
pub const ROLE_CLIENT_CA: &str = "client_ca";
/// See [`ROLE_SERVER`].
pub const ROLE_CRL: &str = "crl";

/// A certificate that the server itself uses, or a revocation list: then its serial number is the list's.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[expect(missing_docs, clippy::exhaustive_structs, reason = "plain data; the names are those of the output")]
pub struct Certificate {
    pub file: String,
    pub name: String,
    pub role: String,
    pub expires: u64,
    #[serde(skip)]
    pub serial: String,
    #[serde(skip)]
    pub hostnames: String,
}

/// How a store is.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[expect(missing_docs, clippy::exhaustive_structs, reason = "plain data; the names are those of the output")]
pub struct StoreStatus {
    pub name: String,
    pub plugin: String,
    pub critical: bool,
    pub state: StoreState,
    pub since: u64,
    /// Whether it refused its credentials, so that nothing presents them again.
    pub credentials_refused: bool,
    pub last_error: Option<LastError>,
    pub lanes: Lanes,
    pub queue: Queue,
    pub keys: u64,
    pub requests: Requests,
    pub latency_ms: Option<Latency>,
    pub history: Vec<Sample>,
}

/// The state of a store.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum StoreState {
    /// It can't serve.
    Down,
    /// It is open, and its last call failed in a way that blames it.
    Failing,
    /// It has not been tried yet.
    Opening,
    /// It serves.
    Up,
}

/// The latest failure of a store.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[expect(missing_docs, clippy::exhaustive_structs, reason = "plain data; the names are those of the output")]
pub struct LastError {
    pub at: u64,
    pub class: String,
    pub message: String,
    pub vendor: Option<VendorCode>,
}

/// A vendor's own code.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[expect(missing_docs, clippy::exhaustive_structs, reason = "plain data; the names are those of the output")]
pub struct VendorCode {
    pub name: String,
    pub code: u64,
}

/// Lanes of a store.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize)]
#[expect(missing_docs, clippy::exhaustive_structs, reason = "plain data; the names are those of the output")]
pub struct Lanes {
    pub busy: u32,
    pub total: u32,
}

/// The queue of a store.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize)]
#[expect(missing_docs, clippy::exhaustive_structs, reason = "plain data; the names are those of the output")]
pub struct Queue {
    pub waiting: u64,
    pub limit: u64,
}

/// How often a store was asked.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize)]
#[expect(missing_docs, clippy::exhaustive_structs, reason = "plain data; the names are those of the output")]
pub struct Requests {
    pub ok: u64,
    pub failed: u64,
}

/// How fast a store answered within the last minute, milliseconds.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
#[expect(missing_docs, clippy::exhaustive_structs, reason = "plain data; the names are those of the output")]
pub struct Latency {
    pub p50: f64,
    pub p99: f64,
}

/// Ten seconds of a store.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
#[expect(missing_docs, clippy::exhaustive_structs, reason = "plain data; the names are those of the output")]
pub struct Sample {
    pub at: u64,
    pub per_second: f64,
    pub failed_per_second: f64,
    pub p50_ms: Option<f64>,
    pub p99_ms: Option<f64>,
}

/// A plugin that is loaded.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[expect(missing_docs, clippy::exhaustive_structs, reason = "plain data; the names are those of the output")]
pub struct Plugin {
    pub name: String,
    pub version: String,
    pub vendor: String,
    /// Where it runs.
    pub isolation: String,
    pub stores: Vec<String>,
}

/// A process that plugins run in.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[expect(missing_docs, clippy::exhaustive_structs, reason = "plain data; the names are those of the output")]
pub struct Process {
    pub name: String,
    pub plugins: Vec<String>,
    pub stores: Vec<String>,
    /// `None` while it doesn't run.
    pub pid: Option<u32>,
    /// Since when it runs, or doesn't.
    pub since: u64,
    /// How often it was started again after it had died.
    pub restarts: u64,
    pub last_death: Option<String>,
}

/// Requests that failed for one cause.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[expect(missing_docs, clippy::exhaustive_structs, reason = "plain data; the names are those of the output")]
pub struct Failed {
    pub at: u64,
    pub store: String,
    pub class: String,
    pub message: String,
    pub vendor: Option<VendorCode>,
    pub ski: Option<String>,
    pub peer: Option<String>,
    pub request: Option<String>,
    pub count: u64,
}

/// A key that is served.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[expect(missing_docs, clippy::exhaustive_structs, reason = "plain data; the names are those of the output")]
pub struct KeyStatus {
    pub ski: String,
    #[serde(rename = "type")]
    pub kind: String,
    pub store: String,
    pub label: String,
    pub operations: Vec<String>,
    pub algorithms: Vec<String>,
    pub proven: bool,
}

impl Status {
    /// The certificates whose expiry is a metric.
    pub(crate) fn expiries(&self) -> impl Iterator<Item = Expiry<'_>> {
        let own = self.certificates.iter().map(|certificate| Expiry {
            source: &certificate.file,
            serial: &certificate.serial,
            name: &certificate.name,
            hostnames: &certificate.hostnames,
            owner: certificate.role.as_str(),
            expires: certificate.expires,
        });
        let peers = self.connections.peers.iter().map(|peer| Expiry {
            source: "listener",
            serial: &peer.serial,
            name: &peer.name,
            hostnames: &peer.hostnames,
            owner: "client",
            expires: peer.expires,
        });
        own.chain(peers)
    }
}

/// One certificate of the metric.
pub(crate) struct Expiry<'a> {
    source: &'a str,
    serial: &'a str,
    name: &'a str,
    hostnames: &'a str,
    owner: &'a str,
    pub(crate) expires: u64,
}

impl<'a> Expiry<'a> {
    /// Source, serial number, common name, host names, and whether it is an authority's, the server's, a client's.
    pub(crate) fn labels(&self) -> [&'a str; 7] {
        let is = |owner| if self.owner == owner { "true" } else { "false" };
        [
            self.source,
            self.serial,
            self.name,
            self.hostnames,
            is(ROLE_CLIENT_CA),
            is(ROLE_SERVER),
            is("client"),
        ]
    }
}

impl StoreState {
    /// Whether requests are sent to it.
    #[must_use]
    pub fn serves(self) -> bool {
        matches!(self, Self::Up | Self::Failing)
    }

    /// The word for it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Down => "down",
            Self::Failing => "failing",
            Self::Opening => "opening",
            Self::Up => "up",
        }
    }
}

impl Phase {
    /// The word for it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Serving => "serving",
            Self::Draining => "draining",
            Self::Stopping => "stopping",
        }
    }
}

impl VendorCode {
    /// A failure's, where it has one.
    #[must_use]
    pub fn of(failure: &Failure) -> Option<Self> {
        let vendor = failure.vendor.as_ref()?;
        Some(Self { name: vendor.name.clone(), code: vendor.number })
    }
}

impl Process {
    /// What the plugin host says of one.
    pub(crate) fn of(process: ProcessStatus) -> Self {
        let ProcessStatus { name, plugins, stores, pid, since, restarts, last_death, .. } = process;
        let (since, last_death) = (seconds(since), last_death.map(|death| brief(&death)));
        Self { name, plugins, stores, pid, since, restarts, last_death }
    }

    /// The word for whether it runs.
    #[must_use]
    pub fn state(&self) -> &'static str {
        if self.pid.is_some() { "running" } else { "down" }
    }
}

impl KeyStatus {
    /// A key of a store, with the operations that the store may be asked for.
    #[must_use]
    pub fn new(store: &str, key: &Key, allowed: &[Operation]) -> Self {
        let decrypts = key.algorithms().contains(&Algorithm::RsaRaw);
        let signs = key.algorithms().iter().any(|algorithm| *algorithm != Algorithm::RsaRaw);
        let able = [(signs, Operation::Sign), (decrypts, Operation::Decrypt)];
        let operations = able.into_iter().filter(|(can, operation)| *can && allowed.contains(operation));
        Self {
            ski: Ski::from_spki(key.spki()).map(|ski| ski.to_string()).unwrap_or_default(),
            kind: match key.family() {
                Family::Rsa => format!("RSA-{}", key.bits()),
                Family::Ecdsa => format!("P-{}", key.bits()),
                _ => "Ed25519".to_owned(),
            },
            store: store.to_owned(),
            label: key.label().to_owned(),
            operations: operations.map(|(_, operation)| operation.name().to_owned()).collect(),
            algorithms: key.algorithms().iter().map(|algorithm| algorithm.name().to_owned()).collect(),
            proven: key.is_proven(),
        }
    }
}

/// The word for where a plugin runs.
#[must_use]
pub fn isolation(isolation: Isolation) -> &'static str {
    match isolation {
        Isolation::Inline => "inline",
        Isolation::Process => "process",
    }
}

/// Seconds since 1970.
#[must_use]
pub fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Milliseconds, to the microsecond.
#[must_use]
pub(crate) fn milliseconds(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1e3
}

/// A sentence of a plugin's, no longer than a page wants it.
pub(crate) fn brief(message: &str) -> String {
    const LONGEST: usize = 300;
    match message.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", message.get(..end).unwrap_or_default()),
        None => message.to_owned(),
    }
}
