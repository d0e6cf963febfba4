//! Accepting: bounded in number and time, and stopped first when the server stops.

use std::{
    collections::BTreeMap,
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use rustls::{AlertDescription, CertificateError, HandshakeKind};
use tokio::{
    net::{TcpListener, TcpSocket, TcpStream},
    sync::{Notify, oneshot, watch},
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use crate::{
    config::{Config, Limits},
    connection::{self, End, Pool, Stop},
    failures::Repeated,
    metrics::{Metrics, Shed, Waiting},
    peers::{Member, Peers},
    service::Service,
    tls::{Identity, Peer},
};

/// Pauses after an accept that failed, which happens when file descriptors run out.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(5), Duration::from_secs(1));

/// Connections that the kernel may hold until they are accepted.
const BACKLOG: u32 = 1024;

/// How long a handshake that is going on may take when the server stops.
const LAST_HANDSHAKE: Duration = Duration::from_secs(1);

/// How long a handshake may take while somebody else waits for its place.
const SLOW_HANDSHAKE: Duration = Duration::from_secs(1);

/// How often is looked for such.
const MAKE_ROOM_EVERY: Duration = Duration::from_millis(250);

/// What every connection of the server needs.
pub struct Listener {
    /// The configuration in force; each connection goes by that of its beginning.
    pub config: Arc<ArcSwap<Config>>,
    /// The TLS in force.
    pub identity: Arc<ArcSwap<Identity>>,
    /// Who answers.
    pub service: Arc<Service>,
    /// Where everything is counted.
    pub metrics: Arc<Metrics>,
    /// Who is connected.
    pub peers: Arc<Peers>,
    said: Said,
    places: Places,
    handshakes: Handshakes,
    open: AtomicU64,
    pool: Pool,
}

/// What may happen many times a second, and is said once, then in counts.
#[derive(Default)]
struct Said {
    full: Repeated,
    unaccepted: Repeated,
    refused: [Repeated; Reason::ALL.len()],
}

/// Opens a listening socket. The unspecified IPv6 address serves both families, or IPv4 alone where the system has no
/// IPv6.
///
/// # Errors
///
/// What the system says, with the address.
pub fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let both_families = address.ip() == Ipv6Addr::UNSPECIFIED;
    match open(address) {
        Err(error) if both_families && lacks_ipv6(&error) => {
            open((Ipv4Addr::UNSPECIFIED, address.port()).into())
        }
        opened => opened,
    }
    .map_err(|error| io::Error::new(error.kind(), format!("can't listen on {address}: {error}")))
}

fn open(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

fn lacks_ipv6(error: &io::Error) -> bool {
    let errors = [rustix::io::Errno::AFNOSUPPORT, rustix::io::Errno::ADDRNOTAVAIL];
    error.raw_os_error().is_some_and(|code| errors.iter().any(|errno| errno.raw_os_error() == code))
}

impl Listener {
    /// A listener that has accepted nothing yet.
    #[must_use]
    pub fn new(
        config: Arc<ArcSwap<Config>>,
        identity: Arc<ArcSwap<Identity>>,
        service: Arc<Service>,
        metrics: Arc<Metrics>,
    ) -> Arc<Self> {
        Arc::new(Self {
            config,
            identity,
            service,
            metrics,
            peers: Arc::default(),
            said: Said::default(),
            places: Places::default(),
            handshakes: Handshakes::default(),
            open: AtomicU64::new(0),
            pool: Pool::default(),
        })
    }

    /// How many connections are open, and how many handshakes go on.
    #[must_use]
    pub fn counts(&self) -> (u64, u64) {
        (self.open.load(Ordering::Relaxed), self.handshakes.count() as u64)
    }

    /// Accepts on every socket until `stop`, then waits until the connections have ended.
    pub async fn run(self: Arc<Self>, sockets: Vec<TcpListener>, stop: watch::Receiver<bool>) {
        let mut accepting = JoinSet::new();
        for socket in sockets {
            accepting.spawn(Arc::clone(&self).listen(socket, stop.clone()));
        }
        while accepting.join_next().await.is_some() {}
    }

    async fn listen(self: Arc<Self>, socket: TcpListener, stop: watch::Receiver<bool>) {
        let mut connections = JoinSet::new();
        self.accept(socket, stop, &mut connections).await;
        while connections.join_next().await.is_some() {} // one that panicked doesn't end the others
    }

    /// Accepts until `stop`; the socket closes with that, so that clients go elsewhere while connections end. What has
    /// been accepted is served. A place is taken by a connection, never by a socket that waits for one.
    async fn accept(
        self: &Arc<Self>,
        socket: TcpListener,
        mut stop: watch::Receiver<bool>,
        connections: &mut JoinSet<()>,
    ) {
        let (mut pause, mut told) = (BACK_OFF.0, false);
        loop {
            let accepted = tokio::select! {
                biased;
                () = stopped(&mut stop) => return,
                accepted = socket.accept() => accepted,
            };
            match accepted {
                Ok((stream, address)) => {
                    pause = BACK_OFF.0;
                    if std::mem::take(&mut told) {
                        tracing::info!("connections are accepted again");
                    }
                    tokio::select! {
                        () = self.place() => {}
                        () = stopped(&mut stop) => self.places.add(), // nobody else is accepted
                    }
                    while connections.try_join_next().is_some() {}
                    let (shared, stop) = (Arc::clone(self), stop.clone());
                    connections.spawn(async move {
                        let _place = Place(&shared.places);
                        shared.serve(stream, address, stop).await;
                    });
                }
                Err(error) => {
                    self.metrics.accept_failed();
                    if self.said.unaccepted.due().is_some() {
                        told = true;
                        tracing::warn!(%error, "connections can't be accepted; {}", cure(&error));
                    }
                    let _ = timeout(pause, stopped(&mut stop)).await;
                    pause = (pause * 2).min(BACK_OFF.1);
                }
            }
        }
    }

    /// Waits for a place.
    async fn place(&self) {
        let limit = || self.config.load().limits.connections;
        if self.places.try_take(limit()) {
            return;
        }
        self.metrics.backpressure(Waiting::Connections);
        if let Some(times) = self.said.full.due() {
            let limit = limit();
            tracing::warn!(
                times,
                "all {limit} places of `limits.connections` are taken; new clients wait for one"
            );
        }
        // Who has not finished shaking hands by then keeps nobody out.
        self.places.take(limit, || self.handshakes.evict_slow()).await;
    }

    async fn serve(&self, stream: TcpStream, address: SocketAddr, mut stop: watch::Receiver<bool>) {
        let _ = stream.set_nodelay(true); // answers are coalesced already
        let limits = self.config.load().limits.clone();
        let (stream, member) = match self.admit(stream, &limits, &mut stop).await {
            Ok(admitted) => admitted,
            Err(refused) => return self.refuse(address, &refused),
        };
        let (peer, mut dismissed) = (Arc::clone(member.peer()), member.dismissed());
        tracing::debug!(%address, peer = peer.name(), "connected");
        let _open = Open::new(&self.open);
        let stop = Stop::new(stop, dismissed.clone());
        let overdue = async {
            let _ = dismissed.wait_for(|dismissed| *dismissed).await;
            sleep(limits.grace).await;
        };
        let service = Arc::clone(&self.service);
        let serving = connection::serve(stream, Arc::clone(&peer), service, &self.pool, &limits, stop);
        let end = tokio::select! {
            end = serving => end,
            () = overdue => End::Dismissed,
        };
        let reason = end.reason();
        self.metrics.closed(reason, !end.is_clean());
        tracing::debug!(%address, peer = peer.name(), reason, "disconnected");
    }

    /// Shakes hands, and takes the peer in.
    async fn admit(
        &self,
        stream: TcpStream,
        limits: &Limits,
        stop: &mut watch::Receiver<bool>,
    ) -> Result<(TlsStream<TcpStream>, Member), Refused> {
        let (_going_on, evicted) = self.handshakes.begin(limits.handshakes);
        let identity = self.identity.load_full();
        let overdue = async {
            stopped(stop).await;
            sleep(LAST_HANDSHAKE).await;
        };
        let shaking = TlsAcceptor::from(Arc::clone(identity.server())).accept(stream);
        let shaken = tokio::select! {
            shaken = timeout(limits.handshake_timeout, shaking) => shaken,
            _ = evicted => {
                self.metrics.shed(Shed::Handshakes);
                return Err(Refused::new(Reason::Shed, "it had to make room for a newer one"));
            }
            () = overdue => return Err(Refused::new(Reason::Stopping, "the server stops")),
        };
        let stream = shaken
            .map_err(|_| Refused::new(Reason::Timeout, "it was not finished in time"))?
            .map_err(|error| Refused::by(&error))?;
        let member = self.know(&stream, &identity, limits)?;
        Ok((stream, member))
    }

    /// Makes a peer of who has shaken hands. A resumed session shows no certificate, and what is trusted may have
    /// changed since the handshake began: either way the certificate is verified again.
    fn know(
        &self,
        stream: &TlsStream<TcpStream>,
        identity: &Arc<Identity>,
        limits: &Limits,
    ) -> Result<Member, Refused> {
        let connection = stream.get_ref().1;
        let chain = connection.peer_certificates().unwrap_or_default();
        let peer = chain.first().and_then(Peer::from_certificate);
        let peer =
            peer.ok_or_else(|| Refused::new(Reason::Protocol, "the client's certificate can't be read"))?;
        let chain: Vec<_> = chain.iter().map(|certificate| certificate.clone().into_owned()).collect();
        let member = self.peers.admit(peer, chain.clone(), limits.connections_per_peer).ok_or_else(|| {
            self.metrics.shed(Shed::Peer);
            let limit = limits.connections_per_peer;
            Refused::new(
                Reason::Peer,
                format!("its certificate has all {limit} of `limits.connections_per_peer`"),
            )
        })?;
        let current = self.identity.load_full();
        let resumed = connection.handshake_kind() == Some(HandshakeKind::Resumed);
        if resumed || !Arc::ptr_eq(&current, identity) {
            current.verify(&chain).map_err(|error| Refused::by(&io::Error::other(error)))?;
        }
        Ok(member)
    }

    /// A health check connects and closes, and a scanner speaks anything: that isn't worth a line at the default level.
    /// A client that shows a certificate which isn't accepted is.
    fn refuse(&self, address: SocketAddr, refused: &Refused) {
        let Refused { reason, message } = refused;
        self.metrics.handshake_failed(reason.name());
        tracing::debug!(%address, reason = reason.name(), "no TLS handshake: {message}");
        let times =
            self.said.refused.get(*reason as usize).filter(|_| reason.is_telling()).and_then(Repeated::due);
        if let Some(times) = times {
            tracing::warn!(%address, reason = reason.name(), times, "a client is refused: {message}");
        }
    }
}

/// Waits until it becomes true.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

/// Why a client isn't served.
#[derive(Debug)]
struct Refused {
    reason: Reason,
    message: String,
}

/// The reasons, which are labels of a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reason {
    Closed,
    Expired,
    NoCertificate,
    Peer,
    Protocol,
    Revoked,
    Shed,
    Stopping,
    Timeout,
    Untrusted,
}

impl Reason {
    const ALL: [Self; 10] = [
        Self::Closed,
        Self::Expired,
        Self::NoCertificate,
        Self::Peer,
        Self::Protocol,
        Self::Revoked,
        Self::Shed,
        Self::Stopping,
        Self::Timeout,
        Self::Untrusted,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Expired => "expired",
            Self::NoCertificate => "no_certificate",
            Self::Peer => "peer",
            Self::Protocol => "protocol",
            Self::Revoked => "revoked",
            Self::Shed => "shed",
            Self::Stopping => "stopping",
            Self::Timeout => "timeout",
            Self::Untrusted => "untrusted",
        }
    }

    fn is_telling(self) -> bool {
        matches!(self, Self::Expired | Self::Peer | Self::Revoked | Self::Shed | Self::Untrusted)
    }
}

