//! One client: frames in, answers out, in the order they complete.
//!
//! The reader decodes together whatever one read brought. What needs no waiting is answered on the spot, and a batch is
//! spread over the workers; the rest becomes tasks. The writer sends whatever is ready in one write. A request holds
//! its share of the connection's budget until its answer is written, so that neither a flood of requests nor clients
//! that don't read take more memory than the budget: each connection has a little of its own, and all share the rest.

use std::{
    io, iter,
    pin::pin,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::{Buf, Bytes, BytesMut};
use futures_util::future::poll_immediate;
use keystead_protocol::{ErrorCode, Frame, HEADER_LEN, MAX_FRAME, Request, Response, VERSION_MAJOR};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch},
    task::yield_now,
    time::{sleep_until, timeout, timeout_at},
};

use crate::{
    config::Limits,
    service::{ANSWER, Service},
    tls::Peer,
};

/// Bytes of requests that one connection may have in work whatever the others do: two of the largest, or a hundred of
/// the usual, padded ones.
const OWN_BYTES: usize = 2 * MAX_FRAME;

/// What it may have beyond that of the bytes that all share: 62 of the largest, or thousands of the usual.
const MORE_BYTES: usize = 62 * MAX_FRAME;

/// Bytes of requests that all connections share: 256 MiB, however many they are.
const SHARED_BYTES: usize = 4096 * MAX_FRAME;

/// What one read may bring: sixteen padded requests, one TLS record.
const READ: usize = 16 << 10;

/// What a connection keeps of its buffer between writes: what a busy one needs, of the megabytes it may have used.
const KEPT: usize = 64 << 10;

/// How long, and for how many bytes, a client may take to notice that the server has closed its side.
const LINGER: Duration = Duration::from_secs(2);
const LINGER_BYTES: u64 = 16 << 20;

/// How long a connection that was told to end may go on bringing requests, the rest of one, or its first: a client that
/// has just shaken hands is about to send it. And how long any other is waited for, which may be on its way.
const LAST_READS: Duration = Duration::from_secs(1);
const LAST_READ: Duration = Duration::from_millis(50);

/// Fewer requests than this at once are not worth another worker's wake-up.
const SHARE: usize = 4;

/// How a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum End {
    /// The client closed it.
    Client,
    /// The client was idle.
    Idle,
    /// Its peer is trusted no more.
    Dismissed,
    /// The server stops.
    Stopped,
    /// The client sent something that isn't the protocol.
    Malformed,
    /// The client let a frame hang.
    FrameTimeout,
    /// The client didn't take its answers.
    WriteTimeout,
    /// Reading or writing failed.
    Broken,
}

impl End {
    /// Whether nothing went wrong.
    #[must_use]
    pub fn is_clean(self) -> bool {
        matches!(self, Self::Client | Self::Dismissed | Self::Idle | Self::Stopped)
    }

    /// The word for it, which is a label of a metric.
    #[must_use]
    pub fn reason(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Idle => "idle",
            Self::Dismissed => "dismissed",
            Self::Stopped => "stopping",
            Self::Malformed => "malformed",
            Self::FrameTimeout => "frame_timeout",
            Self::WriteTimeout => "write_timeout",
            Self::Broken => "broken",
        }
    }
}

/// Tells a connection to end: because the server stops, or because its peer is trusted no more.
#[derive(Clone, Debug)]
pub struct Stop {
    server: watch::Receiver<bool>,
    peer: watch::Receiver<bool>,
}

impl Stop {
    /// Resolves when either of the two becomes true.
    #[must_use]
    pub fn new(server: watch::Receiver<bool>, peer: watch::Receiver<bool>) -> Self {
        Self { server, peer }
    }

    /// Waits for either; answers which.
    async fn requested(&mut self) -> End {
        tokio::select! {
            biased;
            _ = self.peer.wait_for(|stop| *stop) => End::Dismissed,
            _ = self.server.wait_for(|stop| *stop) => End::Stopped,
        }
    }
}

/// The bytes that all connections share.
#[derive(Clone, Debug)]
pub struct Pool(Arc<Semaphore>);

impl Default for Pool {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(SHARED_BYTES)))
    }
}

