//! Sources to settings: takes each option from flag, variable, file or default, in this order.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::net::{Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use zeroize::Zeroizing;

use super::notice::{Notice, Position};
use super::store::{self, Store, StoreLimits};
use super::table::{self, Reader, Table, list, mismatch};
use super::yaml::{self, Node, Value};
use super::{
    AdminSocket, Config, Environment, Flags, Level, Limits, Log, LogFormat, Plugins, Tls, TlsVersion,
};

/// Every key of the file's top: the reference's, then ours.
pub(super) const TOP: [&str; 30] = [
    "loglevel",
    "hostname",
    "zone_id",
    "origin_ca_api_key",
    "api_token",
    "init_endpoint",
    "auth_cert",
    "auth_key",
    "auth_csr",
    "cloudflare_ca_cert",
    "private_key_stores",
    "port",
    "metrics_port",
    "pid_file",
    "current_time",
    "tracing_enabled",
    "tracing_address",
    "tracing_sample_rate",
    "sign_timeout",
    "sign_retry_count",
    "listen",
    "metrics_listen",
    "status_page",
    "admin_socket",
    "watch",
    "client_ca",
    "log",
    "tls",
    "limits",
    "plugins",
];
pub(super) const LOG: [&str; 2] = ["level", "format"];
pub(super) const TLS: [&str; 3] = ["versions", "resumption", "crl"];
pub(super) const LIMITS: [&str; 10] = [
    "connections",
    "connections_per_peer",
    "handshakes",
    "in_flight",
    "handshake_timeout",
    "idle_timeout",
    "frame_timeout",
    "write_timeout",
    "deadline",
    "grace",
];
pub(super) const PLUGINS: [&str; 4] = ["path", "require_sha256", "sha256", "cache"];

const PORT: u16 = 2407;
const METRICS_PORT: u16 = 2406;
/// How often files may be looked at for changes.
const WATCH: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(3_600);
/// Legal time limits on a connection: long enough for a far client, short enough to end.
const TIMEOUTS: RangeInclusive<Duration> = Duration::from_millis(10)..=Duration::from_secs(3_600);

/// Resolves the text of a file, which may be empty, with what stands above it.
pub(super) fn resolve(text: &str, flags: &Flags, env: Environment<'_>) -> Result<Config, Notice> {
    let table = Table::open(yaml::parse(text)?, "", &TOP)?;
    Resolving { flags, env, table, warnings: Vec::new() }.config()
}

struct Resolving<'a> {
    flags: &'a Flags,
    env: Environment<'a>,
    table: Table,
    warnings: Vec<Notice>,
}

