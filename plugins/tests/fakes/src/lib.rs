//! Fakes of cloud key services, for tests and the demo: they answer under the services' own names, with certificates for
//! these, by way of a [`Proxy`] that leads there.
//!
//! ```text
//! client -> Proxy (CONNECT kms.example:443) -> Server (TLS, disturbances) -> handler: the service itself
//! ```
//!
//! Whatever goes wrong in a fake ends the test that uses it: it panics.

#![forbid(unsafe_code)]

mod authority;
pub mod azure;
mod disturbance;
pub mod gcp;
mod proxy;
mod server;

use std::{net::Ipv4Addr, sync::LazyLock};

use tokio::{
    net::TcpListener,
    runtime::{Builder, Runtime},
};

pub use authority::Authority;
pub use disturbance::Disturbance;
pub use proxy::Proxy;
pub use server::{Answer, Asked, Server};

/// What all fakes of a process run on.
static RUNTIME: LazyLock<Runtime> =
    LazyLock::new(|| Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime"));

/// A listener on a port of this machine that was free.
fn listener() -> TcpListener {
    RUNTIME.block_on(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))).expect("a free port")
}
