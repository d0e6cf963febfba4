//! What a version of a key can do. In Cloud KMS that is one thing: a key has one padding and one hash for life.

use std::{borrow::Cow, fmt};

use keystead_plugin_api::{
    Algorithm, Error,
    algorithm::{Family, Operation},
    encode,
};

/// What a version signs, and how it wants to be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Ability {
    Pkcs1Sha256,
    Pkcs1Sha512,
    /// PKCS#1 over a DigestInfo that the caller makes: every hash.
    Pkcs1Any,
    PssSha256,
    PssSha512,
    P256,
    P384,
    Ed25519,
}

/// Each with its name in ids.
const NAMES: [(Ability, &str); 8] = [
    (Ability::Pkcs1Sha256, "pkcs1-sha256"),
    (Ability::Pkcs1Sha512, "pkcs1-sha512"),
    (Ability::Pkcs1Any, "pkcs1"),
    (Ability::PssSha256, "pss-sha256"),
    (Ability::PssSha512, "pss-sha512"),
    (Ability::P256, "p256"),
    (Ability::P384, "p384"),
    (Ability::Ed25519, "ed25519"),
];

/// The service's names of what signs for TLS.
const ALGORITHMS: [(&str, Ability); 14] = [
    ("EC_SIGN_ED25519", Ability::Ed25519),
    ("EC_SIGN_P256_SHA256", Ability::P256),
    ("EC_SIGN_P384_SHA384", Ability::P384),
    ("RSA_SIGN_PKCS1_2048_SHA256", Ability::Pkcs1Sha256),
    ("RSA_SIGN_PKCS1_3072_SHA256", Ability::Pkcs1Sha256),
    ("RSA_SIGN_PKCS1_4096_SHA256", Ability::Pkcs1Sha256),
    ("RSA_SIGN_PKCS1_4096_SHA512", Ability::Pkcs1Sha512),
    ("RSA_SIGN_PSS_2048_SHA256", Ability::PssSha256),
    ("RSA_SIGN_PSS_3072_SHA256", Ability::PssSha256),
    ("RSA_SIGN_PSS_4096_SHA256", Ability::PssSha256),
    ("RSA_SIGN_PSS_4096_SHA512", Ability::PssSha512),
    ("RSA_SIGN_RAW_PKCS1_2048", Ability::Pkcs1Any),
    ("RSA_SIGN_RAW_PKCS1_3072", Ability::Pkcs1Any),
    ("RSA_SIGN_RAW_PKCS1_4096", Ability::Pkcs1Any),
];

/// What is sent to be signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Input<'a> {
    /// A digest, in the member of this name.
    Digest(&'static str, Cow<'a, [u8]>),
    /// Bytes that the service makes no assumption about.
    Data(Cow<'a, [u8]>),
}

impl Ability {
    /// Of an algorithm by its name in Cloud KMS; `None` for one that doesn't sign for TLS.
    pub(crate) fn of(algorithm: &str) -> Option<Self> {
        ALGORITHMS.iter().find(|(known, _)| *known == algorithm).map(|(_, ability)| *ability)
    }

    pub(crate) fn parse(name: &str) -> Option<Self> {
        NAMES.iter().find(|(_, known)| *known == name).map(|(ability, _)| *ability)
    }

    /// The algorithms that it comes to. ECDSA takes any digest, cut or filled up as FIPS 186-5 has it.
    pub(crate) fn algorithms(self) -> Vec<Algorithm> {
        let all = |family| Algorithm::of(family).filter(|algorithm| algorithm.operation() == Operation::Sign);
        match self {
            Self::Pkcs1Sha256 => vec![Algorithm::RsaPkcs1Sha256],
            Self::Pkcs1Sha512 => vec![Algorithm::RsaPkcs1Sha512],
            Self::Pkcs1Any => all(Family::Rsa).filter(|algorithm| !is_pss(*algorithm)).collect(),
            Self::PssSha256 => vec![Algorithm::RsaPssSha256],
            Self::PssSha512 => vec![Algorithm::RsaPssSha512],
            Self::P256 | Self::P384 => all(Family::Ecdsa).collect(),
            Self::Ed25519 => vec![Algorithm::Ed25519],
        }
    }

