//! What Prometheus reads: the reference's metrics, by its names, labels and buckets, and beside them what tells an
//! operator which store, which bound or which certificate is the matter.
//!
//! Counters and timers are kept as things happen; gauges are filled in from a [`Status`] when somebody reads.

use std::{
    collections::BTreeMap,
    sync::{Mutex, OnceLock, PoisonError},
    time::{Duration, Instant},
};

use keystead_plugin_host::{Algorithm, Class};
use keystead_protocol::{ErrorCode, Opcode};
use prometheus::{
    Encoder, Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, Opts,
    Registry, TextEncoder, core::Collector, core::Metric,
};

use crate::status::Status;

/// Upper bounds in seconds: 15 µs, then 100 µs doubling to 1.6384 s.
const BUCKETS: [f64; 16] = [
    0.000_015, 0.0001, 0.0002, 0.0004, 0.0008, 0.0016, 0.0032, 0.0064, 0.0128, 0.0256, 0.0512, 0.1024,
    0.2048, 0.4096, 0.8192, 1.6384,
];

/// Every metric of the server.
pub struct Metrics {
    registry: Registry,
    requests: IntCounterVec,
    execution: HistogramVec,
    total: HistogramVec,
    lookup: Histogram,
    failed_connections: IntCounter,
    store_requests: IntCounterVec,
    store_seconds: HistogramVec,
    handshake_failures: IntCounterVec,
    closed: IntCounterVec,
    shed: IntCounterVec,
    backpressure: IntCounterVec,
    accept_failures: IntCounter,
    reloads: IntCounterVec,
    restarts: Restarts,
    gauges: Gauges,
    counters: [OnceLock<IntCounter>; 256],
    timers: [[OnceLock<Timers>; ERRORS]; 256],
}

/// How often processes of plugins were started again.
struct Restarts {
    counters: IntCounterVec,
    /// What each process had when somebody read last.
    seen: Mutex<BTreeMap<String, u64>>,
}

/// What is filled in when somebody reads.
struct Gauges {
    processes: GaugeVec,
    expiry: GaugeVec,
    up: GaugeVec,
    refused: GaugeVec,
    keys: GaugeVec,
    lanes: GaugeVec,
    queue: GaugeVec,
    connections: Gauge,
    generation: Gauge,
    reloaded: Gauge,
    ready: Gauge,
}

#[derive(Clone)]
struct Timers {
    execution: Histogram,
    total: Histogram,
}

/// How many error codes have timers of their own; those beyond never occur.
const ERRORS: usize = 12;

/// What is asked of a store.
const OPERATIONS: [&str; 2] = ["sign", "decrypt"];

/// How a request to a store ended: well, or with a class of failure.
const RESULTS: usize = 1 + Class::ALL.len();

/// The figures of one store.
pub struct Figures {
    results: [[IntCounter; RESULTS]; 2],
    seconds: [Histogram; 2],
}

/// How often a store was asked, and how fast it answered, up to one moment.
#[derive(Clone, Debug, Default)]
pub(crate) struct Count {
    pub(crate) ok: u64,
    pub(crate) failed: u64,
    /// Answers up to each bound of [`BUCKETS`], and all.
    answers: [u64; BUCKETS.len() + 1],
}

/// Where something was turned away, for [`Metrics::shed`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Shed {
    /// A handshake that wasn't finished made room for another.
    Handshakes,
    /// A client certificate had all the connections that it may.
    Peer,
    /// A store's queue was full.
    Queue,
}

/// Where somebody was made to wait, for [`Metrics::backpressure`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Waiting {
    /// A new connection, because all places were taken.
    Connections,
    /// A connection that had as many requests in flight as it may.
    Requests,
}

