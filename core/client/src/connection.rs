//! One TLS connection: requests go out as they come, answers find their requests by id.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use keystead_protocol::{Frame, HEADER_LEN, Header, VERSION_MAJOR};
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};
use tokio_rustls::client::TlsStream;

use crate::Error;

/// How long saying goodbye may take.
const GOODBYE: Duration = Duration::from_secs(1);

/// How many requests leave in one write at most; 64 padded ones fill four TLS records.
const BATCH: usize = 64;

/// What one read asks for: the most that a TLS record brings.
const READ: usize = 16 * 1024;

/// A connection to a key server; it is driven by a task of its own until it ends.
pub(crate) struct Connection {
    address: Arc<str>,
    dead_after: Duration,
    state: Mutex<State>,
}

struct State {
    /// Closed and gone once the connection is ending. Unbounded, since the link bounds what is in flight.
    outbox: Option<mpsc::UnboundedSender<Vec<u8>>>,
    waiting: HashMap<u32, oneshot::Sender<Vec<u8>>>,
    next_id: u32,
    last_heard: Instant,
    /// Why it ended, for the requests that were waiting.
    end: Option<Arc<io::Error>>,
    lost_requests: bool,
    driver: Option<JoinHandle<()>>,
}

impl Connection {
    /// Starts to drive `stream`. A connection that brings nothing for `dead_after` while a request waits for its answer
    /// is given up when that request is.
    pub(crate) fn start(stream: TlsStream<TcpStream>, address: Arc<str>, dead_after: Duration) -> Arc<Self> {
        let (outbox, requests) = mpsc::unbounded_channel();
        let state = State {
            outbox: Some(outbox),
            waiting: HashMap::new(),
            next_id: 0,
            last_heard: Instant::now(),
            end: None,
            lost_requests: false,
            driver: None,
        };
        let connection = Arc::new(Self { address, dead_after, state: Mutex::new(state) });
        let driver = tokio::spawn(Arc::clone(&connection).drive(stream, requests));
        connection.state().driver = Some(driver);
        connection
    }

    /// Sends a frame with an id of its own; returns the body of the answer.
    ///
    /// The answer is ignored if the returned future is dropped before it comes.
    pub(crate) async fn exchange(&self, frame: &[u8]) -> Result<Vec<u8>, Error> {
        let (id, answer) = self.send(frame)?;
        let waiting = Waiting { connection: self, id, since: Instant::now() };
        let body = answer.await.map_err(|_| self.ended());
        drop(waiting);
        body
    }

    /// Whether it takes requests.
    pub(crate) fn is_open(&self) -> bool {
        self.state().outbox.is_some()
    }

    /// Whether it ended while requests were waiting, as opposed to idly.
    pub(crate) fn lost_requests(&self) -> bool {
        self.state().lost_requests
    }

    /// Ends the connection in the orderly way; returns when the peer has been told.
    pub(crate) async fn close(&self) {
        let driver = {
            let mut state = self.state();
            state.outbox = None;
            state.driver.take()
        };
        if let Some(driver) = driver {
            let _ = driver.await; // it doesn't panic, and if it's gone, so is the connection
        }
    }

    fn send(&self, frame: &[u8]) -> Result<(u32, oneshot::Receiver<Vec<u8>>), Error> {
        let mut state = self.state();
        let id = state.unused_id();
        let frame = with_id(frame, id);
        let sent = state.outbox.as_ref().is_some_and(|outbox| outbox.send(frame).is_ok());
        if !sent {
            drop(state);
            return Err(self.ended());
        }
        let (answer, receiver) = oneshot::channel();
        state.waiting.insert(id, answer);
        Ok((id, receiver))
    }

    async fn drive(
        self: Arc<Self>,
        stream: TlsStream<TcpStream>,
        requests: mpsc::UnboundedReceiver<Vec<u8>>,
    ) {
        let (reader, writer) = tokio::io::split(stream);
        let ended = tokio::select! {
            ended = self.read_answers(reader) => ended,
            ended = write_requests(writer, requests) => ended,
        };
        self.end(ended.err().unwrap_or_else(|| io::ErrorKind::ConnectionAborted.into()));
    }

