//! `status`, `keys`, `reload`, `drain`, `log-level`: they ask the running server by its admin socket, and open nothing
//! themselves.

use std::{
    fmt::Write,
    io::{IsTerminal, Write as _},
    path::PathBuf,
    process::ExitCode,
    thread,
    time::{Duration, SystemTime},
};

use clap::Args;
use http_body_util::{BodyExt, Empty};
use hyper::{Method, Request, StatusCode, body::Bytes, client::conn::http1};
use hyper_util::rt::TokioIo;
use keystead::{
    config::{AdminSocket, Flags, Level},
    reload::Reloaded,
    status::{
        self, Failed as Failure, KeyStatus, LastError, PeerStatus, Process, Status, StoreStatus, VendorCode,
    },
    stores::Change,
};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::net::UnixStream;

use super::{Failed, Output, load, print, runtime, table};

/// How often a live view is drawn anew.
const REDRAW: Duration = Duration::from_secs(1);

/// How the running server is reached.
#[derive(Args)]
pub(super) struct Server {
    /// The server's admin socket [default: what the configuration says, else /run/keystead/admin.sock]
    #[arg(long, value_name = "PATH", env = "KEYSTEAD_ADMIN_SOCKET")]
    socket: Option<PathBuf>,
    #[command(flatten)]
    flags: Flags,
}

/// Arguments of `status`.
#[derive(Args)]
pub(super) struct ShowStatus {
    #[command(flatten)]
    server: Server,
    #[command(flatten)]
    output: Output,
    /// Show it anew every second, until Ctrl-C
    #[arg(long)]
    watch: bool,
}

/// Arguments of `keys`.
#[derive(Args)]
pub(super) struct ShowKeys {
    #[command(flatten)]
    server: Server,
    #[command(flatten)]
    output: Output,
}

/// Arguments of `reload` and `drain`.
#[derive(Args)]
pub(super) struct Tell {
    #[command(flatten)]
    server: Server,
    #[command(flatten)]
    output: Output,
}

/// Arguments of `log-level`.
#[derive(Args)]
pub(super) struct SetLevel {
    /// trace, debug, info, warn or error
    #[arg(value_name = "LEVEL")]
    level: Level,
    #[command(flatten)]
    server: Server,
    #[command(flatten)]
    output: Output,
}

impl ShowStatus {
    pub(super) fn run(self) -> Result<ExitCode, Failed> {
        if !self.watch {
            return print(&self.show(&self.server.ask(&Method::GET, "/status")?)?);
        }
        let live = std::io::stdout().is_terminal() && !self.output.json;
        loop {
            let shown = self.server.ask(&Method::GET, "/status").and_then(|status| self.show(&status));
            let text = match (shown, live) {
                (Ok(text), _) => text,
                (Err(failed), true) => format!("{}\n", failed.message()), // it may come back
                (Err(failed), false) => return Err(failed),
            };
            if std::io::stdout().write_all(if live { frame(&text) } else { text }.as_bytes()).is_err() {
                return Ok(ExitCode::SUCCESS); // nobody reads it any more
            }
            thread::sleep(REDRAW);
        }
    }

    /// JSON is a line each time where it is watched, for programs that read lines.
    fn show(&self, answer: &Value) -> Result<String, Failed> {
        match (self.output.json, self.watch) {
            (true, true) => Ok(format!("{answer}\n")),
            (true, false) => Ok(format!("{answer:#}\n")),
            (false, _) => Ok(status_text(&parse(answer)?)),
        }
    }
}

impl ShowKeys {
    pub(super) fn run(self) -> Result<ExitCode, Failed> {
        let answer = self.server.ask(&Method::GET, "/keys")?;
        if self.output.json {
            return print(&format!("{answer:#}\n"));
        }
        let keys: Vec<KeyStatus> = parse(&answer)?;
        let rows =
            keys.into_iter().map(|key| [key.ski, key.kind, key.store, key.label, key.operations.join(",")]);
        print(&table(["SKI", "TYPE", "STORE", "LABEL", "OPERATIONS"], rows))
    }
}

