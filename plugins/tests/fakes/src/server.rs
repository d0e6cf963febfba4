//! A server of HTTP whose answers come from a function, and which can be disturbed.

use std::{
    collections::VecDeque,
    convert::Infallible,
    fmt, io,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use futures_util::stream;
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    Request, Response,
    body::{Bytes, Frame, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use rustls::ServerConfig;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpListener,
    sync::Notify,
    task::{JoinHandle, JoinSet},
    time::{Instant, sleep_until},
};
use tokio_rustls::TlsAcceptor;

use crate::{
    Authority, RUNTIME,
    disturbance::{Disturbance, How},
    listener,
};

/// How many requests are remembered.
const REMEMBERED: usize = 4_096;

/// A request, as it came.
#[derive(Clone, Debug, Default)]
#[expect(clippy::exhaustive_structs, reason = "tests make one for a handler")]
pub struct Asked {
    /// In upper case.
    pub method: String,
    /// Without the query, percent-encoded as it came.
    pub path: String,
    /// Behind the `?`, as it came; may be empty.
    pub query: String,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    /// All of it.
    pub body: Vec<u8>,
}

impl Asked {
    /// The value of a header, whose name is given in lower case.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
    }

    /// What [`Disturbance`]s look at: `METHOD /path?query`.
    #[must_use]
    pub fn line(&self) -> String {
        let separator = if self.query.is_empty() { "" } else { "?" };
        format!("{} {}{separator}{}", self.method, self.path, self.query)
    }
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_structs, reason = "fakes and tests make them")]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// All headers beside those of HTTP itself.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Vec<u8>,
}

impl Answer {
    /// JSON.
    #[must_use]
    pub fn json(status: u16, body: &serde_json::Value) -> Self {
        Self { status, headers: Vec::new(), body: body.to_string().into_bytes() }
            .header("content-type", "application/json; charset=utf-8")
    }

    /// Text, of no particular type.
    #[must_use]
    pub fn text(status: u16, body: &str) -> Self {
        Self { status, headers: Vec::new(), body: body.as_bytes().to_vec() }
    }

    /// Adds a header.
    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }
}

type Handler = dyn Fn(&Asked) -> Answer + Send + Sync;
type Body = UnsyncBoxBody<Bytes, io::Error>;

/// A server on a port of this machine, until it is dropped.
pub struct Server {
    address: SocketAddr,
    service: Arc<Service>,
    task: JoinHandle<()>,
}

impl Server {
    /// One with TLS, under these names.
    ///
    /// # Panics
    ///
    /// Without a free port.
    pub fn https(
        authority: &Authority,
        names: &[&str],
        handler: impl Fn(&Asked) -> Answer + Send + Sync + 'static,
    ) -> Self {
        Self::start(Some(authority.server(names)), Box::new(handler))
    }

    /// One without TLS, as the metadata services of clouds are.
    ///
    /// # Panics
    ///
    /// Without a free port.
    pub fn http(handler: impl Fn(&Asked) -> Answer + Send + Sync + 'static) -> Self {
        Self::start(None, Box::new(handler))
    }

