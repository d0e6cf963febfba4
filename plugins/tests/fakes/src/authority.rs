//! The authority that vouches for the fakes.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::{
    ServerConfig,
    crypto::aws_lc_rs,
    pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer},
};

/// An authority of certificates, made for the occasion.
#[derive(Debug)]
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    ca: PathBuf,
}

impl Authority {
    /// Makes one, and writes its certificate as `ca.pem` into a folder.
    ///
    /// # Panics
    ///
    /// Where that can't be written.
    #[must_use]
    pub fn create(folder: &Path) -> Self {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "Keystead authority of fakes");
        let ca = folder.join("ca.pem");
        let certificate = params.self_signed(&key).expect("a certificate").pem();
        fs::write(&ca, certificate).expect("the certificate can be written");
        Self { issuer: Issuer::new(params, key), ca }
    }

    /// The PEM file of its certificate.
    #[must_use]
    pub fn ca(&self) -> &Path {
        &self.ca
    }

    /// TLS of a server with these names.
    pub(crate) fn server(&self, names: &[&str]) -> Arc<ServerConfig> {
        let key = KeyPair::generate().expect("a key");
        let names: Vec<_> = names.iter().map(|&name| name.to_owned()).collect();
        let params = CertificateParams::new(names).expect("names of hosts");
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate").der().clone();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("versions that the provider has");
        Arc::new(config.with_no_client_auth().with_single_cert(vec![certificate], key).expect("its own key"))
    }
}