impl Resolving<'_> {
    fn config(mut self) -> Result<Config, Notice> {
        let flags = self.flags;
        let limits = self.limits()?;
        let (auth_cert, auth_key, client_ca) = self.identity()?;
        self.check_enrolment()?;
        self.check_tracing()?;
        Ok(Config {
            file: None,
            listen: self.listen()?,
            metrics: self.metrics()?,
            status_page: self.table.read("status_page", table::boolean)?.unwrap_or(true),
            admin_socket: self
                .table
                .read("admin_socket", table::or_off(table::path))?
                .map_or_else(|| Some(AdminSocket::default()), named),
            watch: self.table.read("watch", table::or_off(table::duration(WATCH)))?.flatten(),
            auth_cert,
            auth_key,
            client_ca,
            pid_file: self.option("pid_file", flags.pid_file.clone(), table::path)?,
            log: self.log()?,
            tls: self.tls()?,
            sign_timeout: self
                .option("sign_timeout", None, table::duration(Duration::ZERO..=Duration::MAX))?
                .filter(|timeout| !timeout.is_zero()),
            sign_retry_count: self
                .option("sign_retry_count", None, table::whole(0..=u32::MAX.into()))?
                .unwrap_or(0),
            plugins: self.plugins()?,
            stores: self.stores()?,
            limits,
            warnings: self.warnings,
        })
    }

    /// An option of the reference. What the file says is checked even where a flag or variable wins.
    fn option<T>(&mut self, key: &str, flag: Option<T>, reader: impl Reader<T>) -> Result<Option<T>, Notice> {
        let in_file = self.table.read(key, &reader)?;
        if flag.is_some() {
            return Ok(flag);
        }
        Ok(self.variable(key, reader)?.or(in_file))
    }

    /// The variable of a key. An empty one counts as unset, as in the reference.
    fn variable<T>(&self, key: &str, reader: impl Reader<T>) -> Result<Option<T>, Notice> {
        let name = variable_name(key);
        let Some(value) = (self.env)(&name).filter(|value| !value.is_empty()) else { return Ok(None) };
        let fault = |problem| Notice::new(format!("variable `{name}`: {problem}")).about(key);
        let value =
            value.into_string().map_err(|_| fault("expected UTF-8 text, got other bytes".to_owned()))?;
        reader(&Value::String(Zeroizing::new(value))).map(Some).map_err(fault)
    }

    fn listen(&mut self) -> Result<Vec<SocketAddr>, Notice> {
        self.table.refuse_both("port", "listen")?;
        let native = self.table.read("listen", table::some(table::address))?;
        let port = self.option("port", self.flags.port, port)?;
        Ok(addresses(port, native, PORT))
    }

    fn metrics(&mut self) -> Result<Option<Vec<SocketAddr>>, Notice> {
        self.table.refuse_both("metrics_port", "metrics_listen")?;
        let native = self.table.read("metrics_listen", table::or_off(table::some(table::address)))?;
        let port = self.option("metrics_port", self.flags.metrics_port, port)?;
        match (port, native) {
            (None, Some(None)) => Ok(None),
            (port, native) => Ok(Some(addresses(port, native.flatten(), METRICS_PORT))),
        }
    }

    /// Certificate, key and client authorities.
    fn identity(&mut self) -> Result<(PathBuf, PathBuf, PathBuf), Notice> {
        self.table.refuse_both("cloudflare_ca_cert", "client_ca")?;
        let flags = self.flags;
        let native = self.table.read("client_ca", table::path)?;
        let auth_cert = self.option("auth_cert", flags.auth_cert.clone(), table::path)?;
        let auth_key = self.option("auth_key", flags.auth_key.clone(), table::path)?;
        let client_ca = self.option("cloudflare_ca_cert", flags.cloudflare_ca_cert.clone(), table::path)?;
        Ok((
            auth_cert.unwrap_or_else(|| "server.pem".into()),
            auth_key.unwrap_or_else(|| "server-key.pem".into()),
            client_ca.or(native).unwrap_or_else(|| "keyless_cacert.pem".into()),
        ))
    }

    fn log(&mut self) -> Result<Log, Notice> {
        let mut log = self.table.table("log", &LOG)?;
        if let (Some(old), Some(new)) = (self.table.position_of("loglevel"), log.position_of("level")) {
            return Err(table::both("loglevel", old, "log.level", new));
        }
        let native = log.read("level", level)?;
        let level = self.option("loglevel", self.flags.loglevel, level)?.or(native).unwrap_or_default();
        let formats = [("text", LogFormat::Text), ("json", LogFormat::Json)];
        Ok(Log { level, format: log.read("format", table::word(&formats))?.unwrap_or_default() })
    }

    fn tls(&mut self) -> Result<Tls, Notice> {
        let mut tls = self.table.table("tls", &TLS)?;
        let default = Tls::default();
        let versions = tls.read("versions", table::some(tls_version))?;
        Ok(Tls {
            versions: versions.map_or(default.versions, BTreeSet::from_iter),
            resumption: tls.read("resumption", table::boolean)?.unwrap_or(default.resumption),
            crl: tls.read("crl", table::path)?,
        })
    }

    fn limits(&mut self) -> Result<Limits, Notice> {
        let mut limits = self.table.table("limits", &LIMITS)?;
        let default = Limits::default();
        let connections =
            limits.read("connections", table::whole(1..=1_000_000))?.unwrap_or(default.connections);
        let mut timeout = |key, range, default| {
            limits.read(key, table::duration(range)).map(|timeout| timeout.unwrap_or(default))
        };
        Ok(Limits {
            handshake_timeout: timeout("handshake_timeout", TIMEOUTS, default.handshake_timeout)?,
            idle_timeout: timeout("idle_timeout", TIMEOUTS, default.idle_timeout)?,
            frame_timeout: timeout("frame_timeout", TIMEOUTS, default.frame_timeout)?,
            write_timeout: timeout("write_timeout", TIMEOUTS, default.write_timeout)?,
            deadline: timeout("deadline", StoreLimits::DEADLINES, default.deadline)?,
            grace: timeout("grace", Duration::ZERO..=*TIMEOUTS.end(), default.grace)?,
            connections,
            connections_per_peer: limits
                .read("connections_per_peer", table::whole(1..=1_000_000))?
                .unwrap_or(connections),
            handshakes: limits.read("handshakes", table::whole(1..=1_000_000))?.unwrap_or(default.handshakes),
            in_flight: limits.read("in_flight", table::whole(1..=65_536))?.unwrap_or(default.in_flight),
        })
    }

    fn plugins(&mut self) -> Result<Plugins, Notice> {
        let mut plugins = self.table.table("plugins", &PLUGINS)?;
        let in_file = plugins.read("path", table::some(table::path))?;
        let variable = (self.env)("KEYSTEAD_PLUGIN_PATH").filter(|value| !value.is_empty());
        let from_variable = |value: OsString| std::env::split_paths(&value).collect();
        Ok(Plugins {
            path: variable.map(from_variable).or(in_file).unwrap_or_default(),
            require_sha256: plugins.read("require_sha256", table::boolean)?.unwrap_or(false),
            sha256: plugins.read("sha256", hashes)?.unwrap_or_default(),
            cache: plugins.read("cache", table::path)?,
        })
    }

    fn stores(&mut self) -> Result<Vec<Store>, Notice> {
        self.variable("private_key_stores", |_| Err::<(), _>(NO_STORES_BY_VARIABLE.to_owned()))?;
        let position = self.table.position_of("private_key_stores");
        let list = self.table.take("private_key_stores");
        let Some(KeyFiles { dirs, files, source }) = self.key_files()? else {
            return list.map_or_else(|| Ok(Vec::new()), |list| self.listed_stores(list));
        };
        if let Some(position) = position {
            let message = format!("all of `private_key_stores` is replaced by what {source}");
            self.warnings.push(Notice::new(message).at(position).about("private_key_stores"));
        }
        let stores = store::key_files(&dirs, &files);
        self.warnings.extend(store::decrypt_warning(&stores));
        Ok(stores)
    }

    fn listed_stores(&mut self, list: Node) -> Result<Vec<Store>, Notice> {
        let (stores, warnings) = store::read_list(list, self.env)?;
        self.warnings.extend(warnings);
        Ok(stores)
    }

    /// The key files that flags list, else those that variables list: one of either kind sets the other aside.
    fn key_files(&self) -> Result<Option<KeyFiles>, Notice> {
        let from_flag = |paths: &Option<Vec<String>>| trimmed(paths.iter().flatten().map(String::as_str));
        let (dirs, files) =
            (from_flag(&self.flags.private_key_dirs), from_flag(&self.flags.private_key_files));
        if !(dirs.is_empty() && files.is_empty()) {
            return Ok(Some(KeyFiles { dirs, files, source: "the command line lists" }));
        }
        let split = |value: &Value| table::text(value).map(|paths| trimmed(paths.split(',')));
        let dirs = self.variable("private_key_dirs", split)?.unwrap_or_default();
        let files = self.variable("private_key_files", split)?.unwrap_or_default();
        let source = "`KEYLESS_PRIVATE_KEY_DIRS` and `KEYLESS_PRIVATE_KEY_FILES` list";
        Ok((!(dirs.is_empty() && files.is_empty())).then_some(KeyFiles { dirs, files, source }))
    }

    /// Warns of what would enrol the server, if what that needs is there.
    fn check_enrolment(&mut self) -> Result<(), Notice> {
        let flags = self.flags;
        let credentials = [
            self.is_set("hostname", flags.hostname.as_ref())?,
            self.is_set("zone_id", flags.zone_id.as_ref())?,
            self.is_set("origin_ca_api_key", flags.origin_ca_api_key.as_ref())?,
            self.is_set("api_token", flags.api_token.as_ref())?,
        ];
        self.is_set("init_endpoint", flags.init_endpoint.as_ref())?;
        self.is_set("auth_csr", flags.auth_csr.as_ref())?;
        let set: Vec<_> = credentials.into_iter().flatten().collect();
        let Some(first) = set.first() else { return Ok(()) };
        let names: Vec<_> = set.iter().map(|option| option.key).collect();
        let verb = if names.len() == 1 { "has" } else { "have" };
        let message = format!("{} {verb} no effect yet: this server doesn't enrol", list(&names, "and"));
        let hint = "put a valid certificate and its key where `auth_cert` and `auth_key` say";
        let notice = Notice::new(message).about(first.key).hint(hint);
        self.warnings.push(Notice { position: first.position, ..notice });
        Ok(())
    }

    fn check_tracing(&mut self) -> Result<(), Notice> {
        let flags = self.flags;
        if let Some(SetOption { key, position }) = self.is_set("current_time", flags.current_time.as_ref())? {
            let notice = Notice::new("`current_time` has no effect: the system's clock is used").about(key);
            self.warnings.push(Notice { position, ..notice });
        }
        self.is_set("tracing_address", flags.tracing_address.as_ref())?;
        self.option("tracing_sample_rate", flags.tracing_sample_rate, table::share)?;
        let position = self.table.position_of("tracing_enabled");
        if self.option("tracing_enabled", flags.tracing_enabled, table::boolean)? == Some(true) {
            let notice = Notice::new("`tracing_enabled` has no effect yet: no spans are sent");
            self.warnings.push(Notice { position, ..notice.about("tracing_enabled") });
        }
        Ok(())
    }

    /// Whether an option that isn't built yet is set, and where. Its value is only checked to be a scalar.
    fn is_set<T>(&mut self, key: &'static str, flag: Option<&T>) -> Result<Option<SetOption>, Notice> {
        let position = self.table.position_of(key);
        let filled = self.option(key, flag.map(|_| true), filled)?.unwrap_or(false);
        Ok(filled.then_some(SetOption { key, position }))
    }
}

