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
//! | [`listener`] | accepts |
//! | [`tls`] | who is it? |
//! | [`connection`] | frames in, answers out |
//! | [`service`] | one request |
//! | [`policy`] | may they? |
//! | [`keyring`] | which key? |
//! | [`store`], [`stores`] | keep plugins open |
//! | [`metrics`], [`http`], [`telemetry`] | what the operator sees |
//!
//! Only the binary prints or ends the process.

#![forbid(unsafe_code)]

pub mod config;
mod failures;

pub mod connection;
pub mod http;
pub mod keyring;
pub mod listener;
pub mod metrics;
pub mod policy;
pub mod server;
pub mod service;
pub mod store;
pub mod stores;
pub mod telemetry;
pub mod tls;
