//! TLS handshakes whose signatures come from a key server.

#![expect(clippy::unwrap_used, reason = "a test that can't go on should fail there")]

mod key_server;

use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use key_server::{KeyServer, Keys, Pki, generate, message_digest, provider};
use keystead_client::{Client, Origin, RemoteKey, UnsupportedKey};
use keystead_protocol::Opcode;
use openssl::pkey::PKey;
use openssl::rsa::Padding;
use openssl::sign::{RsaPssSaltlen, Verifier};
use rcgen::{
    PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ECDSA_P521_SHA512, PKCS_ED25519, PKCS_RSA_SHA256,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, SubjectPublicKeyInfoDer};
use rustls::sign::{CertifiedKey, SigningKey, SingleCertAndKey};
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, ProtocolVersion, ServerConfig, SignatureScheme, SupportedProtocolVersion};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::{TlsAcceptor, TlsConnector};

const SITE: &str = "www.test";

type Algorithm = &'static rcgen::SignatureAlgorithm;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_kind_of_key_serves_both_versions() {
    let algorithms: [Algorithm; 5] = [
        &PKCS_RSA_SHA256,
        &PKCS_ECDSA_P256_SHA256,
        &PKCS_ECDSA_P384_SHA384,
        &PKCS_ECDSA_P521_SHA512,
        &PKCS_ED25519,
    ];
    for algorithm in algorithms {
        let site = Site::new(algorithm);
        for version in [&TLS12, &TLS13] {
            assert_eq!(site.handshake(version).await.unwrap(), version.version, "{algorithm:?}");
        }
    }
}

/// More handshakes than the runtime has workers; each needs an answer while all the others wait for theirs.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn waiting_signers_do_not_starve_the_runtime() {
    const COUNT: usize = 8;
    let held = Mutex::new(Vec::new());
    let site = Arc::new(Site::answering(&PKCS_ECDSA_P256_SHA256, move |keys, exchange| {
        let mut held = held.lock().unwrap();
        held.push(exchange);
        if held.len() == COUNT {
            held.drain(..).for_each(|exchange| keys.answer(&exchange));
        }
    }));
    let mut handshakes = tokio::task::JoinSet::new();
    for _ in 0..COUNT {
        let site = Arc::clone(&site);
        handshakes.spawn(async move { site.handshake(&TLS13).await });
    }
    let done = handshakes.join_all().await;
    assert!(done.iter().all(Result::is_ok), "{done:?}");
}

