//! What a store reaches through the host, without seeing the secrets it is done with: HTTP within its grants, values that
//! expire, signatures and MACs by its own secrets.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use aws_lc_rs::{
    hmac,
    rand::SystemRandom,
    rsa,
    signature::{
        self, ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P384_SHA384_ASN1_SIGNING, EcdsaKeyPair, Ed25519KeyPair,
        RsaEncoding,
    },
};
use keystead_plugin_api::{
    Algorithm, Code, Error,
    http::{Body, Request, Response},
};
use rustls::pki_types::{PrivateKeyDer, pem::PemObject};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::{
    expiring::Expiring,
    failure::tame,
    outbound::{Grant, Outbound, Resolve, secret},
    services::Secrets,
};

/// The longest time that anything is done for a plugin.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// What a plugin asks for, wherever it runs.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum Ask {
    /// An HTTP exchange.
    Fetch(Request),
    /// A value that expires, if it lives so long.
    Cached { name: String, at_least: Duration },
    /// Keeping one.
    Keep { name: String, value: Zeroizing<Vec<u8>>, lives: Duration },
    /// Not getting one.
    GiveUp { name: String },
    /// Forgetting one.
    Forget { name: String, value: Zeroizing<Vec<u8>> },
    /// A signature by a secret.
    Sign { secret: String, algorithm: u32, message: Vec<u8> },
    /// A MAC by a secret.
    Hmac { secret: String, prefix: Vec<u8>, message: Vec<u8> },
}

/// What it gets.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum Reached {
    Done,
    Response(Response),
    /// A value, signature or MAC; `None` for the duty to get the value.
    Bytes(Option<Zeroizing<Vec<u8>>>),
}

impl Ask {
    /// About as many bytes as it takes on the wire.
    pub(crate) fn size(&self) -> usize {
        match self {
            Self::Fetch(request) => {
                let body = match &request.body {
                    Body::Bytes(bytes) => bytes.len(),
                    Body::None | Body::Form(_) => 1024,
                };
                request.url.len() + body + 1024
            }
            Self::Keep { name, value, .. } | Self::Forget { name, value } => name.len() + value.len(),
            Self::Cached { name, .. } | Self::GiveUp { name } => name.len(),
            Self::Sign { secret, message, .. } => secret.len() + message.len(),
            Self::Hmac { secret, prefix, message } => secret.len() + prefix.len() + message.len(),
        }
    }
}

impl Reached {
    /// Likewise.
    pub(crate) fn size(&self) -> usize {
        match self {
            Self::Done | Self::Bytes(None) => 0,
            Self::Response(response) => response.body.len() + 4096,
            Self::Bytes(Some(bytes)) => bytes.len(),
        }
    }
}

/// What one store reaches.
pub(crate) struct Reach {
    outbound: Outbound,
    pub(crate) expiring: Expiring,
    secrets: Arc<dyn Secrets>,
}

impl Reach {
    pub(crate) fn new(store: &str, grants: Vec<Grant>, secrets: Arc<dyn Secrets>, resolve: &Resolve) -> Self {
        Self { outbound: Outbound::new(store, grants, resolve), expiring: Expiring::default(), secrets }
    }

    /// The store's name.
    #[cfg(feature = "wasm")]
    pub(crate) fn store(&self) -> &str {
        self.outbound.store()
    }

    /// Does what a plugin asks for, until `deadline`.
    pub(crate) async fn ask(&self, ask: Ask, deadline: Instant) -> Result<Reached, Error> {
        let bytes = |bytes: Vec<u8>| Reached::Bytes(Some(Zeroizing::new(bytes)));
        match ask {
            Ask::Fetch(request) => self.fetch(request, deadline).await.map(Reached::Response),
            Ask::Cached { name, at_least } => {
                self.expiring.get(&name, at_least, deadline).await.map(Reached::Bytes)
            }
            Ask::Keep { name, value, lives } => {
                self.expiring.put(&name, value, lives).map(|()| Reached::Done)
            }
            Ask::GiveUp { name } => {
                self.expiring.give_up(&name);
                Ok(Reached::Done)
            }
            Ask::Forget { name, value } => {
                self.expiring.forget(&name, &value);
                Ok(Reached::Done)
            }
            Ask::Sign { secret, algorithm, message } => self.sign(&secret, algorithm, &message).map(bytes),
            Ask::Hmac { secret, prefix, message } => self.hmac(&secret, &prefix, &message).map(bytes),
        }
    }