impl Metrics {
    /// The metrics, all at zero.
    ///
    /// # Errors
    ///
    /// Where two have the same name; a test shows that they don't.
    pub fn new() -> Result<Self, prometheus::Error> {
        let registry = Registry::new();
        let new = New(&registry);
        Ok(Self {
            requests: new.counters("keyless_requests", "Requests, by opcode.", &["opcode"])?,
            execution: new.timers(
                "keyless_request_exec_duration_per_opcode",
                "Seconds from the decoding of a request to its result, by type of opcode and error.",
                &["type", "error"],
            )?,
            total: new.timers(
                "keyless_request_total_duration_per_opcode",
                "Seconds from the arrival of a request to its result, by type of opcode and error.",
                &["type", "error"],
            )?,
            lookup: new.add(Histogram::with_opts(
                HistogramOpts::new("keyless_key_load_duration", "Seconds to look a key up.")
                    .buckets(BUCKETS.to_vec()),
            )?)?,
            failed_connections: new.add(IntCounter::new(
                "keyless_failed_connection",
                "Connections that ended otherwise than by the client closing them: handshake, read or write failed.",
            )?)?,
            store_requests: new.counters(
                "keystead_store_requests_total",
                "Requests that a store was asked, by operation and result: `ok` or a class of failure.",
                &["store", "op", "result"],
            )?,
            store_seconds: new.timers(
                "keystead_store_request_seconds",
                "Seconds that a store took for a request, waiting for a lane included.",
                &["store", "op"],
            )?,
            handshake_failures: new.counters(
                "keystead_tls_handshake_failures_total",
                "TLS handshakes that failed, by reason.",
                &["reason"],
            )?,
            closed: new.counters(
                "keystead_connections_closed_total",
                "Connections that ended, by reason.",
                &["reason"],
            )?,
            shed: new.counters("keystead_shed_total", "What was turned away, by the bound that was met.", &["where"])?,
            backpressure: new.counters(
                "keystead_backpressure_total",
                "How often a bound made a client wait, by the bound.",
                &["where"],
            )?,
            accept_failures: new.add(IntCounter::new(
                "keystead_accept_failures_total",
                "Connections that could not be accepted, for want of file descriptors as a rule.",
            )?)?,
            reloads: new.counters(
                "keystead_config_reload_total",
                "Reloads of the configuration, by result: `ok` or `refused`.",
                &["result"],
            )?,
            restarts: Restarts {
                counters: new.counters(
                    "keystead_plugin_restarts_total",
                    "How often processes of a plugin were started again after they had died; 0 in the server itself.",
                    &["plugin"],
                )?,
                seen: Mutex::default(),
            },
            gauges: Gauges::new(&new)?,
            counters: [const { OnceLock::new() }; 256],
            timers: [const { [const { OnceLock::new() }; ERRORS] }; 256],
            registry,
        })
    }

    /// Counts a request in.
    pub fn request(&self, opcode: Opcode) {
        if let Some(counter) = self.counters.get(usize::from(opcode.0)) {
            counter.get_or_init(|| self.requests.with_label_values(&[&opcode.metric_name()])).inc();
        }
    }

    /// Notes how long a request took since its decoding and since its arrival, and how it ended.
    pub fn done(&self, opcode: Opcode, error: Option<ErrorCode>, started: Instant, arrived: Instant) {
        let error = error.unwrap_or(ErrorCode::NONE);
        let errors = self.timers.get(usize::from(opcode.0));
        let Some(cell) = errors.and_then(|errors| errors.get(usize::from(error.0))) else { return };
        let timers = cell.get_or_init(|| self.timers_of(opcode, error));
        let now = Instant::now();
        timers.execution.observe(now.duration_since(started).as_secs_f64());
        timers.total.observe(now.duration_since(arrived).as_secs_f64());
    }

    /// Times a look-up.
    pub fn lookup<T>(&self, look: impl FnOnce() -> T) -> T {
        let started = Instant::now();
        let found = look();
        self.lookup.observe(started.elapsed().as_secs_f64());
        found
    }

    /// Counts a handshake that failed.
    pub fn handshake_failed(&self, reason: &str) {
        self.failed_connections.inc();
        self.handshake_failures.with_label_values(&[reason]).inc();
    }

    /// Counts the end of a connection.
    pub fn closed(&self, reason: &str, failed: bool) {
        self.failed_connections.inc_by(u64::from(failed));
        self.closed.with_label_values(&[reason]).inc();
    }

    /// Counts something that was turned away.
    pub fn shed(&self, place: Shed) {
        let place = match place {
            Shed::Handshakes => "handshakes",
            Shed::Peer => "peer",
            Shed::Queue => "queue",
        };
        self.shed.with_label_values(&[place]).inc();
    }

    /// Counts a client that was made to wait.
    pub fn backpressure(&self, place: Waiting) {
        let place = match place {
            Waiting::Connections => "connections",
            Waiting::Requests => "requests",
        };
        self.backpressure.with_label_values(&[place]).inc();
    }

    /// Counts a connection that could not be accepted.
    pub fn accept_failed(&self) {
        self.accept_failures.inc();
    }

    /// Counts a reload.
    pub fn reloaded(&self, done: bool) {
        self.reloads.with_label_values(&[if done { "ok" } else { "refused" }]).inc();
    }

