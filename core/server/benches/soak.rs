//! Hours of faults in minutes: a server over mutual TLS, under load, whose PKCS#11 module meets one fault after the other.
//! `cargo xtask soak` is the way to it.
//!
//! Fails where the server or its process grows, where a fault isn't over soon after its cure, and where requests fail
//! other than of one. `--seconds N` sets how long it takes, `--seed N` which faults come, `--isolation inline` has the
//! module in the server and none of the faults that kill. Other than by `cargo bench`, or with `--test`, it takes a
//! moment only, and growth isn't judged.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "a benchmark prints, and fails by panicking"
)]

#[path = "../tests/it/misbehaving.rs"]
mod misbehaving;
#[path = "../tests/it/token.rs"]
#[expect(dead_code, reason = "the tests use more of it")]
mod token;
#[path = "../tests/it/world.rs"]
#[expect(dead_code, reason = "the tests use more of it")]
mod world;

use std::{
    collections::BTreeMap,
    fs,
    process::ExitCode,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant, SystemTime},
};

use misbehaving::{BACK, Bout, FAULTS, Fault, Load, Misbehaving};
use world::{Files, Server};

/// Lanes of the store; each of four connections has as many requests in flight.
const LANES: usize = 8;
const CONNECTIONS: usize = 4;

/// What a signature takes beside its computing, so that the load leaves the machine to others as well.
const LATENCY: Duration = Duration::from_millis(2);

/// From one fault to the next.
const EVERY: Duration = Duration::from_secs(5);

/// Deaths of a process within a minute after which the next is waited for: it is started anew after a pause of 2 s, and
/// the one after that opens the breaker.
const DEATHS: usize = 3;
const MINUTE: Duration = Duration::from_secs(60);

/// What may be more in the last quarter than in the first: of memory, whose allocators keep what they once had in each
/// thread; of threads and descriptors, that stand for a moment.
const MEMORY_MARGIN: u64 = 4 << 20;
const COUNT_MARGIN: u64 = 4;

/// What the command line says.
struct Terms {
    time: Duration,
    every: Duration,
    seed: u64,
    isolation: String,
    /// Whether it takes long enough to say whether anything grows.
    grows: bool,
}

impl Terms {
    fn read() -> Self {
        let arguments: Vec<String> = std::env::args().collect();
        let value = |name| arguments.iter().skip_while(|argument| *argument != name).nth(1).cloned();
        let has = |name| arguments.iter().any(|argument| argument == name);
        let is_measured = has("--bench") && !has("--test");
        let now = SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs();
        Self {
            time: match is_measured {
                true => {
                    value("--seconds").map_or(10 * MINUTE, |text| Duration::from_secs(text.parse().unwrap()))
                }
                false => Duration::from_secs(3),
            },
            every: if is_measured { EVERY } else { Duration::from_secs(1) },
            seed: value("--seed").map_or(now, |text| text.parse().unwrap()),
            isolation: value("--isolation").unwrap_or_else(|| "process".to_owned()),
            grows: is_measured,
        }
    }
}

fn main() -> ExitCode {
    let terms = Terms::read();
    let Terms { time, every, seed, isolation, .. } = &terms;
    println!(
        "{time:?} of load, a fault every {every:?}, the module {isolation}; --seed {seed} has the same come again"
    );
    let files = Files::new();
    let token = Misbehaving::new(&files);
    token.control.latency("C_SignInit", LATENCY);
    let server = token.serve(isolation, LANES);
    let start = Instant::now();
    let load = Load::new(&files, &server, token.ski, (CONNECTIONS, LANES));
    let (bouts, samples) = watched(&server, || befall(&terms, &token, &load));
    let over = Instant::now();
    let verdicts = [
        judge_faults(&bouts, &load, over),
        judge_failures(&bouts, &load, (start, over)),
        judge_growth(&samples) || !terms.grows,
        judge_manners(&token.control.violations()),
    ];
    let passed = verdicts.iter().all(|verdict| *verdict);
    println!("{}", if passed { "passed" } else { "FAILED" });
    ExitCode::from(u8::from(!passed))
}

