//! `check --measure`: how many signatures a store makes in a second, by how many calls are in flight, and how many lanes
//! are worth having.

use std::{
    collections::BTreeMap,
    fmt::Write,
    iter,
    sync::Arc,
    time::{Duration, Instant},
};

use keystead::{
    config::{self, Operation},
    server,
    status::KeyStatus,
    store::ManagedStore,
};
use keystead_plugin_host::{Algorithm, CallClass, Class, Failure, Isolation, Key, Request};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::{
    bench::percentile,
    inspect::line,
    remote::{random_input, usual},
    say, table,
};

/// The shortest and the longest step: less says nothing about a device that takes 5 ms, and the times of all calls of a
/// step are kept.
const STEPS: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(10));

/// Types of keys that are measured first, as most that serve TLS are of these.
const FIRST: [&str; 2] = ["P-256", "RSA-2048"];

/// The part of the best rate that is as good as the best.
const GOOD: f64 = 0.95;

/// How to measure.
#[derive(Clone, Copy)]
pub(super) struct Terms {
    /// How long each step takes, after a tenth of that to warm up.
    pub(super) step: Duration,
    /// How long one call may take, where its store says nothing.
    pub(super) deadline: Duration,
}

/// What measuring a store found.
pub(super) struct Measurement {
    step: Duration,
    /// The lanes that it had.
    lanes: u32,
    /// Whether its plugin takes no more than those.
    no_more: bool,
    keys: Vec<Measured>,
    skipped: Vec<Skipped>,
}

/// What one key did.
struct Measured {
    key: KeyStatus,
    algorithm: Algorithm,
    /// Whether its calls take lanes.
    on_lanes: bool,
    steps: Vec<Step>,
    failed: Option<FailedStep>,
}

/// A step in which every call was answered.
#[derive(Debug)]
struct Step {
    in_flight: u32,
    per_second: f64,
    /// Milliseconds within which half of the answers came, and 99 %.
    median: f64,
    p99: f64,
}

/// A step in which calls failed. It is the last for its key.
struct FailedStep {
    in_flight: u32,
    /// How many, by what was said.
    causes: BTreeMap<String, usize>,
    /// Whether credentials were refused: nothing tries again with them.
    refused: bool,
}

struct Skipped {
    key: KeyStatus,
    why: &'static str,
}

/// How many lanes are worth having.
#[derive(Debug, PartialEq)]
enum Verdict {
    /// More than these bring nothing.
    Enough(u32),
    /// All that there are bring more than fewer did.
    Growing,
}

/// Reads the length of a step.
pub(super) fn step(text: &str) -> Result<Duration, String> {
    let (shortest, longest) = STEPS;
    config::duration(text)
        .filter(|step| (shortest..=longest).contains(step))
        .ok_or_else(|| format!("expected {shortest:?} to {longest:?}, such as `2s`"))
}

/// Measures an open store by having a key of each type sign.
pub(super) async fn measure(
    store: &Arc<ManagedStore>,
    keys: impl Iterator<Item = &Arc<Key>>,
    allowed: &[Operation],
    terms: Terms,
) -> Measurement {
    let lanes = store.store().load().lanes;
    let most = store.store().description().and_then(|description| description.lanes_max);
    let (subjects, skipped) = subjects(store, keys, allowed, terms);
    let mut measurement = Measurement {
        step: terms.step,
        lanes,
        no_more: most.is_some_and(|most| most <= lanes),
        keys: Vec::new(),
        skipped,
    };
    announce(store.name(), &subjects, lanes, terms.step);
    for subject in subjects {
        let measured = subject.measure(lanes, terms.step).await;
        let refused = measured.failed.as_ref().is_some_and(|failed| failed.refused);
        measurement.keys.push(measured);
        if refused {
            break;
        }
    }
    measurement
}

/// A key that is to sign.
struct Subject {
    store: Arc<ManagedStore>,
    key: Arc<Key>,
    status: KeyStatus,
    algorithm: Algorithm,
    on_lanes: bool,
    deadline: Duration,
}

