//! A process for plugins, for tests: what the server's own binary does when it is started as one.

use std::process::ExitCode;

fn main() -> ExitCode {
    keystead_plugin_host::process_main()
}
