//! A connection for one grant: each address that the name has is checked, and the very one that was is connected to.

use std::{
    error::Error as StdError,
    fmt, io,
    net::{IpAddr, SocketAddr},
    path::Path,
    pin::Pin,
    sync::{Arc, LazyLock},
    task::{Context, Poll},
    time::Duration,
};

use hyper::{
    Uri,
    rt::{Read, ReadBufCursor, Write},
};
use hyper_util::{
    client::legacy::connect::{Connected, Connection, proxy::Tunnel},
    rt::TokioIo,
};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
};
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tower_service::Service;

use super::{Grant, Origin};

/// How long one address may take to accept, before the next is tried.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a handshake may take.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// How names are resolved.
pub(crate) type Resolve =
    Arc<dyn Fn(String) -> Pin<Box<dyn Future<Output = io::Result<Vec<IpAddr>>> + Send>> + Send + Sync>;

/// By the system.
pub(crate) fn by_the_system() -> Resolve {
    Arc::new(|host| {
        Box::pin(async move {
            let addresses = tokio::net::lookup_host((host.as_str(), 0)).await?;
            Ok(addresses.map(|address| address.ip()).collect())
        })
    })
}

/// Why there is no connection.
#[derive(Debug)]
pub(super) enum NoConnection {
    /// The name leads to these addresses, which aren't granted.
    Inward(Vec<IpAddr>),
    /// A file of the grant can't be used.
    Files(String),
    /// The service, or the way to it, is in trouble.
    Trouble(String),
}

impl fmt::Display for NoConnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Inward(addresses) => write!(f, "it leads to {addresses:?}"),
            Self::Files(what) | Self::Trouble(what) => f.write_str(what),
        }
    }
}

impl StdError for NoConnection {}

/// Makes the connections of one grant.
#[derive(Clone)]
pub(super) struct Dialer {
    grant: Arc<Grant>,
    resolve: Resolve,
}

impl Dialer {
    pub(super) fn new(grant: Arc<Grant>, resolve: Resolve) -> Self {
        Self { grant, resolve }
    }

    async fn connect(self, target: Uri) -> Result<Stream, NoConnection> {
        let origin = &self.grant.origin;
        let tcp = match &self.grant.proxy {
            None => self.tcp(origin, |address| self.grant.leads_to(address)).await?,
            Some(proxy) => self.tunnel(proxy, target).await?,
        };
        if !origin.is_https() {
            return Ok(Stream::Plain(TokioIo::new(tcp)));
        }
        let config = tls(&self.grant).map_err(NoConnection::Files)?;
        let name = ServerName::try_from(origin.host().to_owned())
            .map_err(|_| NoConnection::Files(format!("`{}` is not a name for TLS", origin.host())))?;
        let handshake = TlsConnector::from(config).connect(name, tcp);
        let stream = timeout(HANDSHAKE_TIMEOUT, handshake).await;
        let stream = stream.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        let trouble = |error: io::Error| NoConnection::Trouble(format!("no TLS handshake: {error}"));
        Ok(Stream::Tls(Box::new(TokioIo::new(stream.map_err(trouble)?))))
    }

    /// Connects to the first address that accepts, of those that may be connected to.
    async fn tcp(&self, origin: &Origin, may: impl Fn(IpAddr) -> bool) -> Result<TcpStream, NoConnection> {
        let addresses = self.addresses(origin).await?;
        let (allowed, inward): (Vec<_>, Vec<_>) = addresses.into_iter().partition(|address| may(*address));
        if allowed.is_empty() {
            return Err(NoConnection::Inward(inward));
        }
        let mut last = None;
        for address in allowed {
            let connecting = TcpStream::connect(SocketAddr::new(address, origin.port()));
            match timeout(CONNECT_TIMEOUT, connecting).await {
                Ok(Ok(stream)) => {
                    let _ = stream.set_nodelay(true); // it works without, only slower
                    return Ok(stream);
                }
                Ok(Err(error)) => last = Some(error),
                Err(_) => last = Some(io::ErrorKind::TimedOut.into()),
            }
        }
        let last = last.unwrap_or_else(|| io::ErrorKind::NotFound.into());
        Err(NoConnection::Trouble(format!("no connection: {last}")))
    }

    async fn addresses(&self, origin: &Origin) -> Result<Vec<IpAddr>, NoConnection> {
        if let Some(address) = origin.literal() {
            return Ok(vec![address]);
        }
        let resolved = (self.resolve)(origin.host().to_owned()).await;
        match resolved {
            Ok(addresses) if !addresses.is_empty() => Ok(addresses),
            Ok(_) => Err(NoConnection::Trouble("its name has no address".to_owned())),
            Err(error) => Err(NoConnection::Trouble(format!("its name can't be resolved: {error}"))),
        }
    }

