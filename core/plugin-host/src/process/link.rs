//! The host's end of one running process: calls go out in batches and come back in any order. What comes back is
//! distrusted, and whatever it may not say ends the process.

use std::{
    collections::{HashMap, VecDeque},
    io,
    os::unix::process::ExitStatusExt,
    process::{Child, ExitStatus},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use keystead_plugin_api::Code;
use serde::Serialize;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, BufReader},
    net::{
        UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf, pipe},
    },
    sync::{Notify, watch},
    task::{consume_budget, spawn_blocking, yield_now},
    time::{sleep, timeout},
};

use super::{
    PluginFile,
    calls::{About, Answer, CallError, Calls, Expects, Given},
    crash::{self, Crash, Death},
    desk::{Desk, Next},
    gate::Place,
    launch::Launched,
    lock,
    wire::{self, Frame, Inbox, Message, Order, Told},
};
use crate::{
    Description,
    failure::tame,
    instance::Refusal,
    load::FileIdentity,
    quota::Quota,
    reach::{Ask, Reached},
    services::HostSide,
};

/// How many questions of a process may be open at once: it has one for each thread at most.
const ASKS_MAX: usize = 4096;

/// How many answers may wait for a process to take them: no more than its threads have questions, unless it asks without
/// end and reads nothing.
const ANSWERS_MAX: usize = 2 * ASKS_MAX;

/// How much these may take, in bytes: hundreds of the longest secrets.
const ANSWERS_SIZE_MAX: usize = 16 << 20;

/// The longest line of a process' output that is told in whole, in bytes.
const LINE_MAX: usize = 1024;

/// How long a process whose socket is closed may take to end by itself, before it is killed; and how long what it has
/// written last is waited for.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// One running process.
pub(super) struct Link {
    pub(super) pid: u32,
    pub(super) started: Instant,
    child: Mutex<Child>,
    outgoing: Mutex<Outgoing>,
    wake: Notify,
    calls: Calls,
    asks: AtomicU32,
    desk: Desk,
    loaded: tokio::sync::Mutex<HashMap<FileIdentity, (u32, Description)>>,
    numbers: AtomicU32,
    /// No call gets through any more.
    closed: AtomicBool,
    /// Why the host ended it.
    verdict: Mutex<Option<Ending>>,
    /// Told when it did.
    ended: Notify,
    /// Whether its death has been seen to.
    gone: watch::Sender<bool>,
}

/// What waits for a process to take it.
#[derive(Default)]
struct Outgoing {
    /// As many as the lanes of its stores let through.
    calls: VecDeque<Frame>,
    answers: VecDeque<Frame>,
    /// In bytes.
    answers_size: usize,
}

/// Why the host ended a process.
#[derive(Clone, Debug)]
enum Ending {
    /// It isn't needed any more.
    Wanted,
    /// It misbehaved.
    Misbehaved(String),
}

/// How a process ended.
pub(super) enum End {
    /// As it was meant to.
    Wanted,
    /// Otherwise; in one line.
    Died(String),
}

impl Link {
    /// A running process, and what watches over it until its end.
    pub(super) fn new(launched: Launched) -> io::Result<(Arc<Self>, impl Future<Output = End> + Send)> {
        let Launched { child, socket, output } = launched;
        socket.set_nonblocking(true)?;
        let (reading, writing) = UnixStream::from_std(socket)?.into_split();
        let output = pipe::Receiver::from_owned_fd(output.into())?;
        let (pid, desk) = (child.id(), Desk::new(child.id()));
        let link = Arc::new(Self {
            pid,
            started: Instant::now(),
            child: Mutex::new(child),
            outgoing: Mutex::default(),
            wake: Notify::new(),
            calls: Calls::default(),
            asks: AtomicU32::new(0),
            desk,
            loaded: tokio::sync::Mutex::default(),
            numbers: AtomicU32::new(0),
            closed: AtomicBool::new(false),
            verdict: Mutex::default(),
            ended: Notify::new(),
            gone: watch::Sender::new(false),
        });
        let watched = Arc::clone(&link).run(reading, writing, output);
        Ok((link, watched))
    }

