//! Sessions on one token: as many as there are lanes at work on it, and no more than it allows.
//!
//! A lane takes an idle session or opens one, so that a token never has more sessions than lanes that were busy at
//! once. Where that is capped, lanes wait in line: each gets its turn in the order it came, within its deadline.

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc::{SyncSender, sync_channel},
    },
    time::{Duration, Instant},
};

use cryptoki::object::ObjectHandle;
use keystead_plugin_api::{Code, Error};

use crate::{ckr, keys::KeyId, module::Lease};

/// How long a call without a deadline waits for a session, as gokeyless does.
const WAIT: Duration = Duration::from_secs(10);

/// A session, and the handles that are good in it.
pub(crate) struct Session {
    pub(crate) raw: cryptoki::session::Session,
    pub(crate) handles: HashMap<KeyId, ObjectHandle>,
    /// What the token was in when it was opened: each loss of a login or of the token begins another.
    pub(crate) generation: u64,
    /// Dropped last, when the session is closed.
    pub(crate) _lease: Lease,
}

/// The sessions of one token.
pub(crate) struct Pool {
    idle: Mutex<Idle>,
    gate: Gate,
}

/// Sessions that nobody works with, the longest idle first.
#[derive(Default)]
struct Idle {
    sessions: Vec<Session>,
    /// Those of generations before are worth nothing, and closed instead of kept.
    generation: u64,
}

impl Idle {
    /// Keeps a session, or gives it back where it is worth nothing. Nothing may stay behind from before: it would keep
    /// the module from being initialised anew.
    fn keep(&mut self, session: Session) -> Option<Session> {
        if session.generation < self.generation {
            return Some(session);
        }
        self.sessions.push(session);
        None
    }
}

impl Pool {
    /// A pool without a limit, so far.
    pub(crate) fn new() -> Self {
        Self { idle: Mutex::default(), gate: Gate::new(u32::MAX) }
    }

    /// Opens no more than so many sessions at once from now on; where the token then turns out to have fewer, no more
    /// than that, until this is called again.
    pub(crate) fn limit(&self, sessions: u32) {
        self.gate.limit(sessions);
    }

    /// Works with a session of a generation that nobody else uses meanwhile, opened by `open` where none is idle.
    ///
    /// # Errors
    ///
    /// Where no session gets free in time, and those of `open` and `work`.
    pub(crate) fn with<T>(
        &self,
        deadline: Option<Instant>,
        generation: u64,
        open: impl Fn() -> Result<Session, Error>,
        work: impl FnOnce(&mut Session) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let mut pass = self.gate.enter(deadline)?;
        let mut session = match self.pop(generation).map_or_else(&open, Ok) {
            // The token has fewer sessions than was thought.
            Err(error) if error.code == Code::Throttled && pass.close_gate() => {
                pass = self.gate.enter(deadline)?;
                self.pop(generation).map_or_else(open, Ok)?
            }
            session => session?,
        };
        let done = work(&mut session);
        match done.as_ref().err().is_none_or(ckr::spares_session) {
            true => self.keep(session),
            false => drop(session),
        }
        drop(pass); // only now, so that whoever is next finds the session, or room for a new one
        done
    }

    /// Does something with each session that nobody works with, the longest idle first; one for which it fails is
    /// closed. As long as lanes are waiting, none is idle.
    pub(crate) fn touch(&self, generation: u64, mut work: impl FnMut(&Session) -> bool) {
        let all = self.idle().sessions.len();
        for _ in 0..all {
            let Some(pass) = self.gate.try_enter() else { return };
            let oldest = {
                let sessions = &mut self.idle().sessions;
                if sessions.is_empty() { None } else { Some(sessions.remove(0)) }
            };
            let Some(session) = oldest.filter(|session| session.generation == generation) else { continue };
            match work(&session) {
                true => self.keep(session),
                false => drop(session),
            }
            drop(pass);
        }
    }

