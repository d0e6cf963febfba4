//! Keys, as a vault has them.

use std::fmt;

use base64ct::{Base64UrlUnpadded, Encoding};
use openssl::{
    bn::{BigNum, BigNumContext},
    ec::{EcGroup, EcKey},
    ecdsa::EcdsaSig,
    encrypt::Decrypter,
    hash::MessageDigest,
    md::Md,
    nid::Nid,
    pkey::{Id, PKey, Private},
    pkey_ctx::PkeyCtx,
    rand::rand_bytes,
    rsa::{Padding, Rsa},
    sign::RsaPssSaltlen,
};
use serde_json::{Map, Value, json};

/// The types of keys that a vault makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "tests make keys of all of them")]
pub enum Type {
    /// RSA of so many bits, in software.
    Rsa(u32),
    /// RSA of so many bits, in an HSM.
    RsaHsm(u32),
    /// On P-256, in software.
    P256,
    /// On P-384, in an HSM.
    P384Hsm,
    /// On P-521, in software.
    P521,
    /// On secp256k1, in software.
    P256k,
}

/// One version of a key.
pub(super) struct Version {
    /// 32 hexadecimal digits.
    pub(super) id: String,
    pair: PKey<Private>,
    kty: &'static str,
    imported: bool,
    attributes: Map<String, Value>,
    tags: Option<Value>,
    key_ops: Value,
}

impl fmt::Debug for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Version").field("id", &self.id).finish_non_exhaustive()
    }
}

impl Version {
    pub(super) fn make(key_type: Type, now: u64) -> Self {
        let rsa = |bits| PKey::from_rsa(Rsa::generate(bits).expect("a key")).expect("a key");
        let ec = |nid| {
            let group = EcGroup::from_curve_name(nid).expect("a curve");
            PKey::from_ec_key(EcKey::generate(&group).expect("a key")).expect("a key")
        };
        let (pair, kty) = match key_type {
            Type::Rsa(bits) => (rsa(bits), "RSA"),
            Type::RsaHsm(bits) => (rsa(bits), "RSA-HSM"),
            Type::P256 => (ec(Nid::X9_62_PRIME256V1), "EC"),
            Type::P384Hsm => (ec(Nid::SECP384R1), "EC-HSM"),
            Type::P521 => (ec(Nid::SECP521R1), "EC"),
            Type::P256k => (ec(Nid::SECP256K1), "EC"),
        };
        Self::of(pair, kty, false, now)
    }

    pub(super) fn import(pem: &[u8], now: u64) -> Self {
        let pair = PKey::private_key_from_pem(pem).expect("a private key in PEM");
        let kty = if pair.id() == Id::RSA { "RSA" } else { "EC" };
        Self::of(pair, kty, true, now)
    }

    fn of(pair: PKey<Private>, kty: &'static str, imported: bool, now: u64) -> Self {
        let mut id = [0; 16];
        rand_bytes(&mut id).expect("random bytes");
        let id = id.iter().map(|byte| format!("{byte:02x}")).collect();
        let key_ops = match kty.starts_with("RSA") {
            true => json!(["encrypt", "decrypt", "sign", "verify", "wrapKey", "unwrapKey"]),
            false => json!(["sign", "verify"]),
        };
        let attributes =
            json!({"enabled": true, "created": now, "updated": now, "recoveryLevel": "Recoverable"});
        let Value::Object(attributes) = attributes else { unreachable!("an object") };
        Self { id, pair, kty, imported, attributes, tags: None, key_ops }
    }

    pub(super) fn public_key(&self) -> Vec<u8> {
        self.pair.public_key_to_der().expect("a public key")
    }

    pub(super) fn change(&mut self, members: &Value, now: u64) {
        self.attributes.insert("updated".to_owned(), now.into());
        let attributes = members.get("attributes").and_then(Value::as_object);
        self.attributes.extend(attributes.cloned().unwrap_or_default());
        self.tags = members.get("tags").cloned().or_else(|| self.tags.take());
        self.key_ops = members.get("key_ops").cloned().unwrap_or_else(|| self.key_ops.take());
    }

