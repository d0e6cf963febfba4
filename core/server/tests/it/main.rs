//! The whole server over a socket: the `keystead` binary with real plugin libraries, driven by raw bytes.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

mod absent_token;
mod activation;
mod administration;
mod backends;
mod clients;
mod clouds;
mod command_line;
mod deadly;
mod exchanges;
mod faults;
mod isolation;
mod matrix;
mod migration;
mod misbehaving;
mod openbao;
mod outages;
mod reloading;
mod remote_token;
mod secrets;
mod site;
mod stopping;
mod tls;
mod token;
mod world;
