//! The sandbox against components that try whatever it must not allow.
#![expect(clippy::unwrap_used, reason = "a test that can't go on fails")]

mod exhaustion;
mod guest_c;
mod reaching;
#[path = "../it/rig.rs"]
#[expect(dead_code, reason = "the other tests use more of it")]
mod rig;
mod scene;
mod service;
