//! Who is it? The TLS of the key protocol, and the [`Peer`] that a verified certificate makes.

use std::{
    fs,
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

use aws_lc_rs::digest;
use rustls::{
    RootCertStore, ServerConfig, SupportedCipherSuite, SupportedProtocolVersion,
    crypto::{CryptoProvider, aws_lc_rs as provider},
    pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, UnixTime, pem::PemObject},
    server::{NoServerSessionStorage, WebPkiClientVerifier, danger::ClientCertVerifier},
    version::{TLS12, TLS13},
};
use x509_parser::{extensions::GeneralName, prelude::*};

use crate::config::{self, Config, TlsVersion};

/// The tag that every DER file starts with (ITU-T X.690 clause 8.9.1).
const SEQUENCE: u8 = 0x30;

/// A client whose certificate was verified.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Peer {
    /// The certificate's subject, as RFC 4514 writes it.
    pub subject: String,
    /// DNS names, addresses and URIs of its subject alternative name.
    pub names: Vec<String>,
    /// Serial number, in decimal as the reference has it.
    pub serial: String,
    /// SHA-256 of the certificate.
    pub fingerprint: [u8; 32],
    /// When the certificate expires.
    pub expires: SystemTime,
}

/// When a certificate that the server itself uses expires, for the metrics.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Expiry {
    /// The file.
    pub source: String,
    /// Serial number, in decimal as the reference has it.
    pub serial: String,
    /// Common name of the subject.
    pub common_name: String,
    /// DNS names.
    pub hostnames: String,
    /// Whether it is one of the client CA's.
    pub ca: bool,
    /// Seconds since 1970.
    pub expires: i64,
}

/// What can be wrong with the files.
#[derive(Debug)]
#[non_exhaustive]
pub struct Error {
    message: String,
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

/// The TLS of the key protocol, as the files were when they were read.
pub struct Identity {
    server: Arc<ServerConfig>,
    verifier: Arc<dyn ClientCertVerifier>,
    expiries: Vec<Expiry>,
    /// The files' contents and the settings, to tell whether a later one is the same.
    digest: [u8; 32],
}

impl Identity {
    /// Reads the files that the configuration names.
    ///
    /// # Errors
    ///
    /// The file that is missing or can't be used, and why.
    pub fn load(config: &Config) -> Result<Self, Error> {
        let provider = Arc::new(crypto());
        let authorities = certificates(&config.client_ca)?;
        let chain = certificates(&config.auth_cert)?;
        let key = PrivateKeyDer::from_pem_file(&config.auth_key)
            .map_err(|error| wrong(&config.auth_key, &error))?;
        let lists = config.tls.crl.as_deref().map_or_else(|| Ok(Vec::new()), revocations)?;
        let digest = content(&config.tls, &authorities, &chain, &key, &lists);
        let expiries = expiries(config, &chain, &authorities);
        let roots = roots(&config.client_ca, authorities)?;
        let mut verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider));
        if config.tls.crl.is_some() {
            verifier = verifier.with_crls(lists).enforce_revocation_expiration();
        }
        // That there is no root was refused above, so that a list is what can be wrong.
        let blamed = config.tls.crl.as_ref().unwrap_or(&config.client_ca);
        let verifier = verifier.build().map_err(|error| wrong(blamed, &error))?;
        let mut server = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&versions(config))
            .map_err(|error| wrong(&config.auth_cert, &error))?
            .with_client_cert_verifier(Arc::clone(&verifier))
            .with_single_cert(chain, key)
            .map_err(|error| wrong(&config.auth_key, &error))?;
        if !config.tls.resumption {
            server.session_storage = Arc::new(NoServerSessionStorage {});
            server.send_tls13_tickets = 0;
        }
        Ok(Self { server: Arc::new(server), verifier, expiries, digest })
    }

    /// What handshakes are made with. Sessions live in it, so that none outlives it.
    #[must_use]
    pub fn server(&self) -> &Arc<ServerConfig> {
        &self.server
    }

    /// Whether the other was made of the same files and settings.
    #[must_use]
    pub fn is_same_as(&self, other: &Self) -> bool {
        self.digest == other.digest
    }

    /// Verifies a client's certificates at this moment, as a handshake does.
    ///
    /// # Errors
    ///
    /// Why they aren't accepted.
    pub fn verify(&self, chain: &[CertificateDer<'_>]) -> Result<(), rustls::Error> {
        let (leaf, intermediates) = chain.split_first().ok_or(rustls::Error::NoCertificatesPresented)?;
        self.verifier.verify_client_cert(leaf, intermediates, UnixTime::now()).map(drop)
    }

    /// When the server's certificate, and those that clients must chain to, expire.
    #[must_use]
    pub fn expiries(&self) -> &[Expiry] {
        &self.expiries
    }
}

