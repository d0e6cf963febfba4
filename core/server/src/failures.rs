//! Failures, told well: one warning for each store and cause, then counts every 10 s; and when the store is well again,
//! for how long it wasn't. A backend that is down must not fill the disk.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use keystead_plugin_host::{Failure, Vendor};
use keystead_protocol::Ski;

/// How often something that goes on is told again, in counts.
pub(crate) const EVERY: Duration = Duration::from_secs(10);

/// How many causes of one store are told apart; of more, the one that was quiet for longest is forgotten.
const CAUSES: usize = 16;

/// The failures of one store, or of requests that no store was asked about.
pub(crate) struct Failures {
    origin: String,
    /// Whether the last call failed in a way that blames the backend, for every request to read.
    failing: AtomicBool,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    causes: Vec<Cause>,
    outage: Option<Outage>,
}

/// What failed in one way, and how often.
#[derive(Clone, Debug)]
pub(crate) struct Cause {
    /// The latest of its failures.
    pub(crate) failure: Failure,
    /// What that was about.
    pub(crate) about: About,
    /// When that was.
    pub(crate) at: SystemTime,
    /// How often it happened.
    pub(crate) count: u64,
    last: Instant,
    untold: u64,
}

/// What a failure was about. Empty for what no request asked for.
#[derive(Clone, Debug, Default)]
pub(crate) struct About {
    pub(crate) ski: Option<Ski>,
    pub(crate) peer: Option<String>,
    /// The request's own id.
    pub(crate) request: Option<String>,
}

/// A time without success.
struct Outage {
    began: Instant,
    failed: u64,
    failure: Failure,
    /// When the first call after it succeeded; it is over when nothing fails any more.
    succeeded: Option<Instant>,
}

/// What [`Failures::tell`] has to say.
#[derive(Debug, PartialEq)]
enum News {
    Again { failure: Failure, count: u64 },
    Over { failure: Failure, failed: u64, length: Duration },
}

impl Failures {
    pub(crate) fn new(origin: impl Into<String>) -> Self {
        Self { origin: origin.into(), failing: AtomicBool::new(false), known: Mutex::default() }
    }

    /// Says that something failed, or counts it.
    pub(crate) fn note(&self, failure: &Failure, about: About) {
        if self.record(failure, about.clone(), Instant::now()) {
            tracing::warn!(
                store = self.origin,
                class = failure.class.name(),
                ski = about.ski.map(|ski| ski.to_string()),
                peer = about.peer,
                request = about.request,
                "{}: {failure}",
                if about.peer.is_some() { "a request failed" } else { "the store is down" }
            );
        }
    }

    /// Notes that a call succeeded. Costs nothing unless the one before failed.
    pub(crate) fn succeeded(&self) {
        if self.failing.load(Ordering::Relaxed) {
            let mut known = self.lock();
            self.failing.store(false, Ordering::Relaxed);
            if let Some(outage) = &mut known.outage {
                outage.succeeded.get_or_insert_with(Instant::now);
            }
        }
    }

    /// Whether the last call failed in a way that blames the backend.
    pub(crate) fn are_going_on(&self) -> bool {
        self.failing.load(Ordering::Relaxed)
    }

    /// What has failed so far, by cause.
    pub(crate) fn causes(&self) -> Vec<Cause> {
        self.lock().causes.clone()
    }

    /// Tells the counts of what goes on, and what is over. To be called every [`EVERY`].
    pub(crate) fn tell(&self) {
        for news in self.news(Instant::now()) {
            match news {
                News::Again { failure, count } => {
                    let (store, class) = (&self.origin, failure.class.name());
                    tracing::warn!(store, class, count, "{count} more failed within {EVERY:?}: {failure}");
                }
                News::Over { failure, failed, length } => self.over(&failure, failed, length),
            }
        }
    }

    fn over(&self, failure: &Failure, failed: u64, length: Duration) {
        let outage = format!("{length:.1?}");
        tracing::info!(
            store = self.origin,
            outage,
            failed,
            "the store is back after {outage}; it was: {failure}"
        );
    }

    /// Ends an outage at once: the backend has been asked, and is well.
    pub(crate) fn end(&self) {
        let mut known = self.lock();
        self.failing.store(false, Ordering::Relaxed);
        let over = known.outage.take();
        drop(known);
        if let Some(Outage { began, failed, failure, .. }) = over {
            self.over(&failure, failed, began.elapsed());
        }
    }

    /// Answers whether it is to be said now.
    fn record(&self, failure: &Failure, about: About, now: Instant) -> bool {
        let mut known = self.lock();
        if failure.class.blames_the_backend() {
            self.failing.store(true, Ordering::Relaxed);
            let outage = known.outage.get_or_insert_with(|| Outage {
                began: now,
                failed: 0,
                failure: failure.clone(),
                succeeded: None,
            });
            outage.failed += u64::from(about.peer.is_some());
            outage.succeeded = None;
        }
        let at = SystemTime::now();
        if let Some(cause) = known.causes.iter_mut().find(|cause| same(&cause.failure, failure)) {
            let quiet = now.duration_since(cause.last) >= EVERY && cause.untold == 0;
            let (count, untold) = (cause.count + 1, if quiet { 0 } else { cause.untold + 1 });
            *cause = Cause { failure: failure.clone(), about, at, count, last: now, untold };
            return quiet;
        }
        if known.causes.len() == CAUSES {
            let oldest = known.causes.iter().enumerate().min_by_key(|(_, cause)| cause.last);
            if let Some((index, _)) = oldest {
                known.causes.swap_remove(index);
            }
        }
        known.causes.push(Cause { failure: failure.clone(), about, at, count: 1, last: now, untold: 0 });
        true
    }

