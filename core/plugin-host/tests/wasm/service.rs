//! A service over HTTP on this machine, which remembers what it was asked.

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        mpsc::{self, Sender},
    },
    thread,
    time::{Duration, Instant},
};

use http_body_util::{BodyExt, Full, combinators::UnsyncBoxBody};
use hyper::{
    Request, Response, StatusCode,
    body::{Body, Bytes, Frame, Incoming},
    header,
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use keystead_plugin_host::{Grant, StoreSpec};
use tokio::{net::TcpListener, sync::oneshot};

/// How long `/slow` takes to answer.
pub(crate) const SLOW: Duration = Duration::from_millis(20);

type Answer = Response<UnsyncBoxBody<Bytes, Infallible>>;

/// The service; it is there until the runtime ends.
#[derive(Clone)]
pub(crate) struct Service {
    address: SocketAddr,
    heard: Arc<Mutex<Vec<String>>>,
    alarms: Sender<Alarm>,
}

/// When it is due, and who waits for that.
type Alarm = (Instant, oneshot::Sender<()>);

/// Takes alarms in the order in which they are due, and is on time: the runtime's timer may be a millisecond late.
fn alarms() -> Sender<Alarm> {
    let (sender, alarms) = mpsc::channel::<Alarm>();
    let ring = move || {
        for (due, waiting) in alarms {
            thread::sleep(due.saturating_duration_since(Instant::now()));
            let _ = waiting.send(());
        }
    };
    thread::spawn(ring);
    sender
}

impl Service {
    /// Starts it, on a port of its own.
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let service =
            Self { address: listener.local_addr().unwrap(), heard: Arc::default(), alarms: alarms() };
        tokio::spawn(service.clone().serve(listener));
        service
    }

    /// Scheme, host and port.
    pub(crate) fn origin(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The URL of a path: `/hello`, `/slow`, `/huge`, `/endless`, and `/to/URL`, which redirects.
    pub(crate) fn url(&self, path: &str) -> String {
        format!("{}{path}", self.origin())
    }

    /// Lets a store get and post there, with the secrets `token` and `long`.
    pub(crate) fn grant(&self, spec: &mut StoreSpec) {
        spec.grants.push(Grant {
            origin: self.origin().parse().unwrap(),
            methods: ["GET", "POST"].map(str::to_owned).into(),
            secrets: ["token", "long"].map(str::to_owned).into(),
            addresses: Vec::new(),
            ca: None,
            client: None,
            proxy: None,
        });
    }

    /// Each request so far: method, path, headers and body.
    pub(crate) fn heard(&self) -> Vec<String> {
        self.heard.lock().unwrap().clone()
    }

    async fn serve(self, listener: TcpListener) {
        while let Ok((stream, _)) = listener.accept().await {
            let _ = stream.set_nodelay(true);
            let service = self.clone();
            let answer = service_fn(move |request| {
                let service = service.clone();
                async move { Ok::<_, Infallible>(service.answer(request).await) }
            });
            tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), answer));
        }
    }

    async fn answer(&self, request: Request<Incoming>) -> Answer {
        let arrived = Instant::now();
        let path = request.uri().path().to_owned();
        let head = format!("{} {path} {:?}", request.method(), request.headers());
        let body = request.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
        self.heard.lock().unwrap().push(format!("{head} {}", String::from_utf8_lossy(&body)));
        match path.as_str() {
            "/huge" => Response::new(Full::new(vec![b'x'; 5 << 20].into()).boxed_unsync()),
            "/endless" => Response::new(Endless.boxed_unsync()),
            "/slow" => {
                let (due, is_due) = oneshot::channel();
                let _ = self.alarms.send((arrived + SLOW, due));
                let _ = is_due.await;
                text("slow")
            }
            path => path.strip_prefix("/to/").map_or_else(|| text("hello"), redirect),
        }
    }
}

fn text(text: &str) -> Answer {
    Response::new(Full::new(text.to_owned().into()).boxed_unsync())
}

fn redirect(url: &str) -> Answer {
    let mut answer = text("elsewhere");
    *answer.status_mut() = StatusCode::FOUND;
    answer.headers_mut().insert(header::LOCATION, url.parse().unwrap());
    answer
}

/// A body that goes on for as long as somebody reads it.
struct Endless;

impl Body for Endless {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        std::task::Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(&[b'x'; 16 << 10])))))
    }
}
