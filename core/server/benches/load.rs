//! A closed-loop load on a whole server: 4 connections with 16 requests in flight each, keys in files.
//!
//! What it prints is the processor time of the server for one operation, beside that of the bare library (aws-lc-rs) in
//! the same run: their ratio is what counts, since machines differ. `--seconds N` sets how long each measurement takes;
//! other than by `cargo bench`, or with `--test`, each takes a moment only.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::cast_precision_loss,
    reason = "a benchmark prints, and fails by panicking"
)]

mod closed_loop;
#[path = "../tests/it/world.rs"]
#[expect(dead_code, reason = "the tests use more of it")]
mod world;

use std::time::{Duration, Instant};

use aws_lc_rs::{
    rand::SystemRandom,
    rsa,
    signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, RSA_PKCS1_SHA256},
};
use keystead_protocol::Opcode;
use rustix::time::{ClockId, clock_gettime};

use closed_loop::{load, time};
use world::{Files, Server, skis};

const CONNECTIONS: usize = 4;
const IN_FLIGHT: usize = 16;

fn main() {
    let time = time(10);
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
        let load = load(&files, &server, (skis[name], opcode), (CONNECTIONS, IN_FLIGHT), time);
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
