//! The log: lines on standard error, for people or as JSON; its level can be changed while the server runs.

use std::io::{IsTerminal, Stderr};

use tracing::level_filters::LevelFilter;
use tracing_subscriber::{
    Registry,
    filter::{LevelFilter as Filter, Targets},
    fmt::{
        self,
        format::{DefaultFields, Format},
    },
    layer::SubscriberExt,
    reload,
    util::SubscriberInitExt,
};

use crate::config::{Level, Log, LogFormat};

/// The log's level, for whoever may change it.
#[derive(Clone, Debug)]
pub struct Verbosity(reload::Handle<Filter, Registry>);

/// Starts logging, once per process.
pub fn start(log: Log) -> Verbosity {
    let (filter, handle) = reload::Layer::new(filter(log.level));
    let registry = tracing_subscriber::registry().with(filter);
    // Fails only where the process logs already.
    let _ = match log.format {
        LogFormat::Text => registry.with(lines()).try_init(),
        LogFormat::Json => registry.with(lines().json().flatten_event(true)).try_init(),
    };
    Verbosity(handle)
}

/// Logs what plugins say, and what they reach, and nothing else: for the command that shows one call.
pub fn start_for_plugins() {
    let said = Targets::new()
        .with_target("keystead::plugin", LevelFilter::TRACE)
        .with_target("keystead::http", LevelFilter::DEBUG)
        .with_default(LevelFilter::ERROR);
    let _ = tracing_subscriber::registry().with(said).with(lines()).try_init(); // as above
}

/// Lines on standard error, coloured for a terminal unless `NO_COLOR` says otherwise.
fn lines<S>() -> fmt::Layer<S, DefaultFields, Format, fn() -> Stderr> {
    let coloured = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    fmt::Layer::default().with_writer(std::io::stderr as fn() -> Stderr).with_ansi(coloured)
}

impl Verbosity {
    /// Writes from now on what is at least this severe.
    pub fn set(&self, level: Level) {
        // Fails only where logging has ended.
        let _ = self.0.modify(|current| *current = filter(level));
    }
}

fn filter(level: Level) -> LevelFilter {
    match level {
        Level::Trace => LevelFilter::TRACE,
        Level::Debug => LevelFilter::DEBUG,
        Level::Info => LevelFilter::INFO,
        Level::Warn => LevelFilter::WARN,
        Level::Error => LevelFilter::ERROR,
    }
}
