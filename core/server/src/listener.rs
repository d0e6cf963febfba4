//! Accepting: bounded in number and time, and stopped first when the server stops.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use rustls::ServerConfig;
use tokio::{
    net::{TcpListener, TcpSocket, TcpStream},
    sync::{Semaphore, watch},
    task::JoinSet,
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use crate::{
    config::Limits,
    connection::{self, End},
    metrics::Metrics,
    service::Service,
    tls::Peer,
};

/// Pauses after an accept that failed, which happens when file descriptors run out.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(5), Duration::from_secs(10));

/// Connections that the kernel may hold until they are accepted.
const BACKLOG: u32 = 1024;

/// What every connection of the server needs.
pub struct Listener {
    /// The TLS of the key protocol.
    pub tls: Arc<ServerConfig>,
    /// Who answers.
    pub service: Arc<Service>,
    /// Where failed connections are counted.
    pub metrics: Arc<Metrics>,
    /// What clients may use.
    pub limits: Limits,
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
    /// Accepts on every socket until `stop`, then waits until the connections have ended.
    pub async fn run(self, sockets: Vec<TcpListener>, stop: watch::Receiver<bool>) {
        let shared = Arc::new(self);
        let places = Arc::new(Semaphore::new(shared.limits.connections));
        let mut accepting = JoinSet::new();
        for socket in sockets {
            let (shared, places, stop) = (Arc::clone(&shared), Arc::clone(&places), stop.clone());
            accepting.spawn(shared.listen(socket, places, stop));
        }
        accepting.join_all().await;
    }

    async fn listen(
        self: Arc<Self>,
        socket: TcpListener,
        places: Arc<Semaphore>,
        mut stop: watch::Receiver<bool>,
    ) {
        let mut connections = JoinSet::new();
        let stopping = stop.clone();
        tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop) => {}
            () = self.accept(socket, &places, &stopping, &mut connections) => {}
        }
        connections.join_all().await;
    }

    /// Accepts until it is dropped; the socket closes with it, so that clients go elsewhere while connections end.
    /// A place is taken by a connection, never by a socket that waits for one.
    async fn accept(
        self: &Arc<Self>,
        socket: TcpListener,
        places: &Arc<Semaphore>,
        stop: &watch::Receiver<bool>,
        connections: &mut JoinSet<()>,
    ) {
        let mut pause = BACK_OFF.0;
        loop {
            match socket.accept().await {
                Ok((stream, address)) => {
                    pause = BACK_OFF.0;
                    let Ok(place) = Arc::clone(places).acquire_owned().await else { return };
                    while connections.try_join_next().is_some() {}
                    let (shared, stop) = (Arc::clone(self), stop.clone());
                    connections.spawn(async move {
                        shared.serve(stream, address, stop).await;
                        drop(place);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "a connection can't be accepted; trying again in {pause:?}");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(BACK_OFF.1);
                }
            }
        }
    }

    async fn serve(&self, stream: TcpStream, address: SocketAddr, mut stop: watch::Receiver<bool>) {
        let _ = stream.set_nodelay(true); // answers are coalesced already
        let shaken = tokio::select! {
            shaken = self.handshake(stream) => shaken,
            _ = stop.wait_for(|stop| *stop) => return,
        };
        let (stream, peer) = match shaken {
            Ok(known) => known,
            // A health check connects and closes; that isn't worth a line at any higher level.
            Err(error) => {
                self.metrics.connection_failed();
                tracing::debug!(%address, "no TLS handshake: {error}");
                return;
            }
        };
        tracing::debug!(%address, peer = peer.name(), "connected");
        let end =
            connection::serve(stream, Arc::clone(&peer), Arc::clone(&self.service), &self.limits, stop).await;
        if end != End::Clean {
            self.metrics.connection_failed();
        }
        tracing::debug!(%address, peer = peer.name(), ?end, "disconnected");
    }

    async fn handshake(&self, stream: TcpStream) -> io::Result<(TlsStream<TcpStream>, Arc<Peer>)> {
        let acceptor = TlsAcceptor::from(Arc::clone(&self.tls));
        let stream = timeout(self.limits.handshake_timeout, acceptor.accept(stream))
            .await
            .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "it was not finished in time"))??;
        let certificates = stream.get_ref().1.peer_certificates();
        let peer = certificates
            .and_then(<[_]>::first)
            .and_then(Peer::from_certificate)
            .filter(|peer| !peer.is_expired())
            .ok_or_else(|| io::Error::other("the client's certificate can't be read, or has expired"))?;
        Ok((stream, Arc::new(peer)))
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
    fn only_a_missing_family_leads_to_the_other() {
        assert!(lacks_ipv6(&io::Error::from_raw_os_error(97))); // EAFNOSUPPORT
        assert!(!lacks_ipv6(&io::Error::from_raw_os_error(98))); // EADDRINUSE
    }
}
