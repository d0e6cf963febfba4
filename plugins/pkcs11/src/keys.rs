//! Finding a private key and its public half on a token.
//!
//! Vendors keep the public half in different places, so it is looked for in all of them, in this order: on the private
//! object (CKA_PUBLIC_KEY_INFO, or the numbers themselves), on a public-key object with the same CKA_ID, then the same
//! CKA_LABEL, and in a certificate likewise. An attribute that a module doesn't know counts as absent.

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    path::Path,
};

use cryptoki::{
    error::Error as Failure,
    object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle},
    session::Session,
};
use der::{
    Decode, Encode, Tag, Tagged,
    asn1::{AnyRef, BitStringRef, ObjectIdentifier, OctetStringRef, PrintableStringRef, UintRef},
    pem,
};
use keystead_plugin_api::{
    Code, Error,
    encode::{self, Curve},
};
use sha2::{Digest, Sha256};
use spki::SubjectPublicKeyInfoRef;

use crate::{
    ckr,
    mechanism::{Allowed, KeyKind},
    problem::Problem,
    uri::ObjectSelector,
};

/// What the contract calls a key by: SHA-256 of its SPKI. So an id never means another public key than it did when it
/// was listed, whatever happens to labels, ids and serial numbers on the token; a rotated key is a new one.
pub(crate) type KeyId = [u8; 32];

/// A private key that a selector means, usable or not.
pub(crate) struct Candidate {
    pub(crate) handle: ObjectHandle,
    /// What people call it.
    pub(crate) label: String,
    /// Its own CKA_ID and CKA_LABEL, by which it is found again.
    pub(crate) name: ObjectSelector,
    /// What can be done with it, or why it can't be served.
    pub(crate) usable: Result<Usable, Problem>,
}

/// What can be done with a private key.
pub(crate) struct Usable {
    pub(crate) public: Public,
    pub(crate) allowed: Allowed,
    /// Whether it wants a PIN before each use (CKA_ALWAYS_AUTHENTICATE).
    pub(crate) authenticates: bool,
}

/// The public half of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Public {
    /// DER SubjectPublicKeyInfo.
    pub(crate) spki: Vec<u8>,
    pub(crate) kind: KeyKind,
}

/// Every private key that a selector means. `supplied` is the public half as the operator gave it, which then isn't
/// looked for on the token.
///
/// # Errors
///
/// Those of the token.
pub(crate) fn list(
    session: &Session,
    object: &ObjectSelector,
    supplied: Option<&Public>,
) -> Result<Vec<Candidate>, Error> {
    let handles = search(session, ObjectClass::PRIVATE_KEY, object)?;
    handles.into_iter().map(|handle| candidate(session, handle, supplied)).collect()
}

fn candidate(session: &Session, handle: ObjectHandle, supplied: Option<&Public>) -> Result<Candidate, Error> {
    let id = bytes(session, handle, AttributeType::Id)?;
    let label = bytes(session, handle, AttributeType::Label)?;
    let usable = match usable(session, handle, supplied) {
        // Whatever concerns more than this key ends the search.
        Err(problem) if ckr::may_pass(&problem.error) => return Err(problem.error),
        usable => usable,
    };
    let name = ObjectSelector { label, id };
    Ok(Candidate { handle, label: label_of(&name), name, usable })
}

fn usable(session: &Session, handle: ObjectHandle, supplied: Option<&Public>) -> Result<Usable, Problem> {
    let public = match supplied {
        Some(public) => public.clone(),
        None => public_half(session, handle)?,
    };
    Ok(Usable {
        public,
        allowed: allowed(session, handle)?,
        authenticates: flag(session, handle, AttributeType::AlwaysAuthenticate)? == Some(true),
    })
}