impl Tell {
    pub(super) fn reload(self) -> Result<ExitCode, Failed> {
        let answer = self.server.ask(&Method::POST, "/reload")?;
        if self.output.json {
            return print(&format!("{answer:#}\n"));
        }
        let Reloaded { generation, stores: Change { added, changed, removed }, tls, warnings } =
            parse(&answer)?;
        let mut text = format!("reloaded: generation {generation}\n");
        for (what, names) in [("added", added), ("opened anew", changed), ("removed", removed)] {
            if !names.is_empty() {
                let _ = writeln!(text, "stores {what}: {}", names.join(", "));
            }
        }
        if tls {
            text.push_str("TLS: certificates, authorities, revocation list or settings are new\n");
        }
        for warning in warnings {
            let _ = writeln!(text, "warning: {warning}");
        }
        print(&text)
    }

    pub(super) fn drain(self) -> Result<ExitCode, Failed> {
        let answer = self.server.ask(&Method::POST, "/drain")?;
        let left = answer.get("connections").and_then(Value::as_u64).unwrap_or_default();
        match self.output.json {
            true => print(&format!("{answer:#}\n"))?,
            false => {
                print(&format!("drained: {left} connections are left; start the server again to serve\n"))?
            }
        };
        Ok(ExitCode::from(u8::from(left > 0)))
    }
}

impl SetLevel {
    pub(super) fn run(self) -> Result<ExitCode, Failed> {
        let answer = self.server.ask(&Method::POST, &format!("/log-level?{}", self.level.name()))?;
        match self.output.json {
            true => print(&format!("{answer:#}\n")),
            false => print(&format!("the log's level is {}, until the next reload\n", self.level.name())),
        }
    }
}

impl Server {
    /// Asks, and reads the answer.
    fn ask(&self, method: &Method, path: &str) -> Result<Value, Failed> {
        let socket = self.path()?;
        let unreachable = |error: &dyn std::fmt::Display| {
            Failed::new(format!("no server answers on {}: {error}", socket.display())).hint(
                "is it running, with `admin_socket` on, and are you root or its user? `--socket` names another one",
            )
        };
        let exchange = async {
            let stream = UnixStream::connect(&socket).await.map_err(|error| unreachable(&error))?;
            let (mut sender, connection) =
                http1::handshake(TokioIo::new(stream)).await.map_err(|error| unreachable(&error))?;
            tokio::spawn(connection);
            let request = Request::builder().method(method).uri(path).header("host", "keystead");
            let request = request.body(Empty::<Bytes>::new()).map_err(Failed::new)?;
            let answer = sender.send_request(request).await.map_err(|error| unreachable(&error))?;
            let status = answer.status();
            let body = answer.into_body().collect().await.map_err(|error| unreachable(&error))?;
            Ok::<_, Failed>((status, body.to_bytes()))
        };
        let (status, body) = runtime()?.block_on(exchange)?;
        let answer: Option<Value> = serde_json::from_slice(&body).ok();
        match answer {
            Some(answer) if status == StatusCode::OK => Ok(answer),
            Some(answer) => {
                let error = answer.get("error").and_then(Value::as_str).unwrap_or("no reason was given");
                Err(Failed::new(format!("refused: {error}")))
            }
            None => Err(Failed::new(String::from_utf8_lossy(&body).trim())),
        }
    }

    /// A configuration that is broken at the moment must not keep its author from the server.
    fn path(&self) -> Result<PathBuf, Failed> {
        if let Some(path) = &self.socket {
            return Ok(path.clone());
        }
        match load(&self.flags) {
            Ok(config) => config.admin_socket.map(|socket| socket.path).ok_or_else(|| {
                Failed::new("`admin_socket` is off in the configuration").hint("`--socket` names another one")
            }),
            Err(failed) => Some(AdminSocket::default().path).filter(|path| path.exists()).ok_or(failed),
        }
    }
}

fn parse<T: DeserializeOwned>(answer: &Value) -> Result<T, Failed> {
    T::deserialize(answer).map_err(|error| Failed::new(format!("the server's answer can't be read: {error}")))
}

