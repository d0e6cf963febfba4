//! The bound on inline calls: how many of the runtime's workers may be inside a plugin at once.

use std::{
    pin::pin,
    sync::{
        Arc, Once, Weak,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use tokio::{
    runtime::Handle,
    sync::{Semaphore, SemaphorePermit},
    time::timeout,
};

use crate::waiting::Waiting;

/// How long a call waits without any turn being given back, before it goes to a lane instead. Inline calls take at most
/// about 1 ms.
const PATIENCE: Duration = Duration::from_millis(100);

/// How often the runtime is nudged while inline calls go on; see [`nudge`].
const NUDGE_EVERY: Duration = Duration::from_millis(25);

/// The turns of inline calls. As long as there are fewer than the runtime has workers, calls that hang can't take all
/// of those.
pub(crate) struct Turns {
    number: usize,
    free: Semaphore,
    waiting: AtomicUsize,
    given_back: AtomicUsize,
    /// None was given back while somebody waited: calls hang in every turn, and nobody waits until one is free again.
    stuck: AtomicBool,
    nudged: Once,
}

/// The right to make one inline call, for as long as it is held.
pub(crate) struct Turn<'a> {
    turns: &'a Turns,
    permit: Option<SemaphorePermit<'a>>,
}

impl Turns {
    pub(crate) fn new(number: usize) -> Arc<Self> {
        let number = number.max(1);
        Arc::new(Self {
            number,
            free: Semaphore::new(number),
            waiting: AtomicUsize::new(0),
            given_back: AtomicUsize::new(0),
            stuck: AtomicBool::new(false),
            nudged: Once::new(),
        })
    }

    /// A turn; `None` where the call belongs on a lane.
    pub(crate) async fn take(self: &Arc<Self>) -> Option<Turn<'_>> {
        self.nudged.call_once(|| self.start_nudging());
        if let Ok(permit) = self.free.try_acquire() {
            self.stuck.store(false, Ordering::Relaxed);
            return Some(self.turn(permit));
        }
        if self.stuck.load(Ordering::Relaxed) {
            return None;
        }
        let _waiting = Waiting::join(&self.waiting, usize::MAX);
        let mut acquired = pin!(self.free.acquire());
        let mut seen = self.given_back.load(Ordering::Relaxed);
        loop {
            if let Ok(permit) = timeout(PATIENCE, &mut acquired).await {
                return permit.ok().map(|permit| self.turn(permit));
            }
            // A queue that moves is only long.
            let now = self.given_back.load(Ordering::Relaxed);
            if std::mem::replace(&mut seen, now) == now {
                self.stuck.store(true, Ordering::Relaxed);
                return None;
            }
        }
    }

    fn start_nudging(self: &Arc<Self>) {
        let (turns, runtime) = (Arc::downgrade(self), Handle::current());
        let thread = thread::Builder::new().name("nudge".to_owned());
        if let Err(error) = thread.spawn(move || nudge(&turns, &runtime)) {
            tracing::error!(%error, "the thread that outlasts inline calls that hang can't be started");
        }
    }

    fn turn<'a>(&'a self, permit: SemaphorePermit<'a>) -> Turn<'a> {
        Turn { turns: self, permit: Some(permit) }
    }
}

impl Drop for Turn<'_> {
    /// Whoever is woken by this stands in the worker's LIFO slot, from which no other worker takes it; if the task
    /// here went on to a call that hangs, the woken one would hang with it. A further task pushes it out into the
    /// queue that others steal from.
    fn drop(&mut self) {
        self.turns.given_back.fetch_add(1, Ordering::Relaxed);
        drop(self.permit.take());
        if self.turns.waiting.load(Ordering::Relaxed) > 0 {
            tokio::spawn(async {});
        }
    }
}

/// Wakes a worker every so often while inline calls go on. The worker that waited for I/O may be the one whose call
/// hangs; the others sleep until some task becomes ready, and without anybody waiting for I/O none does.
fn nudge(turns: &Weak<Turns>, runtime: &Handle) {
    while let Some(turns) = turns.upgrade() {
        if turns.free.available_permits() < turns.number {
            runtime.spawn(async {});
        }
        drop(turns);
        thread::sleep(NUDGE_EVERY);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn one_who_waited_in_vain_spares_the_others_the_wait() {
        let turns = Turns::new(1);
        let held = turns.take().await.unwrap();
        let start = tokio::time::Instant::now();
        assert!(turns.take().await.is_none());
        assert_eq!(start.elapsed(), PATIENCE);
        assert!(turns.take().await.is_none());
        assert_eq!(start.elapsed(), PATIENCE, "the second didn't wait");
        drop(held);
        assert!(turns.take().await.is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn a_queue_that_moves_is_waited_for() {
        let turns = Turns::new(1);
        let held = turns.take().await.unwrap();
        let first = async {
            let turn = turns.take().await.unwrap();
            tokio::time::sleep(PATIENCE * 4 / 5).await;
            drop(turn);
        };
        let release = async {
            tokio::time::sleep(PATIENCE * 4 / 5).await;
            drop(held);
        };
        let ((), second, ()) = tokio::join!(first, turns.take(), release);
        assert!(second.is_some(), "it waited longer than the patience, but not in vain");
    }

    #[tokio::test]
    async fn a_turn_that_is_given_back_goes_to_who_waits() {
        let turns = Turns::new(1);
        let held = turns.take().await.unwrap();
        let (waited, ()) = tokio::join!(turns.take(), async { drop(held) });
        assert!(waited.is_some());
    }
}
