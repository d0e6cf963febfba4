//! HTTP for plugins: what a store may ask of whom, and a client that keeps to it.
//!
//! ```text
//! request -> grant (scheme, host, port, method; secrets filled in) -> dial (each address checked) -> TLS -> answer, bounded
//! ```
//!
//! No redirect is followed: it is an answer like any other, and who follows it asks anew.

mod dial;
mod grant;

use std::{
    error::Error as StdError,
    sync::Arc,
    time::{Duration, Instant},
};

use http_body_util::{BodyExt, Full, Limited};
use hyper::{
    Method, Uri,
    body::{Bytes, Incoming},
    header::{self, HeaderMap, HeaderName, HeaderValue},
};
use hyper_util::{
    client::legacy::Client,
    rt::{TokioExecutor, TokioTimer},
};
use keystead_plugin_api::{
    Code, Error,
    http::{Body, Part, REQUEST_MAX, RESPONSE_MAX, Request, Response, Value},
};
use tokio::time::timeout_at;
use zeroize::Zeroizing;

use crate::{failure::tame, services::Secrets};
use dial::{Dialer, NoConnection};

pub(crate) use dial::{Resolve, by_the_system};
pub use grant::{ClientCertificate, Grant, Network, Origin};

/// How long a connection that nobody uses is kept: services close theirs after a minute and more.
const IDLE: Duration = Duration::from_secs(55);

/// How many such connections to one service: as many as a store can have lanes in use.
const IDLE_MAX: usize = 256;

/// How many bytes the head of a response may have, and the headers of a request with all secrets filled in.
const HEAD_MAX: usize = 64 << 10;

/// How many headers a request may have.
const HEADERS_MAX: usize = 128;

/// The network of one store.
pub(crate) struct Outbound {
    store: String,
    services: Vec<Service>,
}

/// One service that is granted, with the connections to it.
struct Service {
    grant: Arc<Grant>,
    client: Client<Dialer, Full<Bytes>>,
}

impl Outbound {
    pub(crate) fn new(store: &str, grants: Vec<Grant>, resolve: &Resolve) -> Self {
        let service = |grant| {
            let grant = Arc::new(grant);
            let client = Client::builder(TokioExecutor::new())
                .pool_timer(TokioTimer::new())
                .pool_idle_timeout(IDLE)
                .pool_max_idle_per_host(IDLE_MAX)
                .http1_max_buf_size(HEAD_MAX)
                .build(Dialer::new(Arc::clone(&grant), Arc::clone(resolve)));
            Service { grant, client }
        };
        Self { store: store.to_owned(), services: grants.into_iter().map(service).collect() }
    }

    #[cfg(feature = "wasm")]
    pub(crate) fn store(&self) -> &str {
        &self.store
    }

    /// Sends a request and waits for the whole answer, until `deadline`.
    pub(crate) async fn fetch(
        &self,
        request: Request,
        secrets: &dyn Secrets,
        deadline: Instant,
    ) -> Result<Response, Error> {
        let (method, url) = (request.method.clone(), tame(without_query(&request.url).as_bytes(), 512));
        let started = Instant::now();
        let answer = timeout_at(deadline.into(), self.exchange(request, secrets)).await;
        let late = || Err(Error::new(Code::Deadline, format!("{method} {url}: no answer in time")));
        let answer = answer.unwrap_or_else(|_| late());
        let (store, milliseconds) = (&self.store, started.elapsed().as_millis());
        let method = tame(method.as_bytes(), 32);
        match &answer {
            Ok(Response { status, .. }) => {
                tracing::debug!(target: "keystead::http", store, method, url, status, milliseconds, "granted");
            }
            Err(error) if error.code == Code::Denied => {
                tracing::debug!(target: "keystead::http", store, method, url, %error, "denied");
            }
            Err(error) => {
                tracing::debug!(target: "keystead::http", store, method, url, %error, milliseconds, "failed");
            }
        }
        answer
    }

    async fn exchange(&self, request: Request, secrets: &dyn Secrets) -> Result<Response, Error> {
        let url: Uri = request.url.parse().map_err(|_| unsendable("its URL is none"))?;
        let origin = Origin::of(&url).map_err(|what| unsendable(&what))?;
        let service = self.granted(&origin, &request)?;
        let request = filled_in(request, url, secrets)?;
        let answer = service.client.request(request).await;
        let answer = answer.map_err(|error| no_answer(&self.store, &service.grant, &error))?;
        taken(answer).await.map_err(|what| unavailable(&origin.to_string(), &what))
    }

