//! An HTTPS server whose private keys are on a key server.
//!
//! ```text
//! browser --TLS--> edge --Keyless SSL over mutual TLS--> key server --> token
//! ```
//!
//! It holds certificates, which are public, and asks the key server for the one signature that each full handshake
//! takes. Everything that makes it so is in `sites.rs`; the rest is an ordinary rustls server.

#![forbid(unsafe_code)]
#![expect(clippy::print_stderr, clippy::print_stdout, reason = "a command-line program")]

mod page;
mod server;
mod sites;

use std::error::Error;
use std::io::{self, IsTerminal};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser;
use keystead_client::{Client, client_config};
use tokio::net::TcpListener;
use tokio::runtime;
use tokio::signal::unix::{SignalKind, signal};

use crate::server::{MAX_CONNECTIONS, serve};
use crate::sites::Sites;

/// Serves a page over HTTPS, with private keys that are on a key server.
#[derive(Debug, Parser)]
#[command(version)]
struct Options {
    /// Where to listen; port 0 takes a free one.
    #[arg(long, default_value = "127.0.0.1:8443", value_name = "ADDRESS")]
    listen: SocketAddr,
    /// The key server; repeat it for others to turn to when that one fails.
    #[arg(long = "server", required = true, value_name = "HOST:PORT")]
    servers: Vec<String>,
    /// The name that the key server's certificate is for.
    #[arg(long, value_name = "NAME")]
    server_name: String,
    /// The certificates that the key server's has to chain to (PEM).
    #[arg(long, value_name = "FILE")]
    ca: PathBuf,
    /// The certificate that this program shows to the key server, with its chain (PEM).
    #[arg(long, value_name = "FILE")]
    cert: PathBuf,
    /// The private key of that certificate (PEM).
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    /// A site's certificate with its chain, leaf first (PEM); its private key is on the key server. Repeat it for more
    /// sites, or for certificates of several types for one site, the preferred one first.
    #[arg(long = "site", required = true, value_name = "FILE")]
    sites: Vec<PathBuf>,
}

fn main() -> ExitCode {
    let options = Options::parse();
    tracing_subscriber::fmt().with_writer(io::stderr).with_ansi(io::stderr().is_terminal()).init();
    match run(options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("keystead-edge: error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: Options) -> Result<(), Box<dyn Error>> {
    let tls = client_config(&options.ca, &options.cert, &options.key)?;
    let client = Client::builder(options.servers, options.server_name.try_into()?, Arc::new(tls)).build()?;
    let sites = Sites::load(&options.sites, &client)?;
    let runtime = runtime::Builder::new_multi_thread()
        .enable_all()
        .max_blocking_threads(MAX_CONNECTIONS) // each may wait for a signature; see `RemoteKey`
        .build()?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let listener = TcpListener::bind(options.listen).await?;
        println!("listening on {}", listener.local_addr()?);
        let stop = async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        };
        serve(listener, Arc::new(sites), stop).await?;
        client.close().await;
        Ok(())
    })
}
