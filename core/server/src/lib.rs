//! A key server: TLS private keys stay in the hardware that guards them.

pub mod config;
