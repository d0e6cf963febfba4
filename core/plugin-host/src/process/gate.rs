//! The lanes of a store whose plugin is in another process: who has one may make a call, a bounded number waits.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Instant,
};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout_at,
};

use super::lock;
use crate::waiting::Waiting;

/// Lanes, numbered from `first`.
pub(super) struct Gate {
    lanes: u32,
    queue: usize,
    permits: Arc<Semaphore>,
    free: Arc<Mutex<Vec<u32>>>,
    waiting: AtomicUsize,
}

/// The right to make one call at a time, given back when dropped: not before that call has come back.
pub(super) struct Lane {
    number: u32,
    free: Arc<Mutex<Vec<u32>>>,
    _permit: OwnedSemaphorePermit,
}

/// Why there is no lane.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum NoLane {
    /// As many wait already as may.
    Full,
    /// The deadline came first.
    Late,
}

impl Gate {
    pub(super) fn new(first: u32, lanes: u32, queue: usize) -> Self {
        let lanes = lanes.max(1);
        let free = (0..lanes).rev().map(|lane| first.saturating_add(lane)).collect();
        Self {
            lanes,
            queue,
            permits: Arc::new(Semaphore::new(lanes as usize)),
            free: Arc::new(Mutex::new(free)),
            waiting: AtomicUsize::new(0),
        }
    }

    pub(super) fn lanes(&self) -> u32 {
        self.lanes
    }

    /// How many lanes are taken, and how many wait for one.
    pub(super) fn load(&self) -> (u32, usize) {
        let free = u32::try_from(self.permits.available_permits()).unwrap_or(u32::MAX);
        (self.lanes.saturating_sub(free), self.waiting.load(Ordering::Relaxed))
    }

    /// A lane, at once or until the deadline.
    pub(super) async fn enter(&self, deadline: Instant) -> Result<Lane, NoLane> {
        if let Ok(permit) = Arc::clone(&self.permits).try_acquire_owned() {
            return Ok(self.lane(permit));
        }
        let _waiting = Waiting::join(&self.waiting, self.queue).ok_or(NoLane::Full)?;
        match timeout_at(deadline.into(), Arc::clone(&self.permits).acquire_owned()).await {
            Ok(Ok(permit)) => Ok(self.lane(permit)),
            _ => Err(NoLane::Late),
        }
    }

    fn lane(&self, permit: OwnedSemaphorePermit) -> Lane {
        // There are as many numbers as permits: whoever holds a permit finds one.
        let number = lock(&self.free).pop().unwrap_or_default();
        Lane { number, free: Arc::clone(&self.free), _permit: permit }
    }
}

impl Lane {
    pub(super) fn number(&self) -> u32 {
        self.number
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        // Before the permit, which is dropped after this.
        lock(&self.free).push(self.number);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(5)
    }

    #[tokio::test]
    async fn no_two_hold_the_same_lane_and_what_is_too_many_is_turned_away() {
        let gate = Gate::new(7, 2, 1);
        let (one, other) = (gate.enter(soon()).await.unwrap(), gate.enter(soon()).await.unwrap());
        assert_eq!([one.number(), other.number()], [7, 8]);
        assert_eq!(gate.load(), (2, 0));
        let mut waiting = Box::pin(gate.enter(soon()));
        tokio::select! {
            biased;
            _ = &mut waiting => panic!("there is no third lane"),
            () = std::future::ready(()) => {}
        }
        assert_eq!(gate.load(), (2, 1));
        assert_eq!(gate.enter(soon()).await.err(), Some(NoLane::Full));
        drop(other);
        assert_eq!(waiting.await.unwrap().number(), 8);
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_in_vain_is_told_at_the_deadline() {
        let gate = Gate::new(0, 1, 8);
        let _held = gate.enter(soon()).await.unwrap();
        assert_eq!(gate.enter(soon()).await.err(), Some(NoLane::Late));
        assert_eq!(gate.load(), (1, 0));
    }
}
