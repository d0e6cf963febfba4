//! Runs a fuzz target for a bounded time on stable Rust: see [`keystead_fuzz`].

#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    keystead_plugin_host_fuzz::SUITE.main()
}
