//! An async Keyless SSL client, and a rustls signing key that lives elsewhere.
//!
//! ```text
//! Client --request--> Link --(one connection at a time, redialled)--> Connection --frames--> key server
//! ```
//!
//! A [`Client`] keeps many requests in flight on one TLS connection, dials again when it breaks, and tries the next
//! address when one doesn't answer. A [`RemoteKey`] makes it a `rustls::sign::SigningKey`, so that any rustls server
//! can present a certificate whose private key it has never seen. [`client_config`] reads the identity that the client
//! shows to the key server.
//!
//! ```no_run
//! use std::path::Path;
//! use std::sync::Arc;
//!
//! use keystead_client::{Client, client_config};
//! use keystead_protocol::{Opcode, Ski};
//!
//! # async fn example(ski: Ski, digest: [u8; 32]) -> Result<(), Box<dyn std::error::Error>> {
//! let tls = client_config(Path::new("ca.pem"), Path::new("edge.pem"), Path::new("edge-key.pem"))?;
//! let addresses = ["keys-1.example.net:2407", "keys-2.example.net:2407"];
//! let client = Client::builder(addresses, "keys.example.net".try_into()?, Arc::new(tls)).build()?;
//! let signature = client.sign(ski, Opcode::ECDSA_SIGN_SHA256, &digest).await?;
//! # Ok(()) }
//! ```
//!
//! All I/O happens on a thread that the client owns: it may be used from any runtime, and from none. Why that is so is
//! told at [`RemoteKey`].

#![forbid(unsafe_code)]

mod client;
mod connection;
mod error;
mod io_thread;
mod link;
mod remote_key;
mod tls;

pub use client::{Builder, Client};
pub use error::{Error, ProtocolError};
pub use remote_key::{Origin, RemoteKey, UnsupportedKey};
pub use tls::{ConfigError, client_config};