/// The first key of each type, and those that can't be measured.
fn subjects<'a>(
    store: &Arc<ManagedStore>,
    keys: impl Iterator<Item = &'a Arc<Key>>,
    allowed: &[Operation],
    terms: Terms,
) -> (Vec<Subject>, Vec<Skipped>) {
    let (mut subjects, mut skipped) = (Vec::<Subject>::new(), Vec::new());
    for key in keys {
        let status = KeyStatus::new(store.name(), key, allowed);
        match algorithm(key.algorithms(), usual(key.family(), key.bits()), allowed) {
            Err(why) => skipped.push(Skipped { key: status, why }),
            Ok(_) if subjects.iter().any(|subject| subject.status.kind == status.kind) => {}
            Ok(algorithm) => subjects.push(Subject {
                store: Arc::clone(store),
                key: Arc::clone(key),
                status,
                algorithm,
                on_lanes: key.call_class() == CallClass::Blocking
                    || store.store().isolation() == Some(Isolation::Process),
                deadline: store.deadline().unwrap_or(terms.deadline),
            }),
        }
    }
    let rank = |subject: &Subject| FIRST.iter().position(|kind| *kind == subject.status.kind);
    subjects.sort_by_key(|subject| rank(subject).unwrap_or(FIRST.len()));
    (subjects, skipped)
}

/// What a key that is able to do these is to sign by: what is usual with its type, or the first.
fn algorithm(able: &[Algorithm], usual: Algorithm, allowed: &[Operation]) -> Result<Algorithm, &'static str> {
    let mut signing = able.iter().copied().filter(|algorithm| *algorithm != Algorithm::RsaRaw).peekable();
    let Some(first) = signing.peek().copied() else { return Err("the key only decrypts") };
    match allowed.contains(&Operation::Sign) {
        true => Ok(signing.find(|algorithm| *algorithm == usual).unwrap_or(first)),
        false => Err("the store's `operations` don't have `sign`"),
    }
}

/// Says what is about to be done with whose keys, and how long it takes.
fn announce(store: &str, subjects: &[Subject], lanes: u32, step: Duration) {
    let steps: usize = subjects.iter().map(|subject| subject.in_flight(lanes).len()).sum();
    let seconds = (step.as_secs_f64() * 1.1 * steps as f64).ceil();
    if steps > 0 {
        say(&format!("keystead: measuring store {store}: signs with its own keys, for about {seconds} s"));
    }
}

impl Subject {
    /// How many calls are in flight in each step.
    fn in_flight(&self, lanes: u32) -> Vec<u32> {
        match self.on_lanes {
            true => doubled(lanes),
            false => {
                let processors = u32::try_from(server::processors()).unwrap_or(u32::MAX);
                if processors > 1 { vec![1, processors] } else { vec![1] }
            }
        }
    }

    async fn measure(self, lanes: u32, step: Duration) -> Measured {
        let (mut steps, mut failed) = (Vec::new(), None);
        let numbers = self.in_flight(lanes);
        let subject = Arc::new(self);
        for in_flight in numbers {
            match subject.step(in_flight, step).await {
                Ok(step) => steps.push(step),
                Err(step) => {
                    failed = Some(step);
                    break;
                }
            }
        }
        let Self { status: key, algorithm, on_lanes, .. } = &*subject;
        Measured { key: key.clone(), algorithm: *algorithm, on_lanes: *on_lanes, steps, failed }
    }

    /// Warms up, so that sessions are open, and then measures.
    async fn step(self: &Arc<Self>, in_flight: u32, step: Duration) -> Result<Step, FailedStep> {
        self.load(in_flight, step / 10).await?;
        let (mut took, per_second) = self.load(in_flight, step).await?;
        took.sort_unstable();
        let [median, p99] = [50, 99].map(|percent| percentile(&took, percent));
        Ok(Step { in_flight, per_second, median, p99 })
    }

    /// Keeps calls in flight for a while; answers how long they took, and how many there were in a second.
    async fn load(
        self: &Arc<Self>,
        in_flight: u32,
        time: Duration,
    ) -> Result<(Vec<Duration>, f64), FailedStep> {
        let until = Instant::now() + time;
        let tasks: JoinSet<_> = (0..in_flight).map(|_| Arc::clone(self).sign(until)).collect();
        let (mut all, mut per_second, mut failures) = (Vec::new(), 0.0, Vec::new());
        for outcome in tasks.join_all().await {
            match outcome {
                Ok((took, time)) => {
                    per_second += took.len() as f64 / time.as_secs_f64();
                    all.extend(took);
                }
                Err(failure) => failures.push(failure),
            }
        }
        if failures.is_empty() { Ok((all, per_second)) } else { Err(FailedStep::new(in_flight, &failures)) }
    }

    /// Signs again and again, at least once, until something fails; answers how long each took, and all of it.
    async fn sign(self: Arc<Self>, until: Instant) -> Result<(Vec<Duration>, Duration), Failure> {
        let input = random_input(self.algorithm)
            .map_err(|error| Failure::new(Class::Internal, error.message().to_owned()))?;
        let (mut took, started) = (Vec::new(), Instant::now());
        loop {
            let start = Instant::now();
            let request = Request { id: "measure", deadline: start + self.deadline };
            self.store.store().perform(&self.key, self.algorithm, &input, request).await?;
            let end = Instant::now();
            took.push(end - start);
            if end >= until {
                return Ok((took, end - started));
            }
        }
    }
}

