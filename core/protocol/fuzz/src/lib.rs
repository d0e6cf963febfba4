//! Fuzz targets of the wire codec.
//!
//! A target is a function over arbitrary bytes that panics when a claim doesn't hold. They run over the saved corpus in
//! this crate's tests, and over mutations of it by the driver:
//!
//! ```text
//! cargo run -p keystead-protocol-fuzz -- request --seconds 10
//! ```
//!
//! Any other fuzzer can drive them as well: a harness is one line.

#![forbid(unsafe_code)]

mod mutate;
mod target;

pub use mutate::Mutator;
pub use target::Target;
