//! The contract between the Keystead host and a key plugin.
//!
//! A plugin is a backend for private keys: files, an HSM, a cloud service. Its author implements [`Backend`] and
//! exports it:
//!
//! ```
//! use keystead_plugin_api::{
//!     Algorithm, Backend, Call, Description, Error, Health, Host, Isolation, Listing, Output,
//! };
//!
//! /// A vault without keys.
//! struct Vault;
//!
//! impl Backend for Vault {
//!     const DESCRIPTION: Description = Description {
//!         name: "vault",
//!         version: "1.0.0",
//!         vendor: "Example Ltd",
//!         isolation: Isolation::Inline,
//!         lanes_max: None,
//!         schema: r#"{"type": "object"}"#,
//!     };
//!
//!     fn open(_host: Host) -> Result<Self, Error> {
//!         Ok(Self)
//!     }
//!
//!     fn keys(&self, _: &Call<'_>) -> Result<Listing, Error> {
//!         Ok(Listing::default())
//!     }
//!
//!     fn sign(&self, _: &Call<'_>, _: &[u8], _: Algorithm, _: &[u8], _: &mut Output<'_>) -> Result<(), Error> {
//!         Err(Error::unknown_key())
//!     }
//!
//!     fn decrypt(&self, _: &Call<'_>, _: &[u8], _: Algorithm, _: &[u8], _: &mut Output<'_>) -> Result<(), Error> {
//!         Err(Error::unknown_key())
//!     }
//!
//!     fn health(&self, _: &Call<'_>) -> Result<Health, Error> {
//!         Ok(Health::default())
//!     }
//!
//!     fn close(&self, _grace: std::time::Duration) {}
//! }
//!
//! keystead_plugin_api::export_backend!(Vault);
//! # fn main() {}
//! ```
//!
//! The library is built as a `cdylib` named `libkeystead_plugin_NAME.so` and put into a plugin directory; the
//! operator's YAML names it. What crosses the boundary is one C table, [`abi::BackendTable`]: raw pointers, lengths
//! and integers. The modules, in reading order:
//!
//! - [`backend`]: the trait, and what a plugin gives to the host;
//! - [`host`]: what it gets from the host: configuration, secrets, the memory of refused credentials;
//! - [`algorithm`]: the open registry of algorithms;
//! - [`encode`]: public keys, signatures and digests in the forms that are wanted;
//! - [`error`]: what went wrong, by class, with the vendor's own code;
//! - [`abi`]: the C table and its rules, for the host and for plugins that aren't in Rust; theirs is the header
//!   `include/keystead_plugin.h`, which is made of it;
//! - [`schema`]: what the host checks of a store's configuration, so that a plugin needn't;
//! - [`kit`]: the trampolines between the two, panic containment and log forwarding;
//! - [`conformance`]: the cases every plugin passes (feature `conformance`).
//!
//! # A life
//!
//! Loading does nothing: no thread, no I/O. The host calls `describe`, checks the store's configuration by the schema
//! it finds there, then calls `open`, once for every store; `keys` lists
//! what a store holds; `sign` and `decrypt` come on *lanes*, and calls on one lane never overlap; `health` comes every
//! 30 s on a lane of its own; `close` ends a store and may come while calls still hang. Nothing is ever unloaded.
//!
//! # Status
//!
//! The contract is a draft ([`abi::DRAFT`]): host and plugin must have been built for the same draft number.

#[cfg(not(target_family = "wasm"))]
pub mod abi;
pub mod algorithm;
pub mod backend;
#[cfg(target_family = "wasm")]
pub mod component;
#[cfg(all(feature = "conformance", not(target_family = "wasm")))]
pub mod conformance;
pub mod encode;
pub mod error;
mod forward;
pub mod host;
pub mod http;
#[cfg(not(target_family = "wasm"))]
pub mod kit;
#[cfg(not(target_family = "wasm"))]
pub mod schema;

pub use algorithm::{Algorithm, Input};
pub use backend::{
    Advice, Backend, Call, CallClass, Description, Finding, Health, Isolation, Key, Lane, Listing, Output,
    Secret, Severity,
};
pub use error::{Code, Error, Vendor};
pub use host::{Credentials, Host};
