//! A rustls signing key whose private half is on a key server.

use std::error::Error as StdError;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use aws_lc_rs::digest::{self, SHA256, SHA384, SHA512};
use keystead_protocol::{Opcode, Request, Ski};
use rustls::pki_types::{CertificateDer, SubjectPublicKeyInfoDer};
use rustls::server::ParsedCertificate;
use rustls::sign::{Signer, SigningKey};
use rustls::{OtherError, SignatureAlgorithm, SignatureScheme};
use spki::der::Decode;
use spki::{ObjectIdentifier, SubjectPublicKeyInfoRef};
use tokio::runtime::{Handle, RuntimeFlavor};

use crate::Client;

/// A rustls signing key whose private half is on a key server.
///
/// The message is hashed here; the digest, the key's SKI and the [`Origin`] go to the key server, the signature comes
/// back. (Ed25519 signs messages, not digests: the message itself goes there.)
///
/// # From rustls' synchronous signer to async I/O
///
/// rustls calls [`Signer::sign`] in the middle of a handshake and needs the signature before it returns: there is no
/// way to suspend. So something blocks for a round trip, and the question is what. With tokio the caller is a worker
/// thread that polls the handshake, and two things can go wrong:
///
/// - *Deadlock*: if the connection to the key server is driven by the same runtime, and all its workers wait for
///   signatures, nobody reads the answers. Two cores and two handshakes at once are enough.
/// - *Starvation*: while a worker blocks, the tasks in its queue wait, although they have nothing to do with keys.
///
/// Against the first, a [`Client`] does its I/O on a thread of its own, always: what a caller waits for never depends
/// on the caller's thread, nor on its runtime. Against the second, on a multi-thread runtime the wait is wrapped in
/// [`tokio::task::block_in_place`]: another thread takes over the worker's queue meanwhile. On a plain thread, or one
/// made by `spawn_blocking`, it simply waits. On a current-thread runtime it is correct, but handshakes happen one
/// after the other: terminators should use the multi-thread runtime. The one place not to handshake in is a `LocalSet`
/// driven by a multi-thread runtime, where tokio forbids `block_in_place` and panics.
///
/// How many threads wait at once is bounded by the runtime's `max_blocking_threads` (512 by default), how long by the
/// client's deadline. A terminator that expects more handshakes in flight than that raises the number; a waiting
/// thread costs its stack's few touched pages.
///
/// Alternatives that were weighed: running whole handshakes in `spawn_blocking` holds a thread also while the *peer* is
/// awaited, so that a few hundred silent peers would stop the service. Running the `Accepted::into_connection` step
/// there, after the ClientHello has arrived, is better, but misses the signature that follows a HelloRetryRequest.
/// Asking for signatures ahead of time is impossible: they cover both sides' randoms.
#[derive(Clone)]
pub struct RemoteKey {
    client: Client,
    spki: SubjectPublicKeyInfoDer<'static>,
    ski: Ski,
    kind: &'static Kind,
    origin: Arc<Origin>,
}

/// On whose behalf a key server is asked; it may log it, and decide by it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Origin {
    /// The server name that the peer asked for.
    pub sni: Option<String>,
    /// The peer's address.
    pub client_ip: Option<IpAddr>,
    /// The address that the peer connected to.
    pub server_ip: Option<IpAddr>,
}

impl RemoteKey {
    /// The key of a certificate. It isn't looked up on the key server before the first signature.
    ///
    /// # Errors
    ///
    /// [`UnsupportedKey`] if the certificate can't be read, or TLS has no signature scheme for its key: it has them for
    /// RSA, ECDSA on P-256, P-384 and P-521, and Ed25519.
    pub fn from_certificate(
        client: Client,
        certificate: &CertificateDer<'_>,
    ) -> Result<Self, UnsupportedKey> {
        let certificate =
            ParsedCertificate::try_from(certificate).map_err(|_| UnsupportedKey::Certificate)?;
        Self::from_spki(client, certificate.subject_public_key_info().into_owned())
    }

    /// The key with this public half.
    ///
    /// # Errors
    ///
    /// [`UnsupportedKey`], as for [`Self::from_certificate`].
    pub fn from_spki(client: Client, spki: SubjectPublicKeyInfoDer<'static>) -> Result<Self, UnsupportedKey> {
        let ski = Ski::from_spki(&spki).map_err(|_| UnsupportedKey::PublicKey)?;
        let kind = kind(&spki)?;
        Ok(Self { client, spki, ski, kind, origin: Arc::default() })
    }

    /// The same key, on behalf of `origin`. It's cheap: make one per handshake.
    #[must_use]
    pub fn on_behalf_of(&self, origin: Origin) -> Self {
        Self { origin: Arc::new(origin), ..self.clone() }
    }

    /// The name of the key on the key server.
    #[must_use]
    pub const fn ski(&self) -> Ski {
        self.ski
    }
}

impl SigningKey for RemoteKey {
    fn choose_scheme(&self, offered: &[SignatureScheme]) -> Option<Box<dyn Signer>> {
        let scheme = self.kind.schemes.iter().find(|scheme| offered.contains(&scheme.name))?;
        Some(Box::new(RemoteSigner { key: self.clone(), scheme }))
    }

    fn public_key(&self) -> Option<SubjectPublicKeyInfoDer<'_>> {
        Some(SubjectPublicKeyInfoDer::from(self.spki.as_ref()))
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        self.kind.algorithm
    }
}

impl fmt::Debug for RemoteKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RemoteKey")
            .field("ski", &self.ski)
            .field("client", &self.client)
            .finish_non_exhaustive()
    }
}

/// One signature to come.
#[derive(Debug)]
struct RemoteSigner {
    key: RemoteKey,
    scheme: &'static Scheme,
}

