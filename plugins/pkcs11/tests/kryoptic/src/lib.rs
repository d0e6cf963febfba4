//! Nothing of its own: `cargo build --package kryoptic` builds what the manifest asks for.

#![forbid(unsafe_code)]
