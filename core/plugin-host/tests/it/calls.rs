//! Calls that panic, hang, lie, or come too late.

use std::time::{Duration, Instant};

use keystead_plugin_host::{Class, Failure, Limits, Proof, VerifySignatures};
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::{
    gate::Gate,
    rig::{BRIEF, PATIENCE, Rig, key, logged, opened, sign, spawn_sign, submitted},
};

fn plan(name: &str, class: &str, deed: Value) -> Value {
    json!({"name": name, "class": class, "sign": deed})
}

async fn join(call: JoinHandle<Result<Vec<u8>, Failure>>) -> Result<Vec<u8>, Failure> {
    tokio::time::timeout(PATIENCE, call).await.unwrap().unwrap()
}

#[tokio::test]
async fn two_stores_and_two_plugins_have_each_their_own_keys() {
    let rig = Rig::new();
    let twin = rig.directory.path().join("libkeystead_plugin_twin.so");
    std::fs::copy(rig.directory.path().join("libkeystead_plugin_hostile.so"), twin).unwrap();
    let (one, its) = rig.open("own-one", json!({"vault": "one"})).await;
    let (other, others) = rig.open("own-other", json!({"vault": "other"})).await;
    let third = rig.store_with("own-twin", json!({"vault": "one"}), |spec| spec.plugin = "twin".to_owned());
    let thirds = opened(&third).await;

    let spkis = [&its, &others, &thirds].map(|listing| key(listing, "key").spki().to_vec());
    assert!(spkis[0] != spkis[1] && spkis[0] != spkis[2] && spkis[1] != spkis[2]);
    for (store, listing) in [(&one, &its), (&other, &others), (&third, &thirds)] {
        sign(store, &key(listing, "key"), "", PATIENCE).await.unwrap();
    }
    let again = opened(&rig.store("own-again", json!({"vault": "one"}))).await;
    assert_eq!(key(&again, "key").spki(), spkis[0], "a third store of the same keys");
}