/// 1, 2, 4 and so on, and `most` at last.
fn doubled(most: u32) -> Vec<u32> {
    let powers = iter::successors(Some(1_u32), |number| number.checked_mul(2));
    powers.take_while(|number| *number < most).chain([most]).collect()
}

impl FailedStep {
    fn new(in_flight: u32, failures: &[Failure]) -> Self {
        let mut causes = BTreeMap::new();
        for failure in failures {
            *causes.entry(failure.to_string()).or_default() += 1;
        }
        let refused = failures.iter().any(|failure| failure.class == Class::Credentials);
        Self { in_flight, causes, refused }
    }
}

/// How many lanes are worth having, by steps with more and more in flight: as few as are as good as the best.
fn verdict(steps: &[Step], lanes: u32) -> Option<Verdict> {
    let best = steps.iter().map(|step| step.per_second).fold(0.0, f64::max);
    let enough = steps.iter().find(|step| step.per_second >= GOOD * best)?.in_flight;
    Some(if enough < lanes { Verdict::Enough(enough) } else { Verdict::Growing })
}

impl Measurement {
    /// How many keys failed to be measured.
    pub(super) fn errors(&self) -> usize {
        self.keys.iter().filter(|key| key.failed.is_some()).count()
    }

    /// How many warnings its text has.
    pub(super) fn warnings(&self) -> usize {
        usize::from(self.wants_more())
    }

    /// The lanes that every key is served well with.
    fn recommended(&self) -> Option<u32> {
        let on_lanes = self.keys.iter().filter(|key| key.on_lanes);
        let verdicts = on_lanes.filter_map(|key| verdict(&key.steps, self.lanes));
        let enough = verdicts.map(|verdict| match verdict {
            Verdict::Enough(lanes) => lanes,
            Verdict::Growing => self.lanes,
        });
        enough.max()
    }

    /// Whether the lanes that there are may be too few.
    fn wants_more(&self) -> bool {
        self.recommended() == Some(self.lanes) && !self.no_more
    }

    /// Adds a table, and what follows from it.
    pub(super) fn write(&self, text: &mut String) {
        let rows = self.keys.iter().flat_map(Measured::rows);
        if self.keys.iter().any(|key| !key.steps.is_empty()) {
            let _ =
                writeln!(text, "  measured for {:?} a step, by signing with the keys themselves", self.step);
            let head = ["KEY", "LABEL", "ALGORITHM", "IN FLIGHT", "SIGNATURES/S", "MEDIAN MS", "P99 MS"];
            for row in table(head, rows).lines() {
                let _ = writeln!(text, "{:11}{row}", "");
            }
        }
        self.keys.iter().for_each(|key| key.write_failures(text));
        for Skipped { key, why } in &self.skipped {
            line(text, "note", &format!("not measured: {}  {}  {}: {why}", key.ski, key.kind, key.label));
        }
        self.write_recommendation(text);
    }

    fn write_recommendation(&self, text: &mut String) {
        let Some(recommended) = self.recommended() else { return };
        let what = format!("`limits.lanes: {recommended}`");
        let (level, said) = match (recommended < self.lanes, self.no_more, self.lanes) {
            (true, _, _) => ("ok", format!("{what} is recommended: more lanes bring next to nothing here")),
            (_, true, _) => ("ok", format!("{what} is recommended: more lanes the plugin doesn't take")),
            (_, _, 1) => ("warning", format!("{what} leaves nothing to compare: raise it and measure again")),
            _ => (
                "warning",
                format!("{what} is the best so far, and the rate still grew: raise it and measure again"),
            ),
        };
        line(text, level, &said);
    }

    pub(super) fn to_json(&self) -> Value {
        json!({
            "seconds": self.step.as_secs_f64(),
            "lanes": self.lanes,
            "recommended_lanes": self.recommended(),
            "still_growing": self.wants_more(),
            "keys": self.keys.iter().map(Measured::to_json).collect::<Vec<_>>(),
            "skipped": self.skipped.iter().map(|Skipped { key, why }| json!({
                "ski": key.ski, "type": key.kind, "label": key.label, "why": why,
            })).collect::<Vec<_>>(),
        })
    }
}

