//! The `keystead` command.

#![forbid(unsafe_code)]

mod cli;

use std::process::ExitCode;

use clap::Parser;
use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};

fn main() -> ExitCode {
    no_core_dumps();
    cli::Cli::parse().run()
}

/// A core dump, or a debugger of another process of this user, would show keys and PINs. Where the system refuses, the
/// service unit's own limit still holds.
fn no_core_dumps() {
    let _ = setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) });
    let _ = set_dumpable_behavior(DumpableBehavior::NotDumpable);
}