    /// The figures of a store.
    #[must_use]
    pub fn store(&self, name: &str) -> Figures {
        let results = |op| {
            std::array::from_fn(|result| {
                self.store_requests.with_label_values(&[name, op, &result_name(result)])
            })
        };
        Figures {
            results: OPERATIONS.map(results),
            seconds: OPERATIONS.map(|op| self.store_seconds.with_label_values(&[name, op])),
        }
    }

    /// Forgets a store that is no more.
    pub fn forget_store(&self, name: &str) {
        for op in OPERATIONS {
            let _ = self.store_seconds.remove_label_values(&[name, op]);
            for result in 0..RESULTS {
                let _ = self.store_requests.remove_label_values(&[name, op, &result_name(result)]);
            }
        }
    }

    /// Everything in Prometheus' text format.
    #[must_use]
    pub fn render(&self, status: &Status) -> Vec<u8> {
        self.fill(status);
        let mut text = Vec::new();
        let _ = TextEncoder::new().encode(&self.registry.gather(), &mut text);
        text
    }

    fn fill(&self, status: &Status) {
        self.gauges.fill(status);
        self.restarts.fill(status);
    }

    fn timers_of(&self, opcode: Opcode, error: ErrorCode) -> Timers {
        let labels = [opcode.kind().name(), error.name().unwrap_or("unknown error")];
        Timers {
            execution: self.execution.with_label_values(&labels),
            total: self.total.with_label_values(&labels),
        }
    }
}

/// Makes metrics and registers them.
struct New<'a>(&'a Registry);

impl New<'_> {
    fn add<C: Collector + Clone + 'static>(&self, metric: C) -> Result<C, prometheus::Error> {
        self.0.register(Box::new(metric.clone()))?;
        Ok(metric)
    }

    fn counters(&self, name: &str, help: &str, labels: &[&str]) -> Result<IntCounterVec, prometheus::Error> {
        self.add(IntCounterVec::new(Opts::new(name, help), labels)?)
    }

    fn timers(&self, name: &str, help: &str, labels: &[&str]) -> Result<HistogramVec, prometheus::Error> {
        self.add(HistogramVec::new(HistogramOpts::new(name, help).buckets(BUCKETS.to_vec()), labels)?)
    }

    fn gauge(&self, name: &str, help: &str) -> Result<Gauge, prometheus::Error> {
        self.add(Gauge::new(name, help)?)
    }

    fn gauges(&self, name: &str, help: &str, labels: &[&str]) -> Result<GaugeVec, prometheus::Error> {
        self.add(GaugeVec::new(Opts::new(name, help), labels)?)
    }
}

impl Restarts {
    /// Counts what has come since somebody read last, so that a process which is no more takes nothing back: to
    /// Prometheus, a counter that falls began anew.
    fn fill(&self, status: &Status) {
        for plugin in &status.plugins {
            let _ = self.counters.with_label_values(&[&plugin.name]); // at zero from the first reading on
        }
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let before = std::mem::take(&mut *seen);
        for process in &status.processes {
            let known = before.get(&process.name).filter(|known| **known <= process.restarts);
            let fresh = process.restarts - known.copied().unwrap_or_default();
            for plugin in &process.plugins {
                self.counters.with_label_values(&[plugin]).inc_by(fresh);
            }
            seen.insert(process.name.clone(), process.restarts);
        }
    }
}

impl Gauges {
    fn new(new: &New<'_>) -> Result<Self, prometheus::Error> {
        Ok(Self {
            expiry: new.gauges(
                "certificate_expiration_timestamp_seconds",
                "When a certificate expires, seconds since 1970: our own, the client CA's, and of up to 100 peers.",
                &["source", "serial_no", "cn", "hostnames", "ca", "server", "client"],
            )?,
            processes: new.gauges(
                "keystead_plugin_process_up",
                "Whether a process of plugins runs.",
                &["process"],
            )?,
            up: new.gauges("keystead_store_up", "Whether a store serves.", &["store"])?,
            refused: new.gauges(
                "keystead_store_credentials_refused",
                "Whether a store refused its credentials, so that nothing presents them again.",
                &["store"],
            )?,
            keys: new.gauges("keystead_store_keys", "Keys that a store serves.", &["store"])?,
            lanes: new.gauges(
                "keystead_store_lanes",
                "Lanes of a store: how many are inside a call, how many there are.",
                &["store", "state"],
            )?,
            queue: new.gauges("keystead_store_queue", "Requests that wait for a lane of a store.", &["store"])?,
            connections: new.gauge("keystead_connections", "Open connections of clients.")?,
            generation: new.gauge(
                "keystead_config_generation",
                "The number of the configuration in force: 1 at the start, one more with each reload.",
            )?,
            reloaded: new.gauge(
                "keystead_config_last_reload_successful",
                "Whether the last reload was carried out; 1 where there was none.",
            )?,
            ready: new.gauge("keystead_ready", "Whether the server can do its work, as /readyz says.")?,
        })
    }