impl Measured {
    fn rows(&self) -> impl Iterator<Item = [String; 7]> {
        self.steps.iter().map(|step| {
            let Step { in_flight, per_second, median, p99 } = step;
            [
                self.key.kind.clone(),
                self.key.label.clone(),
                self.algorithm.to_string(),
                in_flight.to_string(),
                format!("{per_second:.0}"),
                format!("{median:.3}"),
                format!("{p99:.3}"),
            ]
        })
    }

    fn write_failures(&self, text: &mut String) {
        let Some(FailedStep { in_flight, causes, .. }) = &self.failed else { return };
        for (cause, times) in causes {
            let KeyStatus { ski, kind, label, .. } = &self.key;
            let what = format!("{ski}  {kind}  {label}: {times} of {in_flight} in flight failed: {cause}");
            line(text, "error", &what);
        }
    }

    fn to_json(&self) -> Value {
        json!({
            "ski": self.key.ski,
            "type": self.key.kind,
            "label": self.key.label,
            "algorithm": self.algorithm.name(),
            "calls": if self.on_lanes { "lanes" } else { "inline" },
            "steps": self.steps.iter().map(|step| json!({
                "in_flight": step.in_flight,
                "per_second": step.per_second,
                "milliseconds": { "p50": step.median, "p99": step.p99 },
            })).collect::<Vec<_>>(),
            "failed": self.failed.as_ref().map(|failed| json!({
                "in_flight": failed.in_flight, "causes": failed.causes,
            })),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn steps(rates: &[(u32, f64)]) -> Vec<Step> {
        let step = |(in_flight, per_second): &_| Step {
            in_flight: *in_flight,
            per_second: *per_second,
            median: 1.0,
            p99: 1.0,
        };
        rates.iter().map(step).collect()
    }

    #[test]
    fn calls_in_flight_are_doubled_up_to_the_lanes() {
        assert_eq!(doubled(1), [1]);
        assert_eq!(doubled(2), [1, 2]);
        assert_eq!(doubled(24), [1, 2, 4, 8, 16, 24]);
        assert_eq!(doubled(32), [1, 2, 4, 8, 16, 32]);
        assert_eq!(doubled(u32::MAX).len(), 33);
    }

    #[test]
    fn as_few_lanes_are_enough_as_are_as_good_as_the_best() {
        let flat = [(1, 100.0), (2, 199.0), (4, 390.0), (8, 402.0), (16, 405.0), (24, 380.0)];
        assert_eq!(verdict(&steps(&flat), 24), Some(Verdict::Enough(4)));
        assert_eq!(verdict(&steps(&flat[..3]), 4), Some(Verdict::Growing));
        assert_eq!(verdict(&steps(&flat[..3]), 24), Some(Verdict::Enough(4)), "more fail");
        assert_eq!(verdict(&steps(&[(1, 100.0), (2, 104.0)]), 2), Some(Verdict::Enough(1)));
        assert_eq!(verdict(&steps(&[(1, 100.0), (2, 106.0)]), 2), Some(Verdict::Growing));
        assert_eq!(verdict(&[], 24), None);
    }

    #[test]
    fn a_key_signs_by_what_is_usual_or_what_it_can() {
        let (pss, old, both) =
            (Algorithm::RsaPssSha256, Algorithm::RsaPkcs1Sha1, [Operation::Sign, Operation::Decrypt]);
        assert_eq!(algorithm(&[old, pss, Algorithm::RsaRaw], pss, &both), Ok(pss));
        assert_eq!(algorithm(&[Algorithm::RsaRaw, old], pss, &both), Ok(old));
        assert_eq!(algorithm(&[Algorithm::RsaRaw], pss, &both), Err("the key only decrypts"));
        algorithm(&[pss], pss, &[Operation::Decrypt]).unwrap_err();
    }

    #[test]
    fn failures_of_a_step_are_counted_by_what_they_say_and_credentials_end_it_all() {
        let late = Failure::new(Class::Deadline, "late");
        let wrong = Failure::new(Class::Credentials, "wrong PIN");
        let step = FailedStep::new(4, &[late.clone(), wrong, late.clone()]);
        assert_eq!(step.causes, BTreeMap::from([("late".to_owned(), 2), ("wrong PIN".to_owned(), 1)]));
        assert!(step.refused && !FailedStep::new(1, &[late]).refused);
    }

    #[test]
    fn a_step_has_a_length_that_says_something() {
        assert_eq!(step("2s"), Ok(Duration::from_secs(2)));
        for text in ["9ms", "11s", "2", "fast", ""] {
            assert_eq!(step(text), Err("expected 10ms to 10s, such as `2s`".to_owned()), "{text}");
        }
    }
}
