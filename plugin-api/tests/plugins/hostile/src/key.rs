//! A key, and what is wrong with it.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use aws_lc_rs::{
    digest::{Digest, SHA256},
    encoding::{AsDer, PublicKeyX509Der},
    signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair},
};
use keystead_plugin_api::{Algorithm, CallClass, Code, Error, Key, Output};
use serde::Deserialize;

use crate::deed::{Deed, LONG_TEXT};

/// A key as the configuration wants it.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Plan {
    /// Its id and its label.
    name: String,
    /// The private key, DER of PKCS#8; without it, a new one for each store.
    file: Option<PathBuf>,
    class: Class,
    sign: Deed,
    lie: Lie,
}

impl Default for Plan {
    fn default() -> Self {
        Self { name: "key".to_owned(), file: None, class: Class::Inline, sign: Deed::Behave, lie: Lie::None }
    }
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Class {
    Inline,
    Blocking,
}

/// What the listing says of a key that isn't so.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Lie {
    None,
    /// The public key is that of another.
    AnotherSpki,
    /// The public key isn't one.
    GarbageSpki,
    /// The public key has 10 MB.
    LongSpki,
    EmptyId,
    /// 256 bytes.
    LongId,
    /// 10 MB.
    LongLabel,
    /// Algorithms of another type of key only.
    OtherAlgorithms,
}

/// A key, private half and all.
pub(crate) struct HeldKey {
    plan: Plan,
    pair: EcdsaKeyPair,
    listed: Key,
}

impl HeldKey {
    /// A key of a vault, or a new one.
    pub(crate) fn new(plan: &Plan, vault: Option<&str>) -> Result<Self, Error> {
        let pair = match (&plan.file, vault) {
            (Some(file), _) => read_pair(file)?,
            (None, Some(vault)) => kept(vault, &plan.name)?,
            (None, None) => new_pair()?,
        };
        let listed = listed(plan, &pair)?;
        Ok(Self { plan: plan.clone(), pair, listed })
    }

    pub(crate) fn name(&self) -> &str {
        &self.plan.name
    }

    /// Whether signing with it changes the keys.
    pub(crate) fn changes_keys(&self) -> bool {
        matches!(self.plan.sign, Deed::ChangeKeys)
    }

    pub(crate) fn listed(&self) -> Key {
        self.listed.clone()
    }

    pub(crate) fn sign(&self, digest: &[u8], out: &mut Output<'_>) -> Result<(), Error> {
        self.plan.sign.run()?;
        match self.plan.sign {
            Deed::Garbage => out.write(&[0x30; 40]),
            Deed::Empty => Ok(()),
            Deed::TooLong => {
                // That it doesn't fit is known, and not heeded.
                let _ = out.reserve(1 << 20);
                Ok(())
            }
            Deed::ByAnotherKey => sign(&new_pair()?, digest, out),
            _ => sign(&self.pair, digest, out),
        }
    }
}

fn listed(plan: &Plan, pair: &EcdsaKeyPair) -> Result<Key, Error> {
    let mut key = Key {
        id: plan.name.clone().into_bytes(),
        spki: spki(pair)?,
        label: plan.name.clone(),
        algorithms: vec![Algorithm::EcdsaSha256],
        call_class: match plan.class {
            Class::Inline => CallClass::Inline,
            Class::Blocking => CallClass::Blocking,
        },
    };
    match plan.lie {
        Lie::None => (),
        Lie::AnotherSpki => key.spki = spki(&new_pair()?)?,
        Lie::GarbageSpki => key.spki = b"no public key".to_vec(),
        Lie::LongSpki => key.spki.resize(10 << 20, 0),
        Lie::EmptyId => key.id.clear(),
        Lie::LongId => key.id.resize(256, b'x'),
        Lie::LongLabel => key.label = LONG_TEXT.repeat(1000),
        Lie::OtherAlgorithms => key.algorithms = vec![Algorithm::RsaPkcs1Sha256, Algorithm::Ed25519],
    }
    Ok(key)
}

/// The key of a name in a vault: made when it is first asked for.
fn kept(vault: &str, name: &str) -> Result<EcdsaKeyPair, Error> {
    static VAULTS: Mutex<BTreeMap<(String, String), Vec<u8>>> = Mutex::new(BTreeMap::new());
    let mut vaults = VAULTS.lock().unwrap_or_else(PoisonError::into_inner);
    let place = (vault.to_owned(), name.to_owned());
    if let Some(pkcs8) = vaults.get(&place) {
        return EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, pkcs8).map_err(broken);
    }
    let pair = new_pair()?;
    vaults.insert(place, pair.to_pkcs8v1().map_err(broken)?.as_ref().to_vec());
    Ok(pair)
}

fn read_pair(file: &Path) -> Result<EcdsaKeyPair, Error> {
    let der = fs::read(file).map_err(|error| Error::invalid(error.to_string()))?;
    EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &der)
        .map_err(|error| Error::invalid(error.to_string()))
}

fn new_pair() -> Result<EcdsaKeyPair, Error> {
    EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).map_err(broken)
}

fn spki(pair: &EcdsaKeyPair) -> Result<Vec<u8>, Error> {
    let der: PublicKeyX509Der<'_> = pair.public_key().as_der().map_err(broken)?;
    Ok(der.as_ref().to_vec())
}

fn sign(pair: &EcdsaKeyPair, digest: &[u8], out: &mut Output<'_>) -> Result<(), Error> {
    let digest = Digest::import_less_safe(digest, &SHA256).map_err(broken)?;
    out.write(pair.sign_digest(&digest).map_err(broken)?.as_ref())
}

fn broken(error: impl std::fmt::Display) -> Error {
    Error::new(Code::Internal, error.to_string())
}
