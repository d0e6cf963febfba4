//! Failures in the log: one warning for each store and class, then counts every 10 s. A backend that is down must not
//! fill the disk.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use keystead_plugin_host::{Class, Failure};
use keystead_protocol::Ski;

use crate::tls::Peer;

const EVERY: Duration = Duration::from_secs(10);

/// What has been said, and how often it happened since.
#[derive(Default)]
pub(crate) struct Failures {
    said: Mutex<HashMap<(String, Class), Said>>,
}

struct Said {
    at: Instant,
    since: u64,
}

impl Failures {
    /// Says it, or counts it.
    pub(crate) fn note(
        &self,
        store: &str,
        failure: &Failure,
        ski: Option<Ski>,
        peer: &Peer,
        request: Option<&str>,
    ) {
        let Some(since) = self.due(store, failure.class, Instant::now()) else { return };
        tracing::warn!(
            store,
            class = failure.class.name(),
            ski = ski.map(|ski| ski.to_string()),
            peer = peer.name(),
            request,
            since,
            "a request failed: {failure}"
        );
    }

    /// How many went unsaid, if it is time to say it again.
    fn due(&self, store: &str, class: Class, now: Instant) -> Option<u64> {
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        match said.get_mut(&(store.to_owned(), class)) {
            Some(last) if now.duration_since(last.at) < EVERY => {
                last.since += 1;
                None
            }
            Some(last) => {
                last.at = now;
                Some(std::mem::take(&mut last.since))
            }
            None => {
                said.insert((store.to_owned(), class), Said { at: now, since: 0 });
                Some(0)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_said_once_then_counted() {
        let (failures, start) = (Failures::default(), Instant::now());
        assert_eq!(failures.due("hsm", Class::Unavailable, start), Some(0));
        assert_eq!(failures.due("hsm", Class::Unavailable, start), None);
        assert_eq!(failures.due("hsm", Class::Unavailable, start + EVERY / 2), None);
        assert_eq!(failures.due("hsm", Class::Deadline, start), Some(0), "another class is another line");
        assert_eq!(failures.due("file", Class::Unavailable, start), Some(0), "another store is another line");
        assert_eq!(failures.due("hsm", Class::Unavailable, start + EVERY), Some(2));
    }
}