/// What happened, in order.
type Bouts = Vec<(&'static Fault, Bout)>;

/// Has one fault happen after the other, until the time is over.
fn befall(terms: &Terms, token: &Misbehaving<'_>, load: &Load) -> Bouts {
    let (start, mut dice, mut bouts) = (Instant::now(), Dice(terms.seed), Bouts::new());
    load.wait_until_served(start);
    let mut next = start + terms.every;
    while next < start + terms.time {
        thread::sleep(next.saturating_duration_since(Instant::now()));
        let fault = dice.fault(|fault| !fault.kills || may_kill(terms, &bouts));
        bouts.push((fault, fault.befall(&token.control, load)));
        next += terms.every;
    }
    thread::sleep(next.saturating_duration_since(Instant::now()));
    bouts
}

fn may_kill(terms: &Terms, bouts: &Bouts) -> bool {
    let deaths = bouts.iter().filter(|(fault, bout)| fault.kills && bout.began.elapsed() < MINUTE + EVERY);
    terms.isolation == "process" && deaths.count() < DEATHS
}

/// SplitMix64, by Steele, Lea and Flood: the same seed, the same faults.
struct Dice(u64);

impl Dice {
    fn fault(&mut self, is_allowed: impl Fn(&Fault) -> bool) -> &'static Fault {
        loop {
            let fault = &FAULTS[usize::try_from(self.roll() % FAULTS.len() as u64).unwrap()];
            if is_allowed(fault) {
                return fault;
            }
        }
    }

    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

// ---- What the server and its process take -------------------------------------------------------------------------

/// What a process takes at one moment: bytes of memory, descriptors, threads.
type Figures = [u64; 3];

/// Of the server, and of its process.
type Samples = [Vec<Figures>; 2];

/// Samples the server each second while `work` is done.
fn watched<T>(server: &Server, work: impl FnOnce() -> T) -> (T, Samples) {
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let samples = scope.spawn(|| {
            let mut samples = Samples::default();
            while !over.load(Ordering::Relaxed) {
                sample(server, &mut samples);
                thread::sleep(Duration::from_secs(1));
            }
            samples
        });
        let _over = Over(&over); // also where `work` fails
        let done = work();
        drop(_over);
        (done, samples.join().unwrap())
    })
}

/// Ends the sampling when dropped.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A process may be between two lives: then it is left out.
fn sample(server: &Server, [servers, processes]: &mut Samples) {
    servers.extend(figures(u64::from(server.pid())));
    let status = server.status();
    let pids = status["processes"].as_array().unwrap().iter().filter_map(|process| process["pid"].as_u64());
    processes.extend(pids.filter_map(figures));
}

fn figures(pid: u64) -> Option<Figures> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let figure = |name: &str| {
        let rest = status.lines().find_map(|line| line.strip_prefix(name))?;
        rest.split_whitespace().next()?.parse::<u64>().ok()
    };
    let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count); // for root only
    Some([figure("VmRSS:")? << 10, u64::try_from(descriptors).ok()?, figure("Threads:")?])
}

// ---- What came of it ----------------------------------------------------------------------------------------------

/// Whether each fault was over soon after its cure; prints how soon.
fn judge_faults(bouts: &Bouts, load: &Load, over: Instant) -> bool {
    let nexts = bouts.iter().skip(1).map(|(_, next)| next.began).chain([over]);
    let mut times = BTreeMap::<&str, Vec<Duration>>::new();
    for ((fault, bout), next) in bouts.iter().zip(nexts) {
        times.entry(fault.name).or_default().push(bout.over_after(load, next));
    }
    println!("\n{:34} over after its cure, each time, ms", "fault");
    for (name, times) in &times {
        let times: Vec<String> = times.iter().map(|time| time.as_millis().to_string()).collect();
        println!("{name:34} {}", times.join(" "));
    }
    let worst = times.values().flatten().max().copied().unwrap_or_default();
    println!("the longest: {worst:.1?} of {BACK:?}");
    worst < BACK
}

/// Whether requests failed only while a fault lasted, or soon after.
fn judge_failures(bouts: &Bouts, load: &Load, (start, over): (Instant, Instant)) -> bool {
    let failures = load.failures(start, over);
    let is_excused = |when: &Instant| {
        bouts.iter().any(|(fault, bout)| fault.fails && (bout.began..bout.cured + BACK).contains(when))
    };
    let unexcused = failures.iter().filter(|when| !is_excused(when)).count();
    println!(
        "\n{} requests were served, {} failed of a fault, {unexcused} of none",
        load.served(),
        failures.len() - unexcused
    );
    if unexcused > 0 {
        println!("the last ones: {:?}", load.causes());
    }
    unexcused == 0
}

/// Whether nothing is more in the last quarter of the samples than in the first.
fn judge_growth(samples: &Samples) -> bool {
    println!("\n{:28} {:>13} {:>13}", "median of", "first quarter", "last quarter");
    let mut is_flat = true;
    for (name, samples) in
        ["server", "process"].iter().zip(samples).filter(|(_, samples)| !samples.is_empty())
    {
        let quarter = samples.len().div_ceil(4);
        let (first, last) = (&samples[..quarter], &samples[samples.len() - quarter..]);
        for (number, (what, unit, margin)) in [
            ("memory, KiB", 10, MEMORY_MARGIN),
            ("descriptors", 0, COUNT_MARGIN),
            ("threads", 0, COUNT_MARGIN),
        ]
        .into_iter()
        .enumerate()
        {
            let [before, after] =
                [first, last].map(|quarter| median(quarter.iter().map(|figures| figures[number])));
            let line = format!("{name}: {what}");
            println!(
                "{line:28} {:>13} {:>13}  at most {} more",
                before >> unit,
                after >> unit,
                margin >> unit
            );
            is_flat &= after <= before + margin;
        }
    }
    is_flat
}

/// Whether the plugin did nothing to the module that a caller shouldn't.
fn judge_manners(violations: &[String]) -> bool {
    println!("\nthe plugin did {} things that it shouldn't: {violations:?}", violations.len());
    violations.is_empty()
}

fn median(figures: impl Iterator<Item = u64>) -> u64 {
    let mut figures: Vec<u64> = figures.collect();
    figures.sort_unstable();
    figures[figures.len() / 2]
}
