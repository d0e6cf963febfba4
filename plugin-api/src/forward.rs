//! Sends a plugin's `tracing` events to the host, with the store and the request they belong to.
//!
//! `tracing` keeps its state per library, so events of a plugin reach nobody until a subscriber inside the plugin
//! forwards them. Which host table an event goes to is noted per thread for the time of a call; events of a plugin's
//! own threads go to the store that was opened last.

use std::{
    cell::Cell,
    fmt,
    panic::PanicHookInfo,
    sync::{Once, OnceLock, RwLock},
};

use serde_json::{Map, Value};
use tracing::{
    Event, Level, Metadata, Subscriber,
    field::{Field, Visit},
    subscriber::Interest,
};
use tracing_subscriber::{Layer, layer::Context, prelude::*, registry};

use crate::{
    Host,
    abi::{Bytes, LogRecord, struct_size},
};

thread_local! {
    static CURRENT: Cell<Option<(Host, Bytes)>> = const { Cell::new(None) };
}

static LATEST: RwLock<Option<Host>> = RwLock::new(None);

/// Makes a panic in the plugin an event for the host, where by default it would be written to the server's stderr.
pub(crate) fn catch_panics() {
    static HOOK: OnceLock<()> = OnceLock::new();
    HOOK.get_or_init(|| std::panic::set_hook(Box::new(log_panic)));
}

fn log_panic(panic: &PanicHookInfo<'_>) {
    let place = panic.location().map(ToString::to_string).unwrap_or_default();
    tracing::error!(place, "panic: {}", panic.payload_as_str().unwrap_or("no message"));
}

/// Starts forwarding, once per library, and makes `host` the receiver of what belongs to no call.
pub(crate) fn install(host: Host) {
    static SUBSCRIBER: Once = Once::new();
    if let Ok(mut latest) = LATEST.write() {
        *latest = Some(host);
    }
    SUBSCRIBER.call_once(|| {
        // Fails only where the plugin's code runs inside a program with a subscriber of its own, such as a test.
        let _ = tracing::subscriber::set_global_default(registry().with(Forward));
    });
}

/// Notes for the life of the value which store and request this thread works for.
pub(crate) struct Scope {
    before: Option<(Host, Bytes)>,
}

impl Scope {
    /// `request_id` must stay valid while the value lives: it is that of the call being served.
    pub(crate) fn enter(host: Host, request_id: Bytes) -> Self {
        Self { before: CURRENT.replace(Some((host, request_id))) }
    }
}

impl Drop for Scope {
    fn drop(&mut self) {
        CURRENT.set(self.before);
    }
}

fn receiver() -> Option<(Host, Bytes)> {
    CURRENT.get().or_else(|| LATEST.read().ok().and_then(|latest| latest.map(|host| (host, Bytes::EMPTY))))
}

struct Forward;

impl<S: Subscriber> Layer<S> for Forward {
    fn register_callsite(&self, _metadata: &'static Metadata<'static>) -> Interest {
        Interest::sometimes() // the host may change its level at any time
    }

    fn enabled(&self, metadata: &Metadata<'_>, _context: Context<'_, S>) -> bool {
        receiver().is_some_and(|(host, _)| {
            let table = host.table();
            // SAFETY: the host's own context is passed back to it.
            unsafe { (table.log_enabled)(table.context, level(*metadata.level())) != 0 }
        })
    }

    fn on_event(&self, event: &Event<'_>, _context: Context<'_, S>) {
        let Some((host, request_id)) = receiver() else { return };
        let mut fields = Fields::default();
        event.record(&mut fields);
        let rest =
            if fields.rest.is_empty() { String::new() } else { Value::Object(fields.rest).to_string() };
        let record = LogRecord {
            size: struct_size::<LogRecord>(),
            level: level(*event.metadata().level()),
            target: Bytes::new(event.metadata().target().as_bytes()),
            message: Bytes::new(fields.message.as_bytes()),
            fields: Bytes::new(rest.as_bytes()),
            request_id,
        };
        let table = host.table();
        // SAFETY: the record and all it points to live through the call.
        unsafe { (table.log)(table.context, &raw const record) };
    }
}

fn level(level: Level) -> u32 {
    match level {
        Level::ERROR => 1,
        Level::WARN => 2,
        Level::INFO => 3,
        Level::DEBUG => 4,
        _ => 5,
    }
}

#[derive(Default)]
struct Fields {
    message: String,
    rest: Map<String, Value>,
}

impl Fields {
    fn put(&mut self, field: &Field, value: Value) {
        match value {
            Value::String(text) if field.name() == "message" => self.message = text,
            value => drop(self.rest.insert(field.name().to_owned(), value)),
        }
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field, Value::String(format!("{value:?}")));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, value.into());
    }
}
