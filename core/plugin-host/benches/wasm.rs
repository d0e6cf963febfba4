//! What a sandbox costs: a call into a guest that is ready, the start of a store whose plugin was compiled before, memory
//! for each instance, and how many calls are answered where each waits for a service.
//!
//! `cargo bench -p keystead-plugin-host --features wasm --bench wasm` prints all of it in one run. Other than by that, or
//! with `--test`, each takes a moment only.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::cast_precision_loss,
    reason = "a benchmark prints, and fails by panicking"
)]

#[path = "../tests/it/rig.rs"]
#[expect(dead_code, reason = "the tests use more of it")]
mod rig;
#[path = "../tests/wasm/scene.rs"]
#[expect(dead_code, reason = "the tests use more of it")]
mod scene;
#[path = "../tests/wasm/service.rs"]
#[expect(dead_code, reason = "the tests use more of it")]
mod service;

use std::{
    collections::BTreeMap,
    fs,
    sync::Arc,
    time::{Duration, Instant},
};

use criterion::Criterion;
use keystead_plugin_api::{
    Key,
    algorithm::Operation,
    conformance::{Door, Opened, Request, TestHost},
};
use keystead_plugin_host::{
    Algorithm, Limits,
    testing::{InServer, component},
};
use serde_json::json;
use tokio::{runtime::Runtime, task::JoinSet, time::sleep_until};

use rig::{DIGEST, PATIENCE, Rig};
use scene::{Doer, Scene, kept, plan};
use service::{SLOW, Service};

/// Instances whose memory is measured.
const INSTANCES: usize = 64;

/// Calls in flight, each on a lane of its own.
const IN_FLIGHT: u32 = 64;

fn main() {
    let has = |name| std::env::args().any(|argument| argument == name);
    let time = if has("--bench") && !has("--test") { Duration::from_secs(10) } else { SLOW * 3 };
    let mut criterion = Criterion::default().configure_from_args();
    call(&mut criterion);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let scene = runtime.block_on(Scene::of(Rig::silent(kept)));
    store(&mut criterion, &runtime, &scene);
    start(&mut criterion, &runtime);
    criterion.final_summary();
    memory();
    in_flight(&runtime, &scene, time);
}

/// A store of the guest, called on the thread that calls: no lane and no check of the answer.
struct Ready {
    store: Arc<dyn Opened>,
    key: Key,
}

impl Ready {
    /// With one instance, which has been called.
    fn new(door: &InServer) -> Self {
        let config = json!({"keys": [plan("well", &json!("behave"))]});
        let store = door.open(TestHost::leak(config, BTreeMap::new())).unwrap();
        let key = store.listing().unwrap().keys.remove(0);
        let ready = Self { store, key };
        ready.sign();
        ready
    }

    fn sign(&self) -> Vec<u8> {
        let mut request = Request::new(&self.key, Algorithm::EcdsaSha256, &DIGEST);
        request.capacity = 512;
        self.store.perform(Operation::Sign, &request).unwrap()
    }
}

/// A call from the host into a guest that is ready, and back: 32 bytes there, a signature of 71 back.
fn call(criterion: &mut Criterion) {
    let ready = Ready::new(&InServer::load(&component("keystead-plugin-hostile-wasm")));
    criterion.bench_function("call of a guest that is ready", |bencher| bencher.iter(|| ready.sign()));
}

/// The same by a store: on its lane, with the answer verified.
fn store(criterion: &mut Criterion, runtime: &Runtime, scene: &Scene) {
    let doer = runtime.block_on(scene.doer("calls", json!("behave"), |_| ()));
    criterion.bench_function("call by a store, on its lane and verified", |bencher| {
        bencher.iter(|| runtime.block_on(doer.sign("well", PATIENCE)).unwrap());
    });
}

/// A store opened by a host that has loaded nothing yet, and finds the plugin compiled.
fn start(criterion: &mut Criterion, runtime: &Runtime) {
    criterion.bench_function("start of a plugin that was compiled before", |bencher| {
        bencher.iter_custom(|times| {
            let mut took = Duration::ZERO;
            for _ in 0..times {
                let scene = runtime.block_on(Scene::of(Rig::silent(kept)));
                let store = scene.store("starts", json!({}), |_| ());
                let began = Instant::now();
                runtime.block_on(store.open()).unwrap();
                took += began.elapsed();
                runtime.block_on(store.close(PATIENCE));
            }
            took
        });
    });
}

/// What instances take that have made a call and wait for the next.
fn memory() {
    let door = InServer::load(&component("keystead-plugin-hostile-wasm"));
    let _first = Ready::new(&door);
    let before = pages();
    let instances: Vec<_> = (0..INSTANCES).map(|_| Ready::new(&door)).collect();
    let after = pages();
    let each = |before: u64, after: u64| after.saturating_sub(before) as f64 * 4.0 / instances.len() as f64;
    println!(
        "memory of an instance: {:.0} KiB resident, {:.2} GiB of addresses mapped",
        each(before.1, after.1),
        each(before.0, after.0) / f64::from(1 << 20)
    );
}

/// Pages of 4 KiB that this process has mapped, and those that are resident (proc(5), statm).
fn pages() -> (u64, u64) {
    let statm = fs::read_to_string("/proc/self/statm").unwrap();
    let mut numbers = statm.split(' ').map(|number| number.parse().unwrap());
    (numbers.next().unwrap(), numbers.next().unwrap())
}

/// Calls each of which waits for a service that answers 20 ms after it was asked.
fn in_flight(runtime: &Runtime, scene: &Scene, time: Duration) {
    let answered = runtime.block_on(async {
        let service = Service::start().await;
        let deed = json!({"through": {"url": service.url("/slow")}});
        let lanes = |limits: &mut Limits| *limits = Limits { lanes: Some(IN_FLIGHT), queue: 16 };
        let doer = scene.doer("in-flight", deed, |spec| {
            service.grant(spec);
            lanes(&mut spec.limits);
        });
        let doer = Arc::new(doer.await);
        calls_until(&doer, Instant::now() + SLOW * 10).await; // each lane has its instance, and a connection
        calls_until(&doer, Instant::now() + time).await
    });
    let rate = answered as f64 / time.as_secs_f64();
    let most = f64::from(IN_FLIGHT) / SLOW.as_secs_f64();
    println!(
        "{IN_FLIGHT} calls in flight to a service that takes {SLOW:?}: {rate:.0} per second, {:.3} of {most:.0}",
        rate / most
    );
}

/// Keeps so many calls in flight until a time; answers how many were answered by then.
async fn calls_until(doer: &Arc<Doer>, end: Instant) -> usize {
    let mut callers = JoinSet::new();
    for _ in 0..IN_FLIGHT {
        let doer = Arc::clone(doer);
        callers.spawn(async move {
            let mut answered = 0;
            while Instant::now() < end {
                doer.sign("ill", PATIENCE).await.unwrap();
                answered += usize::from(Instant::now() < end);
            }
            answered
        });
    }
    sleep_until(end.into()).await;
    callers.join_all().await.into_iter().sum()
}
