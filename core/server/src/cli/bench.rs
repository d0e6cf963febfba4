//! `bench`: a load on a running server, as edges would make it.

use std::{
    collections::BTreeMap,
    fmt::Write,
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant},
};

use clap::Args;
use keystead_client::Client;
use serde_json::json;
use tokio::{
    task::JoinSet,
    time::{MissedTickBehavior, interval, sleep_until},
};

use super::{
    Failed, Output, print,
    remote::{Remote, Subject, Wanted, chain},
    runtime,
};

/// How many different failures are told.
const CAUSES: usize = 8;

/// Arguments of `bench`.
#[derive(Args)]
pub(super) struct Bench {
    #[command(flatten)]
    remote: Remote,
    #[command(flatten)]
    subject: Subject,
    /// Connections, each in a thread of its own
    #[arg(long, value_name = "NUMBER", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=1000))]
    connections: u16,
    /// Requests that each connection keeps in flight
    #[arg(long, value_name = "NUMBER", default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=1000))]
    in_flight: u16,
    /// Requests in a second, all connections together, whether or not those before were answered; else as many as
    /// `--in-flight` makes
    #[arg(long, value_name = "NUMBER", conflicts_with = "in_flight", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    rate: Option<u32>,
    /// How long
    #[arg(long, value_name = "SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=3600))]
    seconds: u64,
    #[command(flatten)]
    output: Output,
}

/// What came of requests.
#[derive(Default)]
struct Tally {
    /// How long answers took.
    took: Vec<Duration>,
    failed: BTreeMap<String, u64>,
}

impl Bench {
    pub(super) fn run(self) -> Result<ExitCode, Failed> {
        let wanted = Arc::new(self.subject.wanted()?);
        let clients = (0..self.connections).map(|_| self.remote.client()).collect::<Result<Vec<_>, _>>()?;
        let (mut tally, took) = runtime()?.block_on(async {
            let started = Instant::now();
            let until = started + Duration::from_secs(self.seconds);
            let mut loads = JoinSet::new();
            for client in clients {
                let wanted = Arc::clone(&wanted);
                match self.rate {
                    Some(rate) => {
                        let pause = Duration::from_secs(1) * u32::from(self.connections) / rate;
                        loads.spawn(at_times(client, wanted, pause, until));
                    }
                    None => _ = loads.spawn(in_flight(client, wanted, self.in_flight, until)),
                }
            }
            let mut tally = Tally::default();
            for load in loads.join_all().await {
                tally.add(load);
            }
            (tally, started.elapsed())
        });
        tally.took.sort_unstable();
        self.tell(&tally, took)
    }

    fn tell(&self, tally: &Tally, took: Duration) -> Result<ExitCode, Failed> {
        let failed: u64 = tally.failed.values().sum();
        let per_second = tally.took.len() as f64 / took.as_secs_f64();
        let [p50, p90, p99, worst] = [50, 90, 99, 100].map(|percent| percentile(&tally.took, percent));
        let text = match self.output.json {
            true => format!(
                "{:#}\n",
                json!({
                    "answered": tally.took.len(), "failed": failed, "per_second": per_second, "failures": tally.failed,
                    "milliseconds": { "p50": p50, "p90": p90, "p99": p99, "max": worst },
                })
            ),
            false => {
                let mut text =
                    format!("{} answered, {per_second:.0} in a second; {failed} failed\n", tally.took.len());
                let _ = writeln!(
                    text,
                    "p50 {p50:.2} ms, p90 {p90:.2} ms, p99 {p99:.2} ms, the slowest {worst:.2} ms"
                );
                for (error, times) in tally.failed.iter().take(CAUSES) {
                    let _ = writeln!(text, "failed {times} times: {error}");
                }
                text
            }
        };
        print(&text)?;
        Ok(ExitCode::from(u8::from(failed > 0)))
    }
}

/// Keeps requests in flight.
async fn in_flight(client: Client, wanted: Arc<Wanted>, number: u16, until: Instant) -> Tally {
    let mut loops = JoinSet::new();
    for _ in 0..number {
        let (client, wanted) = (client.clone(), Arc::clone(&wanted));
        loops.spawn(async move {
            let mut tally = Tally::default();
            while Instant::now() < until {
                tally.sign(&client, &wanted).await;
            }
            tally
        });
    }
    joined(loops).await
}

/// Sends requests at their times.
async fn at_times(client: Client, wanted: Arc<Wanted>, pause: Duration, until: Instant) -> Tally {
    let mut times = interval(pause);
    times.set_missed_tick_behavior(MissedTickBehavior::Burst); // the rate is kept on the whole
    let mut requests = JoinSet::new();
    let mut tally = Tally::default();
    loop {
        tokio::select! {
            _ = times.tick() => {
                let (client, wanted) = (client.clone(), Arc::clone(&wanted));
                requests.spawn(async move {
                    let mut tally = Tally::default();
                    tally.sign(&client, &wanted).await;
                    tally
                });
            }
            Some(Ok(done)) = requests.join_next() => tally.add(done),
            () = sleep_until(until.into()) => break,
        }
    }
    tally.add(joined(requests).await);
    tally
}

async fn joined(tasks: JoinSet<Tally>) -> Tally {
    let mut all = Tally::default();
    for tally in tasks.join_all().await {
        all.add(tally);
    }
    all
}

impl Tally {
    /// Has the key sign, and verifies that it did.
    async fn sign(&mut self, client: &Client, wanted: &Wanted) {
        let started = Instant::now();
        let failure = match client.sign(wanted.ski, wanted.opcode, &wanted.input).await {
            Ok(signature) if wanted.key.verifies(wanted.algorithm, &wanted.input, &signature) => {
                return self.took.push(started.elapsed());
            }
            Ok(_) => "the signature does not verify".to_owned(),
            Err(error) => chain(&error),
        };
        *self.failed.entry(failure).or_default() += 1;
    }

    fn add(&mut self, other: Self) {
        self.took.extend(other.took);
        for (error, times) in other.failed {
            *self.failed.entry(error).or_default() += times;
        }
    }
}

/// Milliseconds within which so many percent of the answers came; the times are sorted.
pub(super) fn percentile(took: &[Duration], percent: usize) -> f64 {
    let place = (took.len() * percent).div_ceil(100).saturating_sub(1);
    took.get(place).map_or(0.0, |took| took.as_secs_f64() * 1e3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_the_times_that_were_measured() {
        let took: Vec<_> = (1..=200).map(Duration::from_millis).collect();
        assert_eq!([1, 50, 99, 100].map(|percent| percentile(&took, percent)), [2.0, 100.0, 198.0, 200.0]);
        assert_eq!(percentile(&[], 99), 0.0);
    }
}
