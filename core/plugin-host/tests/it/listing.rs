//! Listings that lie, and plugins that fail when opened, listed or looked after.

use keystead_plugin_host::{Class, Isolation, Severity};
use serde_json::json;

use crate::{
    gate::Gate,
    rig::{PATIENCE, Rig, key, opened, sign},
};

#[tokio::test]
async fn a_key_whose_parts_do_not_fit_becomes_a_finding_and_the_rest_is_served() {
    let rig = Rig::new();
    let keys = json!([
        {"name": "good"}, {"name": "good"},
        {"name": "a", "lie": "empty_id"}, {"name": "b", "lie": "long_id"},
        {"name": "c", "lie": "garbage_spki"}, {"name": "d", "lie": "long_spki"},
        {"name": "e", "lie": "other_algorithms"},
    ]);
    let (store, listing) = rig.open("misfits", json!({"keys": keys})).await;
    assert_eq!(listing.keys.len(), 1);
    sign(&store, &key(&listing, "good"), "", PATIENCE).await.unwrap();
    let told: Vec<String> =
        listing.findings.iter().map(|finding| format!("{}: {}", finding.subject, finding.failure)).collect();
    assert_eq!(
        told,
        [
            "good: two keys have the same id",
            "a: the key's id does not have 1 to 255 bytes",
            "b: the key's id does not have 1 to 255 bytes",
            "c: the public key is not a SubjectPublicKeyInfo of an RSA, EC or Ed25519 key",
            "d: the public key has more than 16384 bytes",
            "e: the key has no algorithm that fits its type",
        ]
    );
    for finding in &listing.findings {
        assert_eq!((finding.severity, finding.failure.class), (Severity::Error, Class::Internal));
        assert_eq!(finding.hint, "this is a defect of the plugin `hostile`; tell its vendor");
    }
}

#[tokio::test]
async fn long_labels_and_findings_are_cut_and_escaped() {
    let rig = Rig::new();
    let config = json!({"keys": [{"lie": "long_label"}], "finding": true});
    let (_store, listing) = rig.open("long-text", config).await;
    let [key] = &listing.keys[..] else { panic!("one key is listed") };
    let [finding] = &listing.findings[..] else { panic!("one finding is listed") };
    for (text, max) in [
        (key.label(), 256),
        (&finding.subject, 1024),
        (&finding.failure.message, 1024),
        (&finding.hint, 1024),
    ] {
        assert!(text.len() <= max + '…'.len_utf8(), "{} bytes", text.len());
        assert!(text.starts_with("x\\n\\u{1b}xxx") && text.ends_with("x…"), "{text}");
    }
    assert_eq!((finding.severity, finding.failure.class), (Severity::Warning, Class::Denied));
}

#[tokio::test]
async fn a_note_arrives_as_a_note_wherever_its_plugin_runs() {
    let rig = Rig::with_processes();
    for isolation in [Isolation::Inline, Isolation::Process] {
        let config = json!({"notes": [["the token", "empty"]]});
        let store = rig.store_with("notes", config, |spec| spec.isolation = Some(isolation));
        let listing = opened(&store).await;
        assert_eq!(store.isolation(), Some(isolation));
        let [note] = &listing.findings[..] else { panic!("one note is listed: {listing:?}") };
        assert_eq!(note.severity, Severity::Note, "{isolation:?}");
        assert_eq!((note.subject.as_str(), note.failure.message.as_str()), ("the token", "empty"));
    }
}

#[tokio::test]
async fn a_listing_without_end_ends_in_an_error() {
    let rig = Rig::new();
    let store = rig.store("endless", json!({"pages": "endless", "keys": []}));
    store.open().await.unwrap();
    let failure = store.keys().await.unwrap_err();
    assert_eq!(failure.to_string(), "the plugin's listing of keys never ends");
    let store = rig.store("overlong", json!({"pages": "overlong"}));
    store.open().await.unwrap();
    let failure = store.keys().await.unwrap_err();
    assert_eq!(failure.to_string(), "the plugin lists more than 100000 keys or findings");
}

#[tokio::test]
async fn a_long_listing_arrives_whole() {
    let rig = Rig::new();
    let keys: Vec<_> = (0..1100).map(|number| json!({"name": number.to_string()})).collect();
    let (_store, listing) = rig.open("pages", json!({"keys": keys})).await;
    let labels: Vec<String> = listing.keys.iter().map(|key| key.label().to_owned()).collect();
    assert_eq!(labels, (0..1100).map(|number| number.to_string()).collect::<Vec<_>>());
}

#[tokio::test]
async fn panics_outside_of_calls_to_keys_are_contained_too() {
    let rig = Rig::new();
    let panicked = "the plugin panicked: as the test wants it\\nin two lines";
    let failure = rig.store("panic-open", json!({"open": "panic"})).open().await.unwrap_err();
    assert_eq!((failure.class, failure.to_string().as_str()), (Class::Internal, panicked));
    let store = rig.store("panic-rest", json!({"list": "panic", "health": "panic", "close": "panic"}));
    store.open().await.unwrap();
    assert_eq!(store.keys().await.unwrap_err().to_string(), panicked);
    assert_eq!(store.health().await.unwrap_err().to_string(), panicked);
    store.close(PATIENCE).await;
}

#[tokio::test]
async fn an_unusable_configuration_is_told_by_its_member_and_without_its_value() {
    let rig = Rig::new();
    for (name, config, told) in [
        ("config-name", json!({"nonsense": 1}), "unknown field `nonsense`, expected one of `vault`, "),
        ("config-value", json!({"vault": 53_267}), "`vault`"),
    ] {
        let failure = rig.store(name, config).open().await.unwrap_err();
        assert_eq!(failure.class, Class::InvalidInput);
        assert!(failure.message.starts_with("config: ") && failure.message.contains(told), "{failure}");
        assert!(!failure.message.contains("53267"), "{failure}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_opening_that_hangs_lets_calls_fail_and_other_stores_open() {
    let rig = Rig::new();
    let mut gate = Gate::new();
    let store = rig.store("slow-open", json!({"open": gate.deed()}));
    let opening = tokio::spawn({
        let store = std::sync::Arc::clone(&store);
        async move { store.open().await }
    });
    gate.reached();
    let failure = store.keys().await.unwrap_err();
    assert_eq!((failure.class, failure.to_string().as_str()), (Class::Unavailable, "the store is not open"));
    let (other, listing) = rig.open("slow-open-other", json!({})).await;
    sign(&other, &key(&listing, "key"), "", PATIENCE).await.unwrap();
    gate.open();
    opening.await.unwrap().unwrap();
    assert_eq!(store.keys().await.unwrap().keys.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_opening_that_nobody_waits_for_any_more_is_closed_again() {
    let rig = Rig::new();
    let mut gate = Gate::new();
    let mut closed = Gate::new();
    let store = rig.store("late-open", json!({"open": gate.deed(), "close": closed.deed()}));
    let opening = tokio::spawn(async move { store.open().await });
    gate.reached();
    opening.abort();
    assert!(opening.await.unwrap_err().is_cancelled());
    gate.open();
    closed.reached();
}