const NO_STORES_BY_VARIABLE: &str = "a list can't be given by variable; use the file, `KEYLESS_PRIVATE_KEY_DIRS` or `KEYLESS_PRIVATE_KEY_FILES`";

struct KeyFiles {
    dirs: Vec<String>,
    files: Vec<String>,
    source: &'static str,
}

struct SetOption {
    key: &'static str,
    position: Option<Position>,
}

fn variable_name(key: &str) -> String {
    format!("KEYLESS_{}", key.to_ascii_uppercase())
}

fn addresses(port: Option<u16>, native: Option<Vec<SocketAddr>>, default: u16) -> Vec<SocketAddr> {
    let everywhere = |port| vec![SocketAddr::from((Ipv6Addr::UNSPECIFIED, port))];
    port.map(everywhere).or(native).unwrap_or_else(|| everywhere(default))
}

fn trimmed<'p>(paths: impl Iterator<Item = &'p str>) -> Vec<String> {
    paths.map(str::trim).filter(|path| !path.is_empty()).map(str::to_owned).collect()
}

fn port(value: &Value) -> Result<u16, String> {
    table::whole(0..=u16::MAX.into())(value)
}

fn level(value: &Value) -> Result<Level, String> {
    let level = match value {
        Value::Number(number) => number.to_string().parse(),
        Value::String(text) => text.parse(),
        _ => Err(Level::EXPECTED),
    };
    level.map_err(|expected| mismatch(expected, value))
}