/// Finds a listed key again: the object of its name whose public half is the same.
///
/// # Errors
///
/// [`Code::NotFound`] where it isn't there, or another key has taken its place; those of the token.
pub(crate) fn find_again(
    session: &Session,
    name: &ObjectSelector,
    id: &KeyId,
    supplied: Option<&Public>,
) -> Result<ObjectHandle, Error> {
    let handles = search(session, ObjectClass::PRIVATE_KEY, name)?;
    if handles.is_empty() {
        return Err(Error::new(Code::NotFound, "the key is not on the token any more"));
    }
    for handle in handles {
        let is_it = match supplied {
            Some(public) => public.fits(key_type(session, handle)?),
            None => match public_half(session, handle) {
                Err(problem) if ckr::may_pass(&problem.error) => return Err(problem.error),
                public => public.is_ok_and(|public| public.id() == *id),
            },
        };
        if is_it {
            return Ok(handle);
        }
    }
    Err(Error::new(Code::NotFound, "another key has taken its place on the token"))
}

/// The mark of the private keys that a selector means now; see [`mark`].
///
/// # Errors
///
/// Those of the token.
pub(crate) fn census(session: &Session, object: &ObjectSelector) -> Result<u64, Error> {
    Ok(mark(search(session, ObjectClass::PRIVATE_KEY, object)?.into_iter()))
}

/// A number that changes when objects come or go, as long as handles are good.
pub(crate) fn mark(objects: impl Iterator<Item = ObjectHandle>) -> u64 {
    let mut handles: Vec<_> = objects.map(|object| object.handle()).collect();
    handles.sort_unstable();
    let mut hasher = DefaultHasher::new();
    handles.hash(&mut hasher);
    hasher.finish()
}

/// What a key's own attributes allow; those that a module doesn't know allow.
fn allowed(session: &Session, key: ObjectHandle) -> Result<Allowed, Error> {
    let sign = flag(session, key, AttributeType::Sign)? != Some(false);
    let decrypt = flag(session, key, AttributeType::Decrypt)? != Some(false);
    let mechanisms = match get(session, key, AttributeType::AllowedMechanisms)? {
        Some(Attribute::AllowedMechanisms(mechanisms)) => mechanisms,
        _ => Vec::new(),
    };
    Ok(Allowed::ask(|mechanism, decrypts| {
        (if decrypts { decrypt } else { sign }) && (mechanisms.is_empty() || mechanisms.contains(&mechanism))
    }))
}

fn flag(session: &Session, key: ObjectHandle, attribute: AttributeType) -> Result<Option<bool>, Error> {
    Ok(match get(session, key, attribute)? {
        Some(Attribute::Sign(flag) | Attribute::Decrypt(flag) | Attribute::AlwaysAuthenticate(flag)) => {
            Some(flag)
        }
        _ => None,
    })
}

fn key_type(session: &Session, key: ObjectHandle) -> Result<Option<KeyType>, Error> {
    Ok(match get(session, key, AttributeType::KeyType)? {
        Some(Attribute::KeyType(key_type)) => Some(key_type),
        _ => None,
    })
}

/// What an object is called, for people: its CKA_LABEL, or else its CKA_ID in hex.
fn label_of(name: &ObjectSelector) -> String {
    match (&name.label, &name.id) {
        (Some(label), _) => String::from_utf8_lossy(label).into_owned(),
        (None, id) => format!("id={}", hex(id.as_deref().unwrap_or_default())),
    }
}

impl Public {
    /// The key's id.
    pub(crate) fn id(&self) -> KeyId {
        Sha256::digest(&self.spki).into()
    }

    /// Reads a file: a public key or a certificate, PEM or DER.
    ///
    /// # Errors
    ///
    /// [`Code::InvalidInput`] where it can't be read or is neither, [`Code::Unsupported`] for an algorithm or curve
    /// that isn't served.
    pub(crate) fn read(path: &Path) -> Result<Self, Problem> {
        let hint =
            "give a file with the public key or the certificate, in PEM: `openssl pkey -pubout` writes one";
        let failed = |what: String| {
            let message = format!("the public key `{}` {what}", path.display());
            Problem::new(Error::invalid(message)).hint(hint)
        };
        let content = std::fs::read(path).map_err(|error| failed(format!("can't be read: {error}")))?;
        let decoded = match pem::decode_vec(&content) {
            Ok(("PUBLIC KEY" | "CERTIFICATE", der)) => der,
            Ok(_) => return Err(failed("is neither a public key nor a certificate".to_owned())),
            Err(_) => content,
        };
        match Self::from_certificate(&decoded) {
            Some(public) => Ok(public),
            None => Self::from_spki(decoded).map_err(|error| {
                Problem::new(Error::new(
                    error.code,
                    format!("the public key `{}`: {}", path.display(), error.message),
                ))
                .hint(hint)
            }),
        }
    }

