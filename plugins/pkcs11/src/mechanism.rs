//! From the contract's algorithms to PKCS#11 mechanisms and back: what a key can do, what the token is given, and what
//! becomes of its answer.
//!
//! Only mechanisms that sign what they are given are used, since the digest is made elsewhere: CKM_RSA_PKCS with a
//! DigestInfo made here, CKM_RSA_PKCS_PSS, CKM_ECDSA, CKM_EDDSA; and CKM_RSA_X_509, for raw decryption and, where the
//! operator allows it, for signatures of which the token lacks the padding.

use std::{borrow::Cow, fmt};

use cryptoki::mechanism::{
    Mechanism, MechanismType,
    eddsa::{EddsaParams, EddsaSignatureScheme},
    rsa::{PkcsMgfType, PkcsPssParams},
};
use keystead_plugin_api::{
    Algorithm, Error, Input,
    algorithm::Family,
    encode::{digest_info, digest_to_fit, ecdsa_signature, padded},
};
use zeroize::Zeroizing;

use crate::pss;

/// The type of a key, with the public numbers that its operations need.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum KeyKind {
    /// RSA; the modulus is big-endian without leading zeros.
    Rsa { modulus: Vec<u8> },
    /// ECDSA on a curve whose order has so many bytes.
    Ec { order: usize },
    /// Ed25519.
    Ed25519,
}

/// What a token or a key allows, by mechanism.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Allowed {
    /// Signing with CKM_RSA_PKCS.
    pub(crate) rsa_pkcs: bool,
    /// Signing with CKM_RSA_PKCS_PSS.
    pub(crate) rsa_pss: bool,
    /// Decrypting with CKM_RSA_X_509.
    pub(crate) rsa_raw: bool,
    /// Signing with CKM_RSA_X_509 what was padded here.
    pub(crate) rsa_padded: bool,
    /// Signing with CKM_ECDSA.
    pub(crate) ecdsa: bool,
    /// Signing with CKM_EDDSA.
    pub(crate) eddsa: bool,
}

impl Allowed {
    /// Asks for each mechanism whether it may sign, or decrypt where the second argument says so.
    pub(crate) fn ask(may: impl Fn(MechanismType, bool) -> bool) -> Self {
        Self {
            rsa_pkcs: may(MechanismType::RSA_PKCS, false),
            rsa_pss: may(MechanismType::RSA_PKCS_PSS, false),
            rsa_raw: may(MechanismType::RSA_X_509, true),
            rsa_padded: may(MechanismType::RSA_X_509, false),
            ecdsa: may(MechanismType::ECDSA, false),
            eddsa: may(MechanismType::EDDSA, false),
        }
    }

    /// What both allow.
    pub(crate) fn and(self, other: Self) -> Self {
        Self {
            rsa_pkcs: self.rsa_pkcs && other.rsa_pkcs,
            rsa_pss: self.rsa_pss && other.rsa_pss,
            rsa_raw: self.rsa_raw && other.rsa_raw,
            rsa_padded: self.rsa_padded && other.rsa_padded,
            ecdsa: self.ecdsa && other.ecdsa,
            eddsa: self.eddsa && other.eddsa,
        }
    }
}

impl fmt::Display for Allowed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rsa_pkcs, rsa_pss, rsa_raw, rsa_padded, ecdsa, eddsa } = *self;
        let names: Vec<_> = [
            (rsa_pkcs, "CKM_RSA_PKCS"),
            (rsa_pss, "CKM_RSA_PKCS_PSS"),
            (rsa_raw, "CKM_RSA_X_509 (decrypt)"),
            (rsa_padded, "CKM_RSA_X_509 (sign, padded here)"),
            (ecdsa, "CKM_ECDSA"),
            (eddsa, "CKM_EDDSA"),
        ]
        .into_iter()
        .filter_map(|(allowed, name)| allowed.then_some(name))
        .collect();
        f.write_str(if names.is_empty() { "none" } else { "" })?;
        f.write_str(&names.join(", "))
    }
}

impl KeyKind {
    fn family(&self) -> Family {
        match self {
            Self::Rsa { .. } => Family::Rsa,
            Self::Ec { .. } => Family::Ecdsa,
            Self::Ed25519 => Family::Ed25519,
        }
    }