    fn start(tls: Option<Arc<ServerConfig>>, handler: Box<Handler>) -> Self {
        let listener = listener();
        let address = listener.local_addr().expect("an address");
        let service = Arc::new(Service {
            handler,
            disturbances: Mutex::default(),
            asked: Mutex::default(),
            calm: Notify::new(),
        });
        let task = RUNTIME.spawn(serve(listener, tls.map(TlsAcceptor::from), Arc::clone(&service)));
        Self { address, service, task }
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The latest requests, oldest first.
    #[must_use]
    pub fn asked(&self) -> Vec<Asked> {
        lock(&self.service.asked).iter().cloned().collect()
    }

    /// Has something go wrong from now on. Of several that concern a request, the one that was said last counts.
    pub fn disturb(&self, disturbance: Disturbance) {
        lock(&self.service.disturbances).push(disturbance);
    }

    /// Lets everything go well again.
    pub fn calm(&self) {
        lock(&self.service.disturbances).clear();
        self.service.calm.notify_waiters();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server").field("address", &self.address).finish_non_exhaustive()
    }
}

struct Service {
    handler: Box<Handler>,
    disturbances: Mutex<Vec<Disturbance>>,
    asked: Mutex<VecDeque<Asked>>,
    calm: Notify,
}

impl Service {
    async fn answer(&self, request: Request<Incoming>) -> Result<Response<Body>, io::Error> {
        let arrived = Instant::now();
        let asked = asked(request).await?;
        match self.disturbance(&asked) {
            None => Ok(response((self.handler)(&asked), None)),
            Some(How::Answer(answer)) => Ok(response(answer, None)),
            Some(How::Change(change)) => Ok(response(change((self.handler)(&asked)), None)),
            Some(How::CutOff(after)) => Ok(response((self.handler)(&asked), Some(after))),
            Some(How::Delay(delay)) => {
                let answer = (self.handler)(&asked);
                sleep_until(arrived + delay).await;
                Ok(response(answer, None))
            }
            Some(How::Hang) => {
                self.calm.notified().await;
                Err(io::ErrorKind::TimedOut.into())
            }
        }
    }

    /// Remembers a request, and says what is to happen to it.
    fn disturbance(&self, asked: &Asked) -> Option<How> {
        let mut remembered = lock(&self.asked);
        if remembered.len() == REMEMBERED {
            remembered.pop_front();
        }
        remembered.push_back(asked.clone());
        drop(remembered);
        let line = asked.line();
        let mut disturbances = lock(&self.disturbances);
        let concerns = |this: &&mut Disturbance| this.times > 0 && line.contains(&this.what);
        let disturbance = disturbances.iter_mut().rev().find(concerns)?;
        disturbance.times -= 1;
        Some(disturbance.how.clone())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Serves until it is stopped, and its connections with it.
async fn serve(listener: TcpListener, tls: Option<TlsAcceptor>, service: Arc<Service>) {
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let (tls, service) = (tls.clone(), Arc::clone(&service));
        connections.spawn(async move {
            let _ = stream.set_nodelay(true); // of a connection that has gone already
            match tls {
                None => converse(stream, service).await,
                Some(tls) => {
                    if let Ok(stream) = tls.accept(stream).await {
                        converse(stream, service).await;
                    }
                }
            }
        });
        while connections.try_join_next().is_some() {}
    }
}

async fn converse(stream: impl AsyncRead + AsyncWrite + Unpin, service: Arc<Service>) {
    let answers = service_fn(|request| service.answer(request));
    let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), answers).await; // it may break off
}

async fn asked(request: Request<Incoming>) -> Result<Asked, io::Error> {
    let (head, body) = request.into_parts();
    let text = |value: &[u8]| String::from_utf8_lossy(value).into_owned();
    let headers = head.headers.iter().map(|(name, value)| (name.to_string(), text(value.as_bytes())));
    let body = body.collect().await.map_err(io::Error::other)?;
    Ok(Asked {
        method: head.method.to_string(),
        path: head.uri.path().to_owned(),
        query: head.uri.query().unwrap_or_default().to_owned(),
        headers: headers.collect(),
        body: body.to_bytes().into(),
    })
}

/// An answer on its way; `cut_off` is how many bytes of the body come.
fn response(answer: Answer, cut_off: Option<usize>) -> Response<Body> {
    let Answer { status, headers, body } = answer;
    let mut response = Response::builder().status(status).header("content-length", body.len());
    for (name, value) in headers {
        response = response.header(name, value);
    }
    let body = match cut_off {
        None => whole(body.into()),
        Some(after) => cut(Bytes::from(body), after),
    };
    response.body(body).expect("headers that can be sent")
}

fn whole(body: Bytes) -> Body {
    Full::new(body).map_err(|never: Infallible| match never {}).boxed_unsync()
}

fn cut(mut body: Bytes, after: usize) -> Body {
    body.truncate(after);
    let frames = [Ok(Frame::data(body)), Err(io::ErrorKind::ConnectionReset.into())];
    StreamBody::new(stream::iter(frames)).boxed_unsync()
}
