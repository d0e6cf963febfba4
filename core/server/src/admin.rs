//! The administrator's socket: HTTP over a Unix socket that only root and the server's own user may use.
//!
//! | request | answer |
//! |---|---|
//! | `GET /status` | a [`Status`](crate::status::Status) |
//! | `GET /keys` | a list of [`KeyStatus`](crate::status::KeyStatus) |
//! | `POST /reload` | a [`Reloaded`](crate::reload::Reloaded) once it is done; 409 and the reason where it is refused |
//! | `POST /drain` | once no connection is left, or the grace period is over |
//! | `POST /log-level?LEVEL` | 400 for a level that there isn't |

use std::{
    fs, io,
    os::{
        fd::AsFd,
        unix::{
            fs::{FileTypeExt, MetadataExt},
            net::UnixStream as Blocking,
        },
    },
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use hyper::{Method, Request, StatusCode, body::Incoming};
use rustix::fs::{Mode, fchmod};
use serde_json::json;
use tokio::{
    net::{UnixListener, UnixSocket, UnixStream},
    sync::Semaphore,
    time::sleep,
};

use crate::{
    config::{AdminSocket, Level},
    daemon::Daemon,
    http::{Answer, converse, json, text},
};

/// For a whole connection. A reload waits for HSMs, and draining for clients.
const LIFETIME: Duration = Duration::from_secs(3600);

/// Administrators are few.
const CONNECTIONS: usize = 16;

/// How many may wait to be accepted.
const BACKLOG: u32 = 16;

/// A socket that listens.
pub(crate) struct Socket {
    listener: UnixListener,
    path: PathBuf,
    /// The file, by device and inode, where it is ours to remove.
    file: Option<(u64, u64)>,
}

impl Socket {
    /// Takes the socket that was handed over, or else opens that of the configuration. Without a configured one, it is
    /// fine if there is no place for the default one.
    pub(crate) fn open(
        configured: Option<&AdminSocket>,
        mut inherited: Vec<std::os::unix::net::UnixListener>,
    ) -> io::Result<Option<Self>> {
        let Some(AdminSocket { path, named, .. }) = configured else { return Ok(None) };
        if let Some(listener) = inherited.pop() {
            let listener = UnixListener::from_std(listener)?;
            return Ok(Some(Self { listener, path: path.clone(), file: None }));
        }
        match Self::bind(path) {
            Ok(listener) => Ok(Some(Self { listener, path: path.clone(), file: identity(path) })),
            Err(error) if *named => Err(io::Error::new(error.kind(), said(path, &error))),
            Err(error) => {
                tracing::info!(
                    "{}; so that `keystead status` and the like can't reach this server",
                    said(path, &error)
                );
                Ok(None)
            }
        }
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Answers until dropped.
    pub(crate) async fn serve(self, daemon: Arc<Daemon>) {
        let places = Arc::new(Semaphore::new(CONNECTIONS));
        loop {
            let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
            match self.listener.accept().await {
                Ok((stream, _)) => {
                    let daemon = Arc::clone(&daemon);
                    tokio::spawn(async move {
                        let daemon = is_allowed(&stream).then_some(daemon);
                        converse(stream, LIFETIME, move |request| answer(daemon.clone(), request)).await;
                        drop(place);
                    });
                }
                Err(_) => sleep(Duration::from_secs(1)).await,
            }
        }
    }

    /// Binds, where nobody listens; what a server that was killed left behind is removed.
    fn bind(path: &Path) -> io::Result<UnixListener> {
        let socket = UnixSocket::new_stream()?;
        // Linux makes the file with the mode of the socket: there is no moment when others may connect.
        fchmod(socket.as_fd(), Mode::RUSR | Mode::WUSR)?;
        match socket.bind(path) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && is_left_behind(path) => {
                fs::remove_file(path)?;
                socket.bind(path)?;
            }
            bound => bound?,
        }
        socket.listen(BACKLOG)
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        // Another server may have put its own there meanwhile.
        if self.file.is_some() && self.file == identity(&self.path) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn said(path: &Path, error: &io::Error) -> String {
    let what = match error.kind() {
        io::ErrorKind::NotFound => "its directory doesn't exist".to_owned(),
        io::ErrorKind::AddrInUse if is_socket(path) => "another server listens there".to_owned(),
        io::ErrorKind::AddrInUse => "there is a file that is no socket".to_owned(),
        _ => error.to_string(),
    };
    format!("no admin socket {}: {what}", path.display())
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    fs::symlink_metadata(path).ok().map(|file| (file.dev(), file.ino()))
}

/// Whether a socket's file has nobody behind it.
fn is_left_behind(path: &Path) -> bool {
    let refused = |error: io::Error| error.kind() == io::ErrorKind::ConnectionRefused;
    is_socket(path) && Blocking::connect(path).is_err_and(refused)
}

fn is_socket(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|metadata| metadata.file_type().is_socket())
}

fn is_allowed(stream: &UnixStream) -> bool {
    let own = rustix::process::geteuid().as_raw();
    stream.peer_cred().is_ok_and(|peer| peer.uid() == 0 || peer.uid() == own)
}

/// Answers a request; nobody's who may not see the server.
async fn answer(daemon: Option<Arc<Daemon>>, request: Request<Incoming>) -> Answer {
    let Some(daemon) = daemon else {
        return text(StatusCode::FORBIDDEN, "only root and the server's own user are answered\n");
    };
    match (request.method(), request.uri().path()) {
        (&Method::GET, "/status") => json(StatusCode::OK, &daemon.status()),
        (&Method::GET, "/keys") => json(StatusCode::OK, &daemon.keys()),
        (&Method::POST, "/reload") => match daemon.reload().await {
            Ok(reloaded) => json(StatusCode::OK, &reloaded),
            Err(why) => json(StatusCode::CONFLICT, &json!({ "error": why })),
        },
        (&Method::POST, "/drain") => json(StatusCode::OK, &json!({ "connections": daemon.drain().await })),
        (&Method::POST, "/log-level") => level(&daemon, request.uri().query().unwrap_or_default()),
        _ => text(StatusCode::NOT_FOUND, "here are /status, /keys, /reload, /drain and /log-level\n"),
    }
}

fn level(daemon: &Daemon, name: &str) -> Answer {
    match name.parse::<Level>() {
        Ok(level) => {
            daemon.set_level(level);
            json(StatusCode::OK, &json!({ "level": level.name() }))
        }
        Err(expected) => json(StatusCode::BAD_REQUEST, &json!({ "error": format!("expected {expected}") })),
    }
}
