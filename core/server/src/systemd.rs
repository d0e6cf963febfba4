//! What the server and systemd tell each other: readiness, reloads, that it is alive, and the sockets it is given.
//!
//! Without systemd every word goes nowhere, and there are no sockets. See sd_notify(3) and sd_listen_fds(3).

use std::{
    io,
    net::{SocketAddr, TcpListener},
    os::unix::net::UnixListener,
    time::Duration,
};

use listenfd::ListenFd;
use sd_notify::NotifyState;

/// Listening sockets that were open before the process started, so that a restart refuses no connection.
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct Sockets {
    /// Of TCP.
    pub tcp: Vec<TcpListener>,
    /// Of the administrator.
    pub unix: Vec<UnixListener>,
}

impl Sockets {
    /// Those that the environment names. To be called once, before there are threads: it takes the variables out, so
    /// that no child inherits them.
    ///
    /// # Errors
    ///
    /// Where one is no listening stream socket.
    pub fn from_environment() -> io::Result<Self> {
        let mut inherited = ListenFd::from_env();
        let mut sockets = Self::default();
        for index in 0..inherited.len() {
            // The second look takes what the first refused, and says why it can't be used either.
            match inherited.take_tcp_listener(index) {
                Ok(socket) => sockets.tcp.extend(socket),
                Err(_) => sockets.unix.extend(inherited.take_unix_listener(index)?),
            }
        }
        sockets.tcp.iter().try_for_each(|socket| socket.set_nonblocking(true))?;
        sockets.unix.iter().try_for_each(|socket| socket.set_nonblocking(true))?;
        Ok(sockets)
    }

    /// Takes the TCP sockets that are bound to a port of these addresses.
    pub fn take_bound_to(&mut self, addresses: &[SocketAddr]) -> Vec<TcpListener> {
        let wanted = |socket: &mut TcpListener| {
            let port = socket.local_addr().map(|address| address.port());
            port.is_ok_and(|port| addresses.iter().any(|address| address.port() == port))
        };
        self.tcp.extract_if(.., wanted).collect()
    }
}

/// Says that the server serves.
pub fn ready(status: &str) {
    tell(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// Says that a reload begins; [`ready`] ends it.
pub fn reloading() {
    if let Ok(now) = NotifyState::monotonic_usec_now() {
        tell(&[NotifyState::Reloading, now, NotifyState::Status("reloading")]);
    }
}

/// Says that the server stops.
pub fn stopping() {
    tell(&[NotifyState::Stopping, NotifyState::Status("stopping: finishing what is in flight")]);
}

/// Says how the server is, in one line for `systemctl status`.
pub fn status(status: &str) {
    tell(&[NotifyState::Status(status)]);
}

/// Says that the server is alive. To be called more often than [`watchdog`] says.
pub fn alive() {
    tell(&[NotifyState::Watchdog]);
}

/// After how long without a sign of life systemd ends the server; `None` where it doesn't.
#[must_use]
pub fn watchdog() -> Option<Duration> {
    sd_notify::watchdog_enabled()
}

fn tell(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::debug!(%error, "the service manager can't be told");
    }
}
