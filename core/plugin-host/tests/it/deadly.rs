//! A crash that stays outside: a plugin in C that dies in every way a library can, and some that only malice finds.

use std::{
    fs,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use keystead_plugin_host::{
    Class, Isolation, Key, Limits, Listing, ProcessStatus, Store, StoreSpec, VerifySignatures, testing,
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{task::JoinHandle, time::sleep};

use crate::rig::{Known, PATIENCE, Rig, key, logged, opened, sign};

/// Within which a store signs again after its process has died for the first time.
const BACK_WITHIN: Duration = Duration::from_secs(1);

/// How long calls may hang here.
const STUCK_AFTER: Duration = Duration::from_millis(500);

/// The stores of one test: those of `deadly`, each in a process of its own, and a neighbour.
struct Scene {
    rig: Rig,
    place: TempDir,
}

impl Scene {
    fn new() -> Self {
        let rig = Rig::with_processes();
        testing::c_plugin(rig.directory.path(), "deadly", &[&testing::source("deadly.c")], &["-lcrypto"]);
        Self { rig, place: tempfile::tempdir().unwrap() }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.place.path().join(name)
    }

    /// A store whose process has a group of its own.
    fn store(&self, name: &str, config: Value) -> Arc<Store> {
        self.rig.store_with(name, config, |spec| deadly(spec, name))
    }

    /// An open store that has a key `well`, and two whose signing does the deed: `once`, and `always`.
    async fn doer(&self, deed: &str) -> Doer<'_> {
        self.doer_called(&format!("doer-{deed}"), deed).await
    }

    async fn doer_called(&self, name: &str, deed: &str) -> Doer<'_> {
        let once = self.file(deed);
        fs::write(&once, b"").unwrap();
        let config = json!({"keys": [
            {"name": "well"}, {"name": "once", "sign": deed, "once": once}, {"name": "always", "sign": deed},
        ]});
        let store = self.store(name, config);
        let listing = opened(&store).await;
        Doer { scene: self, name: name.to_owned(), store, listing }
    }

    fn process(&self, store: &str) -> ProcessStatus {
        let all = self.rig.host.processes();
        let of_store = all.iter().find(|process| process.stores.iter().any(|name| name == store));
        of_store.unwrap_or_else(|| panic!("no process of {store}: {all:?}")).clone()
    }

    /// A store of the same plugin in another process, which signs until it is asked how that went.
    async fn neighbour(&self) -> Neighbour {
        let store = self.store("neighbour", json!({"keys": [{"name": "well"}]}));
        let well = key(&opened(&store).await, "well");
        let enough = Arc::new(AtomicBool::new(false));
        let signing = tokio::spawn(sign_until(Arc::clone(&enough), Arc::clone(&store), well));
        Neighbour { pid: self.process("neighbour").pid, _store: store, enough, signing }
    }
}

fn deadly(spec: &mut StoreSpec, name: &str) {
    spec.plugin = "deadly".to_owned();
    spec.isolation = Some(Isolation::Process);
    spec.secrets = Box::new(Known([("pin", "right")].into()));
    spec.limits = Limits { lanes: Some(1), queue: 16 };
    spec.verify_signatures = VerifySignatures::Always;
    spec.surroundings.group = Some(name.to_owned());
    spec.surroundings.memory = Some(128 << 20);
    spec.surroundings.stuck_after = Some(STUCK_AFTER);
}

/// A store that does deeds.
struct Doer<'s> {
    scene: &'s Scene,
    name: String,
    store: Arc<Store>,
    listing: Listing,
}

impl Doer<'_> {
    async fn sign(&self, label: &str, time: Duration) -> Result<Vec<u8>, keystead_plugin_host::Failure> {
        sign(&self.store, &key(&self.listing, label), label, time).await
    }

    /// Has it die once in a call, which is made once more and must be answered; answers how long that took.
    async fn dies_once(&self) -> Duration {
        let began = Instant::now();
        self.sign("once", PATIENCE).await.unwrap_or_else(|failure| panic!("{}: {failure}", self.name));
        let took = began.elapsed();
        assert_eq!(self.process().restarts, 1, "{}", self.name);
        took
    }

    /// Has it die in every call.
    async fn dies_twice(&self) {
        let failure = self.sign("always", PATIENCE).await.unwrap_err();
        let said = (failure.class, failure.message.as_str());
        assert_eq!(said, (Class::Internal, "the plugin's process died twice in this call"), "{}", self.name);
        self.sign("well", PATIENCE).await.unwrap();
    }

    fn process(&self) -> ProcessStatus {
        self.scene.process(&self.name)
    }

    fn last_death(&self) -> String {
        self.process().last_death.unwrap()
    }
}

