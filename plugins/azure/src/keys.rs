//! What a vault says about its keys, and what it is sent to sign: JSON, public halves, algorithms. No I/O.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

use base64ct::{Base64UrlUnpadded, Encoding};
use keystead_plugin_api::{
    Algorithm, CallClass, Code, Error, Key,
    encode::{self, Curve},
};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::place::{Id, Kind, Vault, of_kid};

/// What RSA keys sign by themselves; the strongest first, which keys prove themselves with.
const RSA: [Algorithm; 6] = [
    Algorithm::RsaPssSha256,
    Algorithm::RsaPssSha384,
    Algorithm::RsaPssSha512,
    Algorithm::RsaPkcs1Sha256,
    Algorithm::RsaPkcs1Sha384,
    Algorithm::RsaPkcs1Sha512,
];

/// What they sign where the caller makes the `DigestInfo`.
const RSNULL: [Algorithm; 3] =
    [Algorithm::RsaPkcs1Md5Sha1, Algorithm::RsaPkcs1Sha1, Algorithm::RsaPkcs1Sha224];

/// Every hash, fitted to the curve.
const ECDSA: [Algorithm; 6] = [
    Algorithm::EcdsaSha256,
    Algorithm::EcdsaSha384,
    Algorithm::EcdsaSha512,
    Algorithm::EcdsaSha224,
    Algorithm::EcdsaSha1,
    Algorithm::EcdsaMd5Sha1,
];

/// How long before a key expires its operator hears of it.
const SOON: Duration = Duration::from_secs(30 * 24 * 3600);

/// A key with its public half: one version.
#[derive(Deserialize, Hash)]
pub(crate) struct Bundle {
    key: Jwk,
    #[serde(default)]
    pub(crate) attributes: Attributes,
}

/// A key among others, of which a list says less.
#[derive(Deserialize, Hash)]
pub(crate) struct Item {
    pub(crate) kid: String,
    #[serde(default)]
    pub(crate) attributes: Attributes,
    #[serde(default)]
    tags: Option<BTreeMap<String, String>>,
}

/// A page of them.
#[derive(Deserialize)]
pub(crate) struct Page {
    pub(crate) value: Vec<Item>,
    #[serde(default, rename = "nextLink")]
    pub(crate) next: Option<String>,
}

/// A JSON Web Key (RFC 7517), as far as it is public. Numbers may begin with zeros, and lack those they should have.
#[derive(Deserialize, Hash)]
struct Jwk {
    kid: String,
    kty: String,
    key_ops: Option<Vec<String>>,
    n: Option<String>,
    e: Option<String>,
    crv: Option<String>,
    x: Option<String>,
    y: Option<String>,
}

/// Times in seconds since 1970.
#[derive(Clone, Deserialize, Hash)]
#[serde(default)]
pub(crate) struct Attributes {
    enabled: bool,
    nbf: Option<u64>,
    exp: Option<u64>,
    pub(crate) created: Option<u64>,
    updated: Option<u64>,
}

impl Default for Attributes {
    fn default() -> Self {
        Self { enabled: true, nbf: None, exp: None, created: None, updated: None }
    }
}

impl Attributes {
    /// Why a vault doesn't sign with the key at present.
    pub(crate) fn hindrance(&self) -> Option<String> {
        let now = SystemTime::now();
        if !self.enabled {
            return Some("it is disabled".to_owned());
        }
        if let Some(from) = self.nbf.map(at).filter(|from| now < *from) {
            return Some(format!("it isn't valid before {}", httpdate::fmt_http_date(from)));
        }
        let expired = self.exp.map(at).filter(|until| now >= *until)?;
        Some(format!("it expired on {}", httpdate::fmt_http_date(expired)))
    }

    /// When it expires, where that is soon.
    pub(crate) fn expires_soon(&self) -> Option<String> {
        let until = self.exp.map(at).filter(|until| *until < SystemTime::now() + SOON)?;
        Some(httpdate::fmt_http_date(until))
    }
}

/// A time that `httpdate` can write.
fn at(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds.min(253_402_300_799)) // the end of the year 9999
}

impl Item {
    pub(crate) fn tags(&self) -> &BTreeMap<String, String> {
        const NONE: &BTreeMap<String, String> = &BTreeMap::new();
        self.tags.as_ref().unwrap_or(NONE)
    }
}

/// Why a key isn't served.
pub(crate) enum Unfit {
    /// It is as it is, and not for this.
    Passed(String),
    /// It should be served, and can't.
    Broken(Error),
}

impl Bundle {
    /// Name and version.
    pub(crate) fn name(&self) -> Option<(String, String)> {
        let (name, version) = of_kid(&self.key.kid)?;
        Some((name, version?))
    }