/// Serves one connection to its end.
pub async fn serve<S>(
    stream: S,
    peer: Arc<Peer>,
    service: Arc<Service>,
    pool: &Pool,
    limits: &Limits,
    stop: Stop,
) -> End
where
    S: AsyncRead + AsyncWrite + Send + 'static,
{
    let (mut input, output) = tokio::io::split(stream);
    let (answers, ready) = mpsc::unbounded_channel(); // bounded by the budget: each answer holds a share of it
    let allowance = Allowance::new(limits.in_flight, pool);
    let client = Client { peer, service, answers, allowance: allowance.clone() };
    let reader = Reader {
        input: &mut input,
        client,
        limits,
        stop,
        buffer: BytesMut::new(),
        frame_since: None,
        is_new: true,
    };
    let mut writer = pin!(write(output, ready, &allowance, limits.write_timeout));
    let end = tokio::select! {
        end = reader.run() => end,
        failed = &mut writer => return failed,
    };
    match writer.await {
        End::Client => linger(input).await,
        failed => return failed,
    }
    end
}

/// Discards what still comes. Closing a socket that has unread bytes resets the connection, and with it the answers
/// that are on their way (RFC 9112 section 9.6 has the same for HTTP).
async fn linger(input: impl AsyncRead + Unpin) {
    let _ = timeout(LINGER, tokio::io::copy(&mut input.take(LINGER_BYTES), &mut tokio::io::sink())).await;
}

/// What requests of one connection share.
#[derive(Clone)]
struct Client {
    peer: Arc<Peer>,
    service: Arc<Service>,
    answers: mpsc::UnboundedSender<Answer>,
    allowance: Allowance,
}

/// What one connection may have in work.
#[derive(Clone)]
struct Allowance {
    most: usize,
    requests: Arc<Semaphore>,
    own: Arc<Semaphore>,
    more: Arc<Semaphore>,
    shared: Arc<Semaphore>,
}

/// A part of an allowance, given back when dropped.
type Budget = [Option<OwnedSemaphorePermit>; 3];

impl Allowance {
    fn new(requests: usize, pool: &Pool) -> Self {
        Self {
            most: requests,
            requests: Arc::new(Semaphore::new(requests)),
            own: Arc::new(Semaphore::new(OWN_BYTES)),
            more: Arc::new(Semaphore::new(MORE_BYTES)),
            shared: Arc::clone(&pool.0),
        }
    }

    /// How many requests are in work: read, and their answers not yet written.
    fn in_work(&self) -> usize {
        self.most.saturating_sub(self.requests.available_permits())
    }

    /// A part for a request of so many bytes, where there is one without waiting.
    fn try_take(&self, bytes: usize) -> Option<Budget> {
        let request = Arc::clone(&self.requests).try_acquire_owned().ok()?;
        let some = |of: &Arc<Semaphore>| Arc::clone(of).try_acquire_many_owned(permits(bytes)).ok();
        if let Some(own) = some(&self.own) {
            return Some([Some(request), Some(own), None]);
        }
        let (more, shared) = (some(&self.more)?, some(&self.shared)?);
        Some([Some(request), Some(more), Some(shared)])
    }

    /// Waits for one of the connection's own: what others hold may never come back.
    async fn take(&self, bytes: usize) -> Budget {
        let request = Arc::clone(&self.requests).acquire_owned().await.ok();
        [request, Arc::clone(&self.own).acquire_many_owned(permits(bytes)).await.ok(), None]
    }
}

/// One for each byte of a request, or of its answer where that is longer; a frame has 64 KiB at the most.
fn permits(bytes: usize) -> u32 {
    u32::try_from(bytes.max(ANSWER)).unwrap_or(u32::MAX)
}

struct Answer {
    frame: Vec<u8>,
    _budget: Budget,
}

/// A request that waits to be answered.
struct Pending {
    id: u32,
    body: Bytes,
    arrived: Instant,
    budget: Budget,
}

impl Client {
    /// Answers a batch: a part here, the rest on other workers.
    async fn answer_all(&self, mut batch: Vec<Pending>) {
        let workers = tokio::runtime::Handle::current().metrics().num_workers();
        let share = (batch.len().div_ceil(workers)).max(SHARE);
        while batch.len() > share {
            let (client, part) = (self.clone(), batch.split_off(batch.len() - share));
            tokio::spawn(async move { client.answer_part(part).await });
        }
        self.answer_part(batch).await;
    }

    /// Answers one after the other; what would have to wait becomes a task of its own.
    async fn answer_part(&self, part: Vec<Pending>) {
        for pending in part {
            let mut answer = Box::pin(self.clone().answer(pending));
            if poll_immediate(&mut answer).await.is_none() {
                tokio::spawn(answer);
            }
        }
    }