    /// Takes a DER SubjectPublicKeyInfo.
    ///
    /// # Errors
    ///
    /// [`Code::InvalidInput`] where it isn't one, [`Code::Unsupported`] for an algorithm or curve that isn't served.
    fn from_spki(spki: Vec<u8>) -> Result<Self, Error> {
        let malformed = |_| Error::invalid("malformed SubjectPublicKeyInfo");
        let parsed = SubjectPublicKeyInfoRef::from_der(&spki).map_err(malformed)?;
        let key = parsed.subject_public_key.raw_bytes();
        let kind = match parsed.algorithm.oid {
            RSA => {
                let numbers = Vec::<UintRef<'_>>::from_der(key).map_err(malformed)?;
                let [modulus, _exponent] = numbers.as_slice() else {
                    return Err(Error::invalid("malformed RSAPublicKey"));
                };
                KeyKind::Rsa { modulus: modulus.as_bytes().to_vec() }
            }
            EC => KeyKind::Ec { order: curve(parsed.algorithm.parameters_oid().ok())?.order_len() },
            ED25519 => KeyKind::Ed25519,
            oid => {
                return Err(Error::new(
                    Code::Unsupported,
                    format!("keys of algorithm {oid} are not supported"),
                ));
            }
        };
        Ok(Self { spki, kind })
    }

    fn from_rsa(modulus: &[u8], exponent: &[u8]) -> Option<Self> {
        Self::from_spki(encode::rsa_spki(modulus, exponent)?).ok()
    }

    /// Takes CKA_EC_PARAMS and CKA_EC_POINT. `None` where they make no sense.
    fn from_point(params: &[u8], point: &[u8]) -> Result<Option<Self>, Error> {
        let oid = curve_oid(params);
        if oid == Some(ED25519) {
            let spki = raw_point(point, 32).and_then(encode::ed25519_spki);
            return spki.map(Self::from_spki).transpose();
        }
        let curve = curve(oid)?;
        let spki = raw_point(point, curve.point_len()).and_then(|point| encode::ec_spki(curve, point));
        spki.map(Self::from_spki).transpose()
    }

    /// The key of a DER certificate (RFC 5280 section 4.1).
    fn from_certificate(certificate: &[u8]) -> Option<Self> {
        let certificate = Vec::<AnyRef<'_>>::from_der(certificate).ok()?;
        let fields: Vec<AnyRef<'_>> = certificate.first()?.decode_as().ok()?;
        // The version is left out in certificates of version 1; it alone has a tag of its own.
        let versioned = usize::from(fields.first()?.tag().is_context_specific());
        Self::from_spki(fields.get(versioned + 5)?.to_der().ok()?).ok()
    }

    /// Whether this can be the public half of a key of such a type.
    fn fits(&self, key_type: Option<KeyType>) -> bool {
        match key_type {
            Some(KeyType::RSA) => matches!(self.kind, KeyKind::Rsa { .. }),
            Some(KeyType::EC) => matches!(self.kind, KeyKind::Ec { .. }),
            Some(KeyType::EC_EDWARDS) => self.kind == KeyKind::Ed25519,
            _ => true,
        }
    }
}

const RSA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");
const EC: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.2.1");
const ED25519: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.101.112");
/// What Ed25519 was called before RFC 8410, and still is by some modules.
const ED25519_GNU: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.11591.15.1");