    /// The mechanisms that a key of this type is used with.
    pub(crate) fn mechanisms(&self) -> &'static str {
        match self {
            Self::Rsa { .. } => "CKM_RSA_PKCS, CKM_RSA_PKCS_PSS or, with `raw_rsa`, CKM_RSA_X_509",
            Self::Ec { .. } => "CKM_ECDSA",
            Self::Ed25519 => "CKM_EDDSA",
        }
    }

    /// The algorithms that a key of this type can do where so much is allowed.
    pub(crate) fn algorithms(&self, allowed: Allowed) -> Vec<Algorithm> {
        Algorithm::of(self.family()).filter(|&algorithm| self.can(algorithm, allowed)).collect()
    }

    fn can(&self, algorithm: Algorithm, allowed: Allowed) -> bool {
        match (self, Padding::of(algorithm)) {
            (Self::Rsa { modulus }, Some(Padding::Pkcs1)) => {
                // RFC 8017, 9.2: emLen >= tLen + 11.
                let info = digest_info(algorithm, &vec![0; digest_len(algorithm)]);
                (allowed.rsa_pkcs || allowed.rsa_padded)
                    && info.is_some_and(|info| modulus.len() >= info.len() + 11)
            }
            (Self::Rsa { modulus }, Some(Padding::Pss(_))) => {
                // RFC 8017, 9.1.1: emLen >= hLen + sLen + 2, where emLen may be a byte less than the modulus.
                (allowed.rsa_pss || allowed.rsa_padded) && modulus.len() >= 2 * digest_len(algorithm) + 3
            }
            (Self::Rsa { .. }, None) => allowed.rsa_raw && algorithm == Algorithm::RsaRaw,
            (Self::Ec { .. }, _) => allowed.ecdsa,
            (Self::Ed25519, _) => allowed.eddsa,
        }
    }

    /// What the token is asked to sign, and how; by its own padding, where it has it.
    ///
    /// # Errors
    ///
    /// Where the algorithm isn't one for this type of key.
    pub(crate) fn signing<'a>(
        &self,
        algorithm: Algorithm,
        input: &'a [u8],
        allowed: Allowed,
    ) -> Result<(Mechanism<'static>, Cow<'a, [u8]>), Error> {
        match (self, Padding::of(algorithm)) {
            _ if algorithm.family() != self.family() => Err(Error::unsupported(algorithm)),
            (Self::Rsa { modulus }, Some(Padding::Pkcs1)) => {
                let info = digest_info(algorithm, input).ok_or_else(|| Error::unsupported(algorithm))?;
                match allowed.rsa_pkcs {
                    true => Ok((Mechanism::RsaPkcs, info.into())),
                    false => Ok((Mechanism::RsaX509, pkcs1(&info, modulus.len())?.into())),
                }
            }
            (Self::Rsa { modulus }, Some(Padding::Pss(params))) => match allowed.rsa_pss {
                true => Ok((Mechanism::RsaPkcsPss(params), input.into())),
                false => Ok((Mechanism::RsaX509, pss::encode(modulus, input)?.into())),
            },
            (Self::Rsa { .. }, None) => Err(Error::unsupported(algorithm)),
            (Self::Ec { order }, _) => Ok((Mechanism::Ecdsa, digest_to_fit(*order, input))),
            // Without parameters (PKCS#11 v3.1 section 2.3.14): some modules know no other way.
            (Self::Ed25519, _) => {
                Ok((Mechanism::Eddsa(EddsaParams::new(EddsaSignatureScheme::Pure)), input.into()))
            }
        }
    }

    /// Bytes of the longest answer that a token gives.
    pub(crate) fn answer_len(&self) -> usize {
        match self {
            Self::Rsa { modulus } => modulus.len(),
            Self::Ec { order } => 2 * order,
            Self::Ed25519 => 64,
        }
    }

    /// A token's signature in the form of the contract.
    ///
    /// # Errors
    ///
    /// Where the token's answer isn't a signature of this type of key.
    pub(crate) fn signature<'a>(&self, raw: &'a [u8]) -> Result<Cow<'a, [u8]>, Error> {
        match self {
            Self::Rsa { modulus } if raw.len() == modulus.len() => Ok(raw.into()),
            Self::Ec { order } if raw.len() <= 2 * order => {
                Ok(ecdsa_signature(raw).ok_or_else(|| odd(raw))?.into())
            }
            Self::Ed25519 if raw.len() == 64 => Ok(raw.into()),
            _ => Err(odd(raw)),
        }
    }

    /// The block for a raw decryption: as long as the modulus (some modules refuse shorter ones).
    ///
    /// # Errors
    ///
    /// Where the key isn't RSA, and where the number isn't smaller than the modulus (RFC 8017 section 5.1.2).
    pub(crate) fn block(&self, input: &[u8]) -> Result<Vec<u8>, Error> {
        let Self::Rsa { modulus } = self else { return Err(Error::unsupported(Algorithm::RsaRaw)) };
        let block = padded(input, modulus.len()).filter(|block| block < modulus);
        block.ok_or_else(|| Error::invalid("the input is not smaller than the modulus"))
    }

    /// A token's plaintext in the form of the contract: as long as the modulus, padding and all.
    ///
    /// # Errors
    ///
    /// Where it is longer than the modulus.
    pub(crate) fn plaintext(&self, raw: &[u8]) -> Result<Zeroizing<Vec<u8>>, Error> {
        let Self::Rsa { modulus } = self else { return Err(Error::unsupported(Algorithm::RsaRaw)) };
        padded(raw, modulus.len()).map(Zeroizing::new).ok_or_else(|| odd(raw))
    }
}

