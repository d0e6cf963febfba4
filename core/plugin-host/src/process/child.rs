//! A process for plugins, from the inside: takes orders, has threads carry them out, and answers.
//!
//! The loader is the host's own, and so is the adapter of the plugin's table. What the plugin asks its host for, it asks
//! of a [`HostSide`] that passes it on.

use std::{
    collections::{HashMap, VecDeque},
    fs::File,
    io::{self, IoSlice, Read, Write},
    num::NonZero,
    os::unix::net::UnixStream,
    path::Path,
    process::ExitCode,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, AtomicU64, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use keystead_plugin_api::{
    Advice, Code, Error, Isolation,
    abi::{LANE_HOUSEKEEPING, LANE_INLINE},
    algorithm::Operation,
};
use serde::Serialize;
use tokio::runtime::Handle;
use zeroize::Zeroizing;

use super::{
    confine, crash, lock,
    wire::{self, Described, Fault, Frame, Inbox, Message, Order, Reply, Told},
};
use crate::{
    Class, Failure, Limits,
    instance::{Call, Instance, Refusal},
    lanes::Lanes,
    load::{Opened, Plugin},
    reach::{Ask, Reach, Reached},
    services::{Event, HostSide},
};

/// How many brief calls a thread makes in turn, at least: fewer aren't worth waking another.
const IN_TURN: usize = 4;

/// How long an answer is held back for those of the calls behind it, about.
const HELD_BACK: Duration = Duration::from_micros(100);

/// The longest text of an event that is sent to the host, which cuts it anyway, in bytes.
const EVENT_MAX: usize = 2048;

/// Runs a process for plugins: what the [`Launcher`](super::Launcher)'s program does. Never returns while the host wants
/// the process; standard input is the socket to the host.
///
/// Call it before anything else: no thread may run yet.
#[must_use]
pub fn process_main() -> ExitCode {
    end(begin().and_then(|process| process.serve()))
}

/// Ends the process, whatever its threads are about.
fn end(how: io::Result<()>) -> ! {
    let status = match how {
        Ok(()) => 0,
        Err(error) => {
            // Standard error leads to the host's log; there is no other place to say it.
            let _ = writeln!(
                io::stderr(),
                "a process for plugins, which only the server starts, can't go on: {error}"
            );
            1
        }
    };
    // SAFETY: `_exit` ends the process and touches nothing of it. Vendors' libraries have handlers that run at an
    // ordinary end, and some hang or crash in them.
    unsafe { libc::_exit(status) }
}

/// Confines the process, as the host's first order says.
fn begin() -> io::Result<Arc<Process>> {
    let mut inbox = Inbox::new();
    let (call, confinement) = loop {
        let bytes = rustix::io::read(rustix::stdio::stdin(), inbox.room())?;
        if bytes == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        inbox.filled(bytes);
        if let Some(frame) = inbox.next().map_err(io::Error::other)? {
            match wire::message(frame).map_err(io::Error::other)? {
                Order::Confine { call, confinement } => break (call, confinement),
                other => return Err(io::Error::other(format!("the first order is {other:?}"))),
            }
        }
    };
    let confined = confine::confine(&confinement);
    let socket = UnixStream::from(rustix::stdio::stdin().try_clone_to_owned()?);
    rustix::stdio::dup2_stdin(File::open("/dev/null")?)?; // a plugin that reads or closes it does no harm
    crash::report_crashes()?;
    let process = Process::new(socket)?;
    let missing = "the kernel can't deny system calls (seccomp)";
    let confined = confined.map(|confined| if confined.seccomp { "" } else { missing });
    let confined =
        confined.map_err(|problem| Refusal::new(Code::Denied, format!("the plugin's process {problem}")));
    process.outbox.done(call, confined.as_ref().map(|missing| Reply::Confined(missing)));
    Ok(process)
}

/// The process: its plugins and stores, and the way to the host.
struct Process {
    outbox: Arc<Outbox>,
    plugins: Mutex<HashMap<u32, Arc<Plugin>>>,
    stores: Mutex<HashMap<u32, Arc<Held>>>,
    workers: Lanes,
    processors: usize,
}

/// An open store.
struct Held {
    instance: Arc<dyn Instance>,
    side: &'static Afar,
    /// For calls to its blocking keys. How many wait for them is the host's to bound.
    lanes: Lanes,
    /// For listings and health.
    housekeeping: Lanes,
}

/// As many as the host lets through.
const UNBOUNDED: usize = usize::MAX >> 1;

impl Process {
    fn new(socket: UnixStream) -> io::Result<Arc<Self>> {
        let outbox = Arc::new(Outbox::new(socket));
        // As many threads as calls; how many of those there are is the host's to bound.
        let workers = Lanes::new("plugins", 0, u32::MAX, UNBOUNDED);
        let processors = thread::available_parallelism().map_or(1, NonZero::get);
        Ok(Arc::new(Self {
            outbox,
            plugins: Mutex::default(),
            stores: Mutex::default(),
            workers,
            processors,
        }))
    }

    /// Takes orders until the host closes the socket.
    fn serve(self: &Arc<Self>) -> io::Result<()> {
        let mut inbox = Inbox::new();
        loop {
            let bytes = (&self.outbox.socket).read(inbox.room())?;
            if bytes == 0 {
                return Ok(());
            }
            inbox.filled(bytes);
            let mut brief = Vec::new();
            while let Some(frame) = inbox.next().map_err(io::Error::other)? {
                self.take(wire::message(frame).map_err(io::Error::other)?, &mut brief)?;
            }
            self.perform_in_turn(brief);
        }
    }

    /// Carries an order out, or has a thread do it; calls of class inline are put with the others of the same read.
    fn take(self: &Arc<Self>, order: Order<'_>, brief: &mut Vec<Task>) -> io::Result<()> {
        match order {
            Order::Confine { .. } => return Err(io::Error::other("it is confined already")),
            Order::Load { call, plugin, file, sha256 } => self.work(move |process| {
                let loaded = load(&file, sha256.as_ref());
                process.loaded(call, plugin, loaded);
            }),
            Order::Group { call, plugin, config } => {
                let config = Zeroizing::new(config.to_vec());
                self.work(move |process| process.group(call, plugin, &config));
            }
            Order::Open { call, plugin, store, level, lanes, config } => {
                let config = Zeroizing::new(config.to_vec());
                self.work(move |process| process.open(call, plugin, (store, level), lanes, config));
            }
            Order::Keys { call, store, nanos_left } => self.with(call, store, move |process, held| {
                process.list(call, held, deadline(nanos_left));
            }),
            Order::Health { call, store, nanos_left, level } => {
                self.with(call, store, move |process, held| {
                    held.side.level.store(level, Ordering::Relaxed);
                    let health = held.instance.health(&housekeeping(deadline(nanos_left)));
                    process.outbox.done(call, health.as_ref().map(|generation| Reply::Health(*generation)));
                })
            }
            Order::Perform { call, store, work } => match lock(&self.stores).get(&store).cloned() {
                Some(held) if work.inline => brief.push(Task::new(call, held, &work)),
                Some(held) => {
                    let (process, task) = (Arc::clone(self), Task::new(call, Arc::clone(&held), &work));
                    held.lanes.submit_regardless(Box::new(move |lane| process.outbox.send(task.run(lane))));
                }
                None => self.outbox.done(call, Err(&no_such("store"))),
            },
            Order::Close { call, store, grace } => self.close(call, store, grace),
            Order::Told { ask, told } => self.outbox.told(ask, told),
        }
        Ok(())
    }

    /// Has a thread do it: nothing that a plugin does may keep orders from being taken.
    fn work(self: &Arc<Self>, job: impl FnOnce(&Arc<Self>) + Send + 'static) {
        let process = Arc::clone(self);
        self.workers.submit_regardless(Box::new(move |_| job(&process)));
    }

    /// Likewise, on the housekeeping lane of a store.
    fn with(self: &Arc<Self>, call: u64, store: u32, job: impl FnOnce(&Arc<Self>, &Held) + Send + 'static) {
        match lock(&self.stores).get(&store).cloned() {
            Some(held) => {
                let (process, own) = (Arc::clone(self), Arc::clone(&held));
                held.housekeeping.submit_regardless(Box::new(move |_| job(&process, &own)));
            }
            None => self.outbox.done(call, Err(&no_such("store"))),
        }
    }

    fn loaded(&self, call: u64, number: u32, loaded: Result<Plugin, Failure>) {
        let plugin = match loaded {
            Ok(plugin) => Arc::new(plugin),
            Err(failure) => return self.outbox.done(call, Err(&refusal(failure))),
        };
        lock(&self.plugins).insert(number, Arc::clone(&plugin));
        let said = &plugin.description;
        let described = Described {
            name: &said.name,
            version: &said.version,
            vendor: &said.vendor,
            process: said.isolation == Isolation::Process,
            lanes_max: said.lanes_max,
            schema: said.schema.to_string().into(),
        };
        self.outbox.done(call, Ok(Reply::Loaded(described)));
    }

    fn group(&self, call: u64, plugin: u32, config: &[u8]) {
        let group = self.plugin(plugin).and_then(|plugin| Ok(plugin.isolation_group(config)?));
        self.outbox.done(call, group.as_ref().map(|group| Reply::Group(group.as_deref())));
    }

    fn open(
        &self,
        call: u64,
        plugin: u32,
        (store, level): (u32, u32),
        lanes: Option<u32>,
        config: Zeroizing<Vec<u8>>,
    ) {
        let side: &'static Afar = Box::leak(Box::new(Afar {
            store,
            level: AtomicU32::new(level),
            config: Mutex::new(Some(config)),
            outbox: Arc::clone(&self.outbox),
        }));
        let opened = self.plugin(plugin).and_then(|plugin| {
            let instance = plugin.open(side, 0)?;
            let Advice { lanes: advised, stuck_after } = instance.advice();
            let lanes = Limits { lanes, queue: UNBOUNDED }.lanes(advised, plugin.description.lanes_max);
            let held = Held {
                instance,
                side,
                lanes: Lanes::new("lane", 0, lanes, UNBOUNDED),
                housekeeping: Lanes::new("housekeeping", LANE_HOUSEKEEPING, 1, UNBOUNDED),
            };
            lock(&self.stores).insert(store, Arc::new(held));
            Ok((lanes, stuck_after))
        });
        let opened = opened.as_ref().map(|&(lanes, stuck_after)| Reply::Opened { lanes, stuck_after });
        self.outbox.done(call, opened);
    }

    fn plugin(&self, number: u32) -> Result<Arc<Plugin>, Refusal> {
        lock(&self.plugins).get(&number).cloned().ok_or_else(|| no_such("plugin"))
    }

    fn list(&self, call: u64, held: &Held, deadline: Option<Instant>) {
        let listing = held.instance.keys(&housekeeping(deadline));
        if let Ok(listing) = &listing {
            wire::pages(call, listing).for_each(|page| self.outbox.post(&page, 64 << 10));
        }
        self.outbox.done(call, listing.as_ref().map(|_| Reply::Done));
    }

    /// Has as many threads as there are processors make brief calls, each several in turn: to wake a thread for each, and
    /// to write each answer by itself, would cost as much as the call.
    fn perform_in_turn(self: &Arc<Self>, mut tasks: Vec<Task>) {
        while !tasks.is_empty() {
            let some = tasks.len().div_ceil(self.processors).max(IN_TURN).min(tasks.len());
            let some: Vec<Task> = tasks.drain(..some).collect();
            self.work(move |process| {
                let (mut answers, mut since) = (Vec::new(), Instant::now());
                for task in some {
                    answers.extend(task.run(LANE_INLINE));
                    if since.elapsed() > HELD_BACK {
                        process.outbox.send(answers.drain(..));
                        since = Instant::now();
                    }
                }
                process.outbox.send(answers);
            });
        }
    }

    fn close(self: &Arc<Self>, call: u64, store: u32, grace: Duration) {
        match lock(&self.stores).remove(&store) {
            Some(held) => self.work(move |process| {
                held.instance.close(grace);
                *lock(&held.side.config) = None;
                process.outbox.done(call, Ok(Reply::Done));
            }),
            None => self.outbox.done(call, Err(&no_such("store"))),
        }
    }
}

