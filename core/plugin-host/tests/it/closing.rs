//! The end of a store.

use std::{sync::Arc, time::Duration};

use keystead_plugin_host::{Class, Limits};
use serde_json::json;

use crate::{
    gate::Gate,
    rig::{BRIEF, PATIENCE, Rig, key, logged, opened, sign, spawn_sign, submitted},
};

#[tokio::test]
async fn a_closed_store_answers_cleanly() {
    let rig = Rig::new();
    let (store, listing) = rig.open("closed", json!({"vault": "closed"})).await;
    store.close(PATIENCE).await;
    assert_eq!(logged(&["closing", r#"store="closed""#]).len(), 1);
    let key = key(&listing, "key");
    for failure in [
        sign(&store, &key, "", PATIENCE).await.unwrap_err(),
        store.keys().await.unwrap_err(),
        store.health().await.unwrap_err(),
    ] {
        assert_eq!(
            (failure.class, failure.to_string().as_str()),
            (Class::Unavailable, "the store is closed")
        );
    }
    store.close(PATIENCE).await; // once more does nothing
    assert_eq!(logged(&["closing", r#"store="closed""#]).len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn closing_waits_for_calls_that_come_back_in_time() {
    let rig = Rig::new();
    let mut gate = Gate::new();
    let keys = json!([{"name": "slow", "class": "blocking", "sign": gate.deed()}]);
    let (store, listing) = rig.open("waits", json!({"keys": keys})).await;
    let slow = spawn_sign(&store, &key(&listing, "slow"), "", PATIENCE);
    gate.reached();
    let closing = tokio::spawn({
        let store = Arc::clone(&store);
        async move { store.close(PATIENCE).await }
    });
    while store.keys().await.is_ok() {
        tokio::task::yield_now().await; // until closing has begun
    }
    gate.open();
    closing.await.unwrap();
    slow.await.unwrap().unwrap();
    let log = logged(&["keystead::plugin", r#"store="waits""#]);
    let place = |event: &str| log.iter().position(|line| line.contains(event)).unwrap();
    assert!(place(": done ") < place(": closing "), "{log:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn closing_returns_within_its_grace_while_a_call_hangs() {
    let rig = Rig::new();
    let mut gate = Gate::new();
    let keys = json!([{"name": "stuck", "class": "blocking", "sign": gate.deed()}]);
    let (store, listing) = rig.open("stuck", json!({"keys": keys})).await;
    let stuck = spawn_sign(&store, &key(&listing, "stuck"), "", PATIENCE);
    gate.reached();
    tokio::time::timeout(PATIENCE, store.close(BRIEF)).await.unwrap();
    assert_eq!(logged(&["closing", r#"store="stuck""#]).len(), 1, "the plugin was told all the same");
    let failure = sign(&store, &key(&listing, "stuck"), "", PATIENCE).await.unwrap_err();
    assert_eq!(failure.to_string(), "the store is closed");
    gate.open();
    stuck.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn closing_returns_within_its_grace_while_the_plugin_hangs_in_it() {
    let rig = Rig::new();
    let mut gate = Gate::new();
    let (store, _listing) = rig.open("hangs-closing", json!({"close": gate.deed()})).await;
    tokio::time::timeout(PATIENCE, store.close(Duration::from_millis(20))).await.unwrap();
    gate.reached();
    assert_eq!(logged(&["WARN", "hangs-closing", "the store did not close within 20ms"]).len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plugin_that_hangs_in_health_hears_of_its_closing_afterwards_and_of_no_call() {
    let rig = Rig::new();
    let (mut healed, mut freed, mut closed) = (Gate::new(), Gate::new(), Gate::new());
    let keys = json!([
        {"name": "stuck", "class": "blocking", "sign": freed.deed()},
        {"name": "good", "class": "blocking"},
    ]);
    let config = json!({"keys": keys, "health": healed.deed(), "close": closed.deed()});
    let store = rig.store_with("sick", config, |spec| spec.limits = Limits { lanes: Some(1), queue: 1 });
    let listing = opened(&store).await;
    let stuck = spawn_sign(&store, &key(&listing, "stuck"), "", PATIENCE);
    freed.reached();
    let good = key(&listing, "good");
    let mut waiting = Box::pin(sign(&store, &good, "sick-waiting", PATIENCE));
    submitted(&mut waiting).await;
    let health = tokio::spawn({
        let store = Arc::clone(&store);
        async move { store.health().await }
    });
    healed.reached();

    store.close(Duration::from_millis(20)).await;
    freed.open();
    stuck.await.unwrap().unwrap();
    assert_eq!(waiting.await.unwrap_err().to_string(), "the store is closed");
    assert!(logged(&["signing", "sick-waiting"]).is_empty());
    healed.open();
    health.await.unwrap().unwrap();
    closed.reached();
}
