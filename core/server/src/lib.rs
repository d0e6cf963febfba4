//! A key server: TLS private keys stay in the hardware that guards them.
//!
//! The way of a request, which is also the order of the modules:
//!
//! ```text
//! accept -> TLS (who is it? a Peer) -> frame -> request -> policy (a Permit) -> keyring (which key?)
//!        -> backend (do it, within a deadline) -> response -> coalesced write
//! ```
//!
//! | module | what it does |
//! |---|---|
//! | [`config`] | one YAML file, flags and variables become a [`Config`](config::Config) |
//! | [`server`] | puts the daemon together |
//! | [`daemon`], [`reload`] | the running server: how it is, what it can be told |
//! | [`listener`] | accepts |
//! | [`tls`], [`peers`] | who is it? |
//! | [`connection`] | frames in, answers out |
//! | [`service`] | one request |
//! | [`policy`] | may they? |
//! | [`keyring`] | which key? |
//! | [`store`], [`stores`] | keep plugins open |
//! | [`status`], [`metrics`], [`http`], [`telemetry`] | what the operator sees |
//! | `admin`, [`systemd`] | how the operator and the system talk to it |
//!
//! Only the binary prints or ends the process.

#![forbid(unsafe_code)]

mod admin;
pub mod config;
mod failures;
mod history;

pub mod connection;
pub mod daemon;
pub mod http;
pub mod keyring;
pub mod listener;
pub mod metrics;
pub mod peers;
pub mod policy;
pub mod reload;
pub mod server;
pub mod service;
pub mod status;
pub mod store;
pub mod stores;
pub mod systemd;
pub mod telemetry;
pub mod tls;