/// One call to a key.
struct Task {
    call: u64,
    held: Arc<Held>,
    operation: Operation,
    algorithm: u32,
    deadline: Option<Instant>,
    capacity: usize,
    key: Vec<u8>,
    input: Vec<u8>,
    request_id: String,
}

impl Task {
    fn new(call: u64, held: Arc<Held>, work: &wire::Work<'_>) -> Self {
        Self {
            call,
            held,
            operation: work.operation(),
            algorithm: work.algorithm,
            deadline: deadline(work.nanos_left),
            capacity: work.capacity as usize,
            key: work.key.to_vec(),
            input: work.input.to_vec(),
            request_id: work.request_id.to_owned(),
        }
    }

    /// Makes the call; answers with the frame of its answer. Where nobody waits any more, the device is spared it.
    fn run(self, lane: u32) -> Option<Frame> {
        if self.deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            return answer(
                self.call,
                Err(&Refusal::new(Code::Deadline, "every lane was busy until the deadline")),
            );
        }
        let mut out = vec![0; self.capacity];
        let context = Call { lane, deadline: self.deadline, request_id: &self.request_id };
        let done = self.held.instance.perform(
            &context,
            self.operation,
            &self.key,
            self.algorithm,
            &self.input,
            &mut out,
        );
        let result = done.as_ref().map(|len| Reply::Result(out.get(..*len).unwrap_or_default()));
        answer(self.call, result)
    }
}