    /// The key as this server serves it.
    pub(crate) fn served(&self, vault: &Vault, rsnull: bool) -> Result<Key, Unfit> {
        let broken = |what: &str| Unfit::Broken(broken(what));
        let (name, version) = self.name().ok_or_else(|| broken("a key without a version in its `kid`"))?;
        let (kind, spki) = self.key.public()?;
        let can_sign = |operations: &Vec<String>| operations.iter().any(|operation| operation == "sign");
        if !self.key.key_ops.as_ref().is_none_or(can_sign) {
            return Err(Unfit::Passed("its `key_ops` have no `sign`".to_owned()));
        }
        let id = Id { kind, vault: vault.clone(), name, version };
        let algorithms = algorithms(kind, rsnull).collect();
        Ok(Key { id: id.bytes(), spki, label: id.url(), algorithms, call_class: CallClass::Blocking })
    }
}

impl Jwk {
    fn public(&self) -> Result<(Kind, Vec<u8>), Unfit> {
        let passed = |what: String| Err(Unfit::Passed(what));
        let unreadable = || Unfit::Broken(broken("a public key that can't be read"));
        match (self.kty.as_str(), self.crv.as_deref()) {
            ("RSA" | "RSA-HSM", _) => {
                let spki = number(&self.n).zip(number(&self.e)).and_then(|(n, e)| encode::rsa_spki(&n, &e));
                Ok((Kind::Rsa, spki.ok_or_else(unreadable)?))
            }
            ("EC" | "EC-HSM", Some("P-256")) => self.on(Curve::P256).ok_or_else(unreadable),
            ("EC" | "EC-HSM", Some("P-384")) => self.on(Curve::P384).ok_or_else(unreadable),
            ("EC" | "EC-HSM", Some("P-521")) => self.on(Curve::P521).ok_or_else(unreadable),
            ("EC" | "EC-HSM", Some(curve)) => passed(format!("TLS has no signatures on {}", word(curve))),
            ("EC" | "EC-HSM", None) => Err(unreadable()),
            (other, _) => passed(format!("keys of type {} don't sign for TLS", word(other))),
        }
    }

    fn on(&self, curve: Curve) -> Option<(Kind, Vec<u8>)> {
        let len = curve.order_len();
        let [x, y] = [&self.x, &self.y].map(|part| encode::padded(&number(part)?, len));
        let point = [vec![4], x?, y?].concat();
        Some((Kind::Ec(curve), encode::ec_spki(curve, &point)?))
    }
}

fn number(text: &Option<String>) -> Option<Vec<u8>> {
    Base64UrlUnpadded::decode_vec(text.as_ref()?).ok().filter(|number| !number.is_empty())
}

/// A stranger's word, short.
fn word(text: &str) -> String {
    text.chars().take(20).collect()
}

/// What a key of a kind can do.
fn algorithms(kind: Kind, rsnull: bool) -> impl Iterator<Item = Algorithm> {
    let (own, more): (&[_], &[_]) = match kind {
        Kind::Rsa => (&RSA, if rsnull { &RSNULL } else { &[] }),
        Kind::Ec(_) => (&ECDSA, &[]),
    };
    own.iter().chain(more).copied()
}

/// What a vault is sent to have a digest signed.
pub(crate) fn request(kind: Kind, rsnull: bool, algorithm: Algorithm, digest: &[u8]) -> Result<Value, Error> {
    if !algorithms(kind, rsnull).any(|able| able == algorithm) {
        return Err(Error::unsupported(algorithm));
    }
    let value = match kind {
        Kind::Rsa if RSNULL.contains(&algorithm) => {
            encode::digest_info(algorithm, digest).ok_or_else(|| Error::unsupported(algorithm))?
        }
        Kind::Rsa => digest.to_vec(),
        Kind::Ec(curve) => encode::digest_to_fit(hash_len(curve), digest).into_owned(),
    };
    Ok(json!({"alg": name(kind, algorithm), "value": Base64UrlUnpadded::encode_string(&value)}))
}

/// The bytes of the one hash that a curve has in JWS (RFC 7518 section 3.4). A digest of another length that is cut or
/// padded to it gives the signature that it should: it stands for the same number. The order of P-521 is longer than
/// every digest, so there only zeros come before.
fn hash_len(curve: Curve) -> usize {
    match curve {
        Curve::P384 => 48,
        Curve::P521 => 64,
        _ => 32,
    }
}