impl Signer for RemoteSigner {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rustls::Error> {
        let digest = self.scheme.hash.map(|hash| digest::digest(hash, message));
        let origin = &self.key.origin;
        let request = Request {
            opcode: self.scheme.opcode,
            payload: digest.as_ref().map_or(message, AsRef::as_ref),
            ski: Some(self.key.ski),
            sni: origin.sni.as_ref().map(String::as_bytes),
            client_ip: origin.client_ip,
            server_ip: origin.server_ip,
            ..Request::default()
        };
        let signature = beside_the_runtime(|| self.key.client.request_blocking(&request));
        signature.map_err(|error| rustls::Error::Other(OtherError(Arc::new(error))))
    }

    fn scheme(&self) -> SignatureScheme {
        self.scheme.name
    }
}

/// Runs `wait` so that it keeps no other task from running, where the runtime offers a way.
fn beside_the_runtime<T>(wait: impl FnOnce() -> T) -> T {
    match Handle::try_current().map(|runtime| runtime.runtime_flavor()) {
        Ok(RuntimeFlavor::MultiThread) => tokio::task::block_in_place(wait),
        _ => wait(),
    }
}

/// How a TLS signature scheme is asked for.
#[derive(Debug)]
struct Scheme {
    name: SignatureScheme,
    opcode: Opcode,
    /// `None` if the message itself is signed.
    hash: Option<&'static digest::Algorithm>,
}

impl Scheme {
    const fn new(name: SignatureScheme, opcode: Opcode, hash: Option<&'static digest::Algorithm>) -> Self {
        Self { name, opcode, hash }
    }
}

/// A kind of key.
struct Kind {
    algorithm: SignatureAlgorithm,
    /// In order of preference.
    schemes: &'static [Scheme],
}

/// PSS comes first: TLS 1.3 knows nothing else. SHA-256 comes first: longer digests gain nothing with usual keys.
static RSA: Kind = Kind {
    algorithm: SignatureAlgorithm::RSA,
    schemes: &[
        Scheme::new(SignatureScheme::RSA_PSS_SHA256, Opcode::RSA_PSS_SIGN_SHA256, Some(&SHA256)),
        Scheme::new(SignatureScheme::RSA_PSS_SHA384, Opcode::RSA_PSS_SIGN_SHA384, Some(&SHA384)),
        Scheme::new(SignatureScheme::RSA_PSS_SHA512, Opcode::RSA_PSS_SIGN_SHA512, Some(&SHA512)),
        Scheme::new(SignatureScheme::RSA_PKCS1_SHA256, Opcode::RSA_SIGN_SHA256, Some(&SHA256)),
        Scheme::new(SignatureScheme::RSA_PKCS1_SHA384, Opcode::RSA_SIGN_SHA384, Some(&SHA384)),
        Scheme::new(SignatureScheme::RSA_PKCS1_SHA512, Opcode::RSA_SIGN_SHA512, Some(&SHA512)),
    ],
};

// In TLS 1.3 each curve has one hash (RFC 8446 section 4.2.3).
static P256: Kind = Kind {
    algorithm: SignatureAlgorithm::ECDSA,
    schemes: &[Scheme::new(SignatureScheme::ECDSA_NISTP256_SHA256, Opcode::ECDSA_SIGN_SHA256, Some(&SHA256))],
};
static P384: Kind = Kind {
    algorithm: SignatureAlgorithm::ECDSA,
    schemes: &[Scheme::new(SignatureScheme::ECDSA_NISTP384_SHA384, Opcode::ECDSA_SIGN_SHA384, Some(&SHA384))],
};
static P521: Kind = Kind {
    algorithm: SignatureAlgorithm::ECDSA,
    schemes: &[Scheme::new(SignatureScheme::ECDSA_NISTP521_SHA512, Opcode::ECDSA_SIGN_SHA512, Some(&SHA512))],
};
static ED25519: Kind = Kind {
    algorithm: SignatureAlgorithm::ED25519,
    schemes: &[Scheme::new(SignatureScheme::ED25519, Opcode::ED25519_SIGN, None)],
};

// RFC 8017 appendix A.1, RFC 5480 sections 2.1.1 and 2.1.1.1, RFC 8410 section 3.
const OID_RSA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");
const OID_EC: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.2.1");
const OID_P256: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.3.1.7");
const OID_P384: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.132.0.34");
const OID_P521: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.132.0.35");
const OID_ED25519: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.101.112");

fn kind(spki: &[u8]) -> Result<&'static Kind, UnsupportedKey> {
    let spki = SubjectPublicKeyInfoRef::from_der(spki).map_err(|_| UnsupportedKey::PublicKey)?;
    let curve = || spki.algorithm.parameters_oid().ok();
    match spki.algorithm.oid {
        OID_RSA => Ok(&RSA),
        OID_ED25519 => Ok(&ED25519),
        OID_EC if curve() == Some(OID_P256) => Ok(&P256),
        OID_EC if curve() == Some(OID_P384) => Ok(&P384),
        OID_EC if curve() == Some(OID_P521) => Ok(&P521),
        _ => Err(UnsupportedKey::Algorithm),
    }
}

/// Why a certificate's key can't be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum UnsupportedKey {
    /// TLS has no signature scheme for this kind of key.
    Algorithm,
    /// The certificate can't be read.
    Certificate,
    /// The public key can't be read.
    PublicKey,
}

impl fmt::Display for UnsupportedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Algorithm => {
                "key is of a kind that TLS can't sign with; use RSA, P-256, P-384, P-521 or Ed25519"
            }
            Self::Certificate => "not an X.509 certificate",
            Self::PublicKey => "public key isn't a DER-encoded SubjectPublicKeyInfo",
        })
    }
}

impl StdError for UnsupportedKey {}