    /// Whether calls may still get through.
    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Waits until the process is gone, and its death has been seen to.
    pub(super) async fn gone(&self) {
        let _ = self.gone.subscribe().wait_for(|gone| *gone).await;
    }

    /// Lets those know who wait for that.
    pub(super) fn is_gone(&self) {
        self.gone.send_replace(true);
    }

    /// Ends a process that isn't needed any more.
    pub(super) fn dismiss(&self) {
        self.end(Ending::Wanted);
    }

    /// Ends a process that misbehaves.
    pub(super) fn condemn(&self, why: String) {
        self.end(Ending::Misbehaved(why));
    }

    fn end(&self, ending: Ending) {
        lock(&self.verdict).get_or_insert(ending);
        self.closed.store(true, Ordering::Release);
        self.ended.notify_one();
        let _ = lock(&self.child).kill(); // fails only where it is dead already
    }

    /// The calls that haven't come back.
    pub(super) fn calls(&self) -> &Calls {
        &self.calls
    }

    /// A number for a store.
    pub(super) fn number(&self) -> u32 {
        self.numbers.fetch_add(1, Ordering::Relaxed)
    }

    /// From now on, the process may ask for what this side offers to a store.
    pub(super) fn attach(&self, store: u32, side: &'static dyn HostSide) {
        self.desk.attach(store, side);
    }

    /// Loads a plugin, unless it is loaded; answers its number and what it says it is.
    pub(super) async fn load(&self, plugin: &PluginFile) -> Result<(u32, Description), CallError> {
        let mut loaded = self.loaded.lock().await;
        if let Some(known) = loaded.get(&plugin.identity) {
            return Ok(known.clone());
        }
        let number = self.number();
        let about = About::new("loading its library", &plugin.name);
        let order =
            |call| Order::Load { call, plugin: number, file: plugin.file.clone(), sha256: plugin.sha256 };
        match self.call(Expects::Loaded, None, about, 512, order)?.given().await? {
            Given::Loaded(description) => {
                loaded.insert(plugin.identity, (number, description.clone()));
                Ok((number, description))
            }
            _ => Err(CallError::Gone),
        }
    }

