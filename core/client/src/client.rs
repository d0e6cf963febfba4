//! The client: what its users see.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use keystead_protocol::{Opcode, Request, Response, Ski};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::time::timeout;

use crate::Error;
use crate::error::ProtocolError;
use crate::io_thread::IoThread;
use crate::link::{Link, Route};

/// A client of a key server. Clones share one connection; the last one to be dropped closes it.
///
/// Requests may be made from any number of tasks and threads at once; they share the connection and are told apart by
/// an id. The connection is made when first needed. When it breaks, what was in flight is sent once more on a fresh
/// one. While no address can be reached, requests fail at once, and addresses are tried again after a pause that
/// doubles from 100 ms to 5 s.
#[derive(Clone)]
pub struct Client {
    inner: Arc<Inner>,
}

struct Inner {
    io: IoThread,
    link: Arc<Link>,
    deadline: Duration,
}

impl Client {
    /// A client of the key server at any of `addresses` (`host:port`, tried in this order), whose certificate has to be
    /// for `server_name`. See [`crate::client_config`] for `tls`.
    pub fn builder<A: Into<Arc<str>>>(
        addresses: impl IntoIterator<Item = A>,
        server_name: ServerName<'static>,
        tls: Arc<ClientConfig>,
    ) -> Builder {
        Builder {
            route: Route {
                addresses: addresses.into_iter().map(Into::into).collect(),
                server_name,
                tls: tls.into(),
                connect_timeout: Duration::from_secs(3),
                dead_after: Duration::from_secs(5),
            },
            deadline: Duration::from_secs(10),
            max_in_flight: 1024,
        }
    }

    /// Has the key server do what `request` says; returns the result, or what a ping brought back.
    ///
    /// # Errors
    ///
    /// See [`Error`]. No answer within the client's deadline is one.
    pub async fn request(&self, request: &Request<'_>) -> Result<Vec<u8>, Error> {
        self.request_within(request, self.inner.deadline).await
    }

    /// As [`Self::request`], with a deadline of its own.
    ///
    /// # Errors
    ///
    /// See [`Error`].
    pub async fn request_within(&self, request: &Request<'_>, deadline: Duration) -> Result<Vec<u8>, Error> {
        let body = self.inner.io.run(self.exchange(request, deadline)?).await?;
        result(request.opcode, &body)
    }

    /// As [`Self::request`], for callers that aren't async: it blocks the calling thread until the answer is there.
    ///
    /// It never deadlocks, not even on a thread of a runtime, since the I/O has a thread of its own; but it does stop
    /// whatever else that thread should do.
    ///
    /// # Errors
    ///
    /// See [`Error`].
    pub fn request_blocking(&self, request: &Request<'_>) -> Result<Vec<u8>, Error> {
        let body = self.inner.io.run_blocking(self.exchange(request, self.inner.deadline)?)?;
        result(request.opcode, &body)
    }

    /// Has the key `ski` sign `payload`: a digest, or for Ed25519 the message.
    ///
    /// # Errors
    ///
    /// See [`Error`].
    pub async fn sign(&self, ski: Ski, opcode: Opcode, payload: &[u8]) -> Result<Vec<u8>, Error> {
        self.request(&Request { opcode, payload, ski: Some(ski), ..Request::default() }).await
    }

    /// Sends `payload` there and back.
    ///
    /// # Errors
    ///
    /// See [`Error`].
    pub async fn ping(&self, payload: &[u8]) -> Result<Vec<u8>, Error> {
        self.request(&Request { opcode: Opcode::PING, payload, ..Request::default() }).await
    }

    /// Waits for what is in flight, then ends the connection in the orderly way. Later requests, of clones too, fail.
    pub async fn close(self) {
        let link = Arc::clone(&self.inner.link);
        let closing = async {
            link.close().await;
            Ok(())
        };
        let _ = self.inner.io.run(closing).await; // fails only if it has been closed already
    }

    /// The exchange as a task for the I/O thread; it owns all it needs.
    fn exchange(
        &self,
        request: &Request<'_>,
        deadline: Duration,
    ) -> Result<impl Future<Output = Result<Vec<u8>, Error>> + Send + use<>, Error> {
        let mut frame = Vec::new();
        request.encode(0, &mut frame)?; // the connection gives it an id
        let exchange = Arc::clone(&self.inner.link).exchange(frame);
        Ok(async move { timeout(deadline, exchange).await.unwrap_or(Err(Error::Deadline(deadline))) })
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("addresses", &self.inner.link.addresses()).finish_non_exhaustive()
    }
}

/// Settings of a [`Client`].
#[must_use]
pub struct Builder {
    route: Route,
    deadline: Duration,
    max_in_flight: u16,
}

impl Builder {
    /// How long a request may take, waiting for a connection and a free place included. 10 s unless set, as in the
    /// reference client.
    pub const fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// How long connecting to one address may take, TLS handshake included. 3 s unless set, so that three addresses
    /// can be tried within the default deadline.
    pub const fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.route.connect_timeout = timeout;
        self
    }

    /// A connection that brings nothing for this long while a request waits for its answer is replaced when that
    /// request is given up. 5 s unless set. Without it, a peer that vanished would cost every request its deadline
    /// until TCP gives up, which takes a quarter of an hour.
    pub const fn dead_after(mut self, silence: Duration) -> Self {
        self.route.dead_after = silence;
        self
    }

    /// How many requests may be in flight; further ones wait. 1,024 unless set (at least 1): a server reads no further
    /// than that.
    pub fn max_in_flight(mut self, requests: u16) -> Self {
        self.max_in_flight = requests.max(1);
        self
    }

    /// Starts the client's I/O thread. It doesn't connect yet.
    ///
    /// # Errors
    ///
    /// [`Error::NoAddress`], or [`Error::Start`] if the system has no thread to give.
    pub fn build(self) -> Result<Client, Error> {
        if self.route.addresses.is_empty() {
            return Err(Error::NoAddress);
        }
        let link = Arc::new(Link::new(self.route, self.max_in_flight));
        let io = IoThread::start(Arc::clone(&link).close()).map_err(|error| Error::Start(error.into()))?;
        Ok(Client { inner: Arc::new(Inner { io, link, deadline: self.deadline }) })
    }
}

impl fmt::Debug for Builder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Builder").field("addresses", &self.route.addresses).finish_non_exhaustive()
    }
}

/// What an answer to a request of this opcode brings.
fn result(opcode: Opcode, body: &[u8]) -> Result<Vec<u8>, Error> {
    match (Response::decode(body)?, opcode) {
        (Response::Failure(code), _) => Err(Error::Failure(code)),
        (Response::Pong(payload), Opcode::PING) => Ok(payload.to_vec()),
        (Response::Pong(_), _) | (Response::Success(_), Opcode::PING) => Err(ProtocolError::Mismatch.into()),
        (Response::Success([]), _) => Err(ProtocolError::Empty.into()),
        (Response::Success(payload), _) => Ok(payload.to_vec()),
    }
}
