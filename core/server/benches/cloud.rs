//! Whether all lanes of a store are busy all the time where the keys are in a cloud: a service that takes 30 ms for a
//! signature makes 2,133 a second on 64 lanes.
//!
//! Four times as many requests as lanes are in flight, over the wire. The service is a fake in a process of its own, whose
//! answers come 30 ms after a request has arrived, however long it took to sign; each request goes to it through a proxy and
//! TLS. Fails where fewer signatures come of it than 90 % of what the lanes could make. `--seconds N` sets how long each
//! measurement takes; other than by `cargo bench`, or with `--test`, each takes a moment only, and none is judged.

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

use std::{
    fs,
    io::{BufRead, BufReader},
    path::PathBuf,
    process::{Child, Command, ExitCode, Stdio},
    time::Duration,
};

use keystead_plugin_host::testing::{self, PluginDir};
use keystead_protocol::{Opcode, Ski};
use openssl::pkey::PKey;

use closed_loop::{Load, is_measured, load, time};
use world::{Files, Server};

/// From the arrival of a request to its answer.
const LATENCY: Duration = Duration::from_millis(30);

/// Lanes of the store, and the connections whose requests keep them busy: each has as many in flight as there are lanes.
const LANES: usize = 64;
const CONNECTIONS: usize = 4;

/// The part of what the lanes could make that is enough.
const ENOUGH: f64 = 0.9;

/// How often each is measured; the rate in the middle counts, since others use the machine, too.
const ROUNDS: usize = 3;

fn main() -> ExitCode {
    let (time, rounds) = (time(3), if is_measured() { ROUNDS } else { 1 });
    let possible = LANES as f64 / LATENCY.as_secs_f64();
    println!(
        "{:6} {:10} {:>10} {:>10} {:>7} {:>9} {:>9} {:>14}",
        "cloud", "plugin", "ops/s", "possible", "ratio", "p50 µs", "p99 µs", "server µs/op"
    );
    let mut worst = f64::INFINITY;
    for cloud in ["azure", "gcp"] {
        for (way, build) in WAYS {
            let files = Files::new();
            let fake = Fake::start(cloud, files.path(cloud));
            let load =
                usual_load(&files, &fake, &build(&[&format!("keystead-plugin-{cloud}")]), time, rounds);
            let ratio = load.rate / possible;
            println!(
                "{cloud:6} {way:10} {:>10.0} {possible:>10.0} {ratio:>7.3} {:>9.0} {:>9.0} {:>14.1}",
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

/// How a plugin is built, and what makes a directory with it.
type Way = (&'static str, fn(&[&str]) -> PluginDir);

const WAYS: [Way; 2] = [("component", PluginDir::with_components), ("library", PluginDir::with)];

/// A fake of a cloud, with a key on P-256; killed when dropped.
struct Fake {
    cloud: &'static str,
    folder: PathBuf,
    program: Child,
}

impl Fake {
    fn start(cloud: &'static str, folder: PathBuf) -> Self {
        fs::create_dir(&folder).unwrap();
        let mut command = Command::new(testing::program("keystead-fakes"));
        command.arg(cloud).arg("--folder").arg(&folder);
        command.args(["--delay", &LATENCY.as_millis().to_string()]);
        let mut program = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let mut ready = String::new();
        BufReader::new(program.stdout.take().unwrap()).read_line(&mut ready).unwrap();
        assert!(ready.ends_with('\n'), "the fake of {cloud} has ended: {ready}");
        Self { cloud, folder, program }
    }

    fn ski(&self) -> Ski {
        let key = PKey::public_key_from_pem(&fs::read(self.folder.join("ecdsa.pem")).unwrap()).unwrap();
        Ski::from_spki(&key.public_key_to_der().unwrap()).unwrap()
    }

    /// Configuration lines of a store with its keys.
    fn store(&self) -> String {
        let options = fs::read_to_string(self.folder.join("store.yaml")).unwrap();
        format!(
            "private_key_stores:\n- name: cloud\n  plugin: {}\n  limits: {{lanes: {LANES}}}\n{options}",
            self.cloud
        )
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        let _ = self.program.kill(); // it may have ended already
        let _ = self.program.wait();
    }
}

/// The load whose rate is in the middle.
fn usual_load(files: &Files, fake: &Fake, plugins: &PluginDir, time: Duration, rounds: usize) -> Load {
    let mut command = Command::new(env!("CARGO_BIN_EXE_keystead"));
    command.arg("run").arg("-c").arg(files.config(&fake.store()));
    command.env("KEYSTEAD_PLUGIN_PATH", plugins.path());
    let server = Server::spawn(command);
    server.wait_until_ready();
    let operation = (fake.ski(), Opcode::ECDSA_SIGN_SHA256);
    let mut loads: Vec<Load> =
        (0..rounds).map(|_| load(files, &server, operation, (CONNECTIONS, LANES), time)).collect();
    loads.sort_by(|one, other| one.rate.total_cmp(&other.rate));
    loads.swap_remove(rounds / 2)
}