fn content(
    settings: &config::Tls,
    authorities: &[CertificateDer<'_>],
    chain: &[CertificateDer<'_>],
    key: &PrivateKeyDer<'_>,
    lists: &[CertificateRevocationListDer<'_>],
) -> [u8; 32] {
    let mut context = digest::Context::new(&digest::SHA256);
    let mut part = |bytes: &[u8]| {
        context.update(&(bytes.len() as u64).to_be_bytes());
        context.update(bytes);
    };
    part(format!("{settings:?}").as_bytes());
    authorities.iter().for_each(|certificate| part(certificate));
    part(b"chain");
    chain.iter().for_each(|certificate| part(certificate));
    part(key.secret_der());
    lists.iter().for_each(|list| part(list));
    let mut digest = [0; 32];
    digest.copy_from_slice(context.finish().as_ref());
    digest
}

fn expiries(
    config: &Config,
    chain: &[CertificateDer<'_>],
    authorities: &[CertificateDer<'_>],
) -> Vec<Expiry> {
    let own = chain.iter().filter_map(|certificate| expiry(&config.auth_cert, false, certificate));
    own.chain(authorities.iter().filter_map(|certificate| expiry(&config.client_ca, true, certificate)))
        .collect()
}

impl Peer {
    /// Reads a client's certificate; `None` where it can't be read, though the verifier could.
    #[must_use]
    pub fn from_certificate(certificate: &CertificateDer<'_>) -> Option<Self> {
        let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
        let seconds = u64::try_from(parsed.validity().not_after.timestamp()).ok()?;
        Some(Self {
            subject: parsed.subject().to_string(),
            names: alternative_names(&parsed),
            serial: parsed.tbs_certificate.serial.to_string(),
            fingerprint: digest::digest(&digest::SHA256, certificate).as_ref().try_into().ok()?,
            expires: SystemTime::UNIX_EPOCH + Duration::from_secs(seconds),
        })
    }

    /// The first name of its certificate, for logs.
    #[must_use]
    pub fn name(&self) -> &str {
        self.names.first().unwrap_or(&self.subject)
    }
}

/// AWS-LC, with post-quantum key exchange preferred; of TLS 1.2 the two suites of the reference.
fn crypto() -> CryptoProvider {
    const TLS12_SUITES: [SupportedCipherSuite; 2] = [
        provider::cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
        provider::cipher_suite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
    ];
    let default = provider::default_provider();
    let tls13 = default.cipher_suites.iter().filter(|suite| suite.tls13().is_some()).copied();
    CryptoProvider { cipher_suites: tls13.chain(TLS12_SUITES).collect(), ..default }
}

fn versions(config: &Config) -> Vec<&'static SupportedProtocolVersion> {
    let version = |version: &TlsVersion| match version {
        TlsVersion::Tls12 => &TLS12,
        TlsVersion::Tls13 => &TLS13,
    };
    config.tls.versions.iter().map(version).collect()
}

fn roots(file: &Path, authorities: Vec<CertificateDer<'static>>) -> Result<RootCertStore, Error> {
    let mut roots = RootCertStore::empty();
    for certificate in authorities {
        roots.add(certificate).map_err(|error| wrong(file, &error))?;
    }
    Ok(roots)
}

fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let found: Result<Vec<_>, _> =
        CertificateDer::pem_file_iter(file).map_err(|error| wrong(file, &error))?.collect();
    match found {
        Ok(chain) if chain.is_empty() => Err(wrong(file, &"it holds no PEM certificate")),
        Ok(chain) => Ok(chain),
        Err(error) => Err(wrong(file, &error)),
    }
}

fn revocations(file: &Path) -> Result<Vec<CertificateRevocationListDer<'static>>, Error> {
    let content = fs::read(file).map_err(|error| wrong(file, &error))?;
    if content.first() == Some(&SEQUENCE) {
        return Ok(vec![CertificateRevocationListDer::from(content)]);
    }
    let found: Result<Vec<_>, _> = CertificateRevocationListDer::pem_slice_iter(&content).collect();
    match found {
        Ok(lists) if lists.is_empty() => Err(wrong(file, &"it holds no PEM revocation list")),
        Ok(lists) => Ok(lists),
        Err(error) => Err(wrong(file, &error)),
    }
}

fn wrong(file: &Path, what: &dyn std::fmt::Display) -> Error {
    Error { message: format!("{}: {what}", file.display()) }
}

fn expiry(file: &Path, ca: bool, certificate: &CertificateDer<'_>) -> Option<Expiry> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    let common_name = parsed.subject().iter_common_name().next().and_then(|name| name.as_str().ok());
    Some(Expiry {
        source: file.display().to_string(),
        serial: parsed.tbs_certificate.serial.to_string(),
        common_name: common_name.unwrap_or_default().to_owned(),
        hostnames: alternative_names(&parsed).join(","),
        ca,
        expires: parsed.validity().not_after.timestamp(),
    })
}

fn alternative_names(certificate: &X509Certificate<'_>) -> Vec<String> {
    let names = certificate.subject_alternative_name().ok().flatten();
    let names = names.map(|extension| extension.value.general_names.as_slice()).unwrap_or_default();
    names.iter().filter_map(plain).collect()
}

fn plain(name: &GeneralName<'_>) -> Option<String> {
    match name {
        GeneralName::DNSName(name) | GeneralName::URI(name) | GeneralName::RFC822Name(name) => {
            Some((*name).to_owned())
        }
        GeneralName::IPAddress(bytes) => match bytes.len() {
            4 => <[u8; 4]>::try_from(*bytes).ok().map(|bytes| std::net::Ipv4Addr::from(bytes).to_string()),
            16 => <[u8; 16]>::try_from(*bytes).ok().map(|bytes| std::net::Ipv6Addr::from(bytes).to_string()),
            _ => None,
        },
        _ => None,
    }
}