/// An algorithm by the name that the services have for it.
fn name(kind: Kind, algorithm: Algorithm) -> &'static str {
    match (kind, algorithm) {
        (Kind::Ec(Curve::P384), _) => "ES384",
        (Kind::Ec(Curve::P521), _) => "ES512",
        (Kind::Ec(_), _) => "ES256",
        (Kind::Rsa, Algorithm::RsaPssSha256) => "PS256",
        (Kind::Rsa, Algorithm::RsaPssSha384) => "PS384",
        (Kind::Rsa, Algorithm::RsaPssSha512) => "PS512",
        (Kind::Rsa, Algorithm::RsaPkcs1Sha256) => "RS256",
        (Kind::Rsa, Algorithm::RsaPkcs1Sha384) => "RS384",
        (Kind::Rsa, Algorithm::RsaPkcs1Sha512) => "RS512",
        (Kind::Rsa, _) => "RSNULL",
    }
}

/// What a vault answers with a signature.
#[derive(Deserialize)]
pub(crate) struct Signature {
    kid: String,
    value: String,
}

impl Signature {
    /// The signature as this server's clients want it, if it is by the key that was asked.
    pub(crate) fn bytes(&self, id: &Id) -> Result<Vec<u8>, Error> {
        if of_kid(&self.kid) != Some((id.name.clone(), Some(id.version.clone()))) {
            return Err(broken("a signature by another key"));
        }
        let bytes = Base64UrlUnpadded::decode_vec(&self.value).ok().filter(|bytes| !bytes.is_empty());
        let bytes = bytes.ok_or_else(|| broken("a signature that isn't Base64url"))?;
        let Kind::Ec(curve) = id.kind else { return Ok(bytes) };
        let whole = Some(bytes).filter(|bytes| bytes.len() == 2 * curve.order_len());
        whole
            .and_then(|bytes| encode::ecdsa_signature(&bytes))
            .ok_or_else(|| broken("a signature of the wrong length"))
    }
}

