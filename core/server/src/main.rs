//! The `keystead` command.

#![forbid(unsafe_code)]

mod cli;

use std::process::ExitCode;

use clap::Parser;
use rustix::process::{DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit};

fn main() -> ExitCode {
    no_core_dumps();
    allow_many_files();
    cli::Cli::parse().run()
}

/// A core dump, or a debugger of another process of this user, would show keys and PINs. Where the system refuses, the
/// service unit's own limit still holds. The hard limit stays: a process for plugins may have been allowed core dumps.
fn no_core_dumps() {
    let limit = getrlimit(Resource::Core);
    let _ = setrlimit(Resource::Core, Rlimit { current: Some(0), ..limit });
    let _ = set_dumpable_behavior(DumpableBehavior::NotDumpable);
}

/// Every connection takes a descriptor, and most systems start a process with a soft limit of 1,024.
fn allow_many_files() {
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
}