    /// Why an operation isn't allowed at present. What an expired key has encrypted can still be decrypted.
    pub(super) fn refuses(&self, operation: &str, now: u64) -> Option<(&'static str, String)> {
        let attribute = |name: &str| self.attributes.get(name).and_then(Value::as_u64);
        if self.attributes.get("enabled") == Some(&Value::Bool(false)) {
            return Some(("KeyDisabled", format!("Operation {operation} is not allowed on a disabled key.")));
        }
        if operation == "sign" && attribute("exp").is_some_and(|exp| exp <= now) {
            return Some(("KeyExpired", format!("Operation {operation} is not allowed on an expired key.")));
        }
        if operation == "sign" && attribute("nbf").is_some_and(|nbf| nbf > now) {
            return Some((
                "KeyNotYetValid",
                format!("Operation {operation} is not allowed on a key that is not yet valid."),
            ));
        }
        let allowed = self.key_ops.as_array().is_some_and(|ops| ops.contains(&operation.into()));
        (!allowed).then(|| {
            ("KeyOperationForbidden", format!("Operation {operation} is not permitted on this key."))
        })
    }

    /// What a list says of it.
    pub(super) fn item(&self, kid: &str) -> Value {
        let mut item = json!({"kid": kid, "attributes": self.attributes});
        self.tag(&mut item);
        item
    }

    /// All that is public of it.
    pub(super) fn bundle(&self, kid: &str) -> Value {
        let mut key = json!({"kid": kid, "kty": self.kty, "key_ops": self.key_ops});
        key.as_object_mut().expect("an object").extend(self.numbers());
        let mut bundle = json!({"key": key, "attributes": self.attributes});
        self.tag(&mut bundle);
        bundle
    }

    fn tag(&self, json: &mut Value) {
        if let (Some(tags), Some(members)) = (&self.tags, json.as_object_mut()) {
            members.insert("tags".to_owned(), tags.clone());
        }
    }

    fn numbers(&self) -> Vec<(String, Value)> {
        let member =
            |name: &str, bytes: &[u8]| (name.to_owned(), Base64UrlUnpadded::encode_string(bytes).into());
        if let Ok(rsa) = self.pair.rsa() {
            let zero: &[u8] = if self.imported { &[0] } else { &[] };
            return vec![member("n", &[zero, &rsa.n().to_vec()].concat()), member("e", &rsa.e().to_vec())];
        }
        let key = self.pair.ec_key().expect("an EC key");
        let (mut x, mut y) = (BigNum::new().expect("a number"), BigNum::new().expect("a number"));
        let mut context = BigNumContext::new().expect("a context");
        let point = key.public_key();
        point.affine_coordinates(key.group(), &mut x, &mut y, &mut context).expect("a point");
        let (crv, len) = self.curve();
        let padded = |number: &BigNum| number.to_vec_padded(len).expect("it fits");
        vec![("crv".to_owned(), crv.into()), member("x", &padded(&x)), member("y", &padded(&y))]
    }

    /// The name of the curve, and how many bytes its numbers have.
    fn curve(&self) -> (&'static str, i32) {
        match self.pair.ec_key().expect("an EC key").group().curve_name() {
            Some(Nid::SECP384R1) => ("P-384", 48),
            Some(Nid::SECP521R1) => ("P-521", 66),
            Some(Nid::SECP256K1) => ("P-256K", 32),
            _ => ("P-256", 32),
        }
    }

