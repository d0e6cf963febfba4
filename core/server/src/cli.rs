//! The command line: what is asked for, and how the outcome is told.
//!
//! Exit codes: 0 done; 1 it ran and failed, or found something wrong; 2 the command line can't be understood; 64 the
//! configuration is refused.

mod admin;
mod bench;
mod call;
mod inspect;
mod measure;
mod plugins;
mod remote;

use std::{
    fmt,
    io::{ErrorKind, Write},
    process::ExitCode,
    time::Duration,
};

use clap::{Args, Parser, Subcommand};
use keystead::{
    config::{self, Config, Flags},
    server::{self, Launch, Order},
    systemd::Sockets,
    telemetry,
};
use tokio::{
    runtime::{Builder, Runtime},
    signal::unix::{SignalKind, signal},
    sync::mpsc,
};

/// The exit code of a configuration that is refused (`EX_USAGE` of sysexits.h).
const CONFIGURATION: u8 = 64;

/// A key server: performs the private-key operations of TLS handshakes for terminators elsewhere, with keys that stay
/// in HSMs and cloud key services.
#[derive(Parser)]
#[command(name = "keystead", version, disable_version_flag = true, args_conflicts_with_subcommands = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    bare: Bare,
}

/// What `gokeyless` understands without a command; means `run` unless a flag says otherwise.
#[derive(Args)]
struct Bare {
    #[command(flatten)]
    flags: Flags,
    /// Open every store and list what is found, as `check` does
    #[arg(short = 'd', long, alias = "keystore_debug")]
    keystore_debug: bool,
    /// Print the version
    #[arg(short = 'v', short_alias = 'V', long, action = clap::ArgAction::Version)]
    version: Option<bool>,
    #[arg(long, alias = "config_only", hide = true)]
    config_only: bool,
    #[arg(long, alias = "manual_activation", hide = true)]
    manual_activation: bool,
    #[arg(short = 'o', long, alias = "output_config", hide = true)]
    output_config: bool,
}

#[derive(Subcommand)]
enum Command {
    /// Serve; also what happens without a command
    Run {
        #[command(flatten)]
        flags: Flags,
    },
    /// Open every store, have every key prove itself, and list what is wrong with its cure; opens no port.
    ///
    /// This logs in to the tokens of the configuration: a wrong PIN costs one attempt.
    Check {
        #[command(flatten)]
        flags: Flags,
        /// Also measure how many signatures each store makes in a second, with 1, 2, 4 and more calls in flight, and
        /// recommend `limits.lanes`; each step takes DURATION, by default 1s. This signs with the keys of the stores,
        /// as fast as they can
        #[arg(long, value_name = "DURATION", num_args = 0..=1, require_equals = true, default_missing_value = "1s", value_parser = measure::step)]
        measure: Option<Duration>,
        #[command(flatten)]
        output: Output,
    },
    /// Show how the running server is: stores, connections, certificates, failures
    Status(admin::ShowStatus),
    /// List the keys that the running server serves: SKI, type, store, label, operations
    Keys(admin::ShowKeys),
    /// Have the running server read its configuration, certificates, secrets and keys again.
    ///
    /// Waits until that is done. Whatever is wrong leaves everything as it was, and is said: exit status 1.
    Reload(admin::Tell),
    /// Have the running server take no more connections, and finish what is in flight. The process stays.
    ///
    /// Waits until no connection is left: exit status 1 where some are after `limits.grace`.
    Drain(admin::Tell),
    /// Set the level of the running server's log, until the next reload
    LogLevel(admin::SetLevel),
    /// Look at plugins
    #[command(subcommand)]
    Plugin(Plugin),
    /// Ask a running server whether it answers
    Ping(remote::Ping),
    /// Have a running server sign once, and verify the signature
    Sign(remote::Sign),
    /// Have a running server sign again and again, and say how fast it is; exit status 1 where anything failed
    Bench(bench::Bench),
    /// Print a configuration with every option, explained, at its default
    DefaultConfig,
    /// Be a process for plugins; the server starts them so
    #[command(name = server::PLUGIN_PROCESS, hide = true)]
    PluginProcess,
}

#[derive(Subcommand)]
enum Plugin {
    /// List the plugins on the search path: what each is, or why it is refused
    List {
        #[command(flatten)]
        flags: Flags,
        #[command(flatten)]
        output: Output,
    },
    /// Make one call to a plugin for a store of the configuration, and show what it logs, and each HTTP request with
    /// whether it was granted
    Call(call::Call),
}

#[derive(Args, Clone, Copy)]
pub(crate) struct Output {
    /// Print JSON, for scripts
    #[arg(long)]
    json: bool,
}