    pub(crate) async fn fetch(&self, request: Request, deadline: Instant) -> Result<Response, Error> {
        self.outbound.fetch(request, &*self.secrets, deadline).await
    }

    /// The value of a secret that a sandboxed plugin may see.
    #[cfg(any(test, feature = "wasm"))]
    pub(crate) fn exposed(&self, name: &str) -> Result<Zeroizing<Vec<u8>>, Error> {
        let value = secret(&*self.secrets, name)?;
        match self.secrets.exposed(name) {
            true => Ok(value),
            false => Err(Error::new(
                Code::Denied,
                format!(
                    "the secret `{0}` stays with the host; this would give it to the plugin: `{0}: {{…, expose: true}}`",
                    tame(name.as_bytes(), 64)
                ),
            )),
        }
    }

    /// Signs a message with the private key that a secret is.
    pub(crate) fn sign(&self, name: &str, algorithm: u32, message: &[u8]) -> Result<Vec<u8>, Error> {
        let algorithm = Algorithm::from_number(algorithm).ok_or_else(|| {
            Error::new(Code::Unsupported, format!("algorithm {algorithm:#x} is not supported"))
        })?;
        let key = secret(&*self.secrets, name)?;
        sign(&key, algorithm, message).map_err(|problem| problem.of(name, algorithm))
    }

    /// HMAC-SHA-256; the key is a secret, with `prefix` before it.
    pub(crate) fn hmac(&self, name: &str, prefix: &[u8], message: &[u8]) -> Result<Vec<u8>, Error> {
        let mut key = Zeroizing::new(prefix.to_vec());
        key.extend_from_slice(&secret(&*self.secrets, name)?);
        Ok(hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &key), message).as_ref().to_vec())
    }
}

/// Why a secret signs nothing.
enum Problem {
    /// It is no private key at all.
    NoKey,
    /// It is one, and not for this algorithm.
    Unfit,
}

impl Problem {
    fn of(&self, name: &str, algorithm: Algorithm) -> Error {
        let name = tame(name.as_bytes(), 64);
        match self {
            Self::NoKey => Error::invalid(format!(
                "the secret `{name}` is not a private key in PEM or DER (PKCS#8, PKCS#1, SEC 1)"
            )),
            Self::Unfit => Error::new(
                Code::Unsupported,
                format!("the key in the secret `{name}` doesn't sign {algorithm}"),
            ),
        }
    }
}

fn sign(key: &[u8], algorithm: Algorithm, message: &[u8]) -> Result<Vec<u8>, Problem> {
    let der = match PrivateKeyDer::from_pem_slice(key) {
        Ok(der) => der,
        Err(_) => PrivateKeyDer::try_from(key.to_vec()).map_err(|_| Problem::NoKey)?,
    };
    match algorithm {
        Algorithm::RsaPkcs1Sha256 => rsa_sign(&der, &signature::RSA_PKCS1_SHA256, message),
        Algorithm::RsaPkcs1Sha384 => rsa_sign(&der, &signature::RSA_PKCS1_SHA384, message),
        Algorithm::RsaPkcs1Sha512 => rsa_sign(&der, &signature::RSA_PKCS1_SHA512, message),
        Algorithm::RsaPssSha256 => rsa_sign(&der, &signature::RSA_PSS_SHA256, message),
        Algorithm::RsaPssSha384 => rsa_sign(&der, &signature::RSA_PSS_SHA384, message),
        Algorithm::RsaPssSha512 => rsa_sign(&der, &signature::RSA_PSS_SHA512, message),
        Algorithm::EcdsaSha256 => ecdsa_sign(&der, &ECDSA_P256_SHA256_ASN1_SIGNING, message),
        Algorithm::EcdsaSha384 => ecdsa_sign(&der, &ECDSA_P384_SHA384_ASN1_SIGNING, message),
        Algorithm::Ed25519 => {
            let pair =
                Ed25519KeyPair::from_pkcs8_maybe_unchecked(der.secret_der()).map_err(|_| Problem::Unfit)?;
            Ok(pair.sign(message).as_ref().to_vec())
        }
        _ => Err(Problem::Unfit),
    }
}

