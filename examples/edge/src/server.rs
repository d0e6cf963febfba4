//! Accepts connections, and serves the page on each.

use std::error::Error;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::Response;
use hyper::body::Bytes;
use hyper::header::CONTENT_TYPE;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;

use crate::page::page;
use crate::sites::Sites;

/// Further connections wait in the kernel until one ends.
pub(crate) const MAX_CONNECTIONS: usize = 1024;

/// How long a handshake may take; the key server's answer is limited to 10 s by itself.
const HANDSHAKE: Duration = Duration::from_secs(15);

/// How long the head of a request may take, idling before it included.
const REQUEST: Duration = Duration::from_secs(15);

/// How long connections may take to end once the server stops.
const GRACE: Duration = Duration::from_secs(5);

/// How long accepting pauses when it fails: most likely, all file descriptors are in use.
const PAUSE: Duration = Duration::from_millis(100);

/// Serves until `stop` completes, then lets what is being served end.
pub(crate) async fn serve(
    listener: TcpListener,
    sites: Arc<Sites>,
    stop: impl Future<Output = ()>,
) -> io::Result<()> {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let (stopping, stopped) = watch::channel(());
    let mut connections = JoinSet::new();
    let mut stop = pin!(stop);
    loop {
        let place = Arc::clone(&places).acquire_owned().await.map_err(io::Error::other)?;
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = &mut stop => break,
        };
        while connections.try_join_next().is_some() {}
        let Ok((stream, peer)) = accepted else {
            sleep(PAUSE).await;
            continue;
        };
        let connection = connection(stream, peer, Arc::clone(&sites), stopped.clone());
        connections.spawn(async move {
            let _place = place;
            if let Err(error) = connection.await {
                tracing::info!(%peer, error, "connection failed");
            }
        });
    }
    drop((listener, stopping));
    let _ = timeout(GRACE, connections.join_all()).await; // the rest is cut off
    Ok(())
}

async fn connection(
    stream: TcpStream,
    peer: SocketAddr,
    sites: Arc<Sites>,
    mut stopped: watch::Receiver<()>,
) -> Result<(), Box<dyn Error + Send + Sync>> {
    let (tls, choice) = sites.tls_for(peer);
    let stream = timeout(HANDSHAKE, TlsAcceptor::from(tls).accept(stream)).await??;
    let page = Bytes::from(page(stream.get_ref().1, &choice));
    let service = service_fn(|_| {
        let response = Response::builder().header(CONTENT_TYPE, "text/html; charset=utf-8");
        let response = response.body(Full::new(page.clone()));
        async { response }
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(REQUEST);
    let mut http = pin!(http.serve_connection(TokioIo::new(stream), service));
    tokio::select! {
        served = &mut http => return Ok(served?),
        _ = stopped.changed() => http.as_mut().graceful_shutdown(),
    }
    Ok(http.await?)
}
