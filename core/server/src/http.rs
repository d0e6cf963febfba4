//! The metrics port: `/metrics` for Prometheus, `/healthz` and `/readyz` for whoever watches the process, and `/` for an
//! operator's browser.

use std::{convert::Infallible, sync::Arc, time::Duration};

use futures_util::FutureExt;
use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header::{
        CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderName, HeaderValue, X_CONTENT_TYPE_OPTIONS,
    },
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpListener,
    sync::Semaphore,
    time::timeout,
};

use crate::{daemon::Daemon, status::Phase};

/// For a client to send the head of a request.
const PATIENCE: Duration = Duration::from_secs(10);

/// For a whole connection: a client that doesn't read its answers gives its place back.
const LIFETIME: Duration = Duration::from_secs(60);

/// Scrapers and health checks are few.
const CONNECTIONS: usize = 64;

/// The status page: one file, with all it needs.
const PAGE: &str = include_str!("http/page.html");

/// What the page may do: run its own script, and ask this server. It holds one script and one style, and whatever it
/// shows is set as text.
const POLICY: HeaderValue = HeaderValue::from_static(
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; img-src data:; \
     base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
);

/// An answer of one piece.
pub(crate) type Answer = Response<Full<Bytes>>;

/// Shows a server's pages on one socket until dropped.
pub async fn serve(daemon: Arc<Daemon>, socket: TcpListener) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        match socket.accept().await {
            Ok((stream, _)) => {
                let daemon = Arc::clone(&daemon);
                tokio::spawn(async move {
                    converse(stream, LIFETIME, |request| page(Arc::clone(&daemon), request)).await;
                    drop(place);
                });
            }
            Err(_) => tokio::time::sleep(Duration::from_secs(1)).await,
        }
    }
}

async fn page(daemon: Arc<Daemon>, request: Request<Incoming>) -> Answer {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return text(StatusCode::METHOD_NOT_ALLOWED, "only GET is answered here\n");
    }
    match request.uri().path() {
        "/healthz" => text(StatusCode::OK, "ok\n"),
        "/readyz" => readiness(&daemon),
        "/" if daemon.shows_page() => {
            with(typed("text/html; charset=utf-8", PAGE), CONTENT_SECURITY_POLICY, POLICY)
        }
        path => look(&daemon, path).await,
    }
}

/// What shows everything, to one at a time: a health check needn't wait for that.
async fn look(daemon: &Daemon, path: &str) -> Answer {
    let shown = daemon.shows_page();
    let _alone = daemon.life.looking.lock().await;
    match path {
        "/metrics" => typed(prometheus::TEXT_FORMAT, daemon.metrics.render(&daemon.status())),
        "/status.json" if shown => json(StatusCode::OK, &daemon.status()),
        "/keys.json" if shown => json(StatusCode::OK, &daemon.keys()),
        _ => text(StatusCode::NOT_FOUND, "here are /metrics, /healthz and /readyz\n"),
    }
}

fn readiness(daemon: &Daemon) -> Answer {
    let code = if daemon.is_ready() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let mut body = String::new();
    if daemon.phase() != Phase::Serving {
        body.push_str(&format!("{}\n", daemon.phase().name()));
    }
    for (store, state, _) in daemon.stores.overview() {
        body.push_str(&format!("{store}: {}\n", state.name()));
    }
    text(code, &body)
}

/// Answers the requests of one connection, for no longer than `lifetime`.
pub(crate) async fn converse<S, F>(stream: S, lifetime: Duration, answer: impl Fn(Request<Incoming>) -> F)
where
    S: AsyncRead + AsyncWrite + Unpin,
    F: Future<Output = Answer>,
{
    let service = service_fn(|request| answer(request).map(Ok::<_, Infallible>));
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(PATIENCE)
        .serve_connection(TokioIo::new(stream), service);
    if let Ok(Err(error)) = timeout(lifetime, served).await {
        tracing::debug!(%error, "an HTTP connection failed");
    }
}

/// A line of text.
pub(crate) fn text(status: StatusCode, body: &str) -> Answer {
    let mut answer = typed("text/plain; charset=utf-8", body.to_owned());
    *answer.status_mut() = status;
    answer
}

/// A value as JSON.
pub(crate) fn json(status: StatusCode, value: &impl serde::Serialize) -> Answer {
    match serde_json::to_vec(value) {
        Ok(body) => {
            let mut answer = typed("application/json", body);
            *answer.status_mut() = status;
            answer
        }
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, &format!("{error}\n")),
    }
}

fn typed(content_type: &'static str, body: impl Into<Bytes>) -> Answer {
    let answer = Response::new(Full::new(body.into()));
    let answer = with(answer, CONTENT_TYPE, HeaderValue::from_static(content_type));
    let answer = with(answer, X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    with(answer, CACHE_CONTROL, HeaderValue::from_static("no-store"))
}

fn with(mut answer: Answer, name: HeaderName, value: HeaderValue) -> Answer {
    answer.headers_mut().insert(name, value);
    answer
}
