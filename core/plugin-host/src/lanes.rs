//! A store's own threads: bounded in number, with a bounded queue, so that a store that hangs hangs alone.

use std::{
    collections::VecDeque,
    mem,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
};

/// What runs on a lane; it gets the lane's number.
pub(crate) type Job = Box<dyn FnOnce(u32) + Send>;

/// The queue is full, or the lanes are closed.
#[derive(Debug)]
pub(crate) struct Full;

/// A set of lanes. Threads start when they are needed and then stay; dropping the set ends the idle ones.
pub(crate) struct Lanes {
    shared: Arc<Shared>,
}

struct Shared {
    name: String,
    first: u32,
    queue: usize,
    state: Mutex<State>,
    wake: Condvar,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Job>,
    lanes: u32,
    started: u32,
    busy: u32,
    closed: bool,
}

impl Lanes {
    /// Up to `lanes` threads, numbered from `first`, and room for `queue` waiting jobs.
    pub(crate) fn new(name: &str, first: u32, lanes: u32, queue: usize) -> Self {
        let shared = Shared {
            // The operating system takes no NUL in the name of a thread.
            name: name.replace('\0', ""),
            first,
            queue,
            state: Mutex::new(State { lanes: lanes.max(1), ..State::default() }),
            wake: Condvar::new(),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Starts no more than `lanes` threads from now on.
    pub(crate) fn limit(&self, lanes: u32) {
        self.shared.lock().lanes = lanes.max(1);
    }

    /// The most threads that there will be.
    pub(crate) fn count(&self) -> u32 {
        self.shared.lock().lanes
    }

    /// How many jobs run, and how many wait.
    pub(crate) fn load(&self) -> (u32, usize) {
        let state = self.shared.lock();
        (state.busy, state.waiting.len())
    }

    /// Puts a job in the queue.
    pub(crate) fn submit(&self, job: Job) -> Result<(), Full> {
        let state = self.shared.lock();
        let free = state.lanes.saturating_sub(state.busy) as usize;
        if state.closed || state.waiting.len() >= self.shared.queue + free {
            return Err(Full);
        }
        self.enqueue(state, job);
        Ok(())
    }

    /// Puts a job in the queue, full or not: for what must be done once, and last.
    pub(crate) fn submit_regardless(&self, job: Job) {
        self.enqueue(self.shared.lock(), job);
    }

    fn enqueue(&self, mut state: MutexGuard<'_, State>, job: Job) {
        state.waiting.push_back(job);
        let ready = (state.started - state.busy) as usize;
        if state.waiting.len() > ready && state.started < state.lanes {
            self.start(&mut state);
        }
        let is_awaited = state.started > state.busy;
        drop(state);
        // Lanes that are busy look for more by themselves; to wake nobody would be a call of the system in vain.
        if is_awaited {
            self.shared.wake.notify_one();
        }
    }

    fn start(&self, state: &mut State) {
        let (shared, number) = (Arc::clone(&self.shared), self.shared.first + state.started);
        let thread = thread::Builder::new().name(format!("{}/{}", shared.name, state.started));
        match thread.spawn(move || shared.run(number)) {
            Ok(_) => state.started += 1,
            // The lanes that did start serve the queue; the deadline answers what they can't reach.
            Err(error) => tracing::error!(lanes = self.shared.name, %error, "a lane can't be started"),
        }
    }
}

impl Drop for Lanes {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.closed = true;
        let abandoned = mem::take(&mut state.waiting);
        drop(state);
        drop(abandoned); // unlocked: what the jobs own may do anything when it goes
        self.shared.wake.notify_all();
    }
}

impl Shared {
    fn run(&self, number: u32) {
        let mut state = self.lock();
        while let Some(job) = self.next(state) {
            if catch_unwind(AssertUnwindSafe(|| job(number))).is_err() {
                tracing::error!(lane = number, lanes = self.name, "a call panicked in the host");
            }
            state = self.lock();
            state.busy -= 1;
        }
    }

    fn next(&self, mut state: MutexGuard<'_, State>) -> Option<Job> {
        loop {
            if let Some(job) = state.waiting.pop_front() {
                state.busy += 1;
                return Some(job);
            }
            if state.closed {
                return None;
            }
            state = self.wake.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Barrier, mpsc};

    use super::*;

    #[test]
    fn as_many_jobs_run_at_once_as_there_are_lanes() {
        let lanes = Lanes::new("test", 0, 3, 8);
        let barrier = Arc::new(Barrier::new(3));
        let (tx, rx) = mpsc::channel();
        for _ in 0..3 {
            let (barrier, tx) = (Arc::clone(&barrier), tx.clone());
            lanes
                .submit(Box::new(move |lane| {
                    barrier.wait(); // passes only when all three are here
                    tx.send(lane).unwrap();
                }))
                .unwrap();
        }
        let mut numbers: Vec<u32> = rx.iter().take(3).collect();
        numbers.sort_unstable();
        assert_eq!(numbers, [0, 1, 2]);
    }

    #[test]
    fn a_full_queue_turns_jobs_away_and_a_panic_costs_no_lane() {
        let lanes = Lanes::new("test", 0, 1, 1);
        let (release, blocked) = mpsc::channel::<()>();
        let (started, running) = mpsc::channel();
        lanes
            .submit(Box::new(move |_| {
                started.send(()).unwrap();
                blocked.recv().unwrap();
                panic!("as a test wants it");
            }))
            .unwrap();
        running.recv().unwrap();
        let (tx, rx) = mpsc::channel();
        lanes.submit(Box::new(move |lane| tx.send(lane).unwrap())).unwrap();
        assert!(lanes.submit(Box::new(|_| ())).is_err(), "one running, one waiting: full");
        let (last, done) = mpsc::channel();
        lanes.submit_regardless(Box::new(move |lane| last.send(lane).unwrap()));
        release.send(()).unwrap();
        assert_eq!(rx.recv().unwrap(), 0);
        assert_eq!(done.recv().unwrap(), 0);
    }
}