/// A text that is drawn over the one before, cut to the terminal.
fn frame(text: &str) -> String {
    let size = rustix::termios::tcgetwinsize(std::io::stdout()).ok().filter(|size| size.ws_row > 0);
    let (rows, columns) =
        size.map_or((usize::MAX, usize::MAX), |size| (size.ws_row.into(), size.ws_col.into()));
    let mut frame = String::from("\x1b[H");
    for (number, line) in text.lines().take(rows).enumerate() {
        if number > 0 {
            frame.push_str("\r\n");
        }
        frame.extend(line.chars().take(columns));
        frame.push_str("\x1b[K");
    }
    frame.push_str("\x1b[J");
    frame
}

fn status_text(status: &Status) -> String {
    let now = status::seconds(SystemTime::now());
    let mut text = String::new();
    let ready = if status.ready { "ready" } else { "not ready" };
    let up = span(status.uptime_seconds);
    let _ = writeln!(
        text,
        "keystead {}, pid {}, up {up}: {}, {ready}",
        status.version,
        status.pid,
        status.state.name()
    );
    configuration_text(&mut text, status, now);
    let connections = &status.connections;
    let _ = writeln!(text, "listening on   {}", status.listeners.join(", "));
    let _ = writeln!(
        text,
        "connections    {} of {}, and {} handshakes",
        connections.open, connections.limit, connections.handshakes
    );
    for certificate in &status.certificates {
        let left = left(certificate.expires, now);
        let _ = writeln!(
            text,
            "certificate    {} ({}, {}): {left}",
            certificate.name, certificate.role, certificate.file
        );
    }
    for plugin in &status.plugins {
        let stores = plugin.stores.join(", ");
        let _ = writeln!(
            text,
            "plugin         {} {} ({}), {}: {stores}",
            plugin.name, plugin.version, plugin.vendor, plugin.isolation
        );
    }
    let head = [
        "STORE",
        "STATE",
        "SINCE",
        "KEYS",
        "LANES",
        "QUEUE",
        "OK",
        "FAILED",
        "P50 MS",
        "P99 MS",
        "LAST ERROR",
    ];
    let _ = write!(text, "\n{}", table(head, status.stores.iter().map(|store| store_row(store, now))));
    if !status.processes.is_empty() {
        let rows = status.processes.iter().map(|process| process_row(process, now));
        let head = ["PROCESS", "STATE", "SINCE", "PID", "RESTARTS", "STORES", "LAST DEATH"];
        let _ = write!(text, "\n{}", table(head, rows));
    }
    if !connections.peers.is_empty() {
        let rows = connections.peers.iter().map(|peer| peer_row(peer, now));
        let _ = write!(text, "\n{}", table(["PEER", "CONNECTIONS", "CERTIFICATE"], rows));
    }
    if connections.more_peers > 0 {
        let _ = writeln!(text, "and {} more", connections.more_peers);
    }
    if !status.failures.is_empty() {
        let rows = status.failures.iter().map(|failure| failure_row(failure, now));
        let _ = write!(
            text,
            "\n{}",
            table(["FAILURE OF", "LAST", "TIMES", "CLASS", "PEER", "REQUEST", "SKI", "WHAT"], rows)
        );
    }
    text
}

fn configuration_text(text: &mut String, status: &Status, now: u64) {
    let configuration = &status.configuration;
    let file = configuration.file.as_deref().unwrap_or("no file");
    let loaded = span(now.saturating_sub(configuration.loaded));
    let _ =
        writeln!(text, "configuration  {file}, generation {}, loaded {loaded} ago", configuration.generation);
    if let Some((reload, error)) =
        configuration.last_reload.as_ref().and_then(|reload| Some((reload, reload.error.as_ref()?)))
    {
        let ago = span(now.saturating_sub(reload.at));
        let _ = writeln!(text, "last reload    refused {ago} ago: {}", error.replace('\n', "; "));
    }
}

fn store_row(store: &StoreStatus, now: u64) -> [String; 11] {
    let milliseconds =
        |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |value| format!("{value:.2}"));
    [
        store.name.clone(),
        store.state.name().to_owned(),
        span(now.saturating_sub(store.since)),
        store.keys.to_string(),
        format!("{}/{}", store.lanes.busy, store.lanes.total),
        format!("{}/{}", store.queue.waiting, store.queue.limit),
        store.requests.ok.to_string(),
        store.requests.failed.to_string(),
        milliseconds(store.latency_ms.map(|latency| latency.p50)),
        milliseconds(store.latency_ms.map(|latency| latency.p99)),
        store.last_error.as_ref().map_or_else(|| "-".to_owned(), |error| last_error(error, now)),
    ]
}