    fn news(&self, now: Instant) -> Vec<News> {
        let mut known = self.lock();
        let again = known.causes.iter_mut().filter(|cause| cause.untold > 0);
        let mut news: Vec<_> = again
            .map(|cause| News::Again {
                failure: cause.failure.clone(),
                count: std::mem::take(&mut cause.untold),
            })
            .collect();
        let is_over = |outage: &mut Outage| {
            outage.succeeded.is_some_and(|succeeded| now.duration_since(succeeded) >= EVERY)
        };
        if let Some(Outage { began, failed, failure, succeeded }) = known.outage.take_if(is_over) {
            let length = succeeded.unwrap_or(now).duration_since(began);
            news.push(News::Over { failure, failed, length });
        }
        news
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether two failures have one cause: the class, and the vendor's code where there is one. Messages may count.
pub(crate) fn same(one: &Failure, other: &Failure) -> bool {
    let vendor = |failure: &Failure| failure.vendor.clone().map(|Vendor { name, number, .. }| (name, number));
    one.class == other.class && vendor(one) == vendor(other)
}

impl About {
    /// A request of a peer.
    pub(crate) fn request(ski: Option<Ski>, peer: &str, request: Option<&str>) -> Self {
        Self { ski, peer: Some(peer.to_owned()), request: request.map(ToOwned::to_owned) }
    }
}

/// Something that is said when it happens, and while it goes on every 10 s with how often.
#[derive(Debug, Default)]
pub(crate) struct Repeated {
    said: Mutex<Option<Instant>>,
    since: AtomicU64,
}

impl Repeated {
    /// How often it happened since it was last said, if it is to be said now.
    pub(crate) fn due(&self) -> Option<u64> {
        self.due_at(Instant::now())
    }

    fn due_at(&self, now: Instant) -> Option<u64> {
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        let count = self.since.fetch_add(1, Ordering::Relaxed) + 1;
        if said.is_some_and(|said| now.duration_since(said) < EVERY) {
            return None;
        }
        *said = Some(now);
        self.since.store(0, Ordering::Relaxed);
        Some(count)
    }
}

#[cfg(test)]
mod tests {
    use keystead_plugin_host::Class;

    use super::*;

    fn by(number: u64) -> Failure {
        let mut failure = Failure::new(Class::Unavailable, "the device is gone");
        failure.vendor = Some(Vendor::new("CKR_DEVICE_ERROR", number));
        failure
    }

    fn request() -> About {
        About::request(None, "edge", Some("r1"))
    }

    #[test]
    fn a_failure_is_said_once_then_counted() {
        let (failures, start) = (Failures::new("hsm"), Instant::now());
        assert!(failures.record(&by(0x30), request(), start));
        assert!(!failures.record(&by(0x30), request(), start));
        assert!(!failures.record(&by(0x30), request(), start + EVERY / 2));
        assert!(failures.record(&by(0x31), request(), start), "another code of the vendor is another line");
        let deadline = Failure::new(Class::Deadline, "late");
        assert!(failures.record(&deadline, request(), start), "another class is another line");
        assert_eq!(failures.news(start + EVERY), [News::Again { failure: by(0x30), count: 2 }]);
        assert_eq!(failures.news(start + EVERY), [], "what has been told isn't told again");
        assert!(failures.record(&by(0x30), request(), start + EVERY * 3), "after a pause it is news");
    }

    #[test]
    fn an_outage_is_over_when_nothing_failed_for_a_while_and_its_length_is_told() {
        let (failures, start) = (Failures::new("hsm"), Instant::now());
        failures.record(&by(0x30), request(), start);
        failures.succeeded();
        failures.record(&by(0x30), request(), start + EVERY / 2);
        assert!(failures.are_going_on(), "one success in between ends nothing");
        failures.known.lock().unwrap().outage.as_mut().unwrap().succeeded = Some(start + EVERY * 2);
        let untold = News::Again { failure: by(0x30), count: 1 };
        assert_eq!(failures.news(start + EVERY * 2), [untold]);
        let over = News::Over { failure: by(0x30), failed: 2, length: EVERY * 2 };
        assert_eq!(failures.news(start + EVERY * 3), [over]);
        assert_eq!(failures.news(start + EVERY * 4), []);
    }

    #[test]
    fn what_is_the_requests_own_fault_is_no_outage() {
        let failures = Failures::new("hsm");
        failures.record(&Failure::new(Class::InvalidInput, "too long"), request(), Instant::now());
        assert!(!failures.are_going_on());
        assert!(failures.known.lock().unwrap().outage.is_none());
    }

    #[test]
    fn of_many_causes_the_quietest_is_forgotten() {
        let (failures, start) = (Failures::new("hsm"), Instant::now());
        for number in 0..=CAUSES as u64 {
            failures.record(&by(number), request(), start + Duration::from_millis(number));
        }
        let causes = failures.causes();
        assert_eq!(causes.len(), CAUSES);
        assert!(causes.iter().all(|cause| !same(&cause.failure, &by(0))));
    }

    #[test]
    fn what_repeats_is_said_at_intervals_with_its_count() {
        let (repeated, start) = (Repeated::default(), Instant::now());
        assert_eq!(repeated.due_at(start), Some(1));
        assert_eq!(repeated.due_at(start), None);
        assert_eq!(repeated.due_at(start + EVERY), Some(2));
    }
}
