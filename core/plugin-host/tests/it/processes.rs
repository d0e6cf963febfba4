//! Plugins in processes of their own: what a death costs, and what it doesn't.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use keystead_plugin_host::{Class, Isolation, Store, StoreSpec, Surroundings};
use openssl::{
    ec::{EcGroup, EcKey},
    nid::Nid,
    pkey::PKey,
};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::rig::{Known, PATIENCE, Rig, key, logged, opened, sign, spawn_sign};

/// A place for keys that outlive a process, and for what tests tell a plugin by files.
struct Place(TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// A file that is there.
    fn flag(&self, name: &str) -> PathBuf {
        let file = self.file(name);
        fs::write(&file, b"").unwrap();
        file
    }

    /// A private key, always the same.
    fn key(&self) -> PathBuf {
        let file = self.file("key");
        if !file.exists() {
            let group = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1).unwrap();
            let key = PKey::from_ec_key(EcKey::generate(&group).unwrap()).unwrap();
            fs::write(&file, key.private_key_to_pkcs8().unwrap()).unwrap();
        }
        file
    }

    /// A configuration with two keys: `well`, and `ill`, whose signing does a deed.
    fn config(&self, deed: &Value) -> Value {
        let key = self.key();
        json!({"keys": [
            {"name": "well", "file": key, "class": "blocking"},
            {"name": "ill", "file": key, "class": "blocking", "sign": deed},
        ]})
    }
}

fn in_process(spec: &mut StoreSpec) {
    spec.isolation = Some(Isolation::Process);
}

async fn open(rig: &Rig, name: &str, config: Value) -> Arc<Store> {
    let store = rig.store_with(name, config, in_process);
    store.open().await.unwrap();
    store
}