fn odd(raw: &[u8]) -> Error {
    Error::new(
        keystead_plugin_api::Code::Internal,
        format!("the token answered {} bytes that don't fit the key's type", raw.len()),
    )
}

fn digest_len(algorithm: Algorithm) -> usize {
    match algorithm.input() {
        Input::Digest(len) => len,
        _ => 0,
    }
}

/// How an RSA signature is padded.
enum Padding {
    /// RFC 8017 section 9.2.
    Pkcs1,
    /// RFC 8017 section 9.1.
    Pss(PkcsPssParams),
}

impl Padding {
    fn of(algorithm: Algorithm) -> Option<Self> {
        let pss = |hash_alg, mgf, salt: u64| Self::Pss(PkcsPssParams { hash_alg, mgf, s_len: salt.into() });
        match algorithm {
            Algorithm::RsaPkcs1Md5Sha1
            | Algorithm::RsaPkcs1Sha1
            | Algorithm::RsaPkcs1Sha224
            | Algorithm::RsaPkcs1Sha256
            | Algorithm::RsaPkcs1Sha384
            | Algorithm::RsaPkcs1Sha512 => Some(Self::Pkcs1),
            Algorithm::RsaPssSha256 => Some(pss(MechanismType::SHA256, PkcsMgfType::MGF1_SHA256, 32)),
            Algorithm::RsaPssSha384 => Some(pss(MechanismType::SHA384, PkcsMgfType::MGF1_SHA384, 48)),
            Algorithm::RsaPssSha512 => Some(pss(MechanismType::SHA512, PkcsMgfType::MGF1_SHA512, 64)),
            _ => None,
        }
    }
}

/// EMSA-PKCS1-v1_5 (RFC 8017 section 9.2): nothing but constant bytes before the DigestInfo.
fn pkcs1(info: &[u8], len: usize) -> Result<Vec<u8>, Error> {
    let fill = len.checked_sub(info.len() + 3).filter(|fill| *fill >= 8);
    let fill = fill.ok_or_else(|| Error::invalid("the digest is too long for the key"))?;
    Ok([&[0, 1][..], &vec![0xff; fill], &[0], info].concat())
}

#[cfg(test)]
mod tests {
    use keystead_plugin_api::Code;

    use super::*;

    const ALL: Allowed =
        Allowed { rsa_pkcs: true, rsa_pss: true, rsa_raw: true, rsa_padded: false, ecdsa: true, eddsa: true };

    fn rsa(bytes: usize) -> KeyKind {
        KeyKind::Rsa { modulus: [vec![0xc0], vec![1; bytes - 1]].concat() }
    }

    #[test]
    fn offers_every_algorithm_of_the_family_where_all_is_allowed() {
        for (kind, family) in [
            (rsa(256), Family::Rsa),
            (KeyKind::Ec { order: 32 }, Family::Ecdsa),
            (KeyKind::Ed25519, Family::Ed25519),
        ] {
            assert_eq!(kind.algorithms(ALL), Algorithm::of(family).collect::<Vec<_>>());
        }
    }

    #[test]
    fn offers_only_what_token_and_key_allow() {
        let without_raw = ALL.and(Allowed { rsa_raw: false, ..ALL });
        assert!(!rsa(256).algorithms(without_raw).contains(&Algorithm::RsaRaw));
        assert_eq!(
            rsa(256).algorithms(Allowed::ask(
                |mechanism, decrypts| decrypts && mechanism == MechanismType::RSA_X_509
            )),
            [Algorithm::RsaRaw]
        );
        let padded = rsa(256).algorithms(Allowed { rsa_padded: true, ..Allowed::default() });
        assert!(padded.contains(&Algorithm::RsaPkcs1Sha256) && padded.contains(&Algorithm::RsaPssSha256));
        assert!(KeyKind::Ed25519.algorithms(Allowed { eddsa: false, ..ALL }).is_empty());
    }

