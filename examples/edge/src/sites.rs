//! The certificates, whose keys are elsewhere, and which of them a browser gets.

use std::error::Error;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use keystead_client::{Client, Origin, RemoteKey};
use rustls::client::verify_server_name;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::server::{ClientHello, ParsedCertificate, ResolvesServerCert};
use rustls::sign::{CertifiedKey, SigningKey};
use rustls::{ServerConfig, SignatureAlgorithm};

/// Every site that is served.
#[derive(Debug)]
pub(crate) struct Sites {
    sites: Vec<Site>,
    tls: ServerConfig,
}

/// A certificate chain, and its key on the key server.
#[derive(Debug)]
struct Site {
    chain: Vec<CertificateDer<'static>>,
    key: RemoteKey,
}

impl Sites {
    /// Reads the certificate chains of `paths`; their keys will be asked for through `client`.
    pub(crate) fn load(paths: &[PathBuf], client: &Client) -> Result<Self, Box<dyn Error>> {
        let load = |path: &PathBuf| {
            Site::load(path, client).map_err(|error| format!("`{}`: {error}", path.display()))
        };
        let tls = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(NoSite));
        Ok(Self { sites: paths.iter().map(load).collect::<Result<_, _>>()?, tls })
    }

    /// The TLS configuration of one connection, and what will tell the key that it uses.
    pub(crate) fn tls_for(self: &Arc<Self>, peer: SocketAddr) -> (Arc<ServerConfig>, Arc<Choice>) {
        let choice = Arc::new(Choice { sites: Arc::clone(self), peer, algorithm: OnceLock::new() });
        let mut tls = self.tls.clone(); // sessions are stored once for all
        tls.cert_resolver = Arc::<Choice>::clone(&choice);
        (Arc::new(tls), choice)
    }

    /// The first site with the name that is asked for, and a key that the browser can do with.
    fn choose(&self, hello: &ClientHello<'_>) -> Option<&Site> {
        let name = hello.server_name().and_then(|name| ServerName::try_from(name).ok());
        let named = self.sites.iter().filter(|site| name.as_ref().is_none_or(|name| site.is_for(name)));
        named.into_iter().find(|site| site.key.choose_scheme(hello.signature_schemes()).is_some())
    }
}

impl Site {
    fn load(path: &Path, client: &Client) -> Result<Self, Box<dyn Error>> {
        let chain: Vec<_> = CertificateDer::pem_file_iter(path)?.collect::<Result<_, _>>()?;
        let leaf = chain.first().ok_or("no certificate in it")?;
        let key = RemoteKey::from_certificate(client.clone(), leaf)?;
        tracing::info!(ski = %key.ski(), site = %path.display(), "serving");
        Ok(Self { chain, key })
    }

    fn is_for(&self, name: &ServerName<'_>) -> bool {
        let leaf = self.chain.first().map(ParsedCertificate::try_from);
        leaf.is_some_and(|leaf| leaf.is_ok_and(|leaf| verify_server_name(&leaf, name).is_ok()))
    }
}

/// Chooses a certificate for one connection, and remembers what type of key it has.
#[derive(Debug)]
pub(crate) struct Choice {
    sites: Arc<Sites>,
    peer: SocketAddr,
    algorithm: OnceLock<SignatureAlgorithm>,
}

impl Choice {
    /// The type of the key of the certificate that was chosen.
    pub(crate) fn algorithm(&self) -> Option<SignatureAlgorithm> {
        self.algorithm.get().copied()
    }
}

impl ResolvesServerCert for Choice {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let site = self.sites.choose(&hello)?;
        let _ = self.algorithm.set(site.key.algorithm()); // a second hello chooses the same
        let sni = hello.server_name().map(str::to_owned);
        let origin = Origin { sni, client_ip: Some(self.peer.ip()), server_ip: None };
        Some(Arc::new(CertifiedKey::new(site.chain.clone(), Arc::new(site.key.on_behalf_of(origin)))))
    }
}

/// Stands in the configuration that each connection's is a copy of.
#[derive(Debug)]
struct NoSite;

impl ResolvesServerCert for NoSite {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        None
    }
}
