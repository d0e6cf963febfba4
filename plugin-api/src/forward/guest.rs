//! Where a component's events go: to its one host, which knows the store and the request.

use crate::{
    Host,
    component::bindings::keystead::backend::host::{self, Level},
};

#[derive(Clone, Copy)]
pub(super) struct Receiver;

impl Receiver {
    #[expect(clippy::unnecessary_wraps, reason = "the shape of a receiver")]
    pub(super) fn current() -> Option<Self> {
        Some(Self)
    }

    pub(super) fn become_latest(_host: Host) {
        super::catch_panics();
    }

    pub(super) fn wants(self, level: u32) -> bool {
        host::log_enabled(named(level))
    }

    pub(super) fn log(self, level: u32, target: &str, message: &str, fields: &str) {
        host::log(named(level), target, message, fields);
    }
}

fn named(level: u32) -> Level {
    match level {
        1 => Level::Error,
        2 => Level::Warn,
        3 => Level::Info,
        4 => Level::Debug,
        _ => Level::Trace,
    }
}