#[tokio::test]
async fn a_panic_is_told_and_costs_one_call() {
    let rig = Rig::new();
    for class in ["inline", "blocking"] {
        for deed in ["panic", "panic_twice"] {
            let keys = [plan("bad", class, json!(deed)), plan("good", class, json!("behave"))];
            let (store, listing) = rig.open("panics", json!({"keys": keys})).await;
            let failure = sign(&store, &key(&listing, "bad"), "", PATIENCE).await.unwrap_err();
            assert_eq!(failure.class, Class::Internal);
            let text = if deed == "panic" { "as the test wants it\\nin two lines" } else { "no message" };
            assert_eq!(failure.to_string(), format!("the plugin panicked: {text}"));
            sign(&store, &key(&listing, "good"), "", PATIENCE).await.unwrap();
        }
    }
    let places = logged(&["ERROR", "panics", "panic: as the test wants it", "deed.rs"]);
    assert!(!places.is_empty(), "where it panicked is in the log");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_blocking_call_that_hangs_ends_at_its_deadline_while_others_answer() {
    let rig = Rig::new();
    let mut gate = Gate::new();
    let keys = [plan("stuck", "blocking", gate.deed()), plan("good", "blocking", json!("behave"))];
    let (store, listing) = rig.open("hangs", json!({"keys": keys})).await;
    let (other, others) = rig.open("hangs-not", json!({})).await;

    let deadline = Instant::now() + BRIEF;
    let stuck = spawn_sign(&store, &key(&listing, "stuck"), "", BRIEF);
    gate.reached();
    sign(&store, &key(&listing, "good"), "", PATIENCE).await.unwrap();
    sign(&other, &key(&others, "key"), "", PATIENCE).await.unwrap();
    let failure = join(stuck).await.unwrap_err();
    assert_eq!(failure.class, Class::Deadline);
    assert_eq!(failure.to_string(), "the plugin did not answer within the deadline");
    assert!(Instant::now() >= deadline);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_all_lanes_hang_calls_wait_and_then_are_shed_and_late_answers_are_ignored() {
    let rig = Rig::new();
    let mut gate = Gate::new();
    let keys = [plan("stuck", "blocking", gate.deed()), plan("good", "blocking", json!("behave"))];
    let store = rig.store_with("sheds", json!({"keys": keys}), |spec| {
        spec.limits = Limits { lanes: Some(1), queue: 2 };
    });
    let listing = opened(&store).await;
    let good = key(&listing, "good");

    let stuck = spawn_sign(&store, &key(&listing, "stuck"), "sheds-late", BRIEF);
    gate.reached();
    let mut patient = Box::pin(sign(&store, &good, "sheds-patient", PATIENCE));
    submitted(&mut patient).await;
    let mut hasty = Box::pin(sign(&store, &good, "sheds-hasty", BRIEF));
    submitted(&mut hasty).await;
    let shed = sign(&store, &good, "sheds-shed", PATIENCE).await.unwrap_err();
    assert_eq!(shed.class, Class::Shed);
    assert_eq!(shed.to_string(), "all 1 lanes are busy and 2 calls wait already");
    assert_eq!(hasty.await.unwrap_err().class, Class::Deadline);
    assert_eq!(join(stuck).await.unwrap_err().class, Class::Deadline);

    gate.open();
    patient.await.unwrap();
    // The lane takes its calls in order: with this one answered, all before it are done.
    sign(&store, &good, "sheds-last", PATIENCE).await.unwrap();
    for (id, calls) in [("patient", 1), ("last", 1), ("late", 1), ("hasty", 0), ("shed", 0)] {
        let seen = logged(&["signing", &format!("sheds-{id}")]);
        assert_eq!(seen.len(), calls, "how often the plugin was called for {id}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn an_inline_call_that_hangs_hangs_alone_and_others_go_to_lanes() {
    let rig = Rig::with(|settings| settings.inline_calls = 1);
    let mut gate = Gate::new();
    let keys = [plan("stuck", "inline", gate.deed()), plan("good", "inline", json!("behave"))];
    let (store, listing) = rig.open("inline", json!({"keys": keys})).await;
    let (other, others) = rig.open("inline-other", json!({})).await;

    sign(&store, &key(&listing, "good"), "inline-before", PATIENCE).await.unwrap();
    let stuck = spawn_sign(&store, &key(&listing, "stuck"), "", PATIENCE);
    gate.reached();
    sign(&store, &key(&listing, "good"), "inline-after", PATIENCE).await.unwrap();
    sign(&other, &key(&others, "key"), "inline-other", PATIENCE).await.unwrap();
    assert_eq!(logged(&["signing", "inline-before", "Inline"]).len(), 1);
    assert_eq!(logged(&["signing", "inline-after", "Number("]).len(), 1);
    assert!(!stuck.is_finished());
    gate.open();
    join(stuck).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_on_one_lane_never_overlap() {
    let rig = Rig::new();
    let keys = [plan("slow", "blocking", json!({"slow": 1}))];
    let store = rig.store_with("lanes", json!({"keys": keys}), |spec| {
        spec.limits = Limits { lanes: Some(16), queue: 256 };
    });
    let listing = opened(&store).await;
    assert_eq!(store.limits().lanes, Some(4), "the plugin can use no more");
    let slow = key(&listing, "slow");
    let calls: Vec<_> = (0..100).map(|_| spawn_sign(&store, &slow, "lanes-never", PATIENCE)).collect();
    for call in calls {
        join(call).await.unwrap(); // the plugin panics where two calls meet on a lane
    }
    assert_eq!(logged(&["signing", "lanes-never"]).len(), 100);
    assert!(logged(&["lanes-never", "Number(4)"]).is_empty(), "more lanes than the plugin says it can use");
}

#[tokio::test]
async fn a_lie_about_the_public_key_is_found_by_the_proof_and_held_back_in_earnest() {
    let rig = Rig::new();
    let keys = [
        json!({"name": "spki", "lie": "another_spki"}),
        json!({"name": "signature", "class": "blocking", "sign": "by_another_key"}),
        json!({"name": "honest"}),
    ];
    let store = rig.store_with("lies", json!({"keys": keys}), |spec| {
        spec.verify_signatures = VerifySignatures::Never;
    });
    let (strict, strictly) = rig.open("lies-verified", json!({"keys": keys})).await;
    let listing = opened(&store).await;
    for name in ["spki", "signature"] {
        let liar = key(&listing, name);
        let lie = format!("the answer of key `{name}` for ecdsa-sha256 is wrong; it was held back");
        assert_eq!(store.prove(&liar, Instant::now() + PATIENCE).await.unwrap(), Proof::Failed);
        assert!(!liar.is_proven());
        let failure = sign(&strict, &key(&strictly, name), "", PATIENCE).await.unwrap_err();
        assert_eq!((failure.class, failure.to_string()), (Class::Internal, lie));
    }
    let honest = key(&listing, "honest");
    assert_eq!(store.prove(&honest, Instant::now() + PATIENCE).await.unwrap(), Proof::Met);
    assert!(honest.is_proven());
}

#[tokio::test]
async fn garbage_never_leaves() {
    let rig = Rig::new();
    for (deed, message) in [
        ("garbage", "the answer of key `key` for ecdsa-sha256 is wrong; it was held back"),
        ("empty", "the answer of key `key` for ecdsa-sha256 is wrong; it was held back"),
        ("too_long", "the plugin claims a result larger than its buffer"),
    ] {
        let (store, listing) =
            rig.open("garbage", json!({"keys": [plan("key", "inline", json!(deed))]})).await;
        let failure = sign(&store, &key(&listing, "key"), "", PATIENCE).await.unwrap_err();
        assert_eq!((failure.class, failure.to_string().as_str()), (Class::Internal, message), "{deed}");
    }
}

#[tokio::test]
async fn ten_megabytes_of_text_become_one_short_line() {
    let rig = Rig::new();
    let config = json!({"keys": [plan("key", "inline", json!("shout"))]});
    let (store, listing) = rig.open("shouts", config).await;
    let failure = sign(&store, &key(&listing, "key"), "", PATIENCE).await.unwrap_err();
    assert_eq!(failure.class, Class::Unavailable);
    assert!(failure.message.starts_with("x\\n\\u{1b}xxx"), "{}", failure.message);
    assert!(failure.to_string().len() < 1200);
    assert!(failure.vendor.is_some_and(|vendor| vendor.name.len() < 80));
    let lines = logged(&["shouts", "ERROR", "x\\n\\u{1b}xxx"]);
    assert_eq!(lines.len(), 1);
    assert!(lines[0].len() < 4000, "{} bytes", lines[0].len());
}

#[tokio::test]
async fn what_a_plugin_fails_with_keeps_its_class() {
    let rig = Rig::new();
    for (number, class) in [
        (1, Class::NotFound),
        (2, Class::Unsupported),
        (3, Class::InvalidInput),
        (4, Class::Denied),
        (5, Class::Credentials),
        (6, Class::Throttled),
        (7, Class::Unavailable),
        (8, Class::Deadline),
        (9, Class::Internal),
        (10, Class::Internal),
    ] {
        let deed = json!({"fail": number});
        let keys = [plan("inline", "inline", deed.clone()), plan("blocking", "blocking", deed.clone())];
        let (store, listing) = rig.open("classes", json!({"keys": keys, "health": deed})).await;
        for name in ["inline", "blocking"] {
            let failure = sign(&store, &key(&listing, name), "", PATIENCE).await.unwrap_err();
            assert_eq!((failure.class, failure.message.as_str()), (class, "as the test wants it"));
        }
        assert_eq!(store.health().await.unwrap_err().class, class);
        let failure = rig.store("classes-open", json!({"open": deed})).open().await.unwrap_err();
        assert_eq!((failure.class, failure.message.as_str()), (class, "as the test wants it"));
    }
}

#[tokio::test]
async fn wrong_questions_never_reach_the_plugin() {
    let rig = Rig::new();
    let (store, listing) = rig.open("questions", json!({})).await;
    let request =
        keystead_plugin_host::Request { id: "questions-wrong", deadline: Instant::now() + PATIENCE };
    for (algorithm, input, message) in [
        (keystead_plugin_host::Algorithm::RsaRaw, 32, "rsa-raw is not supported by this key"),
        (keystead_plugin_host::Algorithm::EcdsaSha256, 31, "ecdsa-sha256 does not take an input of 31 bytes"),
    ] {
        let asked = store.perform(&key(&listing, "key"), algorithm, &vec![0; input], request).await;
        assert_eq!(asked.unwrap_err().to_string(), message);
    }
    assert!(logged(&["signing", "questions-wrong"]).is_empty());
}

#[tokio::test]
async fn a_deadline_in_the_past_spares_the_plugin_the_call() {
    let rig = Rig::new();
    let (store, listing) =
        rig.open("past", json!({"keys": [plan("key", "blocking", json!("behave"))]})).await;
    let failure = sign(&store, &key(&listing, "key"), "past-late", Duration::ZERO).await.unwrap_err();
    assert_eq!(failure.class, Class::Deadline);
    sign(&store, &key(&listing, "key"), "past-good", PATIENCE).await.unwrap();
    assert!(logged(&["signing", "past-late"]).is_empty());
}