    /// Sends an order whose answer somebody waits for.
    pub(super) fn call<'o>(
        &self,
        expects: Expects,
        place: Option<Place>,
        about: About,
        size: usize,
        order: impl FnOnce(u64) -> Order<'o>,
    ) -> Result<Answer, CallError> {
        if self.is_closed() {
            return Err(CallError::Gone);
        }
        let (call, answer) = self.calls.begin(expects, place, about)?;
        match wire::frame(&order(call), size) {
            Ok(frame) => lock(&self.outgoing).calls.push_back(frame),
            Err(message) => {
                self.calls.withdraw(call);
                return Err(Refusal::new(Code::InvalidInput, message).into());
            }
        }
        self.wake.notify_one();
        Ok(answer)
    }

    /// Tells what the process has asked for.
    fn tell(&self, order: &impl Serialize, size: usize) {
        let told = wire::frame(order, size).and_then(|frame| lock(&self.outgoing).answer(frame));
        match told {
            Ok(()) => self.wake.notify_one(),
            Err(message) => self.condemn(message),
        }
    }

    /// Runs until the process has ended.
    async fn run(
        self: Arc<Self>,
        mut reading: OwnedReadHalf,
        writing: OwnedWriteHalf,
        output: pipe::Receiver,
    ) -> End {
        let writer = tokio::spawn(Arc::clone(&self).write(writing));
        let output = tokio::spawn(forward(output, self.pid));
        let read = tokio::select! {
            read = self.read(&mut reading) => read,
            // What it is connected by may be in other hands: that the host has killed it must do.
            () = self.ended.notified() => Ok(()),
        };
        self.closed.store(true, Ordering::Release);
        let last = self.calls.abandon();
        writer.abort();
        if let Err(Some(violation)) = read {
            self.condemn(violation);
        }
        let status = Arc::clone(&self).wait().await;
        let crash = timeout(LAST_WORDS, output).await.ok().and_then(Result::ok).flatten();
        match (lock(&self.verdict).clone(), status) {
            (Some(Ending::Wanted), _) => End::Wanted,
            (Some(Ending::Misbehaved(why)), _) => {
                End::Died(format!("ended by the server: {why}{}", during(&last)))
            }
            (None, Ok(status)) => End::Died(Death::new(status, crash, last).to_string()),
            (None, Err(error)) => {
                End::Died(format!("its exit status can't be had: {error}{}", during(&last)))
            }
        }
    }

    /// Reads until the end; answers with what the process did wrong, if that is why.
    async fn read(self: &Arc<Self>, socket: &mut OwnedReadHalf) -> Result<(), Option<String>> {
        let mut inbox = Inbox::new();
        loop {
            match socket.read(inbox.room()).await {
                Ok(0) => return Ok(()),
                Ok(bytes) => inbox.filled(bytes),
                Err(_) => return Err(None),
            }
            while let Some(frame) = inbox.next()? {
                self.take(wire::message(frame)?)?;
                consume_budget().await; // one that never stops talking must leave a turn to the others
            }
        }
    }

    async fn write(self: Arc<Self>, socket: OwnedWriteHalf) {
        loop {
            self.wake.notified().await;
            yield_now().await; // others that are ready may have calls of their own, which then leave together
            loop {
                let batch = lock(&self.outgoing).batch();
                if batch.is_empty() {
                    break;
                }
                if write_all(&socket, &batch).await.is_err() {
                    return; // the reader sees the same, and says so
                }
            }
        }
    }

    /// Waits for the process to end; kills it where its socket is closed and it still lives.
    async fn wait(self: Arc<Self>) -> io::Result<ExitStatus> {
        let until = Instant::now() + LAST_WORDS;
        loop {
            match lock(&self.child).try_wait() {
                Ok(Some(status)) => return Ok(status),
                Err(error) => return Err(error),
                Ok(None) => {}
            }
            if Instant::now() > until {
                break;
            }
            sleep(Duration::from_millis(1)).await;
        }
        self.condemn("it closed its connection to the server".to_owned());
        let waited = spawn_blocking(move || lock(&self.child).wait()).await;
        waited.unwrap_or_else(|_| Ok(ExitStatus::from_raw(9)))
    }

    fn take(self: &Arc<Self>, message: Message<'_>) -> Result<(), String> {
        match self.desk.take(&self.calls, message)? {
            Next::Nothing => Ok(()),
            Next::Close(store) => {
                self.close_unasked(store);
                Ok(())
            }
            Next::Tell(ask, told) => {
                self.tell(&Order::Told { ask, told }, 32);
                Ok(())
            }
            Next::LookUp { ask, side, name } => self.look_up(ask, side, name),
            Next::Reach { ask, side, what, time } => self.reach(ask, side, what, time),
        }
    }

    /// Closes a store that nobody has any more.
    pub(super) fn close_unasked(&self, store: u32) {
        let about = About::new("closing a store", "");
        let grace = Duration::ZERO;
        let _ = self.call(Expects::Done, None, about, 64, |call| Order::Close { call, store, grace });
    }

    /// Does something for a store, elsewhere: it may take a while.
    fn reach(
        self: &Arc<Self>,
        ask: u64,
        side: &'static dyn HostSide,
        what: Ask,
        time: Duration,
    ) -> Result<(), String> {
        self.elsewhere(move |link| {
            let reached = side.reach(what, Instant::now() + time).map_err(Refusal::from);
            let size = reached.as_ref().map_or(1024, Reached::size);
            let refusal;
            let reached = match reached {
                Ok(reached) => Ok(reached),
                Err(refused) => {
                    refusal = refused;
                    Err((&refusal).into())
                }
            };
            link.tell(&Order::Told { ask, told: Told::Reached(reached) }, 64 + size);
        })
    }

    /// Reads a secret, elsewhere: its file may be far away.
    fn look_up(self: &Arc<Self>, ask: u64, side: &'static dyn HostSide, name: String) -> Result<(), String> {
        self.elsewhere(move |link| {
            let secret = side.secret(&name);
            let told = match &secret {
                Some(Ok(secret)) => Told::Secret(secret),
                Some(Err(_)) => Told::Unreadable,
                None => Told::NoSecret,
            };
            let size =
                secret.as_ref().and_then(|secret| secret.as_ref().ok()).map_or(0, |secret| secret.len());
            link.tell(&Order::Told { ask, told }, 32 + size);
        })
    }

    /// Answers a question of the process on a thread that may wait.
    fn elsewhere(self: &Arc<Self>, answer: impl FnOnce(&Self) + Send + 'static) -> Result<(), String> {
        if self.asks.fetch_add(1, Ordering::Relaxed) as usize >= ASKS_MAX {
            return Err(format!("it asks for more than {ASKS_MAX} things at once"));
        }
        let link = Arc::clone(self);
        spawn_blocking(move || {
            answer(&link);
            link.asks.fetch_sub(1, Ordering::Relaxed);
        });
        Ok(())
    }
}

