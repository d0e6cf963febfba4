//! A closed loop on a server: a few connections with some requests in flight each, and the next request when an answer
//! has come.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use keystead_client::Client;
use keystead_protocol::{Opcode, Ski};
use rustls::version::{TLS12, TLS13};

use crate::world::{Files, Server};

/// What a load came to.
pub(crate) struct Load {
    /// Operations per second.
    pub(crate) rate: f64,
    /// Processor time of the server and its processes for plugins, µs per operation.
    pub(crate) server: f64,
    /// Sorted, µs.
    latencies: Vec<u64>,
}

impl Load {
    pub(crate) fn percentile(&self, percent: usize) -> f64 {
        self.latencies[(self.latencies.len() - 1) * percent / 100] as f64
    }
}

/// Whether measuring is what is wanted, and not a moment only that shows that everything runs: `cargo bench` says so, and
/// `cargo test` doesn't.
pub(crate) fn is_measured() -> bool {
    let has = |name| std::env::args().any(|argument| argument == name);
    has("--bench") && !has("--test")
}

/// How long each measurement takes: so many seconds, or those of the argument `--seconds`; else a moment.
pub(crate) fn time(usual: u64) -> Duration {
    let argument = std::env::args().skip_while(|argument| argument != "--seconds").nth(1);
    match is_measured() {
        true => Duration::from_secs(argument.map_or(usual, |seconds| seconds.parse().unwrap())),
        false => Duration::from_millis(200),
    }
}

/// Loads a server by so many connections with so many requests in flight each, for a time.
pub(crate) fn load(
    files: &Files,
    server: &Server,
    (ski, opcode): (Ski, Opcode),
    (connections, in_flight): (usize, usize),
    time: Duration,
) -> Load {
    let tls = files.client_tls(&[&TLS12, &TLS13]);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let clients: Vec<Client> = (0..connections)
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
        let (before, started) = (cpu(server), Instant::now());
        let workers: Vec<_> = clients
            .iter()
            .flat_map(|client| std::iter::repeat_n(client, in_flight))
            .map(|client| tokio::spawn(worker(client.clone(), ski, opcode, Arc::clone(&stop))))
            .collect();
        tokio::time::sleep(time).await;
        stop.store(true, Ordering::Relaxed);
        let mut latencies = Vec::new();
        for worker in workers {
            latencies.extend(worker.await.unwrap());
        }
        let (spent, took) = (cpu(server) - before, started.elapsed());
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

/// Processor time of a server and its processes for plugins so far.
fn cpu(server: &Server) -> Duration {
    let status = server.status();
    let processes = status["processes"].as_array().unwrap().iter();
    let pids = processes.filter_map(|process| u32::try_from(process["pid"].as_u64()?).ok());
    pids.chain([server.pid()]).map(cpu_of).sum()
}

/// Processor time of a process so far: `utime` and `stime` of proc(5), in clock ticks of 10 ms.
fn cpu_of(pid: u32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    Duration::from_millis(ticks * 10)
}