/// The curve of an object identifier.
fn curve(oid: Option<ObjectIdentifier>) -> Result<Curve, Error> {
    let name = oid.map(|oid| oid.to_string());
    let known = Curve::ALL.into_iter().find(|curve| Some(curve.oid()) == name.as_deref());
    known.ok_or_else(|| {
        let curve = name.as_deref().unwrap_or("explicit parameters");
        Error::new(Code::Unsupported, format!("the curve {curve} is not supported; P-224 to P-521 are"))
    })
}

/// CKA_EC_PARAMS is an OID or, for Edwards curves, may be a name (PKCS#11 v3.1 section 2.3.3).
fn curve_oid(params: &[u8]) -> Option<ObjectIdentifier> {
    let any = AnyRef::from_der(params).ok()?;
    match any.tag() {
        Tag::ObjectIdentifier => {
            any.decode_as().ok().map(|oid: ObjectIdentifier| if oid == ED25519_GNU { ED25519 } else { oid })
        }
        Tag::PrintableString => {
            let name = any.decode_as::<PrintableStringRef<'_>>().ok()?;
            matches!(name.as_str(), "edwards25519" | "Ed25519").then_some(ED25519)
        }
        _ => None,
    }
}

/// CKA_EC_POINT is a DER OCTET STRING, on some modules a BIT STRING, on others the bare point. The length decides.
fn raw_point(point: &[u8], len: usize) -> Option<&[u8]> {
    let inner = || match AnyRef::from_der(point).ok()?.tag() {
        Tag::OctetString => Some(<&OctetStringRef>::from_der(point).ok()?.as_bytes()),
        Tag::BitString => BitStringRef::from_der(point).ok()?.as_bytes(),
        _ => None,
    };
    if point.len() == len { Some(point) } else { inner().filter(|inner| inner.len() == len) }
}

fn public_half(session: &Session, private: ObjectHandle) -> Result<Public, Problem> {
    let key_type = key_type(session, private)?;
    if let Some(public) = on_object(session, private)?.filter(|public| public.fits(key_type)) {
        return Ok(public);
    }
    let id = bytes(session, private, AttributeType::Id)?;
    let label = bytes(session, private, AttributeType::Label)?;
    let by_id = id.map(|id| ObjectSelector { id: Some(id), label: None });
    let by_label = label.map(|label| ObjectSelector { id: None, label: Some(label) });
    for class in [ObjectClass::PUBLIC_KEY, ObjectClass::CERTIFICATE] {
        for selector in [&by_id, &by_label].into_iter().flatten() {
            for object in search(session, class, selector)? {
                if let Some(public) = on_object(session, object)?.filter(|public| public.fits(key_type)) {
                    return Ok(public);
                }
            }
        }
    }
    let error = Error::new(Code::NotFound, "the key's public half is not on the token");
    Err(Problem::new(error).hint(
        "store the public key or the certificate there, with the same CKA_ID, or give it as `public_key`",
    ))
}

/// The public key that an object of any class tells.
fn on_object(session: &Session, object: ObjectHandle) -> Result<Option<Public>, Error> {
    let get = |attribute| bytes(session, object, attribute);
    if let Some(public) = get(AttributeType::PublicKeyInfo)?.and_then(|spki| Public::from_spki(spki).ok()) {
        return Ok(Some(public));
    }
    if let Some((modulus, exponent)) = get(AttributeType::Modulus)?.zip(get(AttributeType::PublicExponent)?) {
        return Ok(Public::from_rsa(&modulus, &exponent));
    }
    if let Some((params, point)) = get(AttributeType::EcParams)?.zip(get(AttributeType::EcPoint)?) {
        return Public::from_point(&params, &point);
    }
    match get_class(session, object)? {
        // CKA_VALUE is asked of certificates only: on a private key it is the secret itself.
        Some(ObjectClass::CERTIFICATE) => {
            Ok(get(AttributeType::Value)?.and_then(|value| Public::from_certificate(&value)))
        }
        _ => Ok(None),
    }
}

fn get_class(session: &Session, object: ObjectHandle) -> Result<Option<ObjectClass>, Error> {
    match get(session, object, AttributeType::Class)? {
        Some(Attribute::Class(class)) => Ok(Some(class)),
        _ => Ok(None),
    }
}