/// The frame of an answer; `None` where it is longer than any that is believed.
fn answer(call: u64, outcome: Result<Reply<'_>, &Refusal>) -> Option<Frame> {
    let size = if let Ok(Reply::Result(result)) = &outcome { 32 + result.len() } else { 256 };
    wire::frame(&Message::Done { call, outcome: outcome.map_err(Into::into) }, size).ok()
}

fn load(file: &Path, sha256: Option<&[u8; 32]>) -> Result<Plugin, Failure> {
    Opened::open(file)?.check(sha256)?.map()?.examine()
}

fn no_such(what: &str) -> Refusal {
    Refusal::new(Code::NotFound, format!("there is no such {what} in this process"))
}

/// A failure of the loader, as the contract puts it.
fn refusal(failure: Failure) -> Refusal {
    let code = match failure.class {
        Class::NotFound => Code::NotFound,
        Class::Denied => Code::Denied,
        Class::InvalidInput => Code::InvalidInput,
        Class::Unavailable => Code::Unavailable,
        _ => Code::Internal,
    };
    Error::new(code, failure.message).into()
}

fn deadline(nanos_left: u64) -> Option<Instant> {
    (nanos_left != u64::MAX).then(|| Instant::now().checked_add(Duration::from_nanos(nanos_left))).flatten()
}