    /// Signs a digest; `Err` says what is wrong with what was asked.
    pub(super) fn sign(&self, algorithm: &str, digest: &[u8]) -> Result<Vec<u8>, String> {
        let (len, message) = match algorithm.get(2..) {
            Some("256" | "256K") => (32, Md::sha256()),
            Some("384") => (48, Md::sha384()),
            Some("512") => (64, Md::sha512()),
            _ if algorithm == "RSNULL" => (digest.len(), Md::sha256()),
            _ => return Err(format!("Algorithm {algorithm} is not supported")),
        };
        if digest.len() != len {
            return Err(format!("Invalid length of 'value': {} bytes. Expected: {len} bytes", digest.len()));
        }
        match (self.pair.id() == Id::RSA, algorithm) {
            (true, "RS256" | "RS384" | "RS512") => self.sign_rsa(Padding::PKCS1, Some(message), digest),
            (true, "PS256" | "PS384" | "PS512") => self.sign_rsa(Padding::PKCS1_PSS, Some(message), digest),
            (true, "RSNULL") => self.sign_rsa(Padding::PKCS1, None, digest),
            (false, name) if name == self.ecdsa() => Ok(self.sign_ec(digest)),
            _ => Err(format!(
                "Key and signing algorithm are incompatible. Key has type '{}', algorithm is '{algorithm}'",
                self.kty
            )),
        }
    }

    /// The one algorithm of its curve.
    fn ecdsa(&self) -> &'static str {
        match self.curve().0 {
            "P-384" => "ES384",
            "P-521" => "ES512",
            "P-256K" => "ES256K",
            _ => "ES256",
        }
    }

    fn sign_rsa(
        &self,
        padding: Padding,
        hash: Option<&openssl::md::MdRef>,
        digest: &[u8],
    ) -> Result<Vec<u8>, String> {
        let mut context = PkeyCtx::new(&self.pair).expect("a context");
        context.sign_init().expect("a context");
        context.set_rsa_padding(padding).expect("a padding");
        if let Some(hash) = hash {
            context.set_signature_md(hash).expect("a hash");
        }
        if padding == Padding::PKCS1_PSS {
            context.set_rsa_pss_saltlen(RsaPssSaltlen::DIGEST_LENGTH).expect("a length");
        }
        let mut signature = Vec::new();
        let made = context.sign_to_vec(digest, &mut signature);
        made.map_err(|_| "Invalid value".to_owned())?;
        Ok(signature)
    }

    fn sign_ec(&self, digest: &[u8]) -> Vec<u8> {
        let signature = EcdsaSig::sign(digest, &self.pair.ec_key().expect("an EC key")).expect("a signature");
        let (_, len) = self.curve();
        let half = |number: &openssl::bn::BigNumRef| number.to_vec_padded(len).expect("it fits");
        [half(signature.r()), half(signature.s())].concat()
    }

    /// Decrypts, likewise.
    pub(super) fn decrypt(&self, algorithm: &str, ciphertext: &[u8]) -> Result<Vec<u8>, String> {
        if self.pair.id() != Id::RSA {
            return Err("Key and encryption algorithm are incompatible".to_owned());
        }
        let mut decrypter = Decrypter::new(&self.pair).expect("a context");
        let padding = if algorithm == "RSA1_5" { Padding::PKCS1 } else { Padding::PKCS1_OAEP };
        decrypter.set_rsa_padding(padding).expect("a padding");
        match algorithm {
            "RSA-OAEP-256" => {
                decrypter.set_rsa_oaep_md(MessageDigest::sha256()).expect("a hash");
                decrypter.set_rsa_mgf1_md(MessageDigest::sha256()).expect("a hash");
            }
            "RSA1_5" | "RSA-OAEP" => {}
            _ => return Err(format!("Algorithm {algorithm} is not supported")),
        }
        let failed = |_| "The parameter is incorrect.".to_owned();
        let mut plaintext = vec![0; decrypter.decrypt_len(ciphertext).map_err(failed)?];
        let len = decrypter.decrypt(ciphertext, &mut plaintext).map_err(failed)?;
        plaintext.truncate(len);
        Ok(plaintext)
    }
}
