//! Encodings that nearly every backend needs: the numbers of a public key as DER, a signature's two numbers as DER, a
//! digest as a key takes it. Nothing here is secret, and nothing of it is the contract.

use std::borrow::Cow;

use der::{
    Encode,
    asn1::{AnyRef, BitStringRef, Null, ObjectIdentifier, UintRef},
};
use spki::{AlgorithmIdentifierRef, SubjectPublicKeyInfoRef};

use crate::Algorithm;

const RSA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");
const EC: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.2.1");
const ED25519: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.101.112");

/// A curve for ECDSA (FIPS 186-5, SP 800-186).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "these four are what TLS and its algorithms here know")]
pub enum Curve {
    /// secp224r1.
    P224,
    /// secp256r1, prime256v1.
    P256,
    /// secp384r1.
    P384,
    /// secp521r1.
    P521,
}

impl Curve {
    /// All of them, smallest first.
    pub const ALL: [Self; 4] = [Self::P224, Self::P256, Self::P384, Self::P521];

    /// Its object identifier in dotted notation (RFC 5480 section 2.1.1.1).
    #[must_use]
    pub const fn oid(self) -> &'static str {
        match self {
            Self::P224 => "1.3.132.0.33",
            Self::P256 => "1.2.840.10045.3.1.7",
            Self::P384 => "1.3.132.0.34",
            Self::P521 => "1.3.132.0.35",
        }
    }

    /// Bytes of its order, and of an element of its field: on these curves they are the same.
    #[must_use]
    pub const fn order_len(self) -> usize {
        match self {
            Self::P224 => 28,
            Self::P256 => 32,
            Self::P384 => 48,
            Self::P521 => 66,
        }
    }

    /// Bytes of an uncompressed point.
    #[must_use]
    pub const fn point_len(self) -> usize {
        1 + 2 * self.order_len()
    }
}

/// DER SubjectPublicKeyInfo of an RSA key (RFC 3279 section 2.3.1), from big-endian numbers whose leading zeros don't
/// count. `None` where they can't be encoded.
#[must_use]
pub fn rsa_spki(modulus: &[u8], exponent: &[u8]) -> Option<Vec<u8>> {
    let key = [UintRef::new(modulus).ok()?, UintRef::new(exponent).ok()?].to_der().ok()?;
    spki(RSA, Some(Null.into()), &key)
}

/// DER SubjectPublicKeyInfo of a point on a curve (RFC 5480 section 2), uncompressed. `None` where it can't be a point.
#[must_use]
pub fn ec_spki(curve: Curve, point: &[u8]) -> Option<Vec<u8>> {
    if point.len() != curve.point_len() || point.first() != Some(&4) {
        return None;
    }
    let oid = ObjectIdentifier::new(curve.oid()).ok()?;
    spki(EC, Some((&oid).into()), point)
}

/// DER SubjectPublicKeyInfo of an Ed25519 key (RFC 8410 section 4), which has 32 bytes. `None` for others.
#[must_use]
pub fn ed25519_spki(key: &[u8]) -> Option<Vec<u8>> {
    if key.len() == 32 { spki(ED25519, None, key) } else { None }
}

fn spki(oid: ObjectIdentifier, parameters: Option<AnyRef<'_>>, key: &[u8]) -> Option<Vec<u8>> {
    let algorithm = AlgorithmIdentifierRef { oid, parameters };
    let subject_public_key = BitStringRef::from_bytes(key).ok()?;
    SubjectPublicKeyInfoRef { algorithm, subject_public_key }.to_der().ok()
}

/// r‖s, each half of the whole (IEEE 1363), as DER `ECDSA-Sig-Value` (RFC 3279 section 2.2.3). `None` where there are no
/// two halves.
#[must_use]
pub fn ecdsa_signature(r_then_s: &[u8]) -> Option<Vec<u8>> {
    if r_then_s.is_empty() || !r_then_s.len().is_multiple_of(2) {
        return None;
    }
    let (r, s) = r_then_s.split_at(r_then_s.len() / 2);
    [UintRef::new(r).ok()?, UintRef::new(s).ok()?].to_der().ok()
}

/// A digest as long as an order of so many bytes. Backends differ in what they do with a longer one; FIPS 186-5 section
/// 6.4.1 takes the leftmost bits, and all orders here are either whole bytes long or longer than any digest (P-521: it
/// stays as it is). Some want a length that they know: zeros before it don't change its number.
#[must_use]
pub fn digest_to_fit(order_len: usize, digest: &[u8]) -> Cow<'_, [u8]> {
    match digest.get(..order_len) {
        Some(leftmost) => leftmost.into(),
        None if order_len > 64 => digest.into(),
        None => padded(digest, order_len).map_or(digest.into(), Cow::Owned),
    }
}

/// The same big-endian number in exactly `len` bytes; `None` where it needs more.
#[must_use]
pub fn padded(number: &[u8], len: usize) -> Option<Vec<u8>> {
    let significant = number.iter().position(|&byte| byte != 0).unwrap_or(number.len());
    let number = number.get(significant..)?;
    let mut padded = vec![0; len.checked_sub(number.len())?];
    padded.extend_from_slice(number);
    Some(padded)
}

