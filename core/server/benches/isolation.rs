//! What a process for a plugin costs: the processor time of server and processes for one operation, beside that of the
//! same store in the server's own process, in the same run; and what both cost beside a program that does nothing but
//! call the token's module, each on one processor.
//!
//! They take turns, so that what else the machine does meets all of them. `--seconds N` sets how long each turn takes,
//! `--one-processor` leaves out the first comparison; other than by `cargo bench`, or with `--test`, each turn takes a
//! moment only.

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
mod token;
#[path = "../tests/it/world.rs"]
#[expect(dead_code, reason = "the tests use more of it")]
mod world;

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use keystead_protocol::{Opcode, Ski};

use closed_loop::{Load, is_measured, load, time};
use misbehaving::control::compile_program;
use token::{MODULE, PIN, Token};
use world::{Files, Server, skis};

/// Connections, and requests in flight on each: many, sixteen in two ways, and one after the other.
const LOADS: [(usize, usize); 4] = [(1, 64), (1, 16), (4, 4), (1, 1)];

/// How often those that are compared take turns.
const ROUNDS: usize = 4;

/// Sessions of whoever is held to one processor: one more than that, as SoftHSM2 is given by itself.
const SESSIONS: usize = 2;

fn main() {
    let (time, rounds) = (time(4), if is_measured() { ROUNDS } else { 1 });
    let files = Files::new();
    let token = Token::new(&files);
    let in_token = Ski::from_spki(&token.generate("p256", "EC:prime256v1")).unwrap();
    if !std::env::args().any(|argument| argument == "--one-processor") {
        on_all_processors(&files, &token, in_token, time, rounds);
        println!();
    }
    on_one_processor(&files, &token, in_token, time, rounds);
}

fn on_all_processors(files: &Files, token: &Token<'_>, in_token: Ski, time: Duration, rounds: usize) {
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
    let keys = files.path("keys").display().to_string();
    let servers = ["inline", "process"].map(|isolation| {
        let in_files =
            format!("- {{name: files, plugin: file, config: {{dir: {keys}}}, isolation: {isolation}}}\n");
        token.serve(&format!("private_key_stores:\n{in_files}{}", of_token(files, token, isolation, "")))
    });
    servers.iter().for_each(Server::wait_until_ready);
    for (name, ski) in [("file p256", skis()["p256"]), ("token p256", in_token)] {
        for in_flight in LOADS {
            compare(files, &servers, (name, ski), in_flight, time, rounds);
        }
    }
}

/// The token's store. In the server's own process, the library finds its configuration in the server's environment.
fn of_token(files: &Files, token: &Token<'_>, isolation: &str, more: &str) -> String {
    let store = token.store(["p256"]);
    let env = format!(", env: {{SOFTHSM2_CONF: {}}}", files.path("softhsm2.conf").display());
    assert!(store.contains(MODULE) && store.contains(&env), "{store}");
    match isolation {
        "inline" => store.replace(&env, &format!(", isolation: inline{more}")),
        _ => store.replace(&env, &format!("{env}{more}")),
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
    let mut loads = [const { Vec::new() }; 2];
    for _ in 0..rounds {
        for (server, loads) in servers.iter().zip(&mut loads) {
            loads.push(load(files, server, (ski, Opcode::ECDSA_SIGN_SHA256), (connections, in_flight), time));
        }
    }
    let of_both = |figure: fn(&Load) -> f64| loads.each_ref().map(|loads| mean(loads.iter().map(figure)));
    let [inline, process] = of_both(|load| load.server);
    let [inline_p50, process_p50] = of_both(|load| load.percentile(50));
    let [inline_rate, process_rate] = of_both(|load| load.rate);
    println!(
        "{name:12} {:>10} {inline:>11.1} {process:>12.1} {:>9.1} {inline_p50:>10.0} {process_p50:>11.0} \
         {inline_rate:>10.0} {process_rate:>14.0}",
        format!("{connections} x {in_flight}"),
        process - inline,
    );
}

fn on_one_processor(files: &Files, token: &Token<'_>, ski: Ski, time: Duration, rounds: usize) {
    println!(
        "{:12} {:>10} {:>11} {:>11} {:>9} {:>12} {:>9}",
        "token p256", "in flight", "bare µs", "inline µs", "more µs", "process µs", "more µs"
    );
    let program = files.path("bare");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/closed_loop/bare.c");
    compile_program(&source, &program);
    let servers = ["inline", "process"].map(|isolation| {
        let store = of_token(files, token, isolation, &format!(", limits: {{lanes: {SESSIONS}}}"));
        Server::spawn(pinned(&token.command(&format!("private_key_stores:\n{store}"))))
    });
    servers.iter().for_each(Server::wait_until_ready);
    for (connections, in_flight) in LOADS {
        let mut figures = [const { Vec::new() }; 3];
        for _ in 0..rounds {
            figures[0].push(bare(files, &program, time));
            for (server, figures) in servers.iter().zip(&mut figures[1..]) {
                let operation = (ski, Opcode::ECDSA_SIGN_SHA256);
                figures.push(load(files, server, operation, (connections, in_flight), time).server);
            }
        }
        let [bare, inline, process] = figures.map(median);
        println!(
            "{:12} {:>10} {bare:>11.1} {inline:>11.1} {:>9.1} {process:>12.1} {:>9.1}",
            "",
            format!("{connections} x {in_flight}"),
            inline - bare,
            process - bare,
        );
    }
}

/// Processor time of one signature by a program that does nothing else, µs.
fn bare(files: &Files, program: &PathBuf, time: Duration) -> f64 {
    let mut command = Command::new(program);
    command.args([MODULE, "p256", PIN, &SESSIONS.to_string(), &time.as_millis().to_string()]);
    command.env("SOFTHSM2_CONF", files.path("softhsm2.conf"));
    let output = pinned(&command).output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    let figure = said.split_whitespace().nth(1);
    figure.unwrap_or_else(|| panic!("{}: {said}", output.status)).parse().unwrap()
}

/// The same command, held to one processor.
fn pinned(command: &Command) -> Command {
    let mut pinned = Command::new("taskset");
    pinned.args(["--cpu-list", "0"]).arg(command.get_program()).args(command.get_args());
    pinned.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    pinned
}

fn mean(figures: impl ExactSizeIterator<Item = f64>) -> f64 {
    let number = figures.len() as f64;
    figures.sum::<f64>() / number
}

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}