fn search(
    session: &Session,
    class: ObjectClass,
    object: &ObjectSelector,
) -> Result<Vec<ObjectHandle>, Error> {
    // Nothing but class, label and id: modules differ in what they make of CKA_TOKEN, CKA_PRIVATE and CKA_SIGN.
    let mut template = vec![Attribute::Class(class)];
    template.extend(object.label.clone().map(Attribute::Label));
    template.extend(object.id.clone().map(Attribute::Id));
    session.find_objects(&template).map_err(|failure| ckr::error("searching for objects", &failure))
}

/// An attribute's bytes; `None` where it is absent or empty.
fn bytes(
    session: &Session,
    object: ObjectHandle,
    attribute: AttributeType,
) -> Result<Option<Vec<u8>>, Error> {
    let value = match get(session, object, attribute)? {
        Some(
            Attribute::EcParams(value)
            | Attribute::EcPoint(value)
            | Attribute::Id(value)
            | Attribute::Label(value)
            | Attribute::Modulus(value)
            | Attribute::PublicExponent(value)
            | Attribute::PublicKeyInfo(value)
            | Attribute::Value(value),
        ) => value,
        _ => return Ok(None),
    };
    Ok(Some(value).filter(|value| !value.is_empty()))
}

/// An attribute; `None` where it is absent or holds something that isn't known.
///
/// One at a time: a module that stumbles over one attribute so hides no other.
fn get(
    session: &Session,
    object: ObjectHandle,
    attribute: AttributeType,
) -> Result<Option<Attribute>, Error> {
    match session.get_attributes(object, &[attribute]) {
        Ok(attributes) => Ok(attributes.into_iter().next()),
        Err(failure @ Failure::Pkcs11(..)) => Err(ckr::error(&format!("reading {attribute}"), &failure)),
        Err(_) => Ok(None),
    }
}

/// Why a selector means no key.
pub(crate) fn not_found(session: &Session) -> Problem {
    let problem = Problem::new(Error::new(Code::NotFound, "no such private key on the token"));
    let all = search(session, ObjectClass::PRIVATE_KEY, &ObjectSelector::default()).unwrap_or_default();
    if all.is_empty() {
        return problem
            .hint("the token shows no private key at all; most show them only after a login with a PIN");
    }
    problem.hint(format!("it has {}", names(session, &all)))
}

