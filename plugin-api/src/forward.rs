//! Sends a plugin's `tracing` events to the host, with the store and the request they belong to.
//!
//! `tracing` keeps its state per library, so events of a plugin reach nobody until a subscriber inside the plugin
//! forwards them.

#[cfg_attr(target_family = "wasm", path = "forward/guest.rs")]
#[cfg_attr(not(target_family = "wasm"), path = "forward/native.rs")]
mod receiver;

use std::{
    fmt,
    panic::PanicHookInfo,
    sync::{Once, OnceLock},
};

use serde_json::{Map, Value};
use tracing::{
    Event, Level, Metadata, Subscriber,
    field::{Field, Visit},
    subscriber::Interest,
};
use tracing_subscriber::{Layer, layer::Context, prelude::*, registry};

use crate::Host;

use receiver::Receiver;
#[cfg(not(target_family = "wasm"))]
pub(crate) use receiver::Scope;

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
    Receiver::become_latest(host);
    SUBSCRIBER.call_once(|| {
        // Fails only where the plugin's code runs inside a program with a subscriber of its own, such as a test.
        let _ = tracing::subscriber::set_global_default(registry().with(Forward));
    });
}

struct Forward;

impl<S: Subscriber> Layer<S> for Forward {
    fn register_callsite(&self, _metadata: &'static Metadata<'static>) -> Interest {
        Interest::sometimes() // the host may change its level at any time
    }

    fn enabled(&self, metadata: &Metadata<'_>, _context: Context<'_, S>) -> bool {
        Receiver::current().is_some_and(|receiver| receiver.wants(level(*metadata.level())))
    }

    fn on_event(&self, event: &Event<'_>, _context: Context<'_, S>) {
        let Some(receiver) = Receiver::current() else { return };
        let mut fields = Fields::default();
        event.record(&mut fields);
        let rest =
            if fields.rest.is_empty() { String::new() } else { Value::Object(fields.rest).to_string() };
        let (level, target) = (level(*event.metadata().level()), event.metadata().target());
        receiver.log(level, target, &fields.message, &rest);
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