impl Refused {
    fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self { reason, message: message.into() }
    }

    fn by(error: &io::Error) -> Self {
        use CertificateError as Certificate;
        use rustls::Error;
        let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>());
        let reason = match inner {
            Some(Error::NoCertificatesPresented) => Reason::NoCertificate,
            Some(Error::InvalidCertificate(certificate)) => match certificate {
                Certificate::Expired | Certificate::ExpiredContext { .. } => Reason::Expired,
                Certificate::Revoked
                | Certificate::UnknownRevocationStatus
                | Certificate::ExpiredRevocationList
                | Certificate::ExpiredRevocationListContext { .. } => Reason::Revoked,
                _ => Reason::Untrusted,
            },
            Some(Error::AlertReceived(AlertDescription::CloseNotify)) => Reason::Closed,
            Some(_) => Reason::Protocol,
            None => Reason::Closed,
        };
        Self::new(reason, error.to_string())
    }
}

/// What an operator can do about an accept that failed.
fn cure(error: &io::Error) -> &'static str {
    let out_of_descriptors =
        [rustix::io::Errno::MFILE, rustix::io::Errno::NFILE].map(rustix::io::Errno::raw_os_error);
    match error.raw_os_error().is_some_and(|code| out_of_descriptors.contains(&code)) {
        true => "file descriptors ran out: raise LimitNOFILE= of the unit, or lower `limits.connections`",
        false => "trying again",
    }
}