    /// The service that a request is for, if the store may send it there, with the secrets that it names.
    fn granted(&self, origin: &Origin, request: &Request) -> Result<&Service, Error> {
        let Request { method, .. } = request;
        let named = secrets_of(request);
        let mut at = self.services.iter().filter(|service| service.grant.origin == *origin);
        let method_granted = |service: &&Service| service.grant.methods.contains(method);
        let Some(service) = at.find(method_granted) else {
            return Err(self.denied(&format!("{method} {origin}"), origin, method, &named));
        };
        match named.iter().find(|name| !service.grant.secrets.contains(**name)) {
            None => Ok(service),
            Some(name) => {
                let what = format!("sending the secret `{}` to {origin}", tame(name.as_bytes(), 64));
                Err(self.denied(&what, origin, method, &named))
            }
        }
    }

    fn denied(&self, what: &str, origin: &Origin, method: &str, secrets: &[&str]) -> Error {
        let grants = || self.services.iter().map(|service| &*service.grant);
        let own = grants().find(|grant| grant.origin == *origin);
        // Others of the store are reached as this one must be: by their proxy, which is vouched for as they are.
        let like = own.or_else(|| grants().find(|grant| grant.proxy.is_some() && origin.is_https()));
        let what = tame(what.as_bytes(), 256);
        let line = grant::line(origin, own, like, (method, secrets));
        let place = if own.is_some() { " in place of its grant" } else { "" };
        let store = &self.store;
        Error::new(
            Code::Denied,
            format!(
                "{what} is not granted to the store `{store}`; this{place} would allow it: `grants: {{http: [{line}]}}`"
            ),
        )
    }
}

fn secrets_of(request: &Request) -> Vec<&str> {
    let form = match &request.body {
        Body::Form(form) => form.as_slice(),
        Body::None | Body::Bytes(_) => &[],
    };
    let parts = request.headers.iter().chain(form).flat_map(|(_, value)| &value.0);
    let names = parts.filter_map(|part| match part {
        Part::Secret(name) => Some(name.as_str()),
        Part::Text(_) => None,
    });
    names.collect()
}

fn without_query(url: &str) -> &str {
    url.split(['?', '#']).next().unwrap_or_default()
}

/// The request as it is sent: the host's own headers, and secrets in their places.
fn filled_in(
    request: Request,
    url: Uri,
    secrets: &dyn Secrets,
) -> Result<hyper::Request<Full<Bytes>>, Error> {
    let method =
        Method::from_bytes(request.method.as_bytes()).map_err(|_| unsendable("its method is none"))?;
    let mut headers = HeaderMap::new();
    headers.insert(
        header::USER_AGENT,
        HeaderValue::from_static(concat!("keystead/", env!("CARGO_PKG_VERSION"))),
    );
    if request.headers.len() > HEADERS_MAX {
        return Err(unsendable(&format!("it has more than {HEADERS_MAX} headers")));
    }
    let mut room = Room::new(HEAD_MAX, "its headers have more than 64 KiB");
    for (name, value) in &request.headers {
        let (name, value) = filled_header(name, value, secrets, &mut room)?;
        headers.insert(name, value);
    }
    let body = match &request.body {
        Body::None => Bytes::new(),
        Body::Bytes(bytes) => Bytes::copy_from_slice(bytes),
        Body::Form(form) => {
            let media_type = HeaderValue::from_static("application/x-www-form-urlencoded");
            headers.insert(header::CONTENT_TYPE, media_type);
            encoded(form, secrets)?
        }
    };
    if body.len() > REQUEST_MAX {
        return Err(unsendable(BODY_TOO_LONG));
    }
    let mut sent = hyper::Request::new(Full::new(body));
    (*sent.method_mut(), *sent.uri_mut(), *sent.headers_mut()) = (method, url, headers);
    Ok(sent)
}

const BODY_TOO_LONG: &str = "its body has more than 1 MiB";

/// What may still be filled in. A plugin can name one secret a million times: that is to be noticed before it is done.
struct Room {
    left: usize,
    exceeded: &'static str,
}

impl Room {
    fn new(most: usize, exceeded: &'static str) -> Self {
        Self { left: most, exceeded }
    }

    /// Nothing is free: each piece counts for a byte at least.
    fn take(&mut self, len: usize) -> Result<(), Error> {
        self.left = self.left.checked_sub(len.max(1)).ok_or_else(|| unsendable(self.exceeded))?;
        Ok(())
    }
}

