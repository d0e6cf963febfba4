//! What a store notices of another whose guest uses the processor without end, or takes memory without end.
//!
//! What it prints are the well-behaved store's latencies alone and beside the other, in turns, so that what else the
//! machine does meets both. The goal is a p99 of at most 1.5 times the one alone. The last rows are for comparison: no
//! guest at all, and a thread that takes and gives back as much memory as one. What they show is the system's: pages are
//! cleared and taken back by the kernel, which not every kernel interrupts for another thread. `--seconds N` sets how long each turn
//! takes; other than by `cargo bench`, or with `--test`, each takes a moment only.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
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
    hint::black_box,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use serde_json::json;
use tokio::{
    task::JoinHandle,
    time::{interval, sleep},
};

use rig::{PATIENCE, Rig};
use scene::{Doer, Scene, kept};

/// How often a store alone and beside the other take turns.
const ROUNDS: usize = 5;

/// Between two calls of the well-behaved store: it is no load that would slow itself down.
const PACE: Duration = Duration::from_millis(1);

/// How long a call of the hostile store may take: at its end the guest is discarded, and the next one started.
const DEADLINE: Duration = Duration::from_millis(200);

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let has = |name: &str| arguments.iter().any(|argument| argument == name);
    let seconds = arguments.iter().skip_while(|argument| *argument != "--seconds").nth(1);
    let (time, rounds) = match has("--bench") && !has("--test") {
        true => (Duration::from_secs(seconds.map_or(4, |seconds| seconds.parse().unwrap())), ROUNDS),
        false => (Duration::from_millis(100), 1),
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let scene = Scene::of(Rig::silent(kept)).await;
        let well = scene.doer("well", json!("behave"), |_| ()).await;
        for deed in ["spin", "bomb"] {
            let ill = Arc::new(scene.doer(deed, json!(deed), |_| ()).await);
            compare(deed, &well, |enough| keep_at_it(Arc::clone(&ill), enough), time, rounds).await;
        }
        compare("thread", &well, take_and_give_back, time, rounds).await;
    });
}

async fn compare(
    deed: &str,
    well: &Doer,
    ill: impl Fn(Arc<AtomicBool>) -> JoinHandle<u32>,
    time: Duration,
    rounds: usize,
) {
    println!(
        "{:6} {:>12} {:>12} {:>13} {:>13} {:>7}",
        "", "alone p50", "alone p99", "beside p50", "beside p99", "times"
    );
    let mut all = [Vec::new(), Vec::new()];
    for _ in 0..rounds {
        let alone = latencies(well, time).await;
        let enough = Arc::new(AtomicBool::new(false));
        let hostile = ill(Arc::clone(&enough));
        sleep(PACE * 20).await;
        let beside = latencies(well, time).await;
        enough.store(true, Ordering::Relaxed);
        assert!(hostile.await.unwrap() > 0, "the other store did nothing");
        row(deed, &alone, &beside);
        all[0].extend(alone);
        all[1].extend(beside);
    }
    all.iter_mut().for_each(|latencies| latencies.sort_unstable());
    row("all", &all[0], &all[1]);
}

fn row(name: &str, alone: &[Duration], beside: &[Duration]) {
    let micros = |of: &[Duration], percent: usize| of[(of.len() - 1) * percent / 100].as_nanos() as f64 / 1e3;
    let (before, after) = (micros(alone, 99), micros(beside, 99));
    println!(
        "{name:6} {:>9.1} µs {before:>9.1} µs {:>10.1} µs {after:>10.1} µs {:>7.2}",
        micros(alone, 50),
        micros(beside, 50),
        after / before
    );
}

/// How long each call took, sorted.
async fn latencies(well: &Doer, time: Duration) -> Vec<Duration> {
    let (mut pace, end) = (interval(PACE), Instant::now() + time);
    let mut latencies = Vec::new();
    while Instant::now() < end {
        pace.tick().await;
        let began = Instant::now(); // not when it was due: the timer knows no less than a millisecond
        well.sign("well", PATIENCE).await.unwrap();
        latencies.push(began.elapsed());
    }
    latencies.sort_unstable();
    latencies
}

/// Does its deed again and again; answers how often.
fn keep_at_it(ill: Arc<Doer>, enough: Arc<AtomicBool>) -> JoinHandle<u32> {
    tokio::spawn(async move {
        let mut times = 0;
        while !enough.load(Ordering::Relaxed) {
            ill.sign("ill", DEADLINE).await.unwrap_err();
            times += 1;
        }
        times
    })
}

/// As much memory as a guest has, again and again.
fn take_and_give_back(enough: Arc<AtomicBool>) -> JoinHandle<u32> {
    tokio::task::spawn_blocking(move || {
        let mut times = 0;
        while !enough.load(Ordering::Relaxed) {
            drop(black_box(vec![1_u8; 64 << 20]));
            times += 1;
        }
        times
    })
}