    /// What is sent to have an input signed.
    pub(crate) fn input(self, algorithm: Algorithm, input: &[u8]) -> Result<Input<'_>, Error> {
        let unsupported = || Error::unsupported(algorithm);
        if !self.algorithms().contains(&algorithm) {
            return Err(unsupported());
        }
        Ok(match self {
            Self::Pkcs1Sha256 | Self::PssSha256 => Input::Digest("sha256", input.into()),
            Self::Pkcs1Sha512 | Self::PssSha512 => Input::Digest("sha512", input.into()),
            Self::P256 => Input::Digest("sha256", encode::digest_to_fit(32, input)),
            Self::P384 => Input::Digest("sha384", encode::digest_to_fit(48, input)),
            Self::Ed25519 => Input::Data(input.into()),
            Self::Pkcs1Any => {
                Input::Data(encode::digest_info(algorithm, input).ok_or_else(unsupported)?.into())
            }
        })
    }

    pub(crate) fn is_pkcs1(self) -> bool {
        matches!(self, Self::Pkcs1Sha256 | Self::Pkcs1Sha512 | Self::Pkcs1Any)
    }

    pub(crate) fn is_pss(self) -> bool {
        matches!(self, Self::PssSha256 | Self::PssSha512)
    }
}

fn is_pss(algorithm: Algorithm) -> bool {
    matches!(algorithm, Algorithm::RsaPssSha256 | Algorithm::RsaPssSha384 | Algorithm::RsaPssSha512)
}

impl fmt::Display for Ability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = NAMES.iter().find(|(known, _)| known == self).map_or("", |(_, name)| *name);
        f.write_str(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_algorithm_of_the_service_is_known_for_what_it_does_or_for_nothing() {
        for (name, ability) in ALGORITHMS {
            assert_eq!(Ability::of(name), Some(ability), "{name}");
            assert_eq!(ability.is_pss(), name.contains("_PSS_"), "{name}");
            assert_eq!(ability.is_pkcs1(), name.contains("PKCS1_"), "{name}");
        }
        for name in [
            "",
            "GOOGLE_SYMMETRIC_ENCRYPTION",
            "RSA_DECRYPT_OAEP_2048_SHA256",
            "EC_SIGN_SECP256K1_SHA256",
            "HMAC_SHA256",
            "PQ_SIGN_ML_DSA_65",
            "RSA_SIGN_PKCS1_2048",
            "RSA_SIGN_RAW_PKCS1_2048_SHA256",
            "RSA_SIGN_PSS_2048_SHA1",
            "RSA_SIGN_PKCS1_1024_SHA256",
            "RSA_SIGN_NEW_PKCS1_2048_SHA256",
        ] {
            assert_eq!(Ability::of(name), None, "{name}");
        }
    }

    #[test]
    fn an_ability_has_a_name_that_leads_back_to_it() {
        for (ability, _) in NAMES {
            assert_eq!(Ability::parse(&ability.to_string()), Some(ability));
        }
    }

    #[test]
    fn what_is_sent_is_a_digest_that_fits_or_the_data() {
        let sent = |ability: Ability, algorithm| ability.input(algorithm, &[0xee; 20]).unwrap();
        assert_eq!(
            sent(Ability::P256, Algorithm::EcdsaSha1),
            Input::Digest("sha256", [vec![0; 12], vec![0xee; 20]].concat().into())
        );
        let long = Ability::P256.input(Algorithm::EcdsaSha512, &[7; 64]).unwrap();
        assert_eq!(long, Input::Digest("sha256", vec![7; 32].into()));
        let Input::Data(info) = sent(Ability::Pkcs1Any, Algorithm::RsaPkcs1Sha1) else { panic!("no data") };
        assert!(info.len() == 35 && info.ends_with(&[0xee; 20]), "{info:x?}");
        let bare = Ability::Pkcs1Any.input(Algorithm::RsaPkcs1Md5Sha1, &[9; 36]).unwrap();
        assert_eq!(bare, Input::Data(vec![9; 36].into()));
        assert_eq!(
            Ability::Ed25519.input(Algorithm::Ed25519, b"hello").unwrap(),
            Input::Data(b"hello".into())
        );
    }

    #[test]
    fn what_a_key_is_not_for_is_unsupported() {
        for (ability, algorithm) in [
            (Ability::Pkcs1Sha256, Algorithm::RsaPssSha256),
            (Ability::Pkcs1Sha256, Algorithm::RsaPkcs1Sha384),
            (Ability::Pkcs1Any, Algorithm::RsaPssSha256),
            (Ability::Pkcs1Any, Algorithm::RsaRaw),
            (Ability::PssSha256, Algorithm::RsaPssSha512),
            (Ability::P256, Algorithm::Ed25519),
        ] {
            assert_eq!(
                ability.input(algorithm, &[0; 32]).unwrap_err().code,
                keystead_plugin_api::Code::Unsupported
            );
        }
    }
}