/// Places for connections: as many as the configuration says at the time.
#[derive(Default)]
struct Places {
    taken: AtomicUsize,
    freed: Notify,
}

/// A place that was taken, to be given back.
struct Place<'a>(&'a Places);

impl Places {
    fn try_take(&self, limit: usize) -> bool {
        let more = |taken| (taken < limit).then_some(taken + 1);
        self.taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok()
    }

    /// Takes one, whatever the limit is.
    fn add(&self) {
        self.taken.fetch_add(1, Ordering::Relaxed);
    }

    /// Waits for one; meanwhile makes room again and again.
    async fn take(&self, limit: impl Fn() -> usize, make_room: impl Fn()) {
        while !self.try_take(limit()) {
            make_room();
            // For a moment only: the limit itself may have been raised meanwhile.
            let _ = timeout(MAKE_ROOM_EVERY, self.freed.notified()).await;
        }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.taken.fetch_sub(1, Ordering::Relaxed);
        self.0.freed.notify_one();
    }
}

/// Counts a connection for as long as it is open.
struct Open<'a>(&'a AtomicU64);

impl<'a> Open<'a> {
    fn new(count: &'a AtomicU64) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The handshakes that go on, oldest first.
#[derive(Default)]
struct Handshakes {
    going_on: Mutex<BTreeMap<u64, (Instant, oneshot::Sender<()>)>>,
    next: AtomicU64,
}

/// One of them, for as long as it goes on.
struct GoingOn<'a> {
    handshakes: &'a Handshakes,
    number: u64,
}

impl Handshakes {
    /// Begins one; the oldest makes room for it where there are more than `limit`. What is answered beside it resolves
    /// when it has to make room itself.
    fn begin(&self, limit: usize) -> (GoingOn<'_>, oneshot::Receiver<()>) {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let (evict, evicted) = oneshot::channel();
        let mut going_on = self.lock();
        going_on.insert(number, (Instant::now(), evict));
        if going_on.len() > limit {
            going_on.pop_first(); // whose receiver resolves with that
        }
        drop(going_on);
        (GoingOn { handshakes: self, number }, evicted)
    }