/// A store that nothing happens to.
struct Neighbour {
    _store: Arc<Store>,
    enough: Arc<AtomicBool>,
    signing: JoinHandle<Vec<Duration>>,
    pid: Option<u32>,
}

impl Neighbour {
    /// Every one of its calls was answered, by the process that it has had all the while. Answers how fast.
    async fn noticed_nothing(self, scene: &Scene) -> String {
        self.enough.store(true, Ordering::Relaxed);
        let mut took = self.signing.await.unwrap();
        took.sort();
        let process = scene.process("neighbour");
        assert_eq!((process.pid, process.restarts), (self.pid, 0), "{process:?}");
        let part = |of_100: usize| took.get((took.len() - 1) * of_100 / 100).unwrap();
        let (p50, p99, longest) = (part(50), part(99), part(100));
        format!("the neighbour signed {} times: p50 {p50:?}, p99 {p99:?}, longest {longest:?}", took.len())
    }
}

async fn sign_until(enough: Arc<AtomicBool>, store: Arc<Store>, key: Arc<Key>) -> Vec<Duration> {
    let mut took = Vec::new();
    while !enough.load(Ordering::Relaxed) {
        let began = Instant::now();
        sign(&store, &key, "beside", PATIENCE).await.unwrap();
        took.push(began.elapsed());
        sleep(Duration::from_millis(1)).await;
    }
    took
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_it_dies_of_is_told_and_the_store_is_back_within_a_second() {
    let scene = Scene::new();
    let neighbour = scene.neighbour().await;
    let deeds: [(&str, &[&str]); 10] = [
        ("null", &["killed by SIGSEGV at 0x0 in libkeystead_plugin_deadly.so+0x"]),
        ("abort", &["aborted (SIGABRT)"]),
        ("exit", &["exited with status 0"]),
        ("corrupt", &["aborted (SIGABRT)"]),
        ("sigpipe", &["killed by SIGPIPE"]),
        ("close_all", &["exited with status 1"]),
        ("garbage", &["ended by the server: a message can't be read"]),
        ("forge", &["ended by the server: it answered a call that nobody made, or one twice"]),
        ("oversize", &["ended by the server: a message of 2147483647 bytes is longer than 4194304"]),
        ("gobble", &["SIGSEGV", "SIGABRT"]),
    ];
    for (deed, deaths) in deeds {
        let doer = scene.doer(deed).await;
        let took = doer.dies_once().await;
        let death = doer.last_death();
        println!("{deed:10} {:4} ms to its signature; {death}", took.as_millis());
        assert!(deaths.iter().any(|told| death.contains(told)), "{deed}: {death}");
        assert!(
            death.ends_with(&format!("while signing with key `once` of store `{}`", doer.name)),
            "{death}"
        );
        assert!(took < BACK_WITHIN, "{deed}: {took:?}");
        doer.dies_twice().await;
        let told = logged(&["WARN", "a plugin process died", &doer.name]);
        assert_eq!(told.len(), 3, "{told:?}");
    }
    println!("{}", neighbour.noticed_nothing(&scene).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_comes_back_from_no_call_is_ended_though_it_says_that_it_is_well() {
    let scene = Scene::new();
    let neighbour = scene.neighbour().await;
    // One says that it waits, all the while; and every one answers to questions for its health.
    for deed in ["hang", "spin", "murmur", "torn"] {
        let doer = scene.doer(deed).await;
        let began = Instant::now();
        let failure = doer.sign("always", Duration::from_millis(100)).await.unwrap_err();
        assert_eq!(failure.class, Class::Deadline, "{deed}: {failure}");
        let (signed, _) = tokio::join!(doer.sign("well", PATIENCE), ask_until_it_dies(&doer));
        signed.unwrap();
        let (took, death) = (began.elapsed(), doer.last_death());
        println!("{deed:10} {:4} ms to the next signature; {death}", took.as_millis());
        let told = format!("ended by the server: all 1 lanes of store `{}` were stuck in calls", doer.name);
        assert!(death.starts_with(&told), "{death}");
        assert!((STUCK_AFTER..STUCK_AFTER + BACK_WITHIN).contains(&took), "{deed}: {took:?}");
    }
    println!("{}", neighbour.noticed_nothing(&scene).await);
}

/// Asks for its health again and again. Of one that spins or hangs, another thread answers.
async fn ask_until_it_dies(doer: &Doer<'_>) {
    let end = Instant::now() + PATIENCE;
    while doer.process().last_death.is_none() && Instant::now() < end {
        let _ = doer.store.health().await;
        sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_lines_keeps_nobody_from_being_served_and_a_fork_is_refused() {
    let scene = Scene::new();
    let neighbour = scene.neighbour().await;
    let doer = scene.doer("flood").await;
    doer.sign("once", PATIENCE).await.unwrap();
    let pid = doer.process().pid.unwrap();
    for what in ["a plugin process wrote: a flood of lines", "a flood of events"] {
        let of_process = |line: &&String| line.contains(&format!("pid={pid}")) || line.contains(&doer.name);
        let told = logged(&[what]).iter().filter(of_process).count();
        assert!((1..=1000).contains(&told), "{told} lines of {what}");
    }
    println!("{}", neighbour.noticed_nothing(&scene).await);
    let forker = scene.doer("fork").await;
    let failure = forker.sign("always", PATIENCE).await.unwrap_err();
    assert_eq!((failure.class, failure.message.as_str()), (Class::Denied, "Operation not permitted"));
    for quiet in [doer, forker] {
        let process = quiet.process();
        assert_eq!((process.restarts, process.last_death), (0, None), "{}", quiet.name);
    }
}

/// With one thread for all, whoever doesn't let go of it is noticed at once.
#[tokio::test]
async fn one_that_never_stops_talking_leaves_a_turn_to_the_others() {
    let scene = Scene::new();
    let neighbour = scene.neighbour().await;
    let doer = scene.doer("nag").await;
    let failure = doer.sign("always", Duration::from_millis(100)).await.unwrap_err();
    assert_eq!(failure.class, Class::Deadline, "{failure}");
    doer.sign("well", PATIENCE).await.unwrap();
    assert!(doer.last_death().contains("stuck in calls"), "{}", doer.last_death());
    println!("{}", neighbour.noticed_nothing(&scene).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_asks_and_does_not_listen_is_ended_before_that_costs_memory() {
    let scene = Scene::new();
    let doer = scene.doer("deaf").await;
    doer.sign("once", PATIENCE).await.unwrap();
    let death = doer.last_death();
    assert!(death.starts_with("ended by the server: it goes on asking, and doesn't listen"), "{death}");
}

#[tokio::test(flavor = "multi_thread")]
async fn its_last_words_come_before_the_line_that_tells_its_death() {
    let scene = Scene::new();
    let doer = scene.doer_called("last-words", "corrupt").await;
    let pid = doer.process().pid.unwrap();
    doer.dies_once().await;
    let lines = logged(&[&format!("pid={pid}")]);
    let at = |text: &str| lines.iter().position(|line| line.contains(text));
    let (words, death) = (at("a plugin process wrote: "), at("a plugin process died: aborted (SIGABRT)"));
    assert!(words.is_some() && words < death, "{lines:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_secret_is_presented_twice_by_one_that_dies_of_it() {
    let scene = Scene::new();
    for deed in ["crash", "wrong_pin"] {
        let attempts = scene.file(&format!("attempts-{deed}"));
        let config = json!({"keys": [{"name": "well"}], "open": deed, "attempts": attempts});
        let store = scene.store(&format!("login-{deed}"), config);
        let end = Instant::now() + PATIENCE;
        let mut tries = 0;
        while tries < 5 {
            match store.open().await.unwrap_err() {
                failure if failure.class == Class::Credentials => tries += 1,
                failure => assert!(Instant::now() < end, "{failure}"),
            }
            sleep(Duration::from_millis(20)).await;
        }
        assert_eq!(fs::read(attempts).unwrap(), b"x", "{deed}");
        assert_eq!(logged(&["a plugin process died", &format!("login-{deed}")]).len(), 1, "{deed}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_dies_in_every_call_is_started_five_times_and_logs_in_as_often() {
    let scene = Scene::new();
    let attempts = scene.file("attempts");
    let keys = json!([{"name": "well"}, {"name": "always", "sign": "null"}]);
    let store = scene.store("cursed", json!({"keys": keys, "open": "login", "attempts": attempts}));
    let listing = opened(&store).await;
    let failure = loop {
        let failure = sign(&store, &key(&listing, "always"), "cursed", PATIENCE).await.unwrap_err();
        if failure.message.contains("too often") {
            break failure;
        }
    };
    assert_eq!(failure.class, Class::Unavailable);
    assert!(failure.retry_after.is_some_and(|after| after > Duration::from_secs(20)), "{failure:?}");
    for _ in 0..20 {
        sign(&store, &key(&listing, "well"), "in vain", PATIENCE).await.unwrap_err();
        sleep(Duration::from_millis(20)).await;
    }
    let process = scene.process("cursed");
    assert_eq!((process.pid, process.restarts), (None, 4), "{process:?}");
    assert_eq!(fs::read(attempts).unwrap().len(), 5, "one attempt for each start");
}