fn pids(rig: &Rig) -> Vec<u32> {
    rig.host.processes().iter().filter_map(|process| process.pid).collect()
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < end, "{what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_signs_in_a_process_that_ends_with_it() {
    let (rig, place) = (Rig::with_processes(), Place::new());
    let store = open(&rig, "apart", place.config(&json!("behave"))).await;
    assert_eq!(store.isolation(), Some(Isolation::Process));
    let listing = store.keys().await.unwrap();
    sign(&store, &key(&listing, "well"), "r1", PATIENCE).await.unwrap();
    let [pid] = pids(&rig)[..] else { panic!("{:?}", rig.host.processes()) };
    assert_ne!(pid, std::process::id());
    let mapped = |pid: u32| fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
    assert!(
        !mapped(std::process::id()).contains(&*rig.directory.path().to_string_lossy()),
        "nothing of it is here"
    );
    assert!(!logged(&["apart", "signing", "r1"]).is_empty(), "its log is told, with store and request");
    store.close(PATIENCE).await;
    drop(store);
    until("the process ends with its last store", || !Path::new(&format!("/proc/{pid}")).exists()).await;
    assert!(logged(&["died", "apart"]).is_empty(), "that is no death");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_in_which_the_process_dies_is_made_again_and_the_store_is_back() {
    let (rig, place) = (Rig::with_processes(), Place::new());
    let flag = place.flag("die");
    let store = open(&rig, "phoenix", place.config(&json!({"die_once": flag}))).await;
    let listing = store.keys().await.unwrap();
    let before = pids(&rig);
    sign(&store, &key(&listing, "ill"), "r2", PATIENCE).await.unwrap();
    assert_ne!(pids(&rig), before);
    let process = rig.host.processes().remove(0);
    assert_eq!((process.restarts, process.stores), (1, vec!["phoenix".to_owned()]));
    let death = process.last_death.unwrap();
    assert!(
        death.starts_with("aborted (SIGABRT)")
            && death.ends_with("while signing with key `ill` of store `phoenix`"),
        "{death}"
    );
    let told = logged(&["a plugin process died", "phoenix"]);
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(told[0].contains("WARN") && told[0].contains("started again at once"), "{told:?}");
    store.keys_changed().await; // the host is to list them again
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_kills_twice_is_given_up_and_the_neighbour_notices_nothing() {
    let (rig, place) = (Rig::with_processes(), Place::new());
    let healthy = rig.store_with("healthy", place.config(&json!("behave")), |spec| {
        in_process(spec);
        spec.surroundings.group = Some("another".to_owned());
    });
    let keys = opened(&healthy).await;
    let store = open(&rig, "deadly", place.config(&json!("die"))).await;
    let listing = store.keys().await.unwrap();
    let well = pids(&rig);
    let signing = spawn_sign(&store, &key(&listing, "ill"), "r3", PATIENCE);
    while !signing.is_finished() {
        sign(&healthy, &key(&keys, "well"), "r4", PATIENCE).await.unwrap();
    }
    let failure = signing.await.unwrap().unwrap_err();
    assert_eq!(
        (failure.class, failure.message.as_str()),
        (Class::Internal, "the plugin's process died twice in this call")
    );
    sign(&store, &key(&listing, "well"), "r5", PATIENCE).await.unwrap();
    assert_eq!(
        pids(&rig).iter().filter(|pid| well.contains(pid)).count(),
        1,
        "the neighbour's process lives on"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_goes_on_dying_opens_the_breaker_and_fails_at_once() {
    let (rig, place) = (Rig::with_processes(), Place::new());
    let store = open(&rig, "doomed", place.config(&json!("die"))).await;
    let listing = store.keys().await.unwrap();
    let ill = key(&listing, "ill");
    let failure = loop {
        let failure = sign(&store, &ill, "r6", PATIENCE).await.unwrap_err();
        if failure.message.contains("too often") {
            break failure;
        }
    };
    assert_eq!(failure.class, Class::Unavailable);
    assert!(failure.retry_after.is_some_and(|after| after > Duration::from_secs(20)), "{failure:?}");
    let told = logged(&["a plugin process died", "doomed"]);
    assert_eq!(told.len(), 5, "{told:?}");
    assert!(told[4].contains("it has died too often, and is tried again every 30s"), "{told:?}");
    assert_eq!(rig.host.processes()[0].pid, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn stores_of_one_plugin_share_a_process_and_stores_of_another_group_do_not() {
    let (rig, place) = (Rig::with_processes(), Place::new());
    let config = place.config(&json!("behave"));
    let (one, two) = (
        rig.store_with("one", config.clone(), in_process),
        rig.store_with("two", config.clone(), in_process),
    );
    let (opened_one, opened_two) = tokio::join!(one.open(), two.open());
    opened_one.and(opened_two).unwrap();
    assert_eq!(pids(&rig).len(), 1, "{:?}", rig.host.processes());
    let three = rig.store_with("three", config.clone(), |spec| {
        in_process(spec);
        spec.surroundings.group = Some("three".to_owned());
    });
    three.open().await.unwrap();
    assert_eq!(pids(&rig).len(), 2, "{:?}", rig.host.processes());
    let four = rig.store_with("four", config, |spec| {
        in_process(spec);
        spec.surroundings = Surroundings { memory: Some(2 << 30), ..Surroundings::default() };
    });
    four.open().await.unwrap();
    assert_eq!(
        pids(&rig).len(),
        3,
        "what it wants of its process is something else: {:?}",
        rig.host.processes()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_in_whose_presentation_the_process_dies_is_not_presented_again() {
    let (rig, place) = (Rig::with_processes(), Place::new());
    let attempts = place.file("attempts");
    let mut config = place.config(&json!("behave"));
    config["login"] =
        json!({"token": "hsm", "secret": "pin", "pin": "right", "attempts": attempts, "deed": "die"});
    let store = rig.store_with("locked", config, |spec| {
        in_process(spec);
        spec.secrets = Box::new(Known([("pin", "right")].into()));
    });
    store.open().await.unwrap_err();
    let failure = loop {
        match store.open().await.unwrap_err() {
            failure if failure.class == Class::Credentials => break failure,
            _ => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    };
    assert!(failure.message.contains("not tried again"), "{failure}");
    assert_eq!(fs::read(attempts).unwrap().len(), 1);
    assert_eq!(logged(&["locked", "the PIN that it was presenting counts as refused"]).len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_whose_every_call_hangs_is_ended_and_started_anew() {
    let (rig, place) = (Rig::with_processes(), Place::new());
    let store = rig.store_with("stuck", place.config(&json!("hang")), |spec| {
        in_process(spec);
        spec.surroundings.stuck_after = Some(Duration::from_secs(1));
    });
    let listing = opened(&store).await;
    let brief = Duration::from_millis(50);
    for call in 0..2 {
        let failure = sign(&store, &key(&listing, "ill"), &format!("stuck{call}"), brief).await.unwrap_err();
        assert_eq!(failure.class, Class::Deadline);
    }
    sign(&store, &key(&listing, "well"), "r7", PATIENCE).await.unwrap();
    let death = rig.host.processes().remove(0).last_death.unwrap();
    assert!(
        death.contains("all 2 lanes of store `stuck` were stuck in calls, and none came back for 1s"),
        "{death}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_hangs_in_a_store_that_is_not_well_is_ended_though_lanes_are_free() {
    let (rig, place) = (Rig::with_processes(), Place::new());
    let mut config = place.config(&json!("hang"));
    config["health"] = json!({"fail": 7});
    config["advice"] = json!([2, 1000]);
    let store = rig.store_with("sick", config, in_process);
    let listing = opened(&store).await;
    let brief = Duration::from_millis(50);
    let failure = sign(&store, &key(&listing, "ill"), "sick1", brief).await.unwrap_err();
    assert_eq!(failure.class, Class::Deadline);
    store.health().await.unwrap_err();
    let last_death = || rig.host.processes().remove(0).last_death;
    until("the process is ended", || last_death().is_some()).await;
    let death = last_death().unwrap();
    assert!(death.contains("store `sick` was not well, and a call in it hung for 1s"), "{death}");
    sign(&store, &key(&listing, "well"), "sick2", PATIENCE).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plugin_advises_lanes_and_the_configuration_has_the_last_word() {
    let (rig, place) = (Rig::with_processes(), Place::new());
    for (number, isolation) in [Isolation::Inline, Isolation::Process].into_iter().enumerate() {
        for (configured, advised, lanes) in [
            (None, json!([3, 0]), 3),
            (Some(2), json!([3, 0]), 2),
            (None, json!([99, 0]), 4),
            (None, json!([0, 0]), 4),
            (None, Value::Null, 4),
        ] {
            let mut config = place.config(&json!("behave"));
            config["advice"] = advised.clone();
            let store = rig.store_with(&format!("advised{number}"), config, |spec| {
                spec.isolation = Some(isolation);
                spec.limits.lanes = configured;
            });
            store.open().await.unwrap();
            assert_eq!(store.load().lanes, lanes, "{isolation:?} {configured:?} {advised}: it can use 4");
            store.close(PATIENCE).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plugin_that_would_rather_run_here_does_and_says_so_in_a_process_first() {
    let (rig, place) = (Rig::with_processes(), Place::new());
    let store = rig.store("native", place.config(&json!("behave")));
    store.open().await.unwrap();
    assert_eq!(store.isolation(), Some(Isolation::Inline));
    assert!(pids(&rig).is_empty());
}