impl Outgoing {
    /// Adds an answer. What the process doesn't read is kept here, so that it mustn't be much.
    fn answer(&mut self, frame: Frame) -> Result<(), String> {
        let size = self.answers_size + frame.len();
        if self.answers.len() >= ANSWERS_MAX || size > ANSWERS_SIZE_MAX {
            return Err("it goes on asking, and doesn't listen".to_owned());
        }
        self.answers.push_back(frame);
        self.answers_size = size;
        Ok(())
    }

    /// What leaves next. Answers are first: calls that have begun wait for them.
    fn batch(&mut self) -> Vec<Frame> {
        if self.answers.is_empty() {
            return wire::batch(&mut self.calls);
        }
        let batch = wire::batch(&mut self.answers);
        self.answers_size -= batch.iter().map(|frame| frame.len()).sum::<usize>();
        batch
    }
}

fn during(last: &Option<String>) -> String {
    last.as_ref().map(|last| format!(", while {last}")).unwrap_or_default()
}

async fn write_all(socket: &OwnedWriteHalf, batch: &[Frame]) -> io::Result<()> {
    let mut slices: Vec<io::IoSlice<'_>> = batch.iter().map(|frame| io::IoSlice::new(frame)).collect();
    let mut rest = slices.as_mut_slice();
    while !rest.is_empty() {
        match socket.try_write_vectored(rest) {
            Ok(written) => io::IoSlice::advance_slices(&mut rest, written),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => socket.writable().await?,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Tells what a process writes to its standard output and standard error, until its end; answers the report of a crash
/// among it.
async fn forward(output: pipe::Receiver, pid: u32) -> Option<Crash> {
    let (mut output, mut line, mut crash) = (BufReader::new(output), Vec::new(), None);
    let mut quota = Quota::default();
    loop {
        line.clear();
        let read = (&mut output).take(LINE_MAX as u64 + 1).read_until(b'\n', &mut line).await;
        if !read.is_ok_and(|bytes| bytes > 0) {
            return crash;
        }
        let text = line.strip_suffix(b"\n").unwrap_or(&line);
        match crash::parse(text) {
            Some(report) => crash = Some(report),
            None if !text.is_empty() && quota.allows(format_args!("the plugin process {pid}")) => {
                let text = tame(text, LINE_MAX);
                tracing::info!(target: "keystead::plugin", pid, "a plugin process wrote: {text}");
            }
            None => {}
        }
    }
}

#[cfg(test)]
mod tests;
