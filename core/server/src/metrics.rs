//! What Prometheus reads: the reference's metrics, by its names, labels and buckets.

use std::{sync::OnceLock, time::Instant};

use keystead_protocol::{ErrorCode, Opcode};
use prometheus::{
    Encoder, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, Opts, Registry,
    TextEncoder,
};

use crate::tls::Expiry;

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
    expiry: GaugeVec,
    counters: [OnceLock<IntCounter>; 256],
    timers: [[OnceLock<Timers>; ERRORS]; 256],
}

#[derive(Clone)]
struct Timers {
    execution: Histogram,
    total: Histogram,
}

/// How many error codes have timers of their own; those beyond never occur.
const ERRORS: usize = 12;

impl Metrics {
    /// The metrics, all at zero.
    ///
    /// # Errors
    ///
    /// Where two have the same name; a test shows that they don't.
    pub fn new() -> Result<Self, prometheus::Error> {
        let registry = Registry::new();
        let histogram = |name: &str, help: &str| HistogramOpts::new(name, help).buckets(BUCKETS.to_vec());
        let metrics = Self {
            requests: IntCounterVec::new(Opts::new("keyless_requests", "Requests, by opcode."), &["opcode"])?,
            execution: HistogramVec::new(
                histogram(
                    "keyless_request_exec_duration_per_opcode",
                    "Seconds from the decoding of a request to its result, by type of opcode and error.",
                ),
                &["type", "error"],
            )?,
            total: HistogramVec::new(
                histogram(
                    "keyless_request_total_duration_per_opcode",
                    "Seconds from the arrival of a request to its result, by type of opcode and error.",
                ),
                &["type", "error"],
            )?,
            lookup: Histogram::with_opts(histogram(
                "keyless_key_load_duration",
                "Seconds to look a key up.",
            ))?,
            failed_connections: IntCounter::new(
                "keyless_failed_connection",
                "Connections that ended otherwise than by the client closing them: handshake, read or write failed.",
            )?,
            expiry: GaugeVec::new(
                Opts::new(
                    "certificate_expiration_timestamp_seconds",
                    "When a certificate expires, seconds since 1970.",
                ),
                &["source", "serial_no", "cn", "hostnames", "ca", "server", "client"],
            )?,
            counters: [const { OnceLock::new() }; 256],
            timers: [const { [const { OnceLock::new() }; ERRORS] }; 256],
            registry,
        };
        metrics.register()?;
        Ok(metrics)
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

    /// Counts a connection that failed.
    pub fn connection_failed(&self) {
        self.failed_connections.inc();
    }

    /// States when certificates expire.
    pub fn certificates(&self, certificates: &[Expiry]) {
        for certificate in certificates {
            let (ca, server) = if certificate.ca { ("true", "false") } else { ("false", "true") };
            let labels = [
                &certificate.source,
                &certificate.serial,
                &certificate.common_name,
                &certificate.hostnames,
                ca,
                server,
                "false",
            ];
            #[expect(
                clippy::cast_precision_loss,
                reason = "seconds since 1970 are exact for 285 million years"
            )]
            self.expiry.with_label_values(&labels).set(certificate.expires as f64);
        }
    }

    /// Everything in Prometheus' text format.
    #[must_use]
    pub fn render(&self) -> Vec<u8> {
        let mut text = Vec::new();
        let _ = TextEncoder::new().encode(&self.registry.gather(), &mut text);
        text
    }

    fn register(&self) -> Result<(), prometheus::Error> {
        self.registry.register(Box::new(self.requests.clone()))?;
        self.registry.register(Box::new(self.execution.clone()))?;
        self.registry.register(Box::new(self.total.clone()))?;
        self.registry.register(Box::new(self.lookup.clone()))?;
        self.registry.register(Box::new(self.failed_connections.clone()))?;
        self.registry.register(Box::new(self.expiry.clone()))
    }

    fn timers_of(&self, opcode: Opcode, error: ErrorCode) -> Timers {
        let labels = [opcode.kind().name(), error.name().unwrap_or("unknown error")];
        Timers {
            execution: self.execution.with_label_values(&labels),
            total: self.total.with_label_values(&labels),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_have_the_names_and_labels_of_the_reference() {
        let metrics = Metrics::new().unwrap();
        metrics.request(Opcode::ECDSA_SIGN_SHA256);
        metrics.request(Opcode(0x42));
        metrics.done(Opcode::PING, None, Instant::now(), Instant::now());
        metrics.done(Opcode::RSA_SIGN_SHA256, Some(ErrorCode::CRYPTOGRAPHY), Instant::now(), Instant::now());
        metrics.lookup(|| ());
        metrics.connection_failed();
        let text = String::from_utf8(metrics.render()).unwrap();
        for line in [
            "keyless_requests{opcode=\"OpECDSASignSHA256\"} 1",
            "keyless_requests{opcode=\"Op(66)\"} 1",
            "keyless_request_exec_duration_per_opcode_count{error=\"no error\",type=\"other\"} 1",
            "keyless_request_total_duration_per_opcode_count{error=\"cryptography error\",type=\"rsa\"} 1",
            "keyless_request_total_duration_per_opcode_bucket{error=\"no error\",type=\"other\",le=\"0.000015\"}",
            "keyless_key_load_duration_count 1",
            "keyless_failed_connection 1",
        ] {
            assert!(text.contains(line), "{line} is missing in\n{text}");
        }
    }
}