fn housekeeping(deadline: Option<Instant>) -> Call<'static> {
    Call { lane: LANE_HOUSEKEEPING, deadline, request_id: "" }
}

/// The way to the host. Whoever has something to say while another thread writes leaves it to that one, so that answers
/// which are ready together leave together.
struct Outbox {
    socket: UnixStream,
    waiting: Mutex<Waiting>,
    asks: Mutex<HashMap<u64, mpsc::Sender<Heard>>>,
    next: AtomicU64,
}

#[derive(Default)]
struct Waiting {
    frames: VecDeque<Frame>,
    /// Whether a thread is writing; it takes all there is.
    written: bool,
}

/// What the host told.
enum Heard {
    Secret(Zeroizing<Vec<u8>>),
    NoSecret,
    Unreadable,
    Refused(bool),
    Reached(Result<Reached, Refusal>),
}

impl Outbox {
    fn new(socket: UnixStream) -> Self {
        Self { socket, waiting: Mutex::default(), asks: Mutex::default(), next: AtomicU64::new(0) }
    }

    fn done(&self, call: u64, outcome: Result<Reply<'_>, &Refusal>) {
        self.send(answer(call, outcome));
    }

    fn post(&self, message: &impl Serialize, size: usize) {
        self.send(wire::frame(message, size).ok());
    }

    /// Sends frames, together where there are several.
    fn send(&self, frames: impl IntoIterator<Item = Frame>) {
        let mut waiting = lock(&self.waiting);
        waiting.frames.extend(frames);
        if waiting.written {
            return; // another thread is at it, and takes these along
        }
        waiting.written = true;
        while !waiting.frames.is_empty() {
            let batch = wire::batch(&mut waiting.frames);
            drop(waiting);
            // The host is gone, or a plugin has closed what isn't its own, which the reader doesn't see while it waits.
            if let Err(error) = write_all(&self.socket, &batch) {
                end(Err(error));
            }
            waiting = lock(&self.waiting);
        }
        waiting.written = false;
    }