    #[expect(clippy::cast_precision_loss, reason = "counts and seconds since 1970 are far below 2^53")]
    fn fill(&self, status: &Status) {
        let Self { processes, expiry, up, refused, keys, lanes, queue, .. } = self;
        for gauge in [processes, expiry, up, refused, keys, lanes, queue] {
            gauge.reset(); // what is no more isn't shown
        }
        for process in &status.processes {
            processes.with_label_values(&[&process.name]).set(f64::from(u8::from(process.pid.is_some())));
        }
        for store in &status.stores {
            let name = store.name.as_str();
            self.up.with_label_values(&[name]).set(f64::from(u8::from(store.state.serves())));
            self.refused.with_label_values(&[name]).set(f64::from(u8::from(store.credentials_refused)));
            self.keys.with_label_values(&[name]).set(store.keys as f64);
            self.lanes.with_label_values(&[name, "busy"]).set(f64::from(store.lanes.busy));
            self.lanes.with_label_values(&[name, "total"]).set(f64::from(store.lanes.total));
            self.queue.with_label_values(&[name]).set(store.queue.waiting as f64);
        }
        for certificate in status.expiries() {
            self.expiry.with_label_values(&certificate.labels()).set(certificate.expires as f64);
        }
        self.connections.set(status.connections.open as f64);
        self.generation.set(status.configuration.generation as f64);
        let refused = status.configuration.last_reload.as_ref().is_some_and(|reload| reload.error.is_some());
        self.reloaded.set(f64::from(u8::from(!refused)));
        self.ready.set(f64::from(u8::from(status.ready)));
    }
}

fn result_name(result: usize) -> String {
    let class = result.checked_sub(1).and_then(|class| Class::ALL.get(class));
    class.map_or_else(|| "ok".to_owned(), |class| class.name().replace(' ', "_"))
}

impl Figures {
    /// Notes a request to the store.
    pub(crate) fn note(&self, algorithm: Algorithm, outcome: Result<(), Class>, took: Duration) {
        let operation = usize::from(algorithm == Algorithm::RsaRaw);
        let result = match outcome {
            Ok(()) => 0,
            Err(class) => 1 + Class::ALL.iter().position(|other| *other == class).unwrap_or_default(),
        };
        if let Some(counter) = self.results.get(operation).and_then(|results| results.get(result)) {
            counter.inc();
        }
        if let Some(seconds) = self.seconds.get(operation) {
            seconds.observe(took.as_secs_f64());
        }
    }

    /// All of it so far, both operations together.
    pub(crate) fn count(&self) -> Count {
        let mut count = Count::default();
        for results in &self.results {
            let [ok, failed @ ..] = results;
            count.ok += ok.get();
            count.failed += failed.iter().map(IntCounter::get).sum::<u64>();
        }
        for seconds in &self.seconds {
            let metric = seconds.metric();
            let histogram = metric.get_histogram();
            let buckets = histogram.get_bucket().iter().map(prometheus::proto::Bucket::cumulative_count);
            let all = std::iter::once(histogram.get_sample_count());
            for (sum, answers) in count.answers.iter_mut().zip(buckets.chain(all)) {
                *sum += answers;
            }
        }
        count
    }
}

impl Count {
    /// What came after an earlier moment.
    pub(crate) fn since(&self, earlier: &Self) -> Self {
        let mut answers = self.answers;
        for (answer, before) in answers.iter_mut().zip(earlier.answers) {
            *answer = answer.saturating_sub(before);
        }
        Self {
            ok: self.ok.saturating_sub(earlier.ok),
            failed: self.failed.saturating_sub(earlier.failed),
            answers,
        }
    }