fn last_error(error: &LastError, now: u64) -> String {
    let LastError { at, class, message, vendor } = error;
    format!("{} ago, {class}: {message}{}", span(now.saturating_sub(*at)), code(vendor.as_ref()))
}

fn process_row(process: &Process, now: u64) -> [String; 7] {
    let or_none = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    [
        process.name.clone(),
        process.state().to_owned(),
        span(now.saturating_sub(process.since)),
        or_none(process.pid.map(|pid| pid.to_string())),
        process.restarts.to_string(),
        or_none(Some(process.stores.join(", ")).filter(|stores| !stores.is_empty())),
        or_none(process.last_death.clone()),
    ]
}

fn peer_row(peer: &PeerStatus, now: u64) -> [String; 3] {
    [peer.name.clone(), peer.connections.to_string(), left(peer.expires, now)]
}

fn failure_row(failure: &Failure, now: u64) -> [String; 8] {
    let or_none = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
    [
        failure.store.clone(),
        format!("{} ago", span(now.saturating_sub(failure.at))),
        failure.count.to_string(),
        failure.class.clone(),
        or_none(&failure.peer),
        or_none(&failure.request),
        or_none(&failure.ski),
        format!("{}{}", failure.message, code(failure.vendor.as_ref())),
    ]
}

fn code(vendor: Option<&VendorCode>) -> String {
    let vendor = vendor.map(|vendor| keystead_plugin_host::Vendor::new(vendor.name.clone(), vendor.code));
    vendor.map(|vendor| format!(" ({vendor})")).unwrap_or_default()
}

fn left(expires: u64, now: u64) -> String {
    match expires.checked_sub(now) {
        Some(left) => format!("expires in {}", span(left)),
        None => format!("EXPIRED {} ago", span(now - expires)),
    }
}

/// A time in its two largest units.
fn span(seconds: u64) -> String {
    const UNITS: [(u64, &str); 4] = [(86_400, "d"), (3_600, "h"), (60, "min"), (1, "s")];
    let largest = UNITS.iter().position(|(unit, _)| seconds >= *unit).unwrap_or(UNITS.len() - 1);
    let mut rest = seconds;
    let parts = UNITS.iter().skip(largest).take(2).map(|(unit, name)| {
        let count = rest / unit;
        rest %= unit;
        (count, name)
    });
    let parts: Vec<_> = parts.enumerate().filter(|(place, (count, _))| *place == 0 || *count > 0).collect();
    parts.iter().map(|(_, (count, name))| format!("{count} {name}")).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_has_its_two_largest_units() {
        for (seconds, text) in [
            (0, "0 s"),
            (59, "59 s"),
            (60, "1 min"),
            (61, "1 min 1 s"),
            (3_600, "1 h"),
            (90_061, "1 d 1 h"),
            (86_460, "1 d"),
        ] {
            assert_eq!(span(seconds), text);
        }
    }

    #[test]
    fn a_process_that_is_down_says_how_it_died() {
        let process = Process {
            name: "pkcs11 libhsm.so".to_owned(),
            plugins: vec!["pkcs11".to_owned()],
            stores: vec!["a".to_owned(), "b".to_owned()],
            pid: None,
            since: 40,
            restarts: 4,
            last_death: Some("signal 11".to_owned()),
        };
        let down = ["pkcs11 libhsm.so", "down", "1 min", "-", "4", "a, b", "signal 11"];
        assert_eq!(process_row(&process, 100), down);
        let runs = Process { pid: Some(7), stores: Vec::new(), last_death: None, ..process };
        assert_eq!(process_row(&runs, 100), ["pkcs11 libhsm.so", "running", "1 min", "7", "4", "-", "-"]);
    }

    #[test]
    fn an_expired_certificate_stands_out() {
        assert_eq!(left(100, 40), "expires in 1 min");
        assert_eq!(left(40, 100), "EXPIRED 1 min ago");
    }
}