    /// Asks the host, and waits for what it says; `None` where it is gone.
    fn ask<'m>(&self, size: usize, message: impl FnOnce(u64) -> Message<'m>) -> Option<Heard> {
        let (told, heard) = mpsc::channel();
        let ask = self.next.fetch_add(1, Ordering::Relaxed);
        lock(&self.asks).insert(ask, told);
        self.post(&message(ask), size);
        heard.recv().ok()
    }

    fn told(&self, ask: u64, told: Told<'_>) {
        let heard = match told {
            Told::Secret(secret) => Heard::Secret(Zeroizing::new(secret.to_vec())),
            Told::NoSecret => Heard::NoSecret,
            Told::Unreadable => Heard::Unreadable,
            Told::Refused(refused) => Heard::Refused(refused),
            Told::Reached(reached) => Heard::Reached(reached.map_err(Fault::into_refusal)),
        };
        if let Some(asked) = lock(&self.asks).remove(&ask) {
            let _ = asked.send(heard);
        }
    }
}

fn write_all(mut socket: &UnixStream, batch: &[Frame]) -> io::Result<()> {
    let mut slices: Vec<IoSlice<'_>> = batch.iter().map(|frame| IoSlice::new(frame)).collect();
    let mut rest = slices.as_mut_slice();
    while !rest.is_empty() {
        let written = socket.write_vectored(rest)?;
        IoSlice::advance_slices(&mut rest, written);
    }
    Ok(())
}

/// The host, from a process for plugins.
struct Afar {
    store: u32,
    /// The level of the log that is wanted.
    level: AtomicU32,
    config: Mutex<Option<Zeroizing<Vec<u8>>>>,
    outbox: Arc<Outbox>,
}

impl HostSide for Afar {
    fn wants(&self, level: u32) -> bool {
        level <= self.level.load(Ordering::Relaxed)
    }

    fn log(&self, event: &Event<'_>) {
        let event = Event {
            level: event.level,
            target: cut(event.target),
            message: cut(event.message),
            fields: cut(event.fields),
            request: cut(event.request),
        };
        self.outbox.post(&Message::Log { store: self.store, event }, 512);
    }

    fn config(&self) -> Option<Zeroizing<Vec<u8>>> {
        lock(&self.config).clone()
    }

    fn secret(&self, name: &str) -> Option<Result<Zeroizing<Vec<u8>>, String>> {
        match self.outbox.ask(64 + name.len(), |ask| Message::Secret { ask, store: self.store, name })? {
            Heard::Secret(secret) => Some(Ok(secret)),
            Heard::NoSecret => None,
            _ => Some(Err("it can't be read".to_owned())),
        }
    }

    fn keys_changed(&self) {
        self.outbox.post(&Message::KeysChanged { store: self.store }, 32);
    }

    fn was_refused(&self, token: &[u8], secret: &[u8]) -> bool {
        let size = 64 + token.len() + secret.len();
        let heard = self.outbox.ask(size, |ask| Message::Refused { ask, store: self.store, token, secret });
        !matches!(heard, Some(Heard::Refused(false)))
    }

    fn presented(&self, token: &[u8], secret: &[u8], accepted: bool) {
        let size = 64 + token.len() + secret.len();
        self.outbox.post(&Message::Presented { store: self.store, token, secret, accepted }, size);
    }

    fn reaching(&self) -> Option<(Arc<Reach>, Handle)> {
        None
    }

    fn reach(&self, what: Ask, deadline: Instant) -> Result<Reached, Error> {
        let left = deadline.saturating_duration_since(Instant::now()).as_nanos();
        let nanos_left = u64::try_from(left).unwrap_or(u64::MAX);
        let size = 64 + what.size();
        match self.outbox.ask(size, |ask| Message::Reach { ask, store: self.store, nanos_left, what }) {
            Some(Heard::Reached(reached)) => reached.map_err(|refusal| refusal.error),
            _ => Err(Error::new(Code::Internal, "the server gave no answer")),
        }
    }
}

fn cut(text: &[u8]) -> &[u8] {
    text.get(..EVENT_MAX).unwrap_or(text)
}