fn rsa_sign(
    der: &PrivateKeyDer<'_>,
    encoding: &'static dyn RsaEncoding,
    message: &[u8],
) -> Result<Vec<u8>, Problem> {
    let pair = match der {
        PrivateKeyDer::Pkcs1(key) => rsa::KeyPair::from_der(key.secret_pkcs1_der()),
        _ => rsa::KeyPair::from_pkcs8(der.secret_der()),
    };
    let pair = pair.map_err(|_| Problem::Unfit)?;
    let mut signature = vec![0; pair.public_modulus_len()];
    pair.sign(encoding, &SystemRandom::new(), message, &mut signature).map_err(|_| Problem::Unfit)?;
    Ok(signature)
}

fn ecdsa_sign(
    der: &PrivateKeyDer<'_>,
    algorithm: &'static signature::EcdsaSigningAlgorithm,
    message: &[u8],
) -> Result<Vec<u8>, Problem> {
    let pair = EcdsaKeyPair::from_private_key_der(algorithm, der.secret_der()).map_err(|_| Problem::Unfit)?;
    let signature = pair.sign(&SystemRandom::new(), message).map_err(|_| Problem::Unfit)?;
    Ok(signature.as_ref().to_vec())
}

#[cfg(test)]
mod tests {
    use openssl::{hash::MessageDigest, pkey::PKey, rsa::Rsa, sign::Verifier};

    use super::*;
    use crate::outbound::by_the_system;

    /// One secret, `key`.
    struct Key(Vec<u8>);

    impl Secrets for Key {
        fn read(&self, name: &str) -> Option<Result<Zeroizing<Vec<u8>>, String>> {
            (name == "key").then(|| Ok(Zeroizing::new(self.0.clone())))
        }
    }

    fn reach(secret: Vec<u8>) -> Reach {
        Reach::new("store", Vec::new(), Arc::new(Key(secret)), &by_the_system())
    }

    #[test]
    fn signs_with_a_key_in_a_secret_whatever_its_encoding() {
        let pair = PKey::from_rsa(Rsa::generate(2048).unwrap()).unwrap();
        let encodings = [
            pair.private_key_to_pem_pkcs8().unwrap(),
            pair.private_key_to_pkcs8().unwrap(),
            pair.rsa().unwrap().private_key_to_pem().unwrap(),
            pair.rsa().unwrap().private_key_to_der().unwrap(),
        ];
        for encoding in encodings {
            let signature =
                reach(encoding).sign("key", Algorithm::RsaPkcs1Sha256.number(), b"message").unwrap();
            let mut verifier = Verifier::new(MessageDigest::sha256(), &pair).unwrap();
            assert!(verifier.verify_oneshot(&signature, b"message").unwrap());
        }
    }

    #[test]
    fn says_what_a_secret_is_not() {
        let code = |error: Error| (error.code, error.message);
        let rsa = Algorithm::RsaPkcs1Sha256.number();
        let (class, message) = code(reach(b"hunter2".to_vec()).sign("key", rsa, b"m").unwrap_err());
        assert_eq!(class, Code::InvalidInput);
        assert!(!message.contains("hunter2"), "{message}");
        let ed25519 = PKey::generate_ed25519().unwrap().private_key_to_pem_pkcs8().unwrap();
        assert_eq!(code(reach(ed25519).sign("key", rsa, b"m").unwrap_err()).0, Code::Unsupported);
        assert_eq!(code(reach(Vec::new()).sign("other", rsa, b"m").unwrap_err()).0, Code::NotFound);
        let (class, message) = code(reach(b"x".to_vec()).exposed("key").unwrap_err());
        assert_eq!(class, Code::Denied);
        assert!(message.contains("expose: true"), "{message}");
    }

    #[test]
    fn hmac_takes_the_prefix_and_the_secret_for_its_key() {
        // RFC 4231, test case 2: the key is "Jefe".
        let mac = reach(b"fe".to_vec()).hmac("key", b"Je", b"what do ya want for nothing?").unwrap();
        assert_eq!(mac[..4], [0x5b, 0xdc, 0xc1, 0x46]);
    }
}
