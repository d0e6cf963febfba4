//! The metrics port: `/metrics` for Prometheus, `/healthz` and `/readyz` for whoever watches the process.

use std::{convert::Infallible, sync::Arc, time::Duration};

use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header::CONTENT_TYPE,
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::timeout,
};

use crate::{metrics::Metrics, store::State, stores::Stores};

/// For a client to send the head of a request.
const PATIENCE: Duration = Duration::from_secs(10);

/// For a whole connection: a client that doesn't read its answers gives its place back.
const LIFETIME: Duration = Duration::from_secs(60);

/// Scrapers and health checks are few.
const CONNECTIONS: usize = 64;

/// What the pages are made of.
pub struct Pages {
    /// The metrics.
    pub metrics: Arc<Metrics>,
    /// The stores.
    pub stores: Arc<Stores>,
}

impl Pages {
    /// Serves one socket until dropped.
    pub async fn serve(self: Arc<Self>, socket: TcpListener) {
        let places = Arc::new(Semaphore::new(CONNECTIONS));
        loop {
            let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
            match socket.accept().await {
                Ok((stream, _)) => {
                    let pages = Arc::clone(&self);
                    tokio::spawn(async move {
                        pages.connection(stream).await;
                        drop(place);
                    });
                }
                Err(_) => tokio::time::sleep(Duration::from_secs(1)).await,
            }
        }
    }

    async fn connection(self: Arc<Self>, stream: TcpStream) {
        let pages = |request| {
            let pages = Arc::clone(&self);
            async move { Ok::<_, Infallible>(pages.page(&request)) }
        };
        let served = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(PATIENCE)
            .serve_connection(TokioIo::new(stream), service_fn(pages));
        if let Ok(Err(error)) = timeout(LIFETIME, served).await {
            tracing::debug!(%error, "a connection to the metrics port failed");
        }
    }

    fn page(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            return text(StatusCode::METHOD_NOT_ALLOWED, "only GET is answered here\n");
        }
        match request.uri().path() {
            "/metrics" => metrics(self.metrics.render()),
            "/healthz" => text(StatusCode::OK, "ok\n"),
            "/readyz" => self.readiness(),
            _ => text(StatusCode::NOT_FOUND, "here are /metrics, /healthz and /readyz\n"),
        }
    }

    fn readiness(&self) -> Response<Full<Bytes>> {
        let status = if self.stores.are_ready() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        let mut body = String::new();
        for store in self.stores.all() {
            let state = match store.state() {
                State::Up => "up",
                State::Opening => "opening",
                State::Down(_) => "down",
            };
            body.push_str(&format!("{}: {state}\n", store.name()));
        }
        text(status, &body)
    }
}

fn text(status: StatusCode, body: &str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::copy_from_slice(body.as_bytes())));
    *response.status_mut() = status;
    response
}

fn metrics(body: Vec<u8>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    let format = prometheus::TEXT_FORMAT.parse();
    if let Ok(format) = format {
        response.headers_mut().insert(CONTENT_TYPE, format);
    }
    response
}
