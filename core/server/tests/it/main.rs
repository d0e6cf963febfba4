//! The whole server over a socket: the `keystead` binary with real plugin libraries, driven by raw bytes.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

mod absent_token;
mod activation;
mod administration;
mod backends;
mod clients;
mod command_line;
mod deadly;
mod exchanges;
mod faults;
mod isolation;
mod matrix;
mod migration;
#[expect(dead_code, reason = "the benchmarks use more of it")]
mod misbehaving;
mod openbao;
mod outages;
mod reloading;
mod secrets;
mod site;
mod stopping;
mod tls;
mod token;
mod world;