    #[test]
    fn offers_no_padding_that_does_not_fit_the_modulus() {
        let small = rsa(128).algorithms(ALL);
        assert!(small.contains(&Algorithm::RsaPssSha384) && !small.contains(&Algorithm::RsaPssSha512));
        let tiny = rsa(64).algorithms(ALL);
        assert!(tiny.contains(&Algorithm::RsaPkcs1Sha256) && !tiny.contains(&Algorithm::RsaPkcs1Sha512));
    }

    #[test]
    fn refuses_algorithms_of_other_types_of_key() {
        for (kind, algorithm) in [
            (rsa(256), Algorithm::EcdsaSha256),
            (rsa(256), Algorithm::Ed25519),
            (rsa(256), Algorithm::RsaRaw),
            (KeyKind::Ec { order: 32 }, Algorithm::RsaPkcs1Sha256),
            (KeyKind::Ec { order: 32 }, Algorithm::Ed25519),
            (KeyKind::Ed25519, Algorithm::EcdsaSha256),
        ] {
            assert_eq!(
                kind.signing(algorithm, &[0; 32], ALL).unwrap_err().code,
                Code::Unsupported,
                "{algorithm}"
            );
        }
        assert_eq!(KeyKind::Ed25519.block(&[1]).unwrap_err().code, Code::Unsupported);
    }

    #[test]
    fn what_the_token_cannot_pad_is_padded_here() {
        let padded = Allowed { rsa_padded: true, ..Allowed::default() };
        let both = Allowed { rsa_padded: true, ..ALL };
        for algorithm in [Algorithm::RsaPkcs1Sha256, Algorithm::RsaPssSha256] {
            let (mechanism, block) = rsa(256).signing(algorithm, &[7; 32], padded).unwrap();
            assert!(matches!(mechanism, Mechanism::RsaX509) && block.len() == 256, "{algorithm}");
            let (mechanism, _) = rsa(256).signing(algorithm, &[7; 32], both).unwrap();
            assert!(
                !matches!(mechanism, Mechanism::RsaX509),
                "{algorithm}: the token's own padding comes first"
            );
        }
        let block = pkcs1(b"info", 16).unwrap();
        assert_eq!(block, b"\x00\x01\xff\xff\xff\xff\xff\xff\xff\xff\xff\x00info");
        assert!(pkcs1(b"information", 16).is_err());
    }

    #[test]
    fn truncates_digests_to_the_order() {
        let digest = [7; 64];
        for (order, sent) in [(28, 28), (32, 32), (48, 48), (66, 64)] {
            let (_, data) = KeyKind::Ec { order }.signing(Algorithm::EcdsaSha512, &digest, ALL).unwrap();
            assert_eq!(data.len(), sent);
        }
    }

    #[test]
    fn turns_two_numbers_into_der() {
        let kind = KeyKind::Ec { order: 2 };
        assert_eq!(&*kind.signature(&[0, 1, 0x80, 0]).unwrap(), [0x30, 8, 2, 1, 1, 2, 3, 0, 0x80, 0]);
        assert_eq!(&*kind.signature(&[5, 6]).unwrap(), [0x30, 6, 2, 1, 5, 2, 1, 6]);
        for odd in [&[][..], &[1, 2, 3], &[0; 6]] {
            assert_eq!(kind.signature(odd).unwrap_err().code, Code::Internal, "{odd:?}");
        }
    }

    #[test]
    fn pads_blocks_and_refuses_what_is_not_smaller_than_the_modulus() {
        let kind = KeyKind::Rsa { modulus: vec![0x80, 0, 5] };
        assert_eq!(kind.block(&[]).unwrap(), [0, 0, 0]);
        assert_eq!(kind.block(&[0, 0, 0, 7]).unwrap(), [0, 0, 7]);
        assert_eq!(kind.block(&[0x80, 0, 4]).unwrap(), [0x80, 0, 4]);
        for large in [&[0x80, 0, 5][..], &[0x80, 0, 6], &[1, 0, 0, 0]] {
            assert_eq!(kind.block(large).unwrap_err().code, Code::InvalidInput);
        }
        assert_eq!(**kind.plaintext(&[9]).unwrap(), [0, 0, 9]);
    }
}
