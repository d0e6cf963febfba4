//! When a process that died is started again. The first deaths cost next to nothing, as a vendor's library crashes now
//! and then; one that goes on dying is only tried every so often, since each start may log in to a token.

use std::{
    collections::VecDeque,
    fmt,
    time::{Duration, Instant},
};

/// Deaths that are counted together.
const WINDOW: Duration = Duration::from_secs(60);

/// Pauses after the first deaths within [`WINDOW`]; one more opens the breaker.
const PAUSES: [Duration; 4] =
    [Duration::ZERO, Duration::from_millis(100), Duration::from_millis(300), Duration::from_secs(2)];

/// How long the open breaker lets nothing start.
const OPEN_FOR: Duration = Duration::from_secs(30);

/// The deaths of one process, and what follows from them.
#[derive(Debug, Default)]
pub(super) struct Breaker {
    deaths: VecDeque<Instant>,
    /// Whether it has opened, and no process has lived for [`WINDOW`] since.
    open: bool,
    not_before: Option<Instant>,
}

/// What follows from a death.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// A new start after a pause.
    Restart(Duration),
    /// The breaker is open: one try after each such pause.
    Open(Duration),
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Restart(pause) if pause.is_zero() => write!(f, "it is started again at once"),
            Self::Restart(pause) => write!(f, "it is started again in {pause:?}"),
            Self::Open(pause) => write!(f, "it has died too often, and is tried again every {pause:?}"),
        }
    }
}

impl Breaker {
    /// Notes a death of a process that lived for some time.
    pub(super) fn died(&mut self, now: Instant, lived: Duration) -> Verdict {
        if lived >= WINDOW {
            self.open = false;
            self.deaths.clear();
        }
        self.deaths.retain(|death| now.saturating_duration_since(*death) < WINDOW);
        self.deaths.push_back(now);
        let pause = PAUSES.get(self.deaths.len() - 1).filter(|_| !self.open);
        self.open = pause.is_none();
        self.not_before = Some(now + pause.copied().unwrap_or(OPEN_FOR));
        pause.map_or(Verdict::Open(OPEN_FOR), |pause| Verdict::Restart(*pause))
    }

    /// How long nothing may be started yet.
    pub(super) fn pause(&self, now: Instant) -> Duration {
        self.not_before.map_or(Duration::ZERO, |not_before| not_before.saturating_duration_since(now))
    }

    /// Whether it is open, or was and no process has proven itself since.
    pub(super) fn is_open(&self) -> bool {
        self.open
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BRIEF: Duration = Duration::from_millis(10);

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn three_deaths_are_made_good_within_a_second_then_comes_a_pause_and_then_the_breaker() {
        let (mut breaker, start) = (Breaker::default(), Instant::now());
        let verdicts: Vec<_> = (0..5).map(|second| breaker.died(start + seconds(second), BRIEF)).collect();
        for verdict in verdicts.iter().take(3) {
            assert!(matches!(verdict, Verdict::Restart(pause) if *pause < seconds(1)), "{verdict:?}");
        }
        assert_eq!(verdicts.get(3), Some(&Verdict::Restart(seconds(2))));
        assert_eq!(verdicts.get(4), Some(&Verdict::Open(seconds(30))));
        assert_eq!(breaker.pause(start + seconds(4)), seconds(30));
        assert_eq!(breaker.pause(start + seconds(34)), Duration::ZERO);
    }

    #[test]
    fn while_the_breaker_is_open_every_try_that_fails_opens_it_anew() {
        let (mut breaker, start) = (Breaker::default(), Instant::now());
        (0..5).for_each(|_| _ = breaker.died(start, BRIEF));
        for round in 1..10 {
            let verdict = breaker.died(start + seconds(31 * round), seconds(1));
            assert_eq!(verdict, Verdict::Open(seconds(30)), "however long ago the first deaths are");
            assert!(breaker.is_open());
        }
    }

    #[test]
    fn a_process_that_lived_for_a_minute_closes_the_breaker() {
        let (mut breaker, start) = (Breaker::default(), Instant::now());
        (0..5).for_each(|_| _ = breaker.died(start, BRIEF));
        let later = start + seconds(100);
        assert_eq!(breaker.died(later, seconds(60)), Verdict::Restart(Duration::ZERO));
        assert!(!breaker.is_open());
    }

    #[test]
    fn deaths_that_are_far_apart_never_open_the_breaker() {
        let (mut breaker, start) = (Breaker::default(), Instant::now());
        for death in 0..100 {
            let verdict = breaker.died(start + seconds(61 * death), seconds(59));
            assert_eq!(verdict, Verdict::Restart(Duration::ZERO));
        }
    }
}
