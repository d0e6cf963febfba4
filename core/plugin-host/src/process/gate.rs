//! Who may make a call to a store in another process. Its lanes, and the queue for them, are over there, so that a lane
//! which gets free has its next call at once; bounded here is how many calls are over there.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

/// Places for the calls to one store: one for each lane, and for those that wait.
pub(super) struct Gate {
    lanes: u32,
    places: usize,
    taken: Arc<Taken>,
}

struct Taken {
    places: AtomicUsize,
    since: Instant,
    /// When a place was given back last, in milliseconds after `since`.
    returned: AtomicU64,
}

/// The right to have a call over there, given back when dropped: not before that call has come back.
pub(super) struct Place {
    lanes: u32,
    taken: Arc<Taken>,
}

impl Gate {
    pub(super) fn new(lanes: u32, queue: usize) -> Self {
        let taken = Taken { places: AtomicUsize::new(0), since: Instant::now(), returned: AtomicU64::new(0) };
        Self { lanes, places: (lanes as usize).saturating_add(queue), taken: Arc::new(taken) }
    }

    pub(super) fn lanes(&self) -> u32 {
        self.lanes
    }

    /// A place, unless all are taken.
    pub(super) fn enter(&self) -> Option<Place> {
        let entered = self.taken.places.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |taken| {
            (taken < self.places).then_some(taken + 1)
        });
        entered.is_ok().then(|| Place { lanes: self.lanes, taken: Arc::clone(&self.taken) })
    }

    /// How many lanes are at work, and how many calls wait for one.
    pub(super) fn load(&self) -> (u32, usize) {
        let taken = self.taken.places.load(Ordering::Relaxed);
        let busy = u32::try_from(taken).unwrap_or(u32::MAX).min(self.lanes);
        (busy, taken - busy as usize)
    }

    /// How long no call has come back.
    pub(super) fn silent_for(&self) -> Duration {
        let returned = Duration::from_millis(self.taken.returned.load(Ordering::Relaxed));
        self.taken.since.elapsed().saturating_sub(returned)
    }
}

impl Place {
    /// What tells its gate from others.
    pub(super) fn gate(&self) -> usize {
        Arc::as_ptr(&self.taken).addr()
    }

    /// How many lanes the calls are for.
    pub(super) fn lanes(&self) -> u32 {
        self.lanes
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let now = u64::try_from(self.taken.since.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.taken.returned.store(now, Ordering::Relaxed);
        self.taken.places.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_are_let_through_as_work_and_wait() {
        let gate = Gate::new(2, 1);
        let places: Vec<_> = (0..3).map(|_| gate.enter().unwrap()).collect();
        assert_eq!(gate.load(), (2, 1));
        assert!(gate.enter().is_none());
        drop(places);
        assert_eq!(gate.load(), (0, 0));
        assert!(gate.enter().is_some());
    }

    #[test]
    fn what_comes_back_ends_a_silence() {
        let gate = Gate::new(1, 0);
        std::thread::sleep(Duration::from_millis(20));
        let before = gate.silent_for();
        assert!(before >= Duration::from_millis(20));
        drop(gate.enter());
        assert!(gate.silent_for() < before);
    }
}
