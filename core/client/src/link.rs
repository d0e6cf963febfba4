//! The way to the key server: one connection at a time, dialled when needed, to one of several addresses.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::sync::{self, Semaphore};
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsConnector;

use crate::Error;
use crate::connection::Connection;

/// The first pause after every address has failed; it doubles up to [`MAX_BACK_OFF`].
const MIN_BACK_OFF: Duration = Duration::from_millis(100);

/// The longest pause: how late a key server that came back may be noticed.
const MAX_BACK_OFF: Duration = Duration::from_secs(5);

/// Where and how to connect.
pub(crate) struct Route {
    /// As `host:port`, tried in this order, at least one.
    pub(crate) addresses: Vec<Arc<str>>,
    /// What the key server's certificate has to be for.
    pub(crate) server_name: ServerName<'static>,
    /// Our identity and whom we trust.
    pub(crate) tls: TlsConnector,
    /// How long one address may take, TLS handshake included.
    pub(crate) connect_timeout: Duration,
    /// See [`Connection::start`].
    pub(crate) dead_after: Duration,
}

/// The way to the key server.
pub(crate) struct Link {
    route: Route,
    max_in_flight: u16,
    in_flight: Semaphore,
    current: Mutex<Option<Arc<Connection>>>,
    dialler: sync::Mutex<Dialler>,
}

/// What was learnt by dialling. Whoever holds its lock is the one that dials.
struct Dialler {
    /// The address to start with.
    preferred: usize,
    back_off: Duration,
    /// Until when dialling is pointless, and why.
    failure: Option<(Instant, Error)>,
}

impl Link {
    pub(crate) fn new(route: Route, max_in_flight: u16) -> Self {
        Self {
            route,
            max_in_flight,
            in_flight: Semaphore::new(max_in_flight.into()),
            current: Mutex::new(None),
            dialler: sync::Mutex::new(Dialler { preferred: 0, back_off: MIN_BACK_OFF, failure: None }),
        }
    }

    pub(crate) fn addresses(&self) -> &[Arc<str>] {
        &self.route.addresses
    }

    /// Sends a frame, waits for the answer, and returns its body. If the connection breaks in between, the frame is
    /// sent once more on a fresh one: signing twice harms nobody.
    pub(crate) async fn exchange(self: Arc<Self>, frame: Vec<u8>) -> Result<Vec<u8>, Error> {
        let _permit = self.in_flight.acquire().await.map_err(|_| Error::Closed)?;
        match self.connection().await?.exchange(&frame).await {
            Err(Error::Transport { address, source }) => {
                tracing::debug!(%address, %source, "connection broke, sending the request again");
                self.connection().await?.exchange(&frame).await
            }
            outcome => outcome,
        }
    }

    /// Waits until nothing is in flight, refuses what comes later, and ends the connection.
    pub(crate) async fn close(self: Arc<Self>) {
        let drained = self.in_flight.acquire_many(self.max_in_flight.into()).await;
        self.in_flight.close();
        drop(drained);
        let connection = self.current.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(connection) = connection {
            connection.close().await;
        }
    }

    /// The open connection, or a fresh one.
    ///
    /// Dialling is a task of its own, so that a request with little time left doesn't take the attempt with it.
    async fn connection(self: &Arc<Self>) -> Result<Arc<Connection>, Error> {
        match self.open_connection() {
            Some(connection) => Ok(connection),
            None => tokio::spawn(Arc::clone(self).dial()).await.unwrap_or(Err(Error::Closed)),
        }
    }

    fn open_connection(&self) -> Option<Arc<Connection>> {
        let current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        current.as_ref().filter(|connection| connection.is_open()).map(Arc::clone)
    }

    async fn dial(self: Arc<Self>) -> Result<Arc<Connection>, Error> {
        let mut dialler = self.dialler.lock().await;
        if let Some(connection) = self.open_connection() {
            return Ok(connection); // dialled by another request meanwhile
        }
        dialler.refuse_during_back_off()?;
        if self.lost_requests() {
            dialler.preferred += 1;
        }
        let outcome = self.dial_each(&mut dialler).await;
        dialler.learn(outcome.as_ref().err());
        let connection = outcome?;
        *self.current.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&connection));
        Ok(connection)
    }

    /// Tries every address once, the preferred one first; the error is the last one's.
    async fn dial_each(&self, dialler: &mut Dialler) -> Result<Arc<Connection>, Error> {
        let mut outcome = Err(Error::NoAddress);
        for _ in 0..self.route.addresses.len() {
            dialler.preferred %= self.route.addresses.len();
            outcome = self.route.dial(dialler.preferred).await;
            match &outcome {
                Ok(_) => break,
                Err(error) => tracing::warn!(%error, "can't connect"),
            }
            dialler.preferred += 1;
        }
        outcome
    }

    /// Whether the last connection took requests with it: then its address is the last to be tried again.
    fn lost_requests(&self) -> bool {
        let last = self.current.lock().unwrap_or_else(PoisonError::into_inner).take();
        last.is_some_and(|connection| connection.lost_requests())
    }
}

impl Route {
    async fn dial(&self, index: usize) -> Result<Arc<Connection>, Error> {
        let address = self.addresses.get(index).ok_or(Error::NoAddress)?;
        let late = || {
            io::Error::new(
                io::ErrorKind::TimedOut,
                format!("no connection within {:?}", self.connect_timeout),
            )
        };
        let connecting = async {
            let stream = TcpStream::connect(address.as_ref()).await?;
            stream.set_nodelay(true)?; // requests are batched here, not in the kernel
            self.tls.connect(self.server_name.clone(), stream).await
        };
        let stream = timeout(self.connect_timeout, connecting).await.unwrap_or_else(|_| Err(late()));
        let stream = stream.map_err(|error| Error::transport(address, error))?;
        tracing::debug!(%address, "connected");
        Ok(Connection::start(stream, Arc::clone(address), self.dead_after))
    }
}

impl Dialler {
    /// While every address fails, requests fail at once: a terminator that waits helps nobody.
    fn refuse_during_back_off(&self) -> Result<(), Error> {
        match &self.failure {
            Some((until, error)) if Instant::now() < *until => Err(error.clone()),
            _ => Ok(()),
        }
    }

    fn learn(&mut self, failure: Option<&Error>) {
        let until = Instant::now() + self.back_off;
        self.back_off = failure.map_or(MIN_BACK_OFF, |_| (self.back_off * 2).min(MAX_BACK_OFF));
        self.failure = failure.map(|error| (until, error.clone()));
    }
}