fn filled_header(
    name: &str,
    value: &Value,
    secrets: &dyn Secrets,
    room: &mut Room,
) -> Result<(HeaderName, HeaderValue), Error> {
    let shown = tame(name.as_bytes(), 64);
    let name = HeaderName::from_bytes(name.as_bytes())
        .map_err(|_| unsendable(&format!("`{shown}` is not the name of a header")))?;
    if is_the_hosts(&name) {
        return Err(unsendable(&format!("the header `{shown}` is the host's own")));
    }
    room.take(name.as_str().len())?;
    let filled = filled(value, secrets, room)?;
    let mut value = HeaderValue::from_bytes(&filled)
        .map_err(|_| unsendable(&format!("the value of the header `{shown}` can't be sent")))?;
    value.set_sensitive(true);
    Ok((name, value))
}

/// Headers that say where a request goes and how it is framed, or that belong to one connection (RFC 9110 section 7.6.1).
fn is_the_hosts(name: &HeaderName) -> bool {
    const HOSTS: [&str; 11] = [
        "connection",
        "content-length",
        "expect",
        "host",
        "keep-alive",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    ];
    HOSTS.contains(&name.as_str())
}

fn filled(value: &Value, secrets: &dyn Secrets, room: &mut Room) -> Result<Zeroizing<Vec<u8>>, Error> {
    let mut filled = Zeroizing::new(Vec::new());
    let mut fill = |piece: &[u8]| room.take(piece.len()).map(|()| filled.extend_from_slice(piece));
    for part in &value.0 {
        match part {
            Part::Text(text) => fill(text.as_bytes())?,
            Part::Secret(name) => fill(&secret(secrets, name)?)?,
        }
    }
    Ok(filled)
}

/// The value of a secret.
pub(crate) fn secret(secrets: &dyn Secrets, name: &str) -> Result<Zeroizing<Vec<u8>>, Error> {
    let shown = tame(name.as_bytes(), 64);
    match secrets.read(name) {
        Some(Ok(value)) => Ok(value),
        Some(Err(what)) => {
            Err(Error::new(Code::Unavailable, format!("the secret `{shown}` can't be read: {what}")))
        }
        None => Err(Error::new(Code::NotFound, format!("`secrets` of the store names no `{shown}`"))),
    }
}

fn encoded(form: &[(String, Value)], secrets: &dyn Secrets) -> Result<Bytes, Error> {
    let mut encoded = String::new();
    let mut room = Room::new(REQUEST_MAX, BODY_TOO_LONG);
    for (name, value) in form {
        let value = filled(value, secrets, &mut room)?;
        let separator = if encoded.is_empty() { "" } else { "&" };
        encoded.push_str(separator);
        encoded.extend(form_urlencoded::byte_serialize(name.as_bytes()));
        encoded.push('=');
        encoded.extend(form_urlencoded::byte_serialize(&value));
    }
    Ok(encoded.into())
}

async fn taken(answer: hyper::Response<Incoming>) -> Result<Response, String> {
    let (head, body) = answer.into_parts();
    let headers = head.headers.iter();
    let headers = headers.map(|(name, value)| {
        (name.as_str().to_owned(), String::from_utf8_lossy(value.as_bytes()).into_owned())
    });
    let headers = headers.collect();
    let body = Limited::new(body, RESPONSE_MAX).collect().await;
    let body = body.map_err(|error| match error.is::<http_body_util::LengthLimitError>() {
        true => "its answer has more than 2 MiB".to_owned(),
        false => format!("its answer broke off: {}", root(&*error)),
    })?;
    Ok(Response { status: head.status.as_u16(), headers, body: body.to_bytes().into() })
}

fn no_answer(store: &str, grant: &Grant, error: &hyper_util::client::legacy::Error) -> Error {
    let origin = &grant.origin;
    let mut source: Option<&(dyn StdError + 'static)> = Some(error);
    while let Some(cause) = source {
        match cause.downcast_ref::<NoConnection>() {
            Some(NoConnection::Inward(addresses)) => {
                let list = addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
                let what = format!(
                    "{origin} leads to {list}, which is not public; if the store `{store}` is to go there, its grant \
                     needs `addresses: [{list}]`"
                );
                return Error::new(Code::Denied, what);
            }
            Some(NoConnection::Files(what)) => {
                return Error::new(Code::InvalidInput, format!("{origin}: {what}"));
            }
            Some(NoConnection::Trouble(what)) => return unavailable(&origin.to_string(), what),
            None => source = cause.source(),
        }
    }
    unavailable(&origin.to_string(), &root(error))
}

/// The innermost reason.
fn root(error: &(dyn StdError + 'static)) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}

fn unavailable(url: &str, what: &str) -> Error {
    Error::new(Code::Unavailable, format!("{url}: {}", tame(what.as_bytes(), 512)))
}

fn unsendable(what: &str) -> Error {
    Error::invalid(format!("the request can't be sent: {}", tame(what.as_bytes(), 512)))
}

#[cfg(test)]
mod tests;
