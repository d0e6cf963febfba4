//! A closed-loop load on a whole server: 4 connections with 16 requests in flight each, keys in files.
//!
//! What it prints is the processor time of the server for one operation, beside that of the bare library (aws-lc-rs) in
//! the same run: their ratio is what counts, since machines differ. `--seconds N` sets how long each measurement takes;
//! `--test` runs each for a moment only.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::cast_precision_loss,
    reason = "a benchmark prints, and fails by panicking"
)]

#[path = "../tests/it/world.rs"]
#[expect(dead_code, reason = "the tests use more of it")]
mod world;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use aws_lc_rs::{
    rand::SystemRandom,
    rsa,
    signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, RSA_PKCS1_SHA256},
};
use keystead_client::Client;
use keystead_protocol::{Opcode, Ski};
use rustix::time::{ClockId, clock_gettime};
use rustls::version::{TLS12, TLS13};

use world::{Files, Server, skis};

const CONNECTIONS: usize = 4;
const IN_FLIGHT: usize = 16;

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let seconds = arguments.iter().skip_while(|argument| *argument != "--seconds").nth(1);
    let time = match arguments.iter().any(|argument| argument == "--test") {
        true => Duration::from_millis(200),
        false => Duration::from_secs(seconds.map_or(10, |seconds| seconds.parse().unwrap())),
    };
    let files = Files::new();
    let server = Server::with_keys(&files, "");
    println!("resident memory at start: {:.1} MiB", server.memory() as f64 / f64::from(1 << 20));
    println!(
        "{:10} {:>10} {:>14} {:>12} {:>7} {:>9} {:>9}",
        "key", "ops/s", "server µs/op", "bare µs/op", "ratio", "p50 µs", "p99 µs"
    );
    let skis = skis();
    for (name, opcode) in [("p256", Opcode::ECDSA_SIGN_SHA256), ("rsa", Opcode::RSA_SIGN_SHA256)] {
        let bare = bare(&files, name, time);
        let load = load(&files, &server, skis[name], opcode, time);
        println!(
            "{name:10} {:>10.0} {:>14.1} {bare:>12.1} {:>7.2} {:>9.0} {:>9.0}",
            load.rate,
            load.server,
            load.server / bare,
            load.percentile(50),
            load.percentile(99),
        );
    }
    println!("resident memory at end: {:.1} MiB", server.memory() as f64 / f64::from(1 << 20));
}

/// What a load came to.
struct Load {
    rate: f64,
    /// Processor time of the server, µs per operation.
    server: f64,
    /// Sorted, µs.
    latencies: Vec<u64>,
}

impl Load {
    fn percentile(&self, percent: usize) -> f64 {
        self.latencies[(self.latencies.len() - 1) * percent / 100] as f64
    }
}

fn load(files: &Files, server: &Server, ski: Ski, opcode: Opcode, time: Duration) -> Load {
    let tls = files.client_tls(&[&TLS12, &TLS13]);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let clients: Vec<Client> = (0..CONNECTIONS)
        .map(|_| {
            let name = "localhost".try_into().unwrap();
            Client::builder([server.address.to_string()], name, Arc::clone(&tls)).build().unwrap()
        })
        .collect();
    runtime.block_on(async {
        for client in &clients {
            client.sign(ski, opcode, &[1; 32]).await.unwrap(); // connected, and the key proven
        }
        let stop = Arc::new(AtomicBool::new(false));
        let (before, started) = (cpu(server.pid()), Instant::now());
        let workers: Vec<_> = clients
            .iter()
            .flat_map(|client| std::iter::repeat_n(client, IN_FLIGHT))
            .map(|client| tokio::spawn(worker(client.clone(), ski, opcode, Arc::clone(&stop))))
            .collect();
        tokio::time::sleep(time).await;
        stop.store(true, Ordering::Relaxed);
        let mut latencies = Vec::new();
        for worker in workers {
            latencies.extend(worker.await.unwrap());
        }
        let (spent, took) = (cpu(server.pid()) - before, started.elapsed());
        latencies.sort_unstable();
        let operations = latencies.len() as f64;
        Load {
            rate: operations / took.as_secs_f64(),
            server: spent.as_secs_f64() * 1e6 / operations,
            latencies,
        }
    })
}

async fn worker(client: Client, ski: Ski, opcode: Opcode, stop: Arc<AtomicBool>) -> Vec<u64> {
    let mut latencies = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let started = Instant::now();
        client.sign(ski, opcode, &[1; 32]).await.unwrap();
        latencies.push(u64::try_from(started.elapsed().as_micros()).unwrap());
    }
    latencies
}

/// Processor time of one signature by the bare library, µs.
fn bare(files: &Files, name: &str, time: Duration) -> f64 {
    let key = std::fs::read(files.path(&format!("keys/{name}.key"))).unwrap();
    let random = SystemRandom::new();
    if name == "p256" {
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &key).unwrap();
        return repeat(time, || _ = std::hint::black_box(pair.sign(&random, &[1; 32]).unwrap()));
    }
    let pair = rsa::KeyPair::from_pkcs8(&key).unwrap();
    let mut signature = vec![0; pair.public_modulus_len()];
    repeat(time, || pair.sign(&RSA_PKCS1_SHA256, &random, &[1; 32], &mut signature).unwrap())
}

fn repeat(time: Duration, mut operation: impl FnMut()) -> f64 {
    let (started, before) = (Instant::now(), thread_cpu());
    let mut operations = 0_u32;
    while started.elapsed() < time {
        operation();
        operations += 1;
    }
    (thread_cpu() - before).as_secs_f64() * 1e6 / f64::from(operations)
}

fn thread_cpu() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.try_into().unwrap(), time.tv_nsec.try_into().unwrap())
}

/// Processor time of a process so far: `utime` and `stime` of proc(5), in clock ticks of 10 ms.
fn cpu(pid: u32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    Duration::from_millis(ticks * 10)
}
