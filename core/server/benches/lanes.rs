//! Whether all lanes of a store are busy all the time: a module whose signatures take 5 ms makes 200 a second on each.
//!
//! Four times as many requests as lanes are in flight, over the wire. Beside it is what a program comes to, in the same
//! run, that does nothing but sign in as many sessions: how far the machine itself is from what is possible. Fails where fewer signatures come of it than 95 %
//! of what the lanes could make. `--seconds N` sets how long each measurement takes; other than by `cargo bench`, or with
//! `--test`, each takes a moment only, and none is judged.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::cast_precision_loss,
    reason = "a benchmark prints, and fails by panicking"
)]

mod closed_loop;
#[path = "../tests/it/misbehaving.rs"]
#[expect(dead_code, reason = "the tests use more of it")]
mod misbehaving;
#[path = "../tests/it/token.rs"]
#[expect(dead_code, reason = "the tests use more of it")]
mod token;
#[path = "../tests/it/world.rs"]
#[expect(dead_code, reason = "the tests use more of it")]
mod world;

use std::{
    path::Path,
    process::{Command, ExitCode},
    time::Duration,
};

use keystead_protocol::Opcode;

use closed_loop::{Load, is_measured, load, time};
use misbehaving::{
    Misbehaving,
    control::{VARIABLE, compile_program, module},
};
use token::PIN;
use world::Files;

/// From the beginning to the end of a signature, however long a thread takes to wake.
const LATENCY: Duration = Duration::from_millis(5);

/// Lanes of the store, and the connections whose requests keep them busy: each has as many in flight as there are lanes.
const LANES: [usize; 3] = [1, 8, 32];
const CONNECTIONS: usize = 4;

/// The part of what the lanes could make that is enough.
const ENOUGH: f64 = 0.95;

/// How often each is measured; the rate in the middle counts, since others use the machine, too.
const ROUNDS: usize = 3;

fn main() -> ExitCode {
    let (time, rounds) = (time(3), if is_measured() { ROUNDS } else { 1 });
    let files = Files::new();
    let token = Misbehaving::new(&files);
    token.control.latency("C_Sign", LATENCY);
    println!(
        "{:10} {:>6} {:>10} {:>10} {:>7} {:>7} {:>9} {:>9} {:>14}",
        "place", "lanes", "ops/s", "possible", "ratio", "bare", "p50 µs", "p99 µs", "server µs/op"
    );
    let program = files.path("bare");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/closed_loop/bare.c");
    compile_program(&source, &program);
    let mut worst = f64::INFINITY;
    for isolation in ["inline", "process"] {
        for lanes in LANES {
            let possible = lanes as f64 / LATENCY.as_secs_f64();
            let load = usual_load(&files, &token, (isolation, lanes), time, rounds);
            let ratio = load.rate / possible;
            let bare = bare(&files, &program, lanes, time) / possible;
            println!(
                "{isolation:10} {lanes:>6} {:>10.0} {possible:>10.0} {ratio:>7.3} {bare:>7.3} {:>9.0} {:>9.0} {:>14.1}",
                load.rate,
                load.percentile(50),
                load.percentile(99),
                load.server,
            );
            worst = worst.min(ratio);
        }
    }
    let is_enough = worst >= ENOUGH || !is_measured();
    println!("the least ratio is {worst:.3}; {ENOUGH} is enough");
    ExitCode::from(u8::from(!is_enough))
}

/// Signatures a second of a program that does nothing else.
fn bare(files: &Files, program: &Path, sessions: usize, time: Duration) -> f64 {
    let mut command = Command::new(program);
    command.arg(module()).args(["p256", PIN, &sessions.to_string(), &time.as_millis().to_string()]);
    command.env("SOFTHSM2_CONF", files.path("softhsm2.conf")).env(VARIABLE, files.path("control"));
    let output = command.output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    let made = said.split_whitespace().next();
    let made: f64 = made.unwrap_or_else(|| panic!("{}: {said}", output.status)).parse().unwrap();
    made / time.as_secs_f64()
}

/// The load whose rate is in the middle.
fn usual_load(
    files: &Files,
    token: &Misbehaving<'_>,
    (isolation, lanes): (&str, usize),
    time: Duration,
    rounds: usize,
) -> Load {
    let server = token.serve(isolation, lanes);
    let operation = (token.ski, Opcode::ECDSA_SIGN_SHA256);
    let mut loads: Vec<Load> =
        (0..rounds).map(|_| load(files, &server, operation, (CONNECTIONS, lanes), time)).collect();
    loads.sort_by(|one, other| one.rate.total_cmp(&other.rate));
    loads.swap_remove(rounds / 2)
}