/// An answer that isn't what the services' documentation has.
pub(crate) fn broken(what: &str) -> Error {
    Error::new(Code::Unavailable, format!("the vault answered {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const VERSION: &str = "0123456789abcdef0123456789abcdef";

    fn id(kind: &str) -> Id {
        Id::parse(format!("{kind} https://demo.vault.azure.net/keys/www/{VERSION}").as_bytes()).unwrap()
    }

    fn served(key: Value) -> Result<Key, String> {
        let mut bundle = json!({"key": {"kid": format!("https://demo.vault.azure.net/keys/WWW/{VERSION}")}});
        bundle["key"].as_object_mut().unwrap().extend(key.as_object().unwrap().clone());
        let bundle: Bundle = serde_json::from_value(bundle).unwrap();
        bundle.served(&id("rsa").vault, true).map_err(|unfit| match unfit {
            Unfit::Passed(why) => why,
            Unfit::Broken(error) => error.message,
        })
    }

    fn base64(bytes: &[u8]) -> String {
        Base64UrlUnpadded::encode_string(bytes)
    }

    #[test]
    fn a_modulus_that_begins_with_zero_is_the_same_key() {
        let modulus = [[0xc5; 256].as_slice()].concat();
        let of = |n: &[u8]| served(json!({"kty": "RSA-HSM", "n": base64(n), "e": "AQAB"})).unwrap();
        let key = of(&modulus);
        assert_eq!(key.spki, of(&[&[0], modulus.as_slice()].concat()).spki);
        assert_eq!(key.id, id("rsa").bytes());
        assert_eq!(key.algorithms.len(), 9);
    }

    #[test]
    fn a_point_whose_numbers_lost_their_zeros_is_the_same_key() {
        let of =
            |x: &[u8]| served(json!({"kty": "EC", "crv": "P-256", "x": base64(x), "y": base64(&[7; 32])}));
        let padded = [&[0, 0], [9; 30].as_slice()].concat();
        assert_eq!(of(&padded).unwrap().spki, of(&[9; 30]).unwrap().spki);
        assert_eq!(of(&[9; 33]).unwrap_err(), "the vault answered a public key that can't be read");
    }

    #[test]
    fn what_does_not_sign_for_tls_is_passed_over_with_a_word() {
        for (key, why) in [
            (json!({"kty": "oct-HSM"}), "keys of type oct-HSM don't sign for TLS"),
            (json!({"kty": "EC", "crv": "P-256K"}), "TLS has no signatures on P-256K"),
            (
                json!({"kty": "RSA", "n": base64(&[0xc5; 256]), "e": "AQAB", "key_ops": ["wrapKey"]}),
                "its `key_ops` have no `sign`",
            ),
            (
                json!({"kty": "RSA", "n": "?", "e": "AQAB"}),
                "the vault answered a public key that can't be read",
            ),
            (json!({"kty": "RSA"}), "the vault answered a public key that can't be read"),
            (json!({"kty": "EC"}), "the vault answered a public key that can't be read"),
        ] {
            assert_eq!(served(key).unwrap_err(), why);
        }
    }

    #[test]
    fn a_digest_is_sent_as_the_key_takes_it() {
        let sent = |kind, algorithm, len: u8| {
            let digest: Vec<u8> = (1..=len).collect();
            let request = request(kind, true, algorithm, &digest).unwrap();
            let value = Base64UrlUnpadded::decode_vec(request["value"].as_str().unwrap()).unwrap();
            (request["alg"].as_str().unwrap().to_owned(), value)
        };
        let digest = |len: u8| (1..=len).collect::<Vec<u8>>();
        let padded = |zeros: usize, len: u8| [vec![0; zeros], digest(len)].concat();
        let p256 = Kind::Ec(Curve::P256);
        assert_eq!(sent(p256, Algorithm::EcdsaSha256, 32), ("ES256".to_owned(), digest(32)));
        assert_eq!(sent(p256, Algorithm::EcdsaSha384, 48), ("ES256".to_owned(), digest(32)));
        assert_eq!(sent(p256, Algorithm::EcdsaSha1, 20), ("ES256".to_owned(), padded(12, 20)));
        assert_eq!(sent(Kind::Ec(Curve::P384), Algorithm::EcdsaSha512, 64), ("ES384".to_owned(), digest(48)));
        let p521 = Kind::Ec(Curve::P521);
        assert_eq!(sent(p521, Algorithm::EcdsaSha256, 32), ("ES512".to_owned(), padded(32, 32)));
        assert_eq!(sent(p521, Algorithm::EcdsaSha512, 64), ("ES512".to_owned(), digest(64)));
        assert_eq!(sent(Kind::Rsa, Algorithm::RsaPssSha384, 48), ("PS384".to_owned(), digest(48)));
        assert_eq!(sent(Kind::Rsa, Algorithm::RsaPkcs1Sha256, 32), ("RS256".to_owned(), digest(32)));
        assert_eq!(sent(Kind::Rsa, Algorithm::RsaPkcs1Md5Sha1, 36), ("RSNULL".to_owned(), digest(36)));
        let (name, sha1) = sent(Kind::Rsa, Algorithm::RsaPkcs1Sha1, 20);
        assert_eq!((name.as_str(), sha1.len(), &sha1[15..]), ("RSNULL", 35, digest(20).as_slice()));
    }

    #[test]
    fn what_a_key_cannot_do_is_not_asked_for() {
        for (kind, rsnull, algorithm) in [
            (Kind::Rsa, true, Algorithm::EcdsaSha256),
            (Kind::Rsa, true, Algorithm::RsaRaw),
            (Kind::Rsa, false, Algorithm::RsaPkcs1Sha1),
            (Kind::Ec(Curve::P256), true, Algorithm::RsaPssSha256),
            (Kind::Ec(Curve::P256), true, Algorithm::Ed25519),
        ] {
            assert_eq!(request(kind, rsnull, algorithm, &[1; 32]).unwrap_err().code, Code::Unsupported);
        }
    }

    #[test]
    fn a_signature_that_is_none_is_the_services_fault() {
        let bytes = |kind, name: &str, value: &str| {
            let kid = format!("https://demo.vault.azure.net/keys/{name}/{VERSION}");
            Signature { kid, value: value.to_owned() }.bytes(&id(kind))
        };
        assert_eq!(bytes("rsa", "WWW", "AQID").unwrap(), [1, 2, 3]);
        assert_eq!(bytes("p256", "www", &base64(&[1; 64])).unwrap().len(), 70);
        for (kind, name, value) in [
            ("rsa", "www", "A+/="),
            ("rsa", "www", ""),
            ("rsa", "api", "AQID"),
            ("p256", "www", "AQID"),
            ("p521", "www", &base64(&[1; 130])),
        ] {
            assert_eq!(
                bytes(kind, name, value).unwrap_err().code,
                Code::Unavailable,
                "{kind} {name} {value}"
            );
        }
    }

    #[test]
    fn a_key_signs_from_its_first_day_to_its_last_if_it_is_enabled() {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
        let attributes = |json| serde_json::from_value::<Attributes>(json).unwrap();
        let hindrance = |json| attributes(json).hindrance();
        assert_eq!(hindrance(json!({})), None);
        assert_eq!(hindrance(json!({"enabled": true, "nbf": now - 5, "exp": now + 60})), None);
        assert_eq!(hindrance(json!({"enabled": false})).unwrap(), "it is disabled");
        assert_eq!(hindrance(json!({"exp": 0})).unwrap(), "it expired on Thu, 01 Jan 1970 00:00:00 GMT");
        assert!(
            hindrance(json!({"nbf": u64::MAX}))
                .unwrap()
                .starts_with("it isn't valid before Fri, 31 Dec 9999")
        );
        assert!(attributes(json!({"exp": now + 60})).expires_soon().is_some());
        assert!(attributes(json!({"exp": now + 40 * 24 * 3600})).expires_soon().is_none());
    }
}
