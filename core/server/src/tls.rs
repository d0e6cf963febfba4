//! Who is it? The TLS of the key protocol, and the [`Peer`] that a verified certificate makes.

use std::{
    fs,
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

use aws_lc_rs::digest;
use keystead_plugin_host::tame;
use rustls::{
    RootCertStore, ServerConfig, SupportedCipherSuite, SupportedProtocolVersion,
    crypto::{CryptoProvider, aws_lc_rs as provider},
    pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, UnixTime, pem::PemObject},
    server::{NoServerSessionStorage, WebPkiClientVerifier, danger::ClientCertVerifier},
    version::{TLS12, TLS13},
};
use x509_parser::{extensions::GeneralName, prelude::*};

use crate::{
    config::{self, Config, TlsVersion},
    status::{self, Certificate},
};

/// The longest name, in bytes, and the most names that are kept of a certificate.
const NAME_MAX: usize = 256;
const NAMES_MAX: usize = 16;

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
    certificates: Vec<Certificate>,
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
        let described = described(config, &chain, &authorities, &lists);
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
        Ok(Self { server: Arc::new(server), verifier, certificates: described, digest })
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

    /// The server's certificates, those that clients must chain to, and the revocation lists.
    #[must_use]
    pub fn certificates(&self) -> &[Certificate] {
        &self.certificates
    }

    /// A revocation list that has expired, so that nobody would be let in.
    #[must_use]
    pub fn expired_list(&self) -> Option<&Certificate> {
        let now = status::seconds(SystemTime::now());
        self.certificates.iter().find(|list| list.role == status::ROLE_CRL && list.expires <= now)
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

fn described(
    config: &Config,
    chain: &[CertificateDer<'_>],
    authorities: &[CertificateDer<'_>],
    lists: &[CertificateRevocationListDer<'_>],
) -> Vec<Certificate> {
    let own = chain.iter().filter_map(|one| certificate(&config.auth_cert, status::ROLE_SERVER, one));
    let of_clients =
        authorities.iter().filter_map(|one| certificate(&config.client_ca, status::ROLE_CLIENT_CA, one));
    let lists = lists.iter().filter_map(|list| revocation_list(config.tls.crl.as_deref()?, list));
    own.chain(of_clients).chain(lists).collect()
}

impl Peer {
    /// Reads a client's certificate; `None` where it can't be read, though the verifier could.
    #[must_use]
    pub fn from_certificate(certificate: &CertificateDer<'_>) -> Option<Self> {
        let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
        let seconds = u64::try_from(parsed.validity().not_after.timestamp()).ok()?;
        Some(Self {
            subject: tame(parsed.subject().to_string().as_bytes(), NAME_MAX),
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

fn certificate(file: &Path, role: &str, certificate: &CertificateDer<'_>) -> Option<Certificate> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    Some(Certificate {
        file: file.display().to_string(),
        name: common_name(parsed.subject()),
        role: role.to_owned(),
        expires: u64::try_from(parsed.validity().not_after.timestamp()).unwrap_or_default(),
        serial: parsed.tbs_certificate.serial.to_string(),
        hostnames: alternative_names(&parsed).join(","),
    })
}

/// A list by its issuer; one that names no next update doesn't expire (RFC 5280 section 5.1.2.5 demands one).
fn revocation_list(file: &Path, list: &CertificateRevocationListDer<'_>) -> Option<Certificate> {
    let (_, parsed) = CertificateRevocationList::from_der(list).ok()?;
    Some(Certificate {
        file: file.display().to_string(),
        name: common_name(parsed.issuer()),
        role: status::ROLE_CRL.to_owned(),
        expires: u64::try_from(parsed.next_update()?.timestamp()).unwrap_or_default(),
        serial: parsed.crl_number().map(ToString::to_string).unwrap_or_default(),
        hostnames: String::new(),
    })
}

fn common_name(name: &X509Name<'_>) -> String {
    let common = name.iter_common_name().next().and_then(|name| name.as_str().ok());
    tame(common.unwrap_or_default().as_bytes(), NAME_MAX)
}

/// Names as they may stand in logs and on terminals: whoever was given a certificate may have chosen them.
fn alternative_names(certificate: &X509Certificate<'_>) -> Vec<String> {
    let names = certificate.subject_alternative_name().ok().flatten();
    let names = names.map(|extension| extension.value.general_names.as_slice()).unwrap_or_default();
    let plain = names.iter().filter_map(plain).take(NAMES_MAX);
    plain.map(|name| tame(name.as_bytes(), NAME_MAX)).collect()
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

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DnType, KeyPair, SanType};

    use super::*;

    #[test]
    fn names_of_a_certificate_steer_no_terminal_and_are_bounded() {
        let mut params = CertificateParams::new([]).unwrap();
        params.distinguished_name.push(DnType::CommonName, "two\nlines\u{202e}");
        let long = || SanType::DnsName("x".repeat(5_000).try_into().unwrap());
        params.subject_alt_names = vec![SanType::DnsName("esc\x1b[31m".try_into().unwrap()), long()];
        params.subject_alt_names.extend((0..100).map(|_| long()));
        let certificate = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
        let peer = Peer::from_certificate(certificate.der()).unwrap();
        assert_eq!(peer.name(), "esc\\u{1b}[31m");
        assert!(!peer.subject.contains('\n') && !peer.subject.contains('\u{202e}'), "{}", peer.subject);
        assert_eq!(peer.names.len(), NAMES_MAX);
        assert!(peer.names.iter().all(|name| name.len() <= NAME_MAX + '…'.len_utf8()));
    }
}