    /// A connection through the proxy, which the operator has named: its own address isn't the plugin's choice.
    async fn tunnel(&self, proxy: &Origin, target: Uri) -> Result<TcpStream, NoConnection> {
        let trouble = |what: String| NoConnection::Trouble(format!("by the proxy {proxy}: {what}"));
        let address = proxy.to_string().parse::<Uri>().map_err(|error| trouble(error.to_string()))?;
        let mut tunnel = Tunnel::new(address, ToProxy { dialer: self.clone(), proxy: proxy.clone() });
        let connected = timeout(HANDSHAKE_TIMEOUT, tunnel.call(target)).await;
        let connected = connected.map_err(|_| trouble("it doesn't answer".to_owned()))?;
        connected.map(TokioIo::into_inner).map_err(|error| trouble(error.to_string()))
    }
}

/// Makes connections to a proxy, for a tunnel.
#[derive(Clone)]
struct ToProxy {
    dialer: Dialer,
    proxy: Origin,
}

impl Service<Uri> for ToProxy {
    type Response = TokioIo<TcpStream>;
    type Error = NoConnection;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, NoConnection>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), NoConnection>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let Self { dialer, proxy } = self.clone();
        Box::pin(async move { dialer.tcp(&proxy, |_| true).await.map(TokioIo::new) })
    }
}

impl Service<Uri> for Dialer {
    type Response = Stream;
    type Error = NoConnection;
    type Future = Pin<Box<dyn Future<Output = Result<Stream, NoConnection>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), NoConnection>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, target: Uri) -> Self::Future {
        Box::pin(self.clone().connect(target))
    }
}

/// What TLS to the service is made with. Files are read anew for each connection, so that new ones are used at once.
fn tls(grant: &Grant) -> Result<Arc<ClientConfig>, String> {
    static SYSTEM: LazyLock<Result<Arc<RootCertStore>, String>> = LazyLock::new(system_roots);
    let roots = match &grant.ca {
        Some(file) => Arc::new(roots(file)?),
        None => SYSTEM.clone()?,
    };
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots);
    let config = match &grant.client {
        None => builder.with_no_client_auth(),
        Some(client) => {
            let key =
                PrivateKeyDer::from_pem_file(&client.key).map_err(|error| unreadable(&client.key, &error))?;
            builder
                .with_client_auth_cert(certificates(&client.certificate)?, key)
                .map_err(|error| unreadable(&client.certificate, &error))?
        }
    };
    Ok(Arc::new(config))
}

fn system_roots() -> Result<Arc<RootCertStore>, String> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    match roots.is_empty() {
        true => Err(
            "this system has no certificate authorities: install ca-certificates, or set the grant's `ca`"
                .to_owned(),
        ),
        false => Ok(Arc::new(roots)),
    }
}

fn roots(file: &Path) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(file)? {
        roots.add(certificate).map_err(|error| unreadable(file, &error))?;
    }
    Ok(roots)
}

fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let certificates = CertificateDer::pem_file_iter(file).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let certificates = certificates.map_err(|error| unreadable(file, &error))?;
    if certificates.is_empty() {
        return Err(format!("{} holds no certificate in PEM", file.display()));
    }
    Ok(certificates)
}

fn unreadable(file: &Path, error: &dyn fmt::Display) -> String {
    format!("{} can't be used: {error}", file.display())
}

/// A connection: with TLS, or plain where the operator grants `http://`.
pub(super) enum Stream {
    Plain(TokioIo<TcpStream>),
    Tls(Box<TokioIo<TlsStream<TcpStream>>>),
}

/// The same for both kinds of stream.
macro_rules! delegate {
    ($self:ident, $stream:ident => $body:expr) => {
        match $self.get_mut() {
            Stream::Plain($stream) => {
                let $stream = Pin::new($stream);
                $body
            }
            Stream::Tls($stream) => {
                let $stream = Pin::new(&mut **$stream);
                $body
            }
        }
    };
}

impl Read for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        delegate!(self, stream => stream.poll_read(context, buffer))
    }
}

impl Write for Stream {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        delegate!(self, stream => stream.poll_write(context, bytes))
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        delegate!(self, stream => stream.poll_flush(context))
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        delegate!(self, stream => stream.poll_shutdown(context))
    }
}

impl Connection for Stream {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}
