//! A store whose plugin runs in another process. It outlives that process: when one dies, the store is opened again in
//! the next, and calls wait for that.

use std::{
    sync::{
        Arc, OnceLock, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use keystead_plugin_api::{Advice, Algorithm, CallClass, algorithm::Operation};
use tokio::{
    sync::watch,
    time::{sleep, timeout, timeout_at},
};
use tracing::level_filters::LevelFilter;

use super::{
    calls::{About, Answer, CallError, Expects, Given},
    gate::{Gate, Place},
    link::Link,
    registry::{Placed, StartError},
    wire::{Order, Work},
};
use crate::{
    Class, Failure, Key, Limits, Load, Request, Surroundings,
    instance::RawListing,
    services::{HostSide, Services},
    threads::{HOUSEKEEPING_DEADLINE, HOUSEKEEPING_QUEUE, hangs, late, shed, silent},
};

/// The first and the longest pause before opening again what a plugin refused to open.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(3));

/// A new start that is this near is waited for; for one that is farther, calls fail at once.
const SOON: Duration = Duration::from_secs(1);

/// How often is looked whether calls are stuck, as a part of how long they may be.
const LOOKS: u32 = 8;

/// A store in a process for plugins.
pub(crate) struct Remote {
    name: Arc<str>,
    placed: Placed,
    services: &'static Services,
    limits: Limits,
    /// As the plugin's first advice made it.
    settled: OnceLock<Settled>,
    housekeeping: Gate,
    phase: watch::Sender<Phase>,
    /// Whether it was when it was asked last.
    well: AtomicBool,
    closed: AtomicBool,
}

/// What follows from limits and advice.
struct Settled {
    lanes: Gate,
    /// How long no call may come back while all lanes are in one.
    stuck_after: Duration,
}

/// Where a store is in its life.
#[derive(Clone)]
enum Phase {
    /// Open, as long as the process lives.
    Open(Session),
    /// About to be open again.
    Opening,
    /// Not open, and not soon.
    Down(Failure),
}

/// A store that is open in one process.
#[derive(Clone)]
struct Session {
    link: Arc<Link>,
    store: u32,
}

impl Remote {
    /// Opens a store.
    pub(crate) async fn open(
        name: &str,
        placed: Placed,
        limits: Limits,
        services: &'static Services,
    ) -> Result<Arc<Self>, Failure> {
        let remote = Arc::new(Self {
            name: name.into(),
            settled: OnceLock::new(),
            housekeeping: Gate::new(1, HOUSEKEEPING_QUEUE),
            placed,
            services,
            limits,
            phase: watch::Sender::new(Phase::Opening),
            well: AtomicBool::new(true),
            closed: AtomicBool::new(false),
        });
        remote.placed.process.admit(&remote);
        let (session, advice) = remote.begin().await?;
        let _ = remote.settled.set(remote.settle(advice));
        remote.phase.send_replace(Phase::Open(session.clone()));
        tokio::spawn(keep(Arc::downgrade(&remote), session));
        Ok(remote)
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn plugin(&self) -> &str {
        &self.placed.file.name
    }

    pub(super) fn services(&self) -> &'static Services {
        self.services
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Relaxed)
    }

    pub(crate) fn limits(&self) -> Limits {
        Limits { lanes: Some(self.lanes().lanes()), ..self.limits }
    }

    pub(crate) fn load(&self) -> Load {
        let (busy, waiting) = self.lanes().load();
        Load { busy, lanes: self.lanes().lanes(), waiting, queue: self.limits.queue }
    }

    fn settle(&self, advice: Advice) -> Settled {
        let stuck_after = self.placed.process.stuck_after().or(advice.stuck_after);
        Settled {
            lanes: Gate::new(advice.lanes.unwrap_or(Limits::LANES), self.limits.queue),
            stuck_after: stuck_after.unwrap_or(Surroundings::STUCK_AFTER),
        }
    }

    fn settled(&self) -> &Settled {
        self.settled.get_or_init(|| self.settle(Advice::default())) // without advice only before it is open
    }

    fn lanes(&self) -> &Gate {
        &self.settled().lanes
    }

    /// Lists the keys.
    pub(crate) async fn keys(&self) -> Result<RawListing, Failure> {
        let (place, session) = self.ready().await?;
        match in_time::<_, _, Failure>(session.list(&self.name, Some(place))).await? {
            Given::Listing(listing) => Ok(listing),
            other => Err(unexpected(&other)),
        }
    }

    /// Asks how it is; answers the generation of the listing.
    pub(crate) async fn health(&self) -> Result<u64, Failure> {
        let (place, session) = self.ready().await?;
        let health = in_time::<_, _, Failure>(session.health(&self.name, place)).await;
        self.well.store(health.is_ok(), Ordering::Relaxed);
        match health? {
            Given::Health(generation) => {
                self.services.opened(); // whatever was presented meanwhile did no harm
                Ok(generation)
            }
            other => Err(unexpected(&other)),
        }
    }

    /// Signs or decrypts. Where the process dies in the call, that is made once more: nothing comes of a call twice
    /// that wouldn't have come of it once. Where it dies while the call waits for a lane, that doesn't count.
    pub(crate) async fn perform(
        &self,
        key: &Arc<Key>,
        algorithm: Algorithm,
        input: &[u8],
        request: Request<'_>,
    ) -> Result<Vec<u8>, Failure> {
        let mut deaths = 0;
        while deaths < 2 {
            let place = self.lanes().enter().ok_or_else(|| shed(self.limits()))?;
            let session = self.session_by(request.deadline).await?;
            let answer = session.perform(&self.name, key, algorithm, input, request, place);
            let given = async { answer?.given().await };
            match timeout_at(request.deadline.into(), given).await {
                Ok(Ok(Given::Result(result))) => return Ok(result),
                Ok(Ok(other)) => return Err(unexpected(&other)),
                Ok(Err(CallError::Waited)) => {}
                Ok(Err(CallError::Gone)) => deaths += 1,
                Ok(Err(CallError::Refused(refusal))) => return Err(refusal.into()),
                Err(_) => {
                    return Err(late());
                }
            }
        }
        Err(Failure::internal("the plugin's process died twice in this call"))
    }

    /// Closes the store within `grace`; says whether it was done by then.
    pub(crate) async fn close(&self, grace: Duration) -> bool {
        let Some(session) = self.part() else { return true };
        let about = About::new("closing", &self.name);
        let order = |call| Order::Close { call, store: session.store, grace };
        match session.link.call(Expects::Done, None, about, 64, order) {
            Ok(answer) => timeout(grace, answer.given()).await.is_ok(),
            Err(_) => true,
        }
    }

    /// Closes the store, and doesn't wait for that.
    pub(crate) fn abandon(&self) {
        if let Some(session) = self.part() {
            session.link.close_unasked(session.store);
        }
    }

    /// Ends the store's life; answers the session, where it has one.
    fn part(&self) -> Option<Session> {
        self.closed.store(true, Ordering::Relaxed);
        let closed = Phase::Down(Failure::new(Class::Unavailable, "the store is closed"));
        match self.phase.send_replace(closed) {
            Phase::Open(session) => Some(session),
            Phase::Opening | Phase::Down(_) => None,
        }
    }

    async fn session_by(&self, deadline: Instant) -> Result<Session, Failure> {
        if let Some(session) = self.open_session() {
            return Ok(session); // without a timer
        }
        let in_time = timeout_at(deadline.into(), self.session()).await;
        in_time.unwrap_or_else(|_| {
            let what = "the plugin's process was not back within the deadline";
            Err(Failure::new(Class::Deadline, what))
        })
    }

    fn open_session(&self) -> Option<Session> {
        match &*self.phase.borrow() {
            Phase::Open(session) if !session.link.is_closed() => Some(session.clone()),
            _ => None,
        }
    }

    /// The session for a call that begins now: waited for while the store is about to be open again.
    async fn session(&self) -> Result<Session, Failure> {
        if let Some(session) = self.open_session() {
            return Ok(session);
        }
        let settled = |phase: &Phase| match phase {
            Phase::Open(session) => !session.link.is_closed(),
            Phase::Opening => false,
            Phase::Down(_) => true,
        };
        match self.phase.subscribe().wait_for(settled).await.as_deref() {
            Ok(Phase::Open(session)) => Ok(session.clone()),
            Ok(Phase::Down(failure)) => Err(failure.clone()),
            Ok(Phase::Opening) | Err(_) => Err(Failure::new(Class::Unavailable, "the store is not open")),
        }
    }

    /// A place for housekeeping, and the session.
    async fn ready(&self) -> Result<(Place, Session), Failure> {
        let place = self.housekeeping.enter().ok_or_else(hangs)?;
        Ok((place, in_time::<_, _, Failure>(self.session()).await?))
    }

    /// Opens the store in the process that runs, or in a new one.
    async fn begin(&self) -> Result<(Session, Advice), StartError> {
        let Placed { process, file, .. } = &self.placed;
        let link = process.link().await?;
        let store = link.number();
        let began = async {
            let (plugin, _) = link.load(file).await?;
            link.attach(store, self.services);
            let config = self.services.config().unwrap_or_default();
            let about = About::new("opening", &self.name);
            let (level, lanes) = (level(), self.limits.lanes);
            let order = |call| Order::Open { call, plugin, store, level, lanes, config: &config };
            let given =
                link.call(Expects::Opened(store), None, about, 64 + config.len(), order)?.given().await?;
            Ok::<_, StartError>(if let Given::Opened(advice) = given { advice } else { Advice::default() })
        };
        let advice = match in_time::<_, _, StartError>(began).await {
            Ok(advice) => advice,
            Err(error) => {
                if matches!(error, StartError::Died) {
                    link.gone().await; // its death has consequences: for PINs, for instance
                }
                return Err(error);
            }
        };
        self.services.opened();
        Ok((Session { link: Arc::clone(&link), store }, advice))
    }

    /// Opens it again in a new process. A plugin may serve only what it has listed, so it lists its keys once more.
    async fn begin_again(&self) -> Result<Session, StartError> {
        let (session, _) = self.begin().await?;
        in_time::<_, _, StartError>(session.list(&self.name, None)).await?;
        Ok(session)
    }

    /// Goes on in a new process, until that succeeds or can't any more.
    async fn recover(&self) -> Option<Session> {
        let mut back_off = BACK_OFF.0;
        while !self.is_closed() {
            let pause = match self.begin_again().await {
                Ok(session) => return Some(session),
                Err(StartError::Failed(failure)) => {
                    let hopeless = failure.class == Class::Credentials;
                    self.set(Phase::Down(failure));
                    if hopeless {
                        return None; // no second attempt with the same secret
                    }
                    let next = (back_off * 2).min(BACK_OFF.1);
                    std::mem::replace(&mut back_off, next)
                }
                Err(StartError::Died) => Duration::ZERO, // the breaker says how to go on
                Err(StartError::NotNow(not_now)) => {
                    let pause = not_now.pause;
                    self.set(if pause < SOON { Phase::Opening } else { Phase::Down(not_now.into()) });
                    pause
                }
            };
            sleep(pause).await;
        }
        None
    }

    /// Changes the phase, unless the store is closed.
    fn set(&self, phase: Phase) {
        self.phase.send_if_modified(|before| {
            let open = !self.is_closed();
            if open {
                *before = phase;
            }
            open
        });
    }

    /// Ends the process where calls hang too long: all that the lanes let through or, in a store that isn't well, any. A
    /// library that a call hangs in can't be initialised anew, which may be all that helps.
    fn look_for_stuck_calls(&self, link: &Link) {
        let (limit, name, calls) = (self.settled().stuck_after, &self.name, link.calls());
        let lanes = self.lanes().lanes();
        if self.lanes().silent_for() >= limit && calls.pending_for(name, lanes) >= limit {
            link.condemn(format!(
                "all {lanes} lanes of store `{name}` were stuck in calls, and none came back for {limit:?}"
            ));
        } else if !self.well.load(Ordering::Relaxed) && calls.pending_for(name, 1) >= limit {
            link.condemn(format!("store `{name}` was not well, and a call in it hung for {limit:?}"));
        }
    }
}

/// Opens a store again whenever its process has died. Ends with the store.
async fn keep(remote: Weak<Remote>, mut session: Session) {
    let Some(interval) = remote.upgrade().map(|remote| remote.settled().stuck_after / LOOKS) else {
        return;
    };
    loop {
        while timeout(interval, session.link.gone()).await.is_err() {
            match remote.upgrade().filter(|remote| !remote.is_closed()) {
                Some(remote) => remote.look_for_stuck_calls(&session.link),
                None => return,
            }
        }
        let Some(remote) = remote.upgrade().filter(|remote| !remote.is_closed()) else { return };
        remote.set(Phase::Opening);
        let Some(next) = remote.recover().await else { return };
        remote.set(Phase::Open(next.clone()));
        if remote.is_closed() {
            next.link.close_unasked(next.store);
            return;
        }
        remote.services.keys_changed(); // while it was away, they may have
        tracing::info!(
            store = &*remote.name,
            process = remote.placed.process.name(),
            "the store is open again"
        );
        session = next;
    }
}

impl Session {
    async fn list(&self, name: &str, place: Option<Place>) -> Result<Given, CallError> {
        let about = About::new("listing the keys", name);
        let (store, nanos_left) = (self.store, nanos(HOUSEKEEPING_DEADLINE));
        let order = |call| Order::Keys { call, store, nanos_left };
        self.link.call(Expects::Listing(RawListing::default()), place, about, 64, order)?.given().await
    }

    async fn health(&self, name: &str, place: Place) -> Result<Given, CallError> {
        let about = About::new("asking for the health", name);
        let (store, nanos_left) = (self.store, nanos(HOUSEKEEPING_DEADLINE));
        let order = |call| Order::Health { call, store, nanos_left, level: level() };
        self.link.call(Expects::Health, Some(place), about, 64, order)?.given().await
    }

    fn perform(
        &self,
        name: &Arc<str>,
        key: &Arc<Key>,
        algorithm: Algorithm,
        input: &[u8],
        request: Request<'_>,
        place: Place,
    ) -> Result<Answer, CallError> {
        let decrypt = algorithm.operation() == Operation::Decrypt;
        let work = Work {
            decrypt,
            inline: key.call_class() == CallClass::Inline,
            nanos_left: nanos(request.deadline.saturating_duration_since(Instant::now())),
            algorithm: algorithm.number(),
            capacity: u32::try_from(key.result_max()).unwrap_or(u32::MAX),
            key: key.id(),
            input,
            request_id: request.id,
        };
        let doing = if decrypt { "decrypting" } else { "signing" };
        let about = About { doing, key: Some(Arc::clone(key)), store: Arc::clone(name) };
        let (size, store) = (work.size(), self.store);
        let order = |call| Order::Perform { call, store, work };
        self.link.call(Expects::Result(key.result_max()), Some(place), about, size, order)
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX - 1)
}

/// The level of the log that is wanted, as the contract numbers them.
fn level() -> u32 {
    match LevelFilter::current() {
        LevelFilter::OFF => 0,
        LevelFilter::ERROR => 1,
        LevelFilter::WARN => 2,
        LevelFilter::INFO => 3,
        LevelFilter::DEBUG => 4,
        _ => 5,
    }
}

/// What comes of it within the time for opening, listing and health.
async fn in_time<T, E, F: From<E> + From<Failure>>(call: impl Future<Output = Result<T, E>>) -> Result<T, F> {
    match timeout(HOUSEKEEPING_DEADLINE, call).await {
        Ok(given) => given.map_err(F::from),
        Err(_) => Err(silent().into()),
    }
}

fn unexpected(given: &Given) -> Failure {
    Failure::internal(format!("the process gave {given:?} for something else"))
}
