//! The plugin with a fake of Google Cloud: as a library in the server and in a process, and in the sandbox.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "whatever fails, fails the test")]

mod credentials;
mod faults;
mod keys;
mod sdk;
mod world;

use keystead_plugin_api::conformance;
use keystead_plugin_host::testing::{self, InProcess};
use serde_json::json;

use world::{Build, PACKAGE, World};

/// One of each kind of key, and of each size.
const ALGORITHMS: [&str; 10] = [
    "EC_SIGN_ED25519",
    "EC_SIGN_P256_SHA256",
    "EC_SIGN_P384_SHA384",
    "RSA_SIGN_PKCS1_2048_SHA256",
    "RSA_SIGN_PKCS1_4096_SHA512",
    "RSA_SIGN_PSS_2048_SHA256",
    "RSA_SIGN_PSS_3072_SHA256",
    "RSA_SIGN_PSS_4096_SHA512",
    "RSA_SIGN_RAW_PKCS1_2048",
    "RSA_SIGN_RAW_PKCS1_3072",
];

fn full() -> World {
    let world = World::start();
    for algorithm in ALGORITHMS {
        world.make_key(&algorithm.to_lowercase(), algorithm);
    }
    world
}

#[test]
fn passes_the_conformance_cases_as_a_library_and_as_a_component() {
    let world = full();
    for build in [Build::Library, Build::Component] {
        let subject = world.store(build, json!({}));
        conformance::run(&subject);
        assert_eq!(subject.open().unwrap().listing().unwrap().keys.len(), ALGORITHMS.len(), "{build:?}");
    }
}

#[test]
fn passes_the_conformance_cases_as_a_library_in_a_process_of_its_own() {
    let world = full();
    let door = InProcess::load(&testing::library(PACKAGE)).granting(world.grants());
    conformance::run(&world.behind(door, json!({})));
}
