//! The file plugin, driven through its C table as the server drives it.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a set-up that fails is a failed test")]

mod directories;
mod formats;
mod operations;
mod permissions;
mod place;

use keystead_plugin_api::conformance::{self, Subject};
use keystead_plugin_host::testing::{InProcess, PluginDir};

use self::place::{PASSPHRASE, Place};

#[test]
fn passes_the_conformance_cases_with_every_type_of_key() {
    let place = Place::with_every_key();
    place.put("encrypted.key", &place::fixture("encrypted-aes256-sha256.pem"));
    place.put("broken.key", b"not a key");
    conformance::run(&place.subject().secret("passphrase", PASSPHRASE));
}

#[test]
fn passes_the_conformance_cases_with_a_single_file() {
    let place = Place::new();
    let file = place.put("any-name", &place::fixture("p-256.pem"));
    conformance::run(&place::subject_of(&serde_json::json!({ "file": file })));
}

#[test]
fn passes_the_conformance_cases_in_a_process_of_its_own() {
    let place = Place::with_every_key();
    place.put("encrypted.key", &place::fixture("encrypted-aes256-sha256.pem"));
    let plugins = PluginDir::with(&["keystead-plugin-file"]);
    let subject = Subject::behind(InProcess::load(&plugins.path().join("libkeystead_plugin_file.so")));
    let subject = subject.config(serde_json::json!({ "dir": place.path() }));
    conformance::run(&subject.secret("passphrase", PASSPHRASE));
}