    /// The time within which a share of the answers came, interpolated between bounds; `None` where there were none.
    #[expect(clippy::cast_precision_loss, reason = "counts are far below 2^53")]
    pub(crate) fn quantile(&self, share: f64) -> Option<Duration> {
        let all = *self.answers.last()?;
        if all == 0 {
            return None;
        }
        let wanted = share * all as f64;
        let (mut bound, mut below) = (0.0, 0_u64);
        for (upper, answers) in BUCKETS.into_iter().zip(self.answers) {
            if answers as f64 >= wanted {
                let within = answers.saturating_sub(below) as f64;
                let part = if within > 0.0 { (wanted - below as f64) / within } else { 1.0 };
                return Some(Duration::from_secs_f64(bound + (upper - bound) * part));
            }
            (bound, below) = (upper, answers);
        }
        Some(Duration::from_secs_f64(bound)) // slower than the last bound: as much as is known
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::status;

    #[test]
    fn metrics_have_the_names_and_labels_of_the_reference() {
        let metrics = Metrics::new().unwrap();
        metrics.request(Opcode::ECDSA_SIGN_SHA256);
        metrics.request(Opcode(0x42));
        metrics.done(Opcode::PING, None, Instant::now(), Instant::now());
        metrics.done(Opcode::RSA_SIGN_SHA256, Some(ErrorCode::CRYPTOGRAPHY), Instant::now(), Instant::now());
        metrics.lookup(|| ());
        metrics.handshake_failed("timeout");
        let text = String::from_utf8(metrics.render(&Status::default())).unwrap();
        for line in [
            "keyless_requests{opcode=\"OpECDSASignSHA256\"} 1",
            "keyless_requests{opcode=\"Op(66)\"} 1",
            "keyless_request_exec_duration_per_opcode_count{error=\"no error\",type=\"other\"} 1",
            "keyless_request_total_duration_per_opcode_count{error=\"cryptography error\",type=\"rsa\"} 1",
            "keyless_request_total_duration_per_opcode_bucket{error=\"no error\",type=\"other\",le=\"0.000015\"}",
            "keyless_key_load_duration_count 1",
            "keyless_failed_connection 1",
            "keystead_tls_handshake_failures_total{reason=\"timeout\"} 1",
        ] {
            assert!(text.contains(line), "{line} is missing in\n{text}");
        }
    }

    /// Name, type and labels of every metric that the monitoring's table has. `up` is made by Prometheus.
    fn documented() -> BTreeSet<(String, String, BTreeSet<String>)> {
        let table = include_str!("../../../config/monitoring/README.md");
        let rows = table.lines().filter(|line| line.starts_with("| `key") || line.starts_with("| `cert"));
        rows.map(|row| {
            let cells: Vec<_> = row.split('|').map(|cell| cell.trim().replace('`', "")).collect();
            let labels = cells[3].split(", ").filter(|label| !label.is_empty()).map(ToOwned::to_owned);
            (cells[1].clone(), cells[2].clone(), labels.collect())
        })
        .collect()
    }

    fn process(name: &str, pid: Option<u32>, restarts: u64) -> status::Process {
        let (plugins, stores) = (vec!["pkcs11".to_owned()], vec!["hsm".to_owned()]);
        status::Process { name: name.to_owned(), plugins, stores, pid, since: 1, restarts, last_death: None }
    }

    /// A server that has seen everything once.
    fn seen_everything() -> (Metrics, Status) {
        let metrics = Metrics::new().unwrap();
        metrics.request(Opcode::PING);
        metrics.done(Opcode::PING, None, Instant::now(), Instant::now());
        metrics.lookup(|| ());
        metrics.handshake_failed("timeout");
        metrics.closed("idle", false);
        metrics.shed(Shed::Queue);
        metrics.backpressure(Waiting::Requests);
        metrics.accept_failed();
        metrics.reloaded(true);
        let _ = metrics.store("hsm");
        let store = serde_json::json!({
            "name": "hsm", "plugin": "pkcs11", "critical": false, "state": "up", "since": 1, "last_error": null,
            "credentials_refused": false, "lanes": {"busy": 0, "total": 1}, "queue": {"waiting": 0, "limit": 1},
            "keys": 1, "requests": {"ok": 1, "failed": 0}, "latency_ms": null, "history": [],
        });
        let certificate = serde_json::json!({"file": "f", "name": "n", "role": "server", "expires": 1});
        let plugin = serde_json::json!({
            "name": "pkcs11", "version": "1", "vendor": "v", "isolation": "process", "stores": ["hsm"],
        });
        let status = Status {
            plugins: vec![serde_json::from_value(plugin).unwrap()],
            processes: vec![process("pkcs11 a.so", Some(7), 0)],
            stores: vec![serde_json::from_value(store).unwrap()],
            certificates: vec![serde_json::from_value(certificate).unwrap()],
            ..Status::default()
        };
        (metrics, status)
    }

    #[test]
    fn the_monitorings_table_has_every_metric_with_its_type_and_labels_and_no_other() {
        let (metrics, status) = seen_everything();
        metrics.fill(&status);
        let exported = metrics.registry.gather().into_iter().map(|family| {
            let labels = family.get_metric()[0].get_label().iter().map(|label| label.name().to_owned());
            let kind = format!("{:?}", family.get_field_type()).to_ascii_lowercase();
            (family.name().to_owned(), kind, labels.collect())
        });
        assert_eq!(
            exported.collect::<BTreeSet<_>>(),
            documented(),
            "left: what is exported; right: the table"
        );
    }

    #[test]
    fn a_store_is_counted_by_operation_and_result_until_it_is_forgotten() {
        let metrics = Metrics::new().unwrap();
        let figures = metrics.store("hsm");
        figures.note(Algorithm::EcdsaSha256, Ok(()), Duration::from_micros(150));
        figures.note(Algorithm::RsaRaw, Err(Class::InvalidInput), Duration::from_micros(150));
        let text = String::from_utf8(metrics.render(&Status::default())).unwrap();
        for line in [
            "keystead_store_requests_total{op=\"sign\",result=\"ok\",store=\"hsm\"} 1",
            "keystead_store_requests_total{op=\"decrypt\",result=\"invalid_input\",store=\"hsm\"} 1",
            "keystead_store_request_seconds_count{op=\"sign\",store=\"hsm\"} 1",
        ] {
            assert!(text.contains(line), "{line} is missing in\n{text}");
        }
        metrics.forget_store("hsm");
        let text = String::from_utf8(metrics.render(&Status::default())).unwrap();
        assert!(!text.contains("hsm"), "{text}");
    }

    #[test]
    fn restarts_add_up_over_a_plugins_processes_and_never_fall() {
        let metrics = Metrics::new().unwrap();
        let read = |processes: Vec<status::Process>| {
            metrics.fill(&Status { processes, ..Status::default() });
            metrics.restarts.counters.with_label_values(&["pkcs11"]).get()
        };
        assert_eq!(read(vec![process("a", Some(1), 0), process("b", Some(2), 2)]), 2);
        assert_eq!(read(vec![process("a", Some(3), 1), process("b", Some(2), 2)]), 3);
        assert_eq!(read(vec![process("a", Some(3), 1), process("b", Some(2), 2)]), 3, "nothing happened");
        assert_eq!(read(vec![process("a", Some(4), 3)]), 5, "b is no more");
        assert_eq!(read(vec![process("a", Some(5), 1), process("b", None, 0)]), 6, "another a");
    }

    #[test]
    fn a_process_is_up_or_down_until_it_is_no_more() {
        let metrics = Metrics::new().unwrap();
        let text = |processes: Vec<status::Process>| {
            String::from_utf8(metrics.render(&Status { processes, ..Status::default() })).unwrap()
        };
        let both = text(vec![process("pkcs11 /a.so", Some(1), 0), process("pkcs11 /b.so", None, 9)]);
        for line in ["{process=\"pkcs11 /a.so\"} 1\n", "{process=\"pkcs11 /b.so\"} 0\n"] {
            assert!(both.contains(&format!("keystead_plugin_process_up{line}")), "{both}");
        }
        assert!(!text(Vec::new()).contains("a.so"));
    }

    #[test]
    fn quantiles_lie_within_the_bounds_of_their_answers() {
        let figures = Metrics::new().unwrap().store("hsm");
        let before = figures.count();
        for _ in 0..98 {
            figures.note(Algorithm::EcdsaSha256, Ok(()), Duration::from_micros(150));
        }
        figures.note(Algorithm::EcdsaSha256, Ok(()), Duration::from_millis(30));
        figures.note(Algorithm::EcdsaSha256, Ok(()), Duration::from_secs(9));
        let count = figures.count().since(&before);
        assert_eq!((count.ok, count.failed), (100, 0));
        let between = |share, from, to| {
            let quantile = count.quantile(share).unwrap().as_secs_f64();
            assert!((from..=to).contains(&quantile), "{share}: {quantile}");
        };
        between(0.5, 0.0001, 0.0002);
        between(0.99, 0.0256, 0.0512);
        between(1.0, 1.6383, 1.6385);
        assert_eq!(before.quantile(0.5), None);
    }
}