    async fn answer(self, pending: Pending) {
        if self.answers.is_closed() {
            return; // nobody is left to read it
        }
        let Pending { id, body, arrived, budget } = pending;
        let frame = self.service.answer(&self.peer, id, &body, arrived).await;
        self.send(frame, budget);
    }

    fn refuse(&self, id: u32, code: ErrorCode, budget: Budget) {
        let mut frame = Vec::new();
        if Response::Failure(code).encode(id, &mut frame).is_ok() {
            self.send(frame, budget);
        }
    }

    fn send(&self, frame: Vec<u8>, budget: Budget) {
        let _ = self.answers.send(Answer { frame, _budget: budget }); // the writer is gone with the connection
    }
}

struct Reader<'a, S> {
    input: &'a mut ReadHalf<S>,
    client: Client,
    limits: &'a Limits,
    stop: Stop,
    buffer: BytesMut,
    frame_since: Option<Instant>,
    /// Whether the client hasn't sent anything yet.
    is_new: bool,
}

impl<S: AsyncRead + Send> Reader<'_, S> {
    /// Reads until the client is done, or done with. Dropping the reader lets the writer end once all is answered.
    async fn run(mut self) -> End {
        loop {
            match self.fill().await {
                Ok(0) => return if self.buffer.is_empty() { End::Client } else { End::Broken },
                Ok(_) => self.is_new = false,
                Err(End::Stopped) => return self.finish().await,
                Err(end) => return end,
            }
            if let Some(end) = self.take().await {
                return end;
            }
            // From now on: while the batch waited for the budget, the client wasn't read.
            self.frame_since =
                (!self.buffer.is_empty()).then(|| self.frame_since.unwrap_or_else(Instant::now));
            yield_now().await; // the writer's turn, also when the next read has its bytes already
        }
    }

    /// Takes what has been read.
    async fn take(&mut self) -> Option<End> {
        let arrived = Instant::now();
        match self.batch(arrived).await {
            Ok(batch) => self.client.answer_all(batch).await,
            Err(end) => return Some(end),
        }
        None
    }

    /// Reads what has arrived by now, so that a request which was sent before the client could know of the end is
    /// answered. Waits for the first request, and for the rest of one.
    async fn finish(mut self) -> End {
        let until = Instant::now() + LAST_READS;
        while Instant::now() < until {
            self.buffer.reserve(READ);
            // The first one, or the rest of one, is sure to come; another may be on its way.
            let is_due = self.is_new || !self.buffer.is_empty();
            let patience = if is_due { until } else { until.min(Instant::now() + LAST_READ) };
            match timeout_at(patience.into(), self.input.read_buf(&mut self.buffer)).await {
                Ok(Ok(read)) if read > 0 => self.is_new = false,
                _ => break,
            }
            if let Some(end) = self.take().await {
                return end;
            }
        }
        End::Stopped
    }

    /// Reads once, for as long as the client may take.
    async fn fill(&mut self) -> Result<usize, End> {
        self.buffer.reserve(READ);
        loop {
            let patience = match self.frame_since {
                Some(since) => since + self.limits.frame_timeout,
                None => Instant::now() + self.limits.idle_timeout,
            };
            tokio::select! {
                biased; // a busy client can't put off a stop, and bytes that are there are never too late
                end = self.stop.requested() => return Err(end),
                read = self.input.read_buf(&mut self.buffer) => return closed(read),
                () = sleep_until(patience.into()) => {}
            }
            match self.frame_since {
                Some(_) => return Err(End::FrameTimeout),
                None if self.client.allowance.in_work() == 0 => return Err(End::Idle),
                None => {}
            }
        }
    }

    /// Takes every whole frame out of the buffer. Waits here while the connection's budget is used up, so that the
    /// client isn't read further.
    async fn batch(&mut self, arrived: Instant) -> Result<Vec<Pending>, End> {
        let mut batch = Vec::new();
        while let Some((frame, _)) = Frame::split(&self.buffer) {
            let (header, len) = (frame.header, frame.len());
            let budget = match self.client.allowance.try_take(len) {
                Some(budget) => budget,
                None => {
                    self.client.service.waits();
                    self.client.answer_all(std::mem::take(&mut batch)).await; // it holds what is waited for
                    self.client.allowance.take(len).await
                }
            };
            // A copy, since a share would keep all of what was read with it for as long as the request takes.
            let body = Bytes::copy_from_slice(self.buffer.get(HEADER_LEN..len).unwrap_or_default());
            self.buffer.advance(len);
            self.frame_since = None;
            if header.major != VERSION_MAJOR {
                self.client.refuse(header.id, ErrorCode::VERSION, budget);
            } else if let Err(malformed) = Request::decode(&body) {
                tracing::debug!(peer = self.client.peer.name(), %malformed, "a client sent a malformed request");
                self.client.answer_all(batch).await;
                self.client.refuse(header.id, ErrorCode::FORMAT, budget);
                return Err(End::Malformed);
            } else {
                batch.push(Pending { id: header.id, body, arrived, budget });
            }
        }
        Ok(batch)
    }
}

