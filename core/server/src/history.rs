//! The last ten minutes of a store, in samples of ten seconds.

use std::{
    collections::VecDeque,
    time::{Instant, SystemTime},
};

use crate::{
    metrics::{Count, Figures},
    status::{self, Latency, Sample, milliseconds},
};

/// How many samples are kept.
const SAMPLES: usize = 60;

/// How many of them are a minute.
const MINUTE: usize = 6;

/// Samples of a store's figures.
pub(crate) struct History {
    samples: VecDeque<Sample>,
    /// The figures when each sample of the last minute ended, oldest first.
    counts: VecDeque<Count>,
    last: Instant,
}

impl History {
    pub(crate) fn new(figures: &Figures) -> Self {
        Self { samples: VecDeque::new(), counts: [figures.count()].into(), last: Instant::now() }
    }

    /// Takes a sample of what came since the last one.
    pub(crate) fn take(&mut self, figures: &Figures) {
        let (now, count) = (Instant::now(), figures.count());
        let since = self.counts.back().map_or_else(Count::default, |before| count.since(before));
        let seconds = now.duration_since(self.last).as_secs_f64();
        self.samples.push_back(sample(&since, seconds));
        self.counts.push_back(count);
        self.last = now;
        if self.samples.len() > SAMPLES {
            self.samples.pop_front();
        }
        if self.counts.len() > MINUTE {
            self.counts.pop_front();
        }
    }

    /// How fast answers were within the last minute; `None` where there were none.
    pub(crate) fn latency(&self, now: &Count) -> Option<Latency> {
        let since = self.counts.front().map_or_else(Count::default, |before| now.since(before));
        let quantile = |share| since.quantile(share).map(milliseconds);
        Some(Latency { p50: quantile(0.5)?, p99: quantile(0.99)? })
    }

    /// The samples, oldest first.
    pub(crate) fn samples(&self) -> Vec<Sample> {
        self.samples.iter().copied().collect()
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts are far below 2^53")]
fn sample(count: &Count, seconds: f64) -> Sample {
    let rate = |count: u64| (count as f64 / seconds * 1e3).round() / 1e3;
    Sample {
        at: status::seconds(SystemTime::now()),
        per_second: rate(count.ok + count.failed),
        failed_per_second: rate(count.failed),
        p50_ms: count.quantile(0.5).map(milliseconds),
        p99_ms: count.quantile(0.99).map(milliseconds),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use keystead_plugin_host::{Algorithm, Class};

    use super::*;
    use crate::metrics::Metrics;

    #[test]
    fn samples_hold_what_came_since_the_last_and_the_oldest_go() {
        let figures = Metrics::new().unwrap().store("hsm");
        let mut history = History::new(&figures);
        assert!(history.latency(&figures.count()).is_none());
        figures.note(Algorithm::EcdsaSha256, Ok(()), Duration::from_millis(1));
        figures.note(Algorithm::EcdsaSha256, Err(Class::Unavailable), Duration::from_millis(1));
        history.take(&figures);
        history.take(&figures);
        let [first, second] = history.samples()[..] else { panic!("two samples") };
        assert!(
            first.per_second > 0.0 && first.failed_per_second / first.per_second - 0.5 < 1e-6,
            "{first:?}"
        );
        assert!(first.p50_ms.is_some_and(|p50| (0.8..=1.6).contains(&p50)), "{first:?}");
        assert_eq!((second.per_second, second.p50_ms), (0.0, None));
        assert!(history.latency(&figures.count()).is_some(), "it was within the last minute");
        (0..MINUTE).for_each(|_| history.take(&figures));
        assert!(history.latency(&figures.count()).is_none(), "it is longer ago");
        (0..SAMPLES).for_each(|_| history.take(&figures));
        assert_eq!(history.samples().len(), SAMPLES);
        assert!(history.samples().iter().all(|sample| sample.per_second == 0.0));
    }
}
