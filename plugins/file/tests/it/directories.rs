//! Which files of a directory are keys, and what happens when they change.

use std::{fs, os::unix::fs::symlink};

use keystead_plugin_api::{Algorithm, Code, Severity, conformance::Session};
use serde_json::json;

use crate::place::{Place, fixture, subject_of};

#[test]
fn searches_directories_recursively_in_lexical_order() {
    let place = Place::new();
    place.put("b.key", &fixture("p-256.pem"));
    place.put("a/z/deep.key", &fixture("p-384.pem"));
    place.put("a/a.key", &fixture("p-521.pem"));
    place.put("c/.hidden.key", &fixture("ed25519.pem"));
    assert_eq!(place.served(), ["a/a.key", "a/z/deep.key", "b.key", "c/.hidden.key"]);
}

#[test]
fn leaves_other_names_alone_and_warns_where_gokeyless_would_not() {
    let place = Place::new();
    for name in ["server.pem", "key", ".key", "README", "keys.txt"] {
        place.put(name, &fixture("p-256.pem"));
    }
    assert!(place.listing().keys.is_empty());
    assert!(place.listing().findings.is_empty());
    for name in ["www.key.bak", "x.keystore", "a.keys"] {
        let path = place.put(name, &fixture("p-256.pem"));
        let finding = place.finding_about(name);
        assert_eq!(finding.severity, Severity::Warning);
        assert!(finding.error.message.contains("gokeyless would have loaded it"));
        fs::remove_file(path).unwrap();
    }
}

#[test]
fn follows_links_to_directories_but_not_round_in_circles() {
    let (place, elsewhere) = (Place::new(), Place::new());
    elsewhere.put("a.key", &fixture("p-256.pem"));
    symlink(elsewhere.path(), place.path().join("linked")).unwrap();
    symlink(place.path(), elsewhere.path().join("back")).unwrap();
    assert_eq!(place.served(), ["linked/a.key"]);
    assert!(place.listing().findings.is_empty());

    let link = elsewhere.path().join("store");
    symlink(place.path(), &link).unwrap();
    let listing = subject_of(&json!({ "dir": link })).open().unwrap().listing().unwrap();
    assert_eq!(listing.keys.len(), 1);
}

#[test]
fn reads_a_volume_of_kubernetes_once() {
    let place = Place::new();
    place.put("..2026_11_01/www.key", &fixture("p-256.pem"));
    symlink("..2026_11_01", place.path().join("..data")).unwrap();
    symlink("..data/www.key", place.path().join("www.key")).unwrap();
    assert_eq!(place.served(), ["www.key"]);
    assert!(place.listing().findings.is_empty());
}

#[test]
fn serves_a_key_of_two_files_once_and_names_both() {
    let place = Place::new();
    place.put("first.key", &fixture("p-256.pem"));
    place.put("second.key", &fixture("p-256.pem"));
    assert_eq!(place.served(), ["first.key"]);
    let finding = place.finding_about("second.key");
    assert_eq!(finding.severity, Severity::Warning);
    assert!(finding.error.message.contains("first.key"), "{finding:?}");
}

#[test]
fn takes_two_names_of_one_file_for_one_file() {
    let place = Place::new();
    let path = place.put("a.key", &fixture("p-256.pem"));
    symlink(&path, place.path().join("b.key")).unwrap();
    fs::hard_link(&path, place.path().join("c.key")).unwrap();
    assert_eq!(place.served(), ["a.key"]);
    assert!(place.listing().findings.is_empty());
}

#[test]
fn refuses_a_configuration_without_one_place() {
    let (dir, file) = (Place::new(), Place::new());
    let path = file.put("a.key", &fixture("p-256.pem"));
    for (config, code, words) in [
        (json!({}), Code::InvalidInput, "one of `dir` and `file`"),
        (json!({ "dir": dir.path(), "file": path }), Code::InvalidInput, "one of `dir` and `file`"),
        (json!({ "dir": path }), Code::InvalidInput, "is not a directory"),
        (json!({ "dir": dir.path(), "permissions": "ignore" }), Code::InvalidInput, "`refuse` or `warn`"),
        (json!({ "dir": dir.path().join("none") }), Code::Unavailable, "none"),
        (json!({ "file": dir.path().join("none") }), Code::Unavailable, "none"),
    ] {
        let error = subject_of(&config).open().unwrap_err();
        assert_eq!(error.code, code, "{config}: {error}");
        assert!(error.message.contains(words), "{config}: {error}");
    }
}

#[test]
fn names_a_file_store_that_is_a_directory() {
    let place = Place::new();
    let listing = subject_of(&json!({ "file": place.path() })).open().unwrap().listing().unwrap();
    assert!(listing.findings[0].error.message.contains("not a regular file"), "{:?}", listing.findings);
}

#[test]
fn keeps_a_keys_id_when_its_file_is_renamed() {
    let place = Place::new();
    let path = place.put("a.key", &fixture("p-256.pem"));
    let before = place.listing().keys[0].id.clone();
    fs::rename(path, place.path().join("b.key")).unwrap();
    assert_eq!(place.listing().keys[0].id, before);
}

#[test]
fn notices_what_changes_the_listing() {
    let place = Place::new();
    place.put("a.key", &fixture("p-256.pem"));
    let session = place.open();
    session.listing().unwrap();
    let mut generation = session.health().unwrap().generation;
    let mut changed = |what: &str, session: &Session| {
        let before = generation;
        generation = session.health().unwrap().generation;
        assert_ne!(generation, before, "{what}");
        assert_eq!(session.health().unwrap().generation, generation, "{what}, looked at twice");
    };
    place.put("sub/b.key", &fixture("p-384.pem"));
    changed("a new file", &session);
    place.put("a.key", &fixture("p-521.pem"));
    changed("another content", &session);
    place.chmod("a.key", 0o644);
    changed("another mode", &session);
    fs::remove_file(place.path().join("sub/b.key")).unwrap();
    changed("a file gone", &session);
}

#[test]
fn serves_what_the_latest_listing_has() {
    let place = Place::new();
    let path = place.put("a.key", &fixture("p-256.pem"));
    let session = place.open();
    let old = session.listing().unwrap().keys.remove(0);
    place.put("b.key", &fixture("p-384.pem"));
    fs::remove_file(path).unwrap();
    session.sign(&old, Algorithm::EcdsaSha256, &[1; 32]).unwrap();
    let new = session.listing().unwrap().keys.remove(0);
    session.sign(&new, Algorithm::EcdsaSha256, &[1; 32]).unwrap();
    let error = session.sign(&old, Algorithm::EcdsaSha256, &[1; 32]).unwrap_err();
    assert_eq!(error.code, Code::NotFound);
}

#[test]
fn serves_on_when_its_directory_has_gone_and_says_so_once() {
    let place = Place::new();
    place.put("keys/a.key", &fixture("p-256.pem"));
    let dir = place.path().join("keys");
    let session = subject_of(&json!({ "dir": dir })).open().unwrap();
    let key = session.listing().unwrap().keys.remove(0);
    let generation = session.health().unwrap().generation;
    fs::remove_dir_all(&dir).unwrap();
    for _ in 0..2 {
        assert_eq!(session.health().unwrap().generation, generation);
    }
    assert_eq!(session.listing().unwrap_err().code, Code::Unavailable);
    session.sign(&key, Algorithm::EcdsaSha256, &[1; 32]).unwrap();
    let records = session.host().records();
    assert_eq!(records.len(), 1, "{records:?}");
    assert!(records[0].level == 2 && records[0].message.contains("still served"), "{records:?}");
}