/// The names of a few objects, as a URI would select them.
fn names(session: &Session, handles: &[ObjectHandle]) -> String {
    const MOST: usize = 8;
    let name = |&handle| {
        let get = |attribute| bytes(session, handle, attribute).ok().flatten();
        let name = ObjectSelector { label: get(AttributeType::Label), id: get(AttributeType::Id) };
        match (label_of(&name), &name.id) {
            (label, Some(id)) if name.label.is_some() => format!("`{label}` (id {})", hex(id)),
            (label, _) => format!("`{label}`"),
        }
    };
    let mut names: Vec<String> = handles.iter().take(MOST).map(name).collect();
    names.sort();
    if handles.len() > MOST {
        names.push(format!("{} more", handles.len() - MOST));
    }
    names.join(", ")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use openssl::{
        asn1::Asn1Time,
        ec::{EcGroup, EcKey},
        hash::MessageDigest,
        nid::Nid,
        pkey::{PKey, Private},
        rsa::Rsa,
        x509::X509,
    };

    use super::*;

    fn ec(nid: Nid) -> PKey<Private> {
        PKey::from_ec_key(EcKey::generate(&EcGroup::from_curve_name(nid).unwrap()).unwrap()).unwrap()
    }

    fn raw(key: &PKey<Private>) -> Vec<u8> {
        let spki = key.public_key_to_der().unwrap();
        SubjectPublicKeyInfoRef::from_der(&spki).unwrap().subject_public_key.raw_bytes().to_vec()
    }

    #[test]
    fn builds_the_spki_of_rsa_numbers() {
        let rsa = Rsa::generate(2048).unwrap();
        let padded = [vec![0], rsa.n().to_vec()].concat();
        for modulus in [rsa.n().to_vec(), padded] {
            let public = Public::from_rsa(&modulus, &rsa.e().to_vec()).unwrap();
            assert_eq!(public.spki, rsa.public_key_to_der().unwrap());
            assert_eq!(public.kind, KeyKind::Rsa { modulus: rsa.n().to_vec() });
        }
    }

    #[test]
    fn builds_the_spki_of_a_point_in_every_wrapping() {
        for (nid, order) in
            [(Nid::SECP224R1, 28), (Nid::X9_62_PRIME256V1, 32), (Nid::SECP384R1, 48), (Nid::SECP521R1, 66)]
        {
            let key = ec(nid);
            let spki = key.public_key_to_der().unwrap();
            let point = raw(&key);
            let parsed = SubjectPublicKeyInfoRef::from_der(&spki).unwrap();
            let params = parsed.algorithm.parameters_oid().unwrap().to_der().unwrap();
            let octets = OctetStringRef::new(&point).unwrap().to_der().unwrap();
            let bits = BitStringRef::from_bytes(&point).unwrap().to_der().unwrap();
            for wrapped in [&point, &octets, &bits] {
                let public = Public::from_point(&params, wrapped).unwrap().unwrap();
                assert_eq!(public, Public { spki: spki.clone(), kind: KeyKind::Ec { order } });
            }
        }
    }

    #[test]
    fn knows_ed25519_by_every_name() {
        let key = PKey::generate_ed25519().unwrap();
        let named = PrintableStringRef::new("edwards25519").unwrap().to_der().unwrap();
        for params in [named, ED25519.to_der().unwrap(), ED25519_GNU.to_der().unwrap()] {
            let wrapped = OctetStringRef::new(&raw(&key)).unwrap().to_der().unwrap();
            let public = Public::from_point(&params, &wrapped).unwrap().unwrap();
            assert_eq!(public, Public { spki: key.public_key_to_der().unwrap(), kind: KeyKind::Ed25519 });
        }
    }

    #[test]
    fn takes_no_nonsense_for_a_point() {
        let params = ObjectIdentifier::new_unwrap(Curve::P256.oid()).to_der().unwrap();
        for point in [&[][..], &[4; 64], &[2; 33], &[2; 65], &[4, 65, 4]] {
            assert_eq!(Public::from_point(&params, point).unwrap(), None, "{point:?}");
        }
        let unknown = ec(Nid::SECP256K1).public_key_to_der().unwrap();
        assert_eq!(Public::from_spki(unknown).unwrap_err().code, Code::Unsupported);
        assert_eq!(Public::from_spki(vec![0x30, 0]).unwrap_err().code, Code::InvalidInput);
    }

    #[test]
    fn reads_the_key_of_certificates_of_version_1_and_3() {
        let key = ec(Nid::X9_62_PRIME256V1);
        for version in [0, 2] {
            let mut builder = X509::builder().unwrap();
            builder.set_version(version).unwrap();
            builder.set_pubkey(&key).unwrap();
            builder.set_not_before(&Asn1Time::days_from_now(0).unwrap()).unwrap();
            builder.set_not_after(&Asn1Time::days_from_now(1).unwrap()).unwrap();
            builder.sign(&key, MessageDigest::sha256()).unwrap();
            let public = Public::from_certificate(&builder.build().to_der().unwrap()).unwrap();
            assert_eq!(public.spki, key.public_key_to_der().unwrap());
        }
        assert_eq!(Public::from_certificate(&[0x30, 0]), None);
    }

    #[test]
    fn an_id_means_one_public_key() {
        let [one, other] = [(); 2].map(|()| ec(Nid::X9_62_PRIME256V1).public_key_to_der().unwrap());
        let id = |spki: &Vec<u8>| Public::from_spki(spki.clone()).unwrap().id();
        assert_eq!(id(&one), id(&one));
        assert_ne!(id(&one), id(&other));
    }
}
