//! Fuzz targets of what the host reads from a process for plugins. They run over the saved corpus in this crate's tests,
//! and over mutations of it by:
//!
//! ```text
//! cargo run -p keystead-plugin-host-fuzz -- child --seconds 10
//! ```
//!
//! What each claims is written in `core/plugin-host/src/process/fuzzing.rs`.

#![forbid(unsafe_code)]

use keystead_fuzz::{Suite, Target};
use keystead_plugin_host::fuzzing::{child, inbox, message};

/// Every target.
pub const SUITE: Suite = Suite::new(
    env!("CARGO_PKG_NAME"),
    env!("CARGO_MANIFEST_DIR"),
    &[Target::new("child", child), Target::new("inbox", inbox), Target::new("message", message)],
);

#[cfg(test)]
mod tests {
    #[test]
    fn claims_hold_for_the_corpus_and_a_thousand_mutations() {
        super::SUITE.check();
    }
}