#[tokio::test(flavor = "current_thread")]
async fn a_current_thread_runtime_is_served_too() {
    let site = Site::new(&PKCS_ECDSA_P256_SHA256);
    assert_eq!(site.handshake(&TLS13).await.unwrap(), ProtocolVersion::TLSv1_3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_key_that_the_key_server_lacks_fails_the_handshake() {
    let site = Site::answering(&PKCS_ECDSA_P256_SHA256, |_, exchange| Keys::default().answer(&exchange));
    let error = site.handshake(&TLS13).await.unwrap_err().to_string();
    assert!(error.contains("key server answered: key not found"), "{error}");
}

#[test]
fn every_scheme_of_a_key_is_signed_as_it_should_be() {
    use SignatureScheme as S;
    let rsa: &[_] = &[S::RSA_PSS_SHA256, S::RSA_PSS_SHA384, S::RSA_PSS_SHA512];
    let pkcs1 = &[S::RSA_PKCS1_SHA256, S::RSA_PKCS1_SHA384, S::RSA_PKCS1_SHA512];
    let cases: [(Algorithm, Vec<S>); 5] = [
        (&PKCS_RSA_SHA256, [rsa, pkcs1].concat()),
        (&PKCS_ECDSA_P256_SHA256, vec![S::ECDSA_NISTP256_SHA256]),
        (&PKCS_ECDSA_P384_SHA384, vec![S::ECDSA_NISTP384_SHA384]),
        (&PKCS_ECDSA_P521_SHA512, vec![S::ECDSA_NISTP521_SHA512]),
        (&PKCS_ED25519, vec![S::ED25519]),
    ];
    for (algorithm, schemes) in cases {
        let site = Site::new(algorithm);
        for scheme in schemes {
            let signer = site.key.choose_scheme(&[S::RSA_PKCS1_SHA1, scheme]).unwrap();
            assert_eq!(signer.scheme(), scheme);
            let signature = signer.sign(b"the transcript").unwrap();
            assert!(verifies(&site.key, scheme, b"the transcript", &signature), "{scheme:?}");
        }
        assert!(site.key.choose_scheme(&[S::RSA_PKCS1_SHA1, S::ECDSA_SHA1_Legacy]).is_none());
    }
}

#[test]
fn pss_is_preferred_for_rsa() {
    let site = Site::new(&PKCS_RSA_SHA256);
    let offered =
        [SignatureScheme::RSA_PKCS1_SHA256, SignatureScheme::RSA_PSS_SHA512, SignatureScheme::RSA_PSS_SHA256];
    assert_eq!(site.key.choose_scheme(&offered).unwrap().scheme(), SignatureScheme::RSA_PSS_SHA256);
}

#[test]
fn the_key_server_learns_on_whose_behalf_it_is_asked() {
    let seen = Arc::new(Mutex::new(None));
    let record = Arc::clone(&seen);
    let site = Site::answering(&PKCS_ED25519, move |keys, exchange| {
        keys.answer(&exchange);
        *record.lock().unwrap() = Some((exchange.opcode, exchange.sni, exchange.client_ip));
    });
    let address: IpAddr = "192.0.2.7".parse().unwrap();
    let origin = Origin { sni: Some(SITE.to_owned()), client_ip: Some(address), server_ip: None };
    let key = site.key.on_behalf_of(origin);
    key.choose_scheme(&[SignatureScheme::ED25519]).unwrap().sign(b"x").unwrap();
    let expected = (Opcode::ED25519_SIGN, Some(SITE.as_bytes().to_vec()), Some(address));
    assert_eq!(seen.lock().unwrap().take(), Some(expected));
}

#[test]
fn keys_that_tls_cannot_sign_with_are_refused() {
    let site = Site::new(&PKCS_ED25519);
    let from_spki =
        |spki: &[u8]| RemoteKey::from_spki(site.client.clone(), SubjectPublicKeyInfoDer::from(spki.to_vec()));
    let group = openssl::ec::EcGroup::from_curve_name(openssl::nid::Nid::SECP256K1).unwrap();
    let key = PKey::from_ec_key(openssl::ec::EcKey::generate(&group).unwrap()).unwrap();
    assert_eq!(from_spki(&key.public_key_to_der().unwrap()).unwrap_err(), UnsupportedKey::Algorithm);
    assert_eq!(from_spki(b"junk").unwrap_err(), UnsupportedKey::PublicKey);
    let junk = CertificateDer::from(&b"junk"[..]);
    assert_eq!(
        RemoteKey::from_certificate(site.client.clone(), &junk).unwrap_err(),
        UnsupportedKey::Certificate
    );
}

/// A certificate whose key is on a key server, and somebody who trusts it.
struct Site {
    pki: Pki,
    client: Client,
    certificate: CertificateDer<'static>,
    key: RemoteKey,
    _server: KeyServer,
}

impl Site {
    fn new(algorithm: Algorithm) -> Self {
        Self::answering(algorithm, |keys, exchange| keys.answer(&exchange))
    }

    fn answering(
        algorithm: Algorithm,
        answer: impl Fn(&Keys, key_server::Exchange) + Send + Sync + 'static,
    ) -> Self {
        let pki = Pki::new();
        let private_key = generate(algorithm);
        let certificate = CertificateDer::from_pem_slice(pki.issue(SITE, &private_key).as_bytes()).unwrap();
        let mut keys = Keys::default();
        let ski = keys.add(&private_key);
        let server = KeyServer::start(&pki, move |exchange| answer(&keys, exchange));
        let client = pki.client(&[server.address()]).deadline(Duration::from_secs(30)).build().unwrap();
        let key = RemoteKey::from_certificate(client.clone(), &certificate).unwrap();
        assert_eq!(key.ski(), ski);
        Self { pki, client, certificate, key, _server: server }
    }

    /// Shakes hands and exchanges a byte each way; returns the version, or the error of the terminator's side.
    async fn handshake(
        &self,
        version: &'static SupportedProtocolVersion,
    ) -> std::io::Result<ProtocolVersion> {
        let (near, far) = tokio::io::duplex(64 * 1024);
        let (acceptor, connector) = (self.acceptor(), self.connector(version));
        let peer = tokio::spawn(async move {
            let mut stream = connector.connect(SITE.try_into().unwrap(), near).await?;
            stream.write_all(b"?").await?;
            stream.read_u8().await
        });
        let mut stream = acceptor.accept(far).await?;
        assert_eq!(stream.read_u8().await?, b'?');
        stream.write_all(b"!").await?;
        assert_eq!(peer.await.unwrap()?, b'!');
        Ok(stream.get_ref().1.protocol_version().unwrap())
    }

    fn acceptor(&self) -> TlsAcceptor {
        let certified = CertifiedKey::new(vec![self.certificate.clone()], Arc::new(self.key.clone()));
        certified.keys_match().unwrap();
        let config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(SingleCertAndKey::from(certified)));
        Arc::new(config).into()
    }

    fn connector(&self, version: &'static SupportedProtocolVersion) -> TlsConnector {
        let config = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[version])
            .unwrap()
            .with_root_certificates(self.pki.roots())
            .with_no_client_auth();
        Arc::new(config).into()
    }
}

/// OpenSSL's opinion of a signature.
fn verifies(key: &RemoteKey, scheme: SignatureScheme, message: &[u8], signature: &[u8]) -> bool {
    let public_key = PKey::public_key_from_der(&key.public_key().unwrap()).unwrap();
    if scheme == SignatureScheme::ED25519 {
        return Verifier::new_without_digest(&public_key)
            .unwrap()
            .verify_oneshot(signature, message)
            .unwrap();
    }
    let name = format!("{scheme:?}");
    let bits = name.split_once("_SHA").unwrap().1.parse().unwrap();
    let mut verifier = Verifier::new(message_digest(bits), &public_key).unwrap();
    if name.starts_with("RSA_PSS") {
        verifier.set_rsa_padding(Padding::PKCS1_PSS).unwrap();
        verifier.set_rsa_pss_saltlen(RsaPssSaltlen::DIGEST_LENGTH).unwrap();
    }
    verifier.verify_oneshot(signature, message).unwrap()
}
