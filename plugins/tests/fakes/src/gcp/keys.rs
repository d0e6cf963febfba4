//! Keys of the ring: versions, and what each signs.

use std::collections::BTreeMap;

use openssl::{
    ec::{EcGroup, EcKey},
    hash::MessageDigest,
    nid::Nid,
    pkey::{PKey, Private},
    pkey_ctx::PkeyCtx,
    rsa::{Padding, Rsa},
    sign::{RsaPssSaltlen, Signer},
};

/// All keys, by name.
#[derive(Debug, Default)]
pub(super) struct Keys(pub(super) BTreeMap<String, Key>);

/// A key, whose versions count from 1.
#[derive(Debug)]
pub(super) struct Key {
    pub(super) purpose: String,
    pub(super) labels: BTreeMap<String, String>,
    pub(super) versions: Vec<Version>,
}

/// A version of a key.
#[derive(Clone, Debug)]
pub(super) struct Version {
    pub(super) algorithm: String,
    pub(super) state: String,
    pair: PKey<Private>,
}

/// What is to be signed.
pub(super) enum Input {
    /// A digest by this hash.
    Digest(&'static str, Vec<u8>),
    Data(Vec<u8>),
}

impl Keys {
    pub(super) fn add(&mut self, name: &str, algorithm: &str, pair: PKey<Private>) -> Vec<u8> {
        let spki = pair.public_key_to_der().expect("a public half");
        let state = "ENABLED".to_owned();
        self.key(name, "ASYMMETRIC_SIGN").versions.push(Version {
            algorithm: algorithm.to_owned(),
            state,
            pair,
        });
        spki
    }

    pub(super) fn add_other(&mut self, name: &str, purpose: &str) {
        self.key(name, purpose);
    }

    pub(super) fn label(&mut self, name: &str, label: &str, value: &str) {
        self.known(name).labels.insert(label.to_owned(), value.to_owned());
    }

    pub(super) fn set_state(&mut self, name: &str, version: u64, state: &str) {
        let at = usize::try_from(version - 1).expect("a small number");
        self.known(name).versions.get_mut(at).expect("a version that was made").state = state.to_owned();
    }

    fn key(&mut self, name: &str, purpose: &str) -> &mut Key {
        let new = || Key { purpose: purpose.to_owned(), labels: BTreeMap::new(), versions: Vec::new() };
        self.0.entry(name.to_owned()).or_insert_with(new)
    }

    fn known(&mut self, name: &str) -> &mut Key {
        self.0.get_mut(name).unwrap_or_else(|| panic!("no key `{name}` was made"))
    }
}

/// A new key pair for an algorithm.
pub(super) fn pair(algorithm: &str) -> PKey<Private> {
    let ec = |curve| {
        let group = EcGroup::from_curve_name(curve).expect("a curve");
        PKey::from_ec_key(EcKey::generate(&group).expect("a key")).expect("a key")
    };
    match algorithm {
        "EC_SIGN_P256_SHA256" => ec(Nid::X9_62_PRIME256V1),
        "EC_SIGN_P384_SHA384" => ec(Nid::SECP384R1),
        "EC_SIGN_SECP256K1_SHA256" => ec(Nid::SECP256K1),
        "EC_SIGN_ED25519" => PKey::generate_ed25519().expect("a key"),
        _ => {
            let bits = algorithm.split('_').find_map(|part| part.parse().ok());
            let bits = bits.filter(|_| algorithm.starts_with("RSA_SIGN_"));
            let bits = bits.unwrap_or_else(|| panic!("no algorithm `{algorithm}` is known"));
            PKey::from_rsa(Rsa::generate(bits).expect("a key")).expect("a key")
        }
    }
}

pub(super) fn read(pkcs8: &[u8]) -> PKey<Private> {
    PKey::private_key_from_pkcs8(pkcs8).expect("a private key in DER PKCS#8")
}

impl Version {
    pub(super) fn pem(&self) -> String {
        let pem = self.pair.public_key_to_pem().expect("a public half");
        String::from_utf8(pem).expect("PEM")
    }

    /// Signs, or says why that can't be signed.
    pub(super) fn sign(&self, input: Input) -> Result<Vec<u8>, String> {
        match (hash(&self.algorithm), input) {
            (Some((name, hash)), Input::Digest(given, digest))
                if given == name && digest.len() == hash.size() =>
            {
                Ok(self.sign_digest(hash, &digest))
            }
            (Some((_, hash)), Input::Data(data)) => {
                let digest = openssl::hash::hash(hash, &data).expect("a digest");
                Ok(self.sign_digest(hash, &digest))
            }
            (None, Input::Data(data)) if self.algorithm == "EC_SIGN_ED25519" => {
                let mut signer = Signer::new_without_digest(&self.pair).expect("a signer");
                Ok(signer.sign_oneshot_to_vec(&data).expect("a signature"))
            }
            (None, Input::Data(data)) if data.len() + 11 <= self.pair.size() => Ok(self.sign_raw(&data)),
            _ => Err(format!("The digest or data is not what {} signs.", self.algorithm)),
        }
    }

    fn sign_digest(&self, hash: MessageDigest, digest: &[u8]) -> Vec<u8> {
        let mut context = PkeyCtx::new(&self.pair).expect("a context");
        context.sign_init().expect("a key that signs");
        if self.algorithm.contains("_PSS_") {
            context.set_rsa_padding(Padding::PKCS1_PSS).expect("RSA");
        }
        context.set_signature_md(openssl_md(hash)).expect("a digest");
        if self.algorithm.contains("_PSS_") {
            context.set_rsa_pss_saltlen(RsaPssSaltlen::DIGEST_LENGTH).expect("PSS");
        }
        signed(&mut context, digest)
    }

    /// PKCS#1 over what the caller says.
    fn sign_raw(&self, data: &[u8]) -> Vec<u8> {
        let mut context = PkeyCtx::new(&self.pair).expect("a context");
        context.sign_init().expect("a key that signs");
        context.set_rsa_padding(Padding::PKCS1).expect("RSA");
        signed(&mut context, data)
    }
}

fn signed(context: &mut PkeyCtx<Private>, input: &[u8]) -> Vec<u8> {
    let mut signature = Vec::new();
    context.sign_to_vec(input, &mut signature).expect("a signature");
    signature
}

fn openssl_md(hash: MessageDigest) -> &'static openssl::md::MdRef {
    openssl::md::Md::from_nid(hash.type_()).expect("a hash")
}

/// The one hash of an algorithm, with its name in a request; `None` where there is none.
fn hash(algorithm: &str) -> Option<(&'static str, MessageDigest)> {
    match algorithm.rsplit('_').next()? {
        "SHA256" => Some(("sha256", MessageDigest::sha256())),
        "SHA384" => Some(("sha384", MessageDigest::sha384())),
        "SHA512" => Some(("sha512", MessageDigest::sha512())),
        _ => None,
    }
}