fn tls_version(value: &Value) -> Result<TlsVersion, String> {
    let version = match value {
        // Without quotes a version reads as a number.
        Value::Number(number) => number.to_string(),
        Value::String(text) => text.to_string(),
        _ => String::new(),
    };
    match version.as_str() {
        "1.2" => Ok(TlsVersion::Tls12),
        "1.3" => Ok(TlsVersion::Tls13),
        _ => Err(mismatch("`\"1.2\"` or `\"1.3\"`", value)),
    }
}

fn named(path: Option<PathBuf>) -> Option<AdminSocket> {
    path.map(|path| AdminSocket { path, named: true })
}

/// Whether a scalar has something in it.
fn filled(value: &Value) -> Result<bool, String> {
    match value {
        Value::String(text) => Ok(!text.is_empty()),
        Value::Number(_) | Value::Bool(_) => Ok(true),
        _ => Err(mismatch("a string", value)),
    }
}

fn hashes(value: &Value) -> Result<BTreeMap<String, [u8; 32]>, String> {
    let Value::Map(entries) = value else { return Err(mismatch("a map of plugins and hashes", value)) };
    entries.iter().map(|entry| Ok((entry.key.clone(), hash(&entry.node.value)?))).collect()
}

/// A SHA-256 in 64 hexadecimal digits, as `sha256sum` prints it.
fn hash(value: &Value) -> Result<[u8; 32], String> {
    let refuse = || mismatch("64 hexadecimal digits for each plugin", value);
    let Value::String(text) = value else { return Err(refuse()) };
    if text.len() != 64 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(refuse());
    }
    let mut hash = [0; 32];
    for (byte, digits) in hash.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        let digits = str::from_utf8(digits).map_err(|_| refuse())?;
        *byte = u8::from_str_radix(digits, 16).map_err(|_| refuse())?;
    }
    Ok(hash)
}