    /// How many lanes may work at once, where some had to wait for that reason.
    pub(crate) fn bottleneck(&self) -> Option<u32> {
        self.gate.crowded.load(Ordering::Relaxed).then(|| self.gate.line().limit)
    }

    /// Closes the sessions that nobody works with.
    pub(crate) fn close(&self) {
        self.begin(0);
    }

    /// Likewise, and from now on those of generations before that one as soon as nobody works with them.
    pub(crate) fn begin(&self, generation: u64) {
        let sessions = {
            let mut idle = self.idle();
            idle.generation = idle.generation.max(generation);
            std::mem::take(&mut idle.sessions)
        };
        drop(sessions); // unlocked: closing a session on a device that is gone may take long
    }

    fn keep(&self, session: Session) {
        let worthless = self.idle().keep(session);
        drop(worthless); // unlocked, as above
    }

    /// An idle session of a generation; those of others are worth nothing, and closed.
    fn pop(&self, generation: u64) -> Option<Session> {
        loop {
            let session = self.idle().sessions.pop()?;
            if session.generation == generation {
                return Some(session);
            }
        }
    }

    fn idle(&self) -> MutexGuard<'_, Idle> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Lets a limited number through at once, in the order they came.
struct Gate {
    line: Mutex<Line>,
    /// Whether anybody ever had to wait.
    crowded: AtomicBool,
}

struct Line {
    limit: u32,
    inside: u32,
    /// Those who wait, by ticket; a message means that the place of one who left is theirs.
    waiting: VecDeque<(u64, SyncSender<()>)>,
    tickets: u64,
}

impl Line {
    /// Enters where there is a place, and nobody waits for it.
    fn enter(&mut self) -> bool {
        let free = self.inside < self.limit && self.waiting.is_empty();
        self.inside += u32::from(free);
        free
    }
}

impl Gate {
    fn new(limit: u32) -> Self {
        let line = Line { limit: limit.max(1), inside: 0, waiting: VecDeque::new(), tickets: 0 };
        Self { line: Mutex::new(line), crowded: AtomicBool::new(false) }
    }

    /// Lets another number through at once, and those in whose places that is.
    fn limit(&self, limit: u32) {
        let mut line = self.line();
        line.limit = limit.max(1);
        while line.inside < line.limit {
            let Some((_, turn)) = line.waiting.pop_front() else { return };
            line.inside += u32::from(turn.send(()).is_ok());
        }
    }

    /// Enters where nobody waits.
    fn try_enter(&self) -> Option<Pass<'_>> {
        let entered = self.line().enter();
        entered.then(|| Pass { gate: Some(self) })
    }

    fn enter(&self, deadline: Option<Instant>) -> Result<Pass<'_>, Error> {
        let (ticket, turn) = {
            let mut line = self.line();
            if line.enter() {
                return Ok(Pass { gate: Some(self) });
            }
            line.tickets += 1;
            let (sender, turn) = sync_channel(1);
            let ticket = line.tickets;
            line.waiting.push_back((ticket, sender));
            (ticket, turn)
        };
        self.crowded.store(true, Ordering::Relaxed);
        let wait = time_left(deadline).map_or(WAIT, |left| left.min(WAIT));
        if turn.recv_timeout(wait).is_err() {
            self.give_up(ticket, deadline)?;
        }
        Ok(Pass { gate: Some(self) })
    }

    /// Leaves the line, unless the turn came at the last moment.
    fn give_up(&self, ticket: u64, deadline: Option<Instant>) -> Result<(), Error> {
        let mut line = self.line();
        let Some(at) = line.waiting.iter().position(|(waiting, _)| *waiting == ticket) else { return Ok(()) };
        line.waiting.remove(at);
        let late = time_left(deadline).is_some_and(|left| left.is_zero());
        let code = if late { Code::Deadline } else { Code::Throttled };
        Err(Error::new(code, format!("no session got free in time: all {} were busy", line.limit)))
    }

    fn leave(&self) {
        let mut line = self.line();
        if line.inside <= line.limit {
            while let Some((_, turn)) = line.waiting.pop_front() {
                if turn.send(()).is_ok() {
                    return;
                }
            }
        }
        line.inside -= 1;
    }

    fn line(&self) -> MutexGuard<'_, Line> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn time_left(deadline: Option<Instant>) -> Option<Duration> {
    deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()))
}

