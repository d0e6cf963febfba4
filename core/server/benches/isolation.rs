//! What a process for a plugin costs: the processor time of server and processes for one operation, beside that of the
//! same store in the server's own process, in the same run.
//!
//! The two servers take turns, so that what else the machine does meets both. `--seconds N` sets how long each turn
//! takes; other than by `cargo bench`, or with `--test`, each takes a moment only.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::cast_precision_loss,
    reason = "a benchmark prints, and fails by panicking"
)]

mod closed_loop;
#[path = "../tests/it/token.rs"]
mod token;
#[path = "../tests/it/world.rs"]
#[expect(dead_code, reason = "the tests use more of it")]
mod world;

use std::time::Duration;

use keystead_protocol::{Opcode, Ski};

use closed_loop::{is_measured, load};
use token::{MODULE, Token};
use world::{Files, Server, skis};

/// Connections, and requests in flight on each: sixteen in two ways, and one after the other.
const LOADS: [(usize, usize); 3] = [(1, 16), (4, 4), (1, 1)];

/// How often the two take turns.
const ROUNDS: usize = 4;

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let seconds = arguments.iter().skip_while(|argument| *argument != "--seconds").nth(1);
    let (time, rounds) = match is_measured() {
        true => (Duration::from_secs(seconds.map_or(4, |seconds| seconds.parse().unwrap())), ROUNDS),
        false => (Duration::from_millis(200), 1),
    };
    println!(
        "{:12} {:>10} {:>11} {:>12} {:>9} {:>10} {:>11} {:>10} {:>14}",
        "key",
        "in flight",
        "inline µs",
        "process µs",
        "more µs",
        "p50 µs",
        "process p50",
        "ops/s",
        "process ops/s"
    );
    let files = Files::new();
    let token = Token::new(&files);
    let spki = token.generate("p256", "EC:prime256v1");
    let in_token = Ski::from_spki(&spki).unwrap();
    let in_files = |isolation: &str| {
        let keys = files.path("keys").display().to_string();
        format!("- {{name: files, plugin: file, config: {{dir: {keys}}}, isolation: {isolation}}}\n")
    };
    let serve = |isolation: &str| {
        let stores = in_files(isolation) + &of_token(&files, &token, isolation);
        token.serve(&format!("private_key_stores:\n{stores}"))
    };
    let servers = ["inline", "process"].map(serve);
    servers.iter().for_each(Server::wait_until_ready);
    for (name, ski) in [("file p256", skis()["p256"]), ("token p256", in_token)] {
        for load in LOADS {
            compare(&files, &servers, (name, ski), load, time, rounds);
        }
    }
}

/// The token's store. In the server's own process, the library finds its configuration in the server's environment.
fn of_token(files: &Files, token: &Token<'_>, isolation: &str) -> String {
    let store = token.store(["p256"]);
    let env = format!(", env: {{SOFTHSM2_CONF: {}}}", files.path("softhsm2.conf").display());
    assert!(store.contains(MODULE) && store.contains(&env), "{store}");
    match isolation {
        "inline" => store.replace(&env, ", isolation: inline"),
        _ => store,
    }
}

fn compare(
    files: &Files,
    servers: &[Server; 2],
    (name, ski): (&str, Ski),
    (connections, in_flight): (usize, usize),
    time: Duration,
    rounds: usize,
) {
    let mut figures = [const { Vec::new() }; 2];
    for _ in 0..rounds {
        for (server, figures) in servers.iter().zip(&mut figures) {
            let load = load(files, server, (ski, Opcode::ECDSA_SIGN_SHA256), (connections, in_flight), time);
            figures.push((load.server, load.percentile(50), load.rate));
        }
    }
    let [inline, process] = figures.map(|figures| {
        let mean =
            |of: fn(&(f64, f64, f64)) -> f64| figures.iter().map(of).sum::<f64>() / figures.len() as f64;
        (mean(|figure| figure.0), mean(|figure| figure.1), mean(|figure| figure.2))
    });
    println!(
        "{name:12} {:>10} {:>11.1} {:>12.1} {:>9.1} {:>10.0} {:>11.0} {:>10.0} {:>14.0}",
        format!("{connections} x {in_flight}"),
        inline.0,
        process.0,
        process.0 - inline.0,
        inline.1,
        process.1,
        inline.2,
        process.2,
    );
}