/// A client that closes without TLS' closing alert is as gone as one that sends it (RFC 8446 section 6.1): frames
/// have their own lengths, so that nothing can be cut off unnoticed.
fn closed(read: io::Result<usize>) -> Result<usize, End> {
    match read {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(0),
        Err(_) => Err(End::Broken),
        Ok(read) => Ok(read),
    }
}

/// Writes answers as they come, all that are ready at once, until no request is left that could bring one. What it ends
/// with is the client's doing where it isn't a failure.
async fn write<S: AsyncWrite>(
    mut output: WriteHalf<S>,
    mut ready: mpsc::UnboundedReceiver<Answer>,
    allowance: &Allowance,
    patience: Duration,
) -> End {
    let mut answers = Vec::new();
    let mut buffer = Vec::new();
    while ready.recv_many(&mut answers, usize::MAX).await > 0 {
        if allowance.in_work() > answers.len() {
            yield_now().await; // of the others, some may be as far: their answers then leave with these
            answers.extend(iter::from_fn(|| ready.try_recv().ok()));
        }
        for answer in &answers {
            buffer.extend_from_slice(&answer.frame);
        }
        let written = async {
            output.write_all(&buffer).await?;
            output.flush().await
        };
        match timeout(patience, written).await {
            Ok(Ok(())) => {
                answers.clear();
                buffer.clear();
                buffer.shrink_to(KEPT);
            }
            Ok(Err(_)) => return End::Broken,
            Err(_) => return End::WriteTimeout,
        }
    }
    match timeout(patience, output.shutdown()).await {
        Ok(_) => End::Client,
        Err(_) => End::WriteTimeout,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_that_hold_all_that_is_shared_leave_another_its_own() {
        let pool = Pool::default();
        let greedy: Vec<_> = (0..100).map(|_| Allowance::new(1024, &pool)).collect();
        let take = |allowance: &Allowance| iter::from_fn(|| allowance.try_take(MAX_FRAME)).collect();
        let held: Vec<Vec<Budget>> = greedy.iter().map(take).collect();
        assert_eq!(held[0].len(), 64);
        let bytes: usize = held.iter().map(|held| held.len() * MAX_FRAME).sum();
        assert_eq!(bytes, SHARED_BYTES + 100 * OWN_BYTES);
        let good = Allowance::new(1024, &pool);
        let small: Vec<_> = iter::from_fn(|| good.try_take(1)).collect();
        assert_eq!(small.len(), OWN_BYTES / ANSWER);
    }

    #[tokio::test]
    async fn answers_that_are_ready_together_leave_together() {
        let allowance = Allowance::new(8, &Pool::default());
        let (answers, ready) = mpsc::unbounded_channel();
        let answer = |byte| Answer { frame: vec![byte], _budget: allowance.try_take(1).unwrap() };
        let (first, second) = (answer(1), answer(2));
        let (mut client, server) = tokio::io::duplex(64);
        let (_, output) = tokio::io::split(server);
        let writing = write(output, ready, &allowance, Duration::from_secs(5));
        let answering = answers.clone();
        tokio::spawn(async move { answering.send(second) }); // its turn is next
        answers.send(first).ok().unwrap();
        drop(answers);
        let mut read = [0; 2];
        let (end, bytes) = tokio::join!(writing, client.read(&mut read));
        assert_eq!((end, bytes.unwrap(), read), (End::Client, 2, [1, 2]));
    }

    #[tokio::test]
    async fn who_has_used_up_everything_goes_on_when_an_answer_has_left() {
        let allowance = Allowance::new(2, &Pool::default());
        let (first, _second) = (allowance.try_take(1), allowance.try_take(1));
        assert!(first.is_some() && allowance.try_take(1).is_none());
        assert!(poll_immediate(pin!(allowance.take(1))).await.is_none());
        drop(first);
        assert!(poll_immediate(pin!(allowance.take(1))).await.is_some());
    }
}
