//! The identity that the client shows to the key server, and whom it trusts.

use std::error::Error;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};

/// A TLS 1.2 and 1.3 configuration from PEM files: `ca` holds the certificates that the key server's has to chain to
/// (and nothing else is trusted), `certificates` the client's own chain, leaf first, and `key` its private key (PKCS#8,
/// PKCS#1 or SEC1, not encrypted).
///
/// # Errors
///
/// [`ConfigError`], which names the file.
pub fn client_config(ca: &Path, certificates: &Path, key: &Path) -> Result<ClientConfig, ConfigError> {
    let roots = trusted(ca)?;
    let chain = read_certificates(certificates)?;
    let private_key = PrivateKeyDer::from_pem_file(key).map_err(|error| ConfigError::new(key, error))?;
    ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| ConfigError::new(ca, error))?
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, private_key)
        .map_err(|error| ConfigError::new(key, error))
}

fn trusted(ca: &Path) -> Result<RootCertStore, ConfigError> {
    let mut roots = RootCertStore::empty();
    for certificate in read_certificates(ca)? {
        roots.add(certificate).map_err(|error| ConfigError::new(ca, error))?;
    }
    Ok(roots)
}

fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, ConfigError> {
    let certificates = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| ConfigError::new(path, error))?;
    match certificates.is_empty() {
        true => Err(ConfigError::new(path, "no certificate in it")),
        false => Ok(certificates),
    }
}

/// A file that the TLS configuration needs can't be used.
#[derive(Debug)]
pub struct ConfigError {
    path: PathBuf,
    source: Box<dyn Error + Send + Sync>,
}

impl ConfigError {
    fn new(path: &Path, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self { path: path.to_owned(), source: source.into() }
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}`: {}", self.path.display(), self.source)
    }
}

impl Error for ConfigError {}