/// The right to one session, until dropped.
struct Pass<'a> {
    gate: Option<&'a Gate>,
}

impl Pass<'_> {
    /// Gives the pass back and lowers the limit to those who are inside beside it; false where there is nobody else.
    fn close_gate(&mut self) -> bool {
        let Some(gate) = self.gate else { return false };
        let mut line = gate.line();
        if line.inside < 2 {
            return false;
        }
        line.inside -= 1;
        line.limit = line.inside;
        self.gate = None;
        tracing::warn!(
            sessions = line.limit,
            "the token opens no further session; lanes share those there are"
        );
        true
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        if let Some(gate) = self.gate {
            gate.leave();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::mpsc::channel, thread};

    use super::*;

    fn soon() -> Option<Instant> {
        Some(Instant::now() + Duration::from_millis(1))
    }

    fn waiting(gate: &Gate) -> usize {
        gate.line().waiting.len()
    }

    #[test]
    fn lets_so_many_through_and_no_more() {
        let gate = Gate::new(2);
        let first = gate.enter(None).unwrap();
        let _second = gate.enter(None).unwrap();
        assert!(!gate.crowded.load(Ordering::Relaxed));
        assert_eq!(gate.enter(soon()).err().unwrap().code, Code::Deadline);
        assert!(gate.crowded.load(Ordering::Relaxed));
        drop(first);
        gate.enter(soon()).unwrap();
    }

    #[test]
    fn a_limit_that_is_raised_lets_those_in_who_wait() {
        let gate = Gate::new(1);
        let inside = gate.enter(None).unwrap();
        thread::scope(|scope| {
            let waiter = scope.spawn(|| gate.enter(None).is_ok());
            while waiting(&gate) == 0 {
                thread::yield_now();
            }
            gate.limit(2);
            assert!(waiter.join().unwrap());
        });
        drop(inside);
        assert_eq!(gate.line().inside, 0);
    }

    #[test]
    fn takes_turns_in_the_order_of_coming() {
        let gate = Gate::new(1);
        let inside = gate.enter(None).unwrap();
        let (done, order) = channel();
        thread::scope(|scope| {
            for turn in 0..4 {
                let (gate, done) = (&gate, done.clone());
                scope.spawn(move || {
                    let _pass = gate.enter(None).unwrap();
                    done.send(turn).unwrap();
                });
                while waiting(gate) <= turn {
                    thread::yield_now();
                }
            }
            drop(inside);
        });
        assert_eq!(order.try_iter().collect::<Vec<_>>(), [0, 1, 2, 3]);
        assert_eq!(gate.line().inside, 0);
    }

    #[test]
    fn one_who_gives_up_loses_nobody_elses_turn() {
        let gate = Gate::new(1);
        let inside = gate.enter(None).unwrap();
        assert!(gate.enter(soon()).is_err());
        assert_eq!(waiting(&gate), 0);
        drop(inside);
        assert_eq!(gate.line().inside, 0);
        gate.enter(soon()).unwrap();
    }

    #[test]
    fn a_token_with_fewer_sessions_than_lanes_closes_the_gate_behind_them() {
        let gate = Gate::new(u32::MAX);
        let mut alone = gate.enter(None).unwrap();
        assert!(!alone.close_gate(), "there is no other session to wait for");
        let mut second = gate.enter(None).unwrap();
        assert!(second.close_gate());
        assert_eq!(gate.enter(soon()).err().unwrap().code, Code::Deadline);
        drop((alone, second));
        gate.enter(soon()).unwrap();
    }
}
