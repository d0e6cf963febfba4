//! Guests that take what there is: time, memory, stack, log. Each is ended, and the next call works.

use std::{
    fs,
    time::{Duration, Instant},
};

use keystead_plugin_host::Class;
use serde_json::{Value, json};

use crate::{
    rig::{BRIEF, PATIENCE, logged, opened},
    scene::{Doer, Scene, Signed, plan},
    service::Service,
};

/// How much later than its deadline a guest may be ended: some ticks of the clock that ends it, on a busy machine.
const GRACE: Duration = Duration::from_secs(2);

/// What the whole process may grow by for what one guest claims: a small part of the claim.
const SHARE: u64 = 1 << 30;

#[tokio::test(flavor = "multi_thread")]
async fn a_loop_without_end_is_ended_at_its_deadline() {
    let scene = Scene::new().await;
    for deed in ["spin", "chatter", "nag"] {
        let began = Instant::now();
        let doer = scene.doer(deed, json!(deed), |_| ()).await;
        let failure = doer.sign("ill", BRIEF).await.unwrap_err();
        assert_eq!(failure.class, Class::Deadline, "{deed}: {failure}");
        doer.sign("well", PATIENCE).await.unwrap(); // on the only lane
        assert!(began.elapsed() < PATIENCE, "{deed} kept its lane");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_computes_for_more_than_a_second_is_ended_however_much_time_there_is() {
    let failure = Scene::new().await.comes_of("computes", json!("spin")).await;
    let told = "the plugin was ended: it computed for more than 1s";
    assert_eq!((failure.class, failure.message.as_str()), (Class::Internal, told));
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_sleeps_for_an_hour_is_woken_at_its_deadline() {
    let doer = Scene::new().await.doer("sleeper", json!({"sleep": 3600}), |_| ()).await;
    let began = Instant::now();
    let failure = doer.does_it(BRIEF).await;
    assert_eq!(failure.class, Class::Deadline, "{failure}");
    assert!(began.elapsed() < BRIEF + GRACE, "{:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_has_the_memory_that_it_may_have_and_no_more() {
    let failure = Scene::new().await.comes_of("bomb", json!("bomb")).await;
    let told = "the plugin was ended: its 64 MiB of memory are used up";
    assert_eq!((failure.class, failure.message.as_str()), (Class::Internal, told));
}

#[tokio::test(flavor = "multi_thread")]
async fn recursion_without_end_costs_one_call() {
    let failure = Scene::new().await.comes_of("recursion", json!("recurse")).await;
    let told = "the plugin was ended: its stack is used up";
    assert_eq!((failure.class, failure.message.as_str()), (Class::Internal, told));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_costs_one_call_and_is_told() {
    let failure = Scene::new().await.comes_of("panics", json!("panic")).await;
    let told = "the plugin was ended: it panicked";
    assert_eq!((failure.class, failure.message.as_str()), (Class::Internal, told));
}

#[tokio::test(flavor = "multi_thread")]
async fn lines_of_ten_megabytes_are_cut() {
    let doer = Scene::new().await.doer("shouts", json!("shout"), |_| ()).await;
    doer.sign("ill", PATIENCE).await.unwrap();
    let lines = logged(&["ERROR", "shouts", "x\\n\\u{1b}[31m"]);
    assert_eq!(lines.len(), 1, "what is written to its streams goes nowhere");
    assert!(lines.iter().all(|line| line.len() < 16 << 10), "{} bytes", lines[0].len());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_longer_than_any_signature_is_held_back() {
    let failure = Scene::new().await.comes_of("long-answer", json!({"answer": 20 << 20})).await;
    let told = "the result needs 20971520 bytes";
    assert_eq!((failure.class, failure.message.as_str()), (Class::Internal, told));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_for_another_key_is_held_back() {
    let scene = Scene::new().await;
    let other = Signed::new();
    let mut liar = plan("liar", &json!("behave"));
    liar["signature"] = json!(other.signature);
    let store = scene.store("lies", json!({"keys": [liar, plan("well", &json!("behave"))]}), |_| ());
    let doer = Doer { listing: opened(&store).await, store };
    let failure = doer.sign("liar", PATIENCE).await.unwrap_err();
    let held_back = "the answer of key `liar` for ecdsa-sha256 is wrong; it was held back";
    assert_eq!((failure.class, failure.to_string().as_str()), (Class::Internal, held_back));
    doer.sign("well", PATIENCE).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listing_without_end_is_no_listing() {
    let scene = Scene::new().await;
    let lists = |deed: Value| json!({"list": deed, "keys": [plan("well", &json!("behave"))]});
    for (name, deed) in [("endless", json!("bomb")), ("millions", json!({"claim": [10_000_000, 91]}))] {
        let store = scene.store(name, lists(deed), |_| ());
        store.open().await.unwrap();
        let failure = store.keys().await.unwrap_err();
        let told = "the plugin was ended: its 64 MiB of memory are used up";
        assert_eq!((failure.class, failure.message.as_str()), (Class::Internal, told), "{name}");
    }
    let store = scene.store("too-many", lists(json!({"claim": [110_000, 91]})), |_| ());
    store.open().await.unwrap();
    let failure = store.keys().await.unwrap_err();
    assert_eq!(failure.message, "the plugin lists more than 100000 keys or findings");
}

/// A guest can hand out the same megabyte as the public half of each key.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_guest_claims_to_answer_is_bounded_and_not_only_what_it_has() {
    let scene = Scene::new().await;
    let before = peak();
    for (name, claim) in [("keys-large", json!([20_000, 1 << 20])), ("keys-many", json!([300_000, 4096]))] {
        let store = scene.store(name, json!({"list": {"claim": claim}}), |_| ());
        store.open().await.unwrap();
        let failure = store.keys().await.unwrap_err();
        assert!(
            failure.message.ends_with("fuel allocated for hostcalls has been exhausted"),
            "{name}: {failure}"
        );
    }
    assert!(peak() - before < SHARE, "{} MiB more", (peak() - before) >> 20);
}

/// In a request the same megabyte can be each header, and a secret can come a million times.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_guest_claims_to_send_is_bounded_and_not_only_what_it_has() {
    let scene = Scene::new().await;
    let service = Service::start().await;
    let before = peak();
    let errand = json!({"url": service.url("/hello"), "headers": [["x-token", "secret:long"]]});
    let form = json!({"url": service.url("/hello"), "form": [["token", "secret:long"]]});
    for (name, deed, told) in [
        (
            "headers-large",
            json!({"swell": [errand, 20, 8 << 20]}),
            "fuel allocated for hostcalls has been exhausted",
        ),
        ("headers-many", json!({"swell": [errand, 40_000, 1]}), "it has more than 128 headers"),
        ("header-long", json!({"multiply": [errand, 200_000]}), "its headers have more than 64 KiB"),
        ("form-long", json!({"multiply": [form, 200_000]}), "its body has more than 1 MiB"),
    ] {
        let failure = scene.doer_of(name, deed, &service).await.does_it(PATIENCE).await;
        assert!(failure.message.ends_with(told), "{name}: {failure}");
    }
    assert!(peak() - before < SHARE, "{} MiB more", (peak() - before) >> 20);
    assert_eq!(service.heard(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_kept_for_a_guest_is_bounded() {
    let scene = Scene::new().await;
    let failure = scene.comes_of("hoards", json!("hoard")).await;
    assert!(
        failure
            .message
            .ends_with(" values, and then: a value that expires is put by who was asked to get it"),
        "{failure}"
    );
    let failure = scene.comes_of("random", json!({"random": u32::MAX})).await;
    assert_eq!(failure.class, Class::InvalidInput, "{failure}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_of_a_service_is_bounded() {
    let scene = Scene::new().await;
    let service = Service::start().await;
    for path in ["/huge", "/endless"] {
        let errand = json!({"fetch": {"url": service.url(path)}});
        let doer = scene.doer(path, errand, |spec| service.grant(spec)).await;
        let failure = doer.does_it(PATIENCE).await;
        assert_eq!(failure.class, Class::Unavailable, "{path}: {failure}");
        assert!(failure.message.ends_with("its answer has more than 2 MiB"), "{failure}");
    }
}

/// Others who ask for a value wait for the one whose duty it is to get it, for as long as that is in a call.
#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_do_its_duty_hands_it_on_with_the_end_of_its_call() {
    let doer = Scene::new().await.doer("withholds", json!({"withhold": "token"}), |_| ()).await;
    let began = Instant::now();
    for _ in 0..3 {
        doer.sign("ill", PATIENCE).await.unwrap();
    }
    assert!(began.elapsed() < PATIENCE, "{:?}", began.elapsed());
}

/// The most memory that this process had at any time, in bytes.
fn peak() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}
