//! What the host offers to plugins: log, secrets, news of changed keys, the memory of refused credentials.

use std::collections::BTreeMap;

use keystead_plugin_host::{Class, Secrets, StoreSpec};
use serde_json::json;
use zeroize::Zeroizing;

use crate::rig::{Known, PATIENCE, Rig, key, logged, opened, sign};

fn secret(value: &'static str) -> impl FnOnce(&mut StoreSpec) {
    move |spec| spec.secrets = Box::new(Known(BTreeMap::from([("pin", value)])))
}

#[tokio::test]
async fn events_of_a_plugin_carry_plugin_store_and_request() {
    let rig = Rig::new();
    let keys = json!([{"name": "inline"}, {"name": "blocking", "class": "blocking"}]);
    let (store, listing) = rig.open("events", json!({"keys": keys})).await;
    for name in ["inline", "blocking"] {
        let id = format!("events-{name}");
        sign(&store, &key(&listing, name), &id, PATIENCE).await.unwrap();
        let lines = logged(&["signing", &id]);
        assert_eq!(lines.len(), 1, "{lines:?}");
        for part in [
            " INFO keystead::plugin: signing",
            r#"plugin="hostile""#,
            r#"store="events""#,
            &format!("request={id:?}"),
            r#"module="keystead_plugin_hostile""#,
            &format!(r#"\"key\":\"{name}\""#),
        ] {
            assert!(lines[0].contains(part), "{part} in {}", lines[0]);
        }
    }
}

#[tokio::test]
async fn a_secret_reaches_the_plugin_and_nothing_else() {
    let rig = Rig::new();
    let login = json!({"login": {"token": "t", "secret": "pin", "pin": "correct horse"}});
    opened(&rig.store_with("secret", login.clone(), secret("correct horse"))).await;
    let failure =
        rig.store_with("secret-wrong", login.clone(), secret("battery staple")).open().await.unwrap_err();
    assert!(!format!("{failure} {failure:?}").contains("battery staple"));
    let failure = rig.store("secret-none", login).open().await.unwrap_err();
    assert_eq!(
        (failure.class, failure.to_string().as_str()),
        (Class::NotFound, "the secret `pin` can't be had (not found)")
    );
    for value in ["correct horse", "battery staple"] {
        assert!(logged(&[value]).is_empty(), "{value}");
    }
}

#[tokio::test]
async fn a_source_of_secrets_that_fails_or_panics_fails_the_opening_alone() {
    struct Broken;
    impl Secrets for Broken {
        fn read(&self, name: &str) -> Option<Result<Zeroizing<Vec<u8>>, String>> {
            assert_eq!(name, "unreadable", "as the test wants it");
            Some(Err("no such file".to_owned()))
        }
    }
    let rig = Rig::new();
    for (name, reason) in [("unreadable", "no such file"), ("pin", "reading it panicked")] {
        let login = json!({"login": {"token": "t", "secret": name, "pin": "1234"}});
        let store = rig.store_with("broken", login, |spec| spec.secrets = Box::new(Broken));
        let failure = store.open().await.unwrap_err();
        let message = format!("the secret `{name}` can't be had (unavailable)");
        assert_eq!((failure.class, failure.message), (Class::Unavailable, message));
        let told = logged(&["WARN", r#"store="broken""#, &format!("a secret can't be read: {reason}")]);
        assert_eq!(told.len(), 1);
    }
}

#[tokio::test]
async fn a_refused_pin_costs_the_token_one_attempt_whichever_store_presents_it() {
    let rig = Rig::new();
    let login = |token: &str| json!({"login": {"token": token, "secret": "pin", "pin": "1234"}});
    let open = async |name: &str, token: &str, pin: &'static str| {
        rig.store_with(name, login(token), secret(pin)).open().await
    };
    let failure = open("latch-0", "t", "0000").await.unwrap_err();
    assert_eq!(failure.class, Class::Credentials);
    assert_eq!(failure.to_string(), "the token refused the PIN in attempt 1 (CKR_PIN_INCORRECT 0xa0)");
    for store in 1..50 {
        let failure = open(&format!("latch-{store}"), "t", "0000").await.unwrap_err();
        assert_eq!(failure.class, Class::Credentials);
        assert!(!failure.class.is_transient());
        assert_eq!(failure.to_string(), "not tried again after 1 attempts");
    }
    open("latch-right", "t", "1234").await.unwrap();
    let failure = open("latch-elsewhere", "u", "0000").await.unwrap_err();
    assert!(failure.message.ends_with("in attempt 3"), "another token hasn't refused it yet: {failure}");
}

#[tokio::test]
async fn a_plugin_whose_keys_have_changed_wakes_the_host() {
    let rig = Rig::new();
    let (store, _listing) = rig.open("changes", json!({"health": "change_keys"})).await;
    let (calm, _listing) = rig.open("changes-not", json!({})).await;
    let before = store.health().await.unwrap();
    tokio::time::timeout(PATIENCE, store.keys_changed()).await.unwrap();
    assert_ne!(store.health().await.unwrap(), before);
    assert_eq!(calm.health().await.unwrap(), calm.health().await.unwrap());
    tokio::select! {
        biased;
        () = calm.keys_changed() => panic!("nothing has changed there"),
        () = std::future::ready(()) => (),
    }
}