    async fn read_answers(&self, mut reader: ReadHalf<TlsStream<TcpStream>>) -> io::Result<()> {
        let mut buffer = BytesMut::with_capacity(READ);
        loop {
            while let Some((Frame { header, body }, _)) = Frame::split(&buffer) {
                check_version(header)?;
                self.deliver(header.id, body.to_vec());
                buffer.advance(HEADER_LEN + usize::from(header.length));
            }
            buffer.reserve(READ);
            if reader.read_buf(&mut buffer).await? == 0 {
                return Err(io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    "connection closed by the key server",
                ));
            }
        }
    }

    /// Hands an answer to its request. One that nobody waits for any more came too late, and is dropped.
    fn deliver(&self, id: u32, body: Vec<u8>) {
        let mut state = self.state();
        state.last_heard = Instant::now();
        if let Some(answer) = state.waiting.remove(&id) {
            let _ = answer.send(body); // given up this very moment
        }
    }

    /// Forgets a request that was given up, and the connection if it has been silent for too long.
    fn forget(&self, id: u32, since: Instant) {
        let silent = {
            let mut state = self.state();
            state.waiting.remove(&id).is_some() && state.last_heard.max(since).elapsed() >= self.dead_after
        };
        if silent {
            self.end(io::Error::new(
                io::ErrorKind::TimedOut,
                "connection is dead: nothing heard for too long",
            ));
        }
    }

    /// Ends the connection: later requests are refused, waiting ones fail. The first reason counts.
    fn end(&self, reason: io::Error) {
        let mut state = self.state();
        state.outbox = None;
        state.end.get_or_insert_with(|| Arc::new(reason));
        state.lost_requests |= !state.waiting.is_empty();
        state.waiting.clear();
    }

    fn ended(&self) -> Error {
        let reason = self.state().end.clone();
        let reason = reason.unwrap_or_else(|| Arc::new(io::ErrorKind::ConnectionAborted.into()));
        Error::transport(&self.address, reason)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner) // every change of it is complete
    }
}

impl State {
    /// The next id that no waiting request has; the link bounds how many there are, far below 2³².
    fn unused_id(&mut self) -> u32 {
        while self.waiting.contains_key(&self.next_id) {
            self.next_id = self.next_id.wrapping_add(1);
        }
        let id = self.next_id;
        self.next_id = id.wrapping_add(1);
        id
    }
}

/// A request whose answer is awaited; dropping it forgets the request.
struct Waiting<'a> {
    connection: &'a Connection,
    id: u32,
    since: Instant,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.connection.forget(self.id, self.since);
    }
}

/// Writes requests until the outbox is closed, then says goodbye.
async fn write_requests(
    mut writer: WriteHalf<TlsStream<TcpStream>>,
    mut requests: mpsc::UnboundedReceiver<Vec<u8>>,
) -> io::Result<()> {
    let mut frames = Vec::with_capacity(BATCH);
    while requests.recv_many(&mut frames, BATCH).await > 0 {
        writer.write_all(&frames.concat()).await?;
        writer.flush().await?;
        frames.clear();
    }
    timeout(GOODBYE, writer.shutdown()).await?
}

fn check_version(header: Header) -> io::Result<()> {
    if header.major == VERSION_MAJOR {
        return Ok(());
    }
    let reason = format!("key server speaks version {}, expected {VERSION_MAJOR}", header.major);
    Err(io::Error::new(io::ErrorKind::InvalidData, reason))
}

/// A copy of an encoded frame with another id.
fn with_id(frame: &[u8], id: u32) -> Vec<u8> {
    match frame.split_first_chunk() {
        Some((header, body)) => [&Header { id, ..Header::decode(*header) }.encode(), body].concat(),
        None => Vec::new(),
    }
}