impl Cli {
    pub(crate) fn run(self) -> ExitCode {
        let outcome = match self.command {
            None => self.bare.run(),
            Some(Command::Run { flags }) => run(&flags),
            Some(Command::Check { flags, measure, output }) => inspect::check(&flags, measure, output),
            Some(Command::Status(status)) => status.run(),
            Some(Command::Keys(keys)) => keys.run(),
            Some(Command::Reload(tell)) => tell.reload(),
            Some(Command::Drain(tell)) => tell.drain(),
            Some(Command::LogLevel(level)) => level.run(),
            Some(Command::Plugin(Plugin::List { flags, output })) => plugins::list(&flags, output),
            Some(Command::Plugin(Plugin::Call(call))) => call.run(),
            Some(Command::Ping(ping)) => ping.run(),
            Some(Command::Sign(sign)) => sign.run(),
            Some(Command::Bench(bench)) => bench.run(),
            Some(Command::DefaultConfig) => print(config::default_config()),
            Some(Command::PluginProcess) => Ok(keystead_plugin_host::process_main()),
        };
        outcome.unwrap_or_else(|failed| failed.report())
    }
}

impl Bare {
    fn run(self) -> Result<ExitCode, Failed> {
        if self.config_only || self.manual_activation {
            return Err(Failed::new("enrolment is not part of this server").hint(
                "get the certificate from the Cloudflare API, and name it as `auth_cert` and `auth_key`",
            ));
        }
        if self.output_config {
            return Err(Failed::new("the configuration is not printed, because it holds secrets")
                .hint("`keystead check` shows what it leads to"));
        }
        match self.keystore_debug {
            true => inspect::check(&self.flags, None, Output { json: false }),
            false => run(&self.flags),
        }
    }
}

/// What a command says when it can't do its work.
pub(crate) struct Failed {
    message: String,
    code: u8,
}

impl Failed {
    pub(crate) fn new(message: impl fmt::Display) -> Self {
        Self { message: message.to_string(), code: 1 }
    }

    pub(crate) fn hint(mut self, hint: &str) -> Self {
        self.message.push_str("\nhint: ");
        self.message.push_str(hint);
        self
    }

    fn message(&self) -> &str {
        &self.message
    }

    fn report(self) -> ExitCode {
        say(&format!("keystead: error: {}", self.message));
        ExitCode::from(self.code)
    }
}

fn run(flags: &Flags) -> Result<ExitCode, Failed> {
    let sockets = Sockets::from_environment().map_err(Failed::new)?; // before there are threads
    let config = load(flags)?;
    let verbosity = telemetry::start(config.log);
    for warning in &config.warnings {
        tracing::warn!("{}", warning.to_string().replace('\n', "; "));
    }
    let again = flags.clone();
    let load = Box::new(move || config::load(&again, &|name| std::env::var_os(name)));
    let runtime = runtime()?;
    let outcome = runtime.block_on(async {
        let orders = orders()?;
        server::run(Launch { config, load, verbosity, sockets, orders }).await.map_err(Failed::new)
    });
    runtime.shutdown_background(); // a plugin's call that hangs must not keep the process
    outcome?;
    tracing::info!("stopped");
    Ok(ExitCode::SUCCESS)
}

/// Loads the configuration, or says what is wrong with it.
pub(crate) fn load(flags: &Flags) -> Result<Config, Failed> {
    config::load(flags, &|name| std::env::var_os(name))
        .map_err(|error| Failed { message: error.to_string(), code: CONFIGURATION })
}

pub(crate) fn runtime() -> Result<Runtime, Failed> {
    Builder::new_multi_thread().worker_threads(server::workers()).enable_all().build().map_err(Failed::new)
}

/// What signals tell the process to do.
fn orders() -> Result<mpsc::Receiver<Order>, Failed> {
    let (orders, received) = mpsc::channel(server::ORDERS);
    let signals = [
        (SignalKind::terminate(), Order::Stop),
        (SignalKind::interrupt(), Order::Stop),
        (SignalKind::hangup(), Order::Reload),
    ];
    for (kind, order) in signals {
        let (mut signals, orders) = (signal(kind).map_err(Failed::new)?, orders.clone());
        tokio::spawn(async move {
            while signals.recv().await.is_some() {
                if orders.send(order).await.is_err() {
                    return; // it stops already
                }
            }
        });
    }
    Ok(received)
}

/// Writes to standard output; that nobody reads it is not an error.
pub(crate) fn print(text: &str) -> Result<ExitCode, Failed> {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(Failed::new(error)),
        _ => Ok(ExitCode::SUCCESS),
    }
}

/// Writes a line to standard error.
pub(crate) fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// Columns as wide as they need to be.
pub(crate) fn table<const N: usize>(head: [&str; N], rows: impl Iterator<Item = [String; N]>) -> String {
    let rows: Vec<[String; N]> = std::iter::once(head.map(ToOwned::to_owned)).chain(rows).collect();
    let widths: [usize; N] = std::array::from_fn(|column| {
        rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
    });
    let mut text = String::new();
    for row in rows {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}"));
        text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
    }
    text
}