    /// Has those make room that take longer than a client who means it.
    fn evict_slow(&self) {
        self.lock().retain(|_, (since, _)| since.elapsed() < SLOW_HANDSHAKE);
    }

    fn count(&self) -> usize {
        self.lock().len()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<u64, (Instant, oneshot::Sender<()>)>> {
        self.going_on.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for GoingOn<'_> {
    fn drop(&mut self) {
        self.handshakes.lock().remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_unspecified_address_is_reached_by_ipv4() {
        let socket = bind("[::]:0".parse().unwrap()).unwrap();
        let port = socket.local_addr().unwrap().port();
        let (client, accepted) = tokio::join!(TcpStream::connect(("127.0.0.1", port)), socket.accept());
        assert_eq!(client.unwrap().local_addr().unwrap().port(), accepted.unwrap().1.port());
    }

    #[test]
    fn the_oldest_handshake_makes_room() {
        let handshakes = Handshakes::default();
        let (first, mut first_evicted) = handshakes.begin(2);
        let (second, mut second_evicted) = handshakes.begin(2);
        drop(second);
        let (_third, mut third_evicted) = handshakes.begin(2);
        assert!(first_evicted.try_recv().is_err_and(|error| error == oneshot::error::TryRecvError::Empty));
        let (_fourth, _) = handshakes.begin(2);
        let closed = oneshot::error::TryRecvError::Closed;
        assert_eq!(first_evicted.try_recv(), Err(closed.clone()));
        assert_eq!(second_evicted.try_recv(), Err(closed), "it has ended by itself");
        assert!(third_evicted.try_recv().is_err_and(|error| error == oneshot::error::TryRecvError::Empty));
        drop(first);
        assert_eq!(handshakes.count(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_for_a_place_gets_one_that_is_freed_or_added() {
        let places = Places::default();
        assert!(places.try_take(1) && !places.try_take(1));
        let place = Place(&places);
        let (limit, ()) = (AtomicUsize::new(1), ());
        tokio::join!(places.take(|| limit.load(Ordering::Relaxed), || ()), async { drop(place) });
        let raise = async {
            sleep(Duration::from_secs(5)).await;
            limit.store(2, Ordering::Relaxed);
        };
        tokio::join!(places.take(|| limit.load(Ordering::Relaxed), || ()), raise);
        assert!(!places.try_take(2));
    }

    #[test]
    fn refusals_are_told_apart_by_what_the_client_did() {
        use CertificateError as Certificate;
        let by = |error| Refused::by(&io::Error::new(io::ErrorKind::InvalidData, error)).reason;
        let certificate = |error| by(rustls::Error::InvalidCertificate(error));
        assert_eq!(by(rustls::Error::NoCertificatesPresented), Reason::NoCertificate);
        assert_eq!(certificate(Certificate::Expired), Reason::Expired);
        assert_eq!(certificate(Certificate::Revoked), Reason::Revoked);
        assert_eq!(certificate(Certificate::UnknownIssuer), Reason::Untrusted);
        assert_eq!(by(rustls::Error::General("what".to_owned())), Reason::Protocol);
        assert_eq!(Refused::by(&io::ErrorKind::UnexpectedEof.into()).reason, Reason::Closed);
        let positions = Reason::ALL.iter().map(|reason| *reason as usize);
        assert!(positions.eq(0..Reason::ALL.len()));
    }

    #[test]
    fn only_a_missing_family_leads_to_the_other() {
        assert!(lacks_ipv6(&io::Error::from_raw_os_error(97))); // EAFNOSUPPORT
        assert!(!lacks_ipv6(&io::Error::from_raw_os_error(98))); // EADDRINUSE
    }
}
