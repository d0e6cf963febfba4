//! The host against plugins that break every rule: real libraries, loaded as the server loads them.
#![expect(clippy::unwrap_used, reason = "a test that can't go on fails")]

mod calls;
mod closing;
mod deadly;
mod errands;
mod gate;
mod listing;
mod loading;
mod plugin_c;
mod processes;
mod rig;
mod services;