/// What a PKCS#1 v1.5 signature is made of: the DER `DigestInfo` (RFC 8017 section 9.2, note 1), and for MD5‖SHA-1 the two
/// digests bare (RFC 2246 section 4.7). `None` for other algorithms.
#[must_use]
pub fn digest_info(algorithm: Algorithm, digest: &[u8]) -> Option<Vec<u8>> {
    let prefix: &[u8] = match algorithm {
        Algorithm::RsaPkcs1Md5Sha1 => b"",
        Algorithm::RsaPkcs1Sha1 => b"\x30\x21\x30\x09\x06\x05\x2b\x0e\x03\x02\x1a\x05\x00\x04\x14",
        Algorithm::RsaPkcs1Sha224 => {
            b"\x30\x2d\x30\x0d\x06\x09\x60\x86\x48\x01\x65\x03\x04\x02\x04\x05\x00\x04\x1c"
        }
        Algorithm::RsaPkcs1Sha256 => {
            b"\x30\x31\x30\x0d\x06\x09\x60\x86\x48\x01\x65\x03\x04\x02\x01\x05\x00\x04\x20"
        }
        Algorithm::RsaPkcs1Sha384 => {
            b"\x30\x41\x30\x0d\x06\x09\x60\x86\x48\x01\x65\x03\x04\x02\x02\x05\x00\x04\x30"
        }
        Algorithm::RsaPkcs1Sha512 => {
            b"\x30\x51\x30\x0d\x06\x09\x60\x86\x48\x01\x65\x03\x04\x02\x03\x05\x00\x04\x40"
        }
        _ => return None,
    };
    Some([prefix, digest].concat())
}

#[cfg(test)]
mod tests {
    use openssl::{
        bn::BigNumContext,
        ec::{EcGroup, EcKey, PointConversionForm},
        ecdsa::EcdsaSig,
        nid::Nid,
        pkey::PKey,
        rsa::{Padding, Rsa},
    };

    use super::*;

    #[test]
    fn public_keys_are_encoded_as_openssl_does() {
        let rsa = Rsa::generate(2048).unwrap();
        let zero_first = [vec![0], rsa.n().to_vec()].concat();
        for modulus in [rsa.n().to_vec(), zero_first] {
            assert_eq!(rsa_spki(&modulus, &rsa.e().to_vec()).unwrap(), rsa.public_key_to_der().unwrap());
        }
        let nids = [Nid::SECP224R1, Nid::X9_62_PRIME256V1, Nid::SECP384R1, Nid::SECP521R1];
        for (curve, nid) in Curve::ALL.into_iter().zip(nids) {
            let group = EcGroup::from_curve_name(nid).unwrap();
            let key = EcKey::generate(&group).unwrap();
            let mut context = BigNumContext::new().unwrap();
            let form = PointConversionForm::UNCOMPRESSED;
            let point = key.public_key().to_bytes(&group, form, &mut context).unwrap();
            assert_eq!(ec_spki(curve, &point), Some(key.public_key_to_der().unwrap()));
            assert_eq!(ec_spki(curve, &point[1..]), None);
        }
        let ed25519 = PKey::generate_ed25519().unwrap();
        let raw = ed25519.raw_public_key().unwrap();
        assert_eq!(ed25519_spki(&raw), Some(ed25519.public_key_to_der().unwrap()));
        assert_eq!(ed25519_spki(&raw[1..]), None);
    }

    #[test]
    fn a_signature_of_two_halves_becomes_der() {
        for raw in [[1; 64], [0xff; 64], [0; 64]] {
            let signature = EcdsaSig::from_der(&ecdsa_signature(&raw).unwrap()).unwrap();
            assert_eq!(padded(&signature.r().to_vec(), 32).unwrap(), raw[..32]);
            assert_eq!(padded(&signature.s().to_vec(), 32).unwrap(), raw[32..]);
        }
        assert_eq!(ecdsa_signature(&[1; 63]), None);
        assert_eq!(ecdsa_signature(&[]), None);
    }

    #[test]
    fn a_digest_is_cut_or_padded_to_the_order() {
        let of = |order, len| digest_to_fit(order, &vec![7; len]).into_owned();
        assert_eq!(of(32, 48), [7; 32]);
        assert_eq!(of(32, 32), [7; 32]);
        assert_eq!(of(32, 28), [vec![0; 4], vec![7; 28]].concat());
        assert_eq!(of(48, 20), [vec![0; 28], vec![7; 20]].concat());
        assert_eq!(of(66, 64), [7; 64], "P-521 takes every digest whole");
    }

    #[test]
    fn a_digest_info_is_what_verification_finds_under_the_padding() {
        let rsa = Rsa::generate(2048).unwrap();
        let info = digest_info(Algorithm::RsaPkcs1Sha256, &[7; 32]).unwrap();
        let mut signature = vec![0; 256];
        rsa.private_encrypt(&info, &mut signature, Padding::PKCS1).unwrap();
        rsa_verifies(&rsa, &signature);
        assert_eq!(digest_info(Algorithm::RsaPkcs1Md5Sha1, &[7; 36]).unwrap(), [7; 36]);
        assert_eq!(digest_info(Algorithm::RsaPssSha256, &[7; 32]), None);
    }

    fn rsa_verifies(rsa: &Rsa<openssl::pkey::Private>, signature: &[u8]) {
        let spki = rsa.public_key_to_der().unwrap();
        crate::conformance::verify(&spki, Algorithm::RsaPkcs1Sha256, &[7; 32], signature).unwrap();
    }
}
