//! The two names of a key on the wire, both computed from its public half.

use std::error::Error;
use std::fmt;
use std::str::FromStr;

use der::asn1::UintRef;
use der::oid::ObjectIdentifier;
use der::{Decode, Reader, SliceReader};
use sha1::Sha1;
use sha2::{Digest as _, Sha256};
use spki::SubjectPublicKeyInfoRef;

/// The object identifier of RSA keys (RFC 8017 appendix A.1).
const RSA_ENCRYPTION: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");

/// Subject key identifier: SHA-1 over the bits of the public key (RFC 5280 section 4.2.1.2, method 1).
///
/// It is a name, not a proof: collisions of SHA-1 gain an attacker nothing, since signatures are checked against the
/// certificate's own key. Written as 40 lower-case hex digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ski(pub [u8; 20]);

impl Ski {
    /// The SKI of a DER-encoded `SubjectPublicKeyInfo`.
    ///
    /// # Errors
    ///
    /// [`InvalidSpki`] if `spki` isn't one.
    pub fn from_spki(spki: &[u8]) -> Result<Self, InvalidSpki> {
        let spki = SubjectPublicKeyInfoRef::from_der(spki)?;
        Ok(Self(Sha1::digest(spki.subject_public_key.raw_bytes()).into()))
    }

    /// Whether it is all zeros, which stands for "none" on the wire.
    #[must_use]
    pub fn is_zero(&self) -> bool {
        self.0 == [0; 20]
    }
}

/// The legacy name of an RSA key: SHA-256 over its modulus in upper-case hex digits without leading zeros.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest(pub [u8; 32]);

impl Digest {
    /// The digest of a DER-encoded `SubjectPublicKeyInfo`; `None` for a key that isn't an RSA key.
    ///
    /// # Errors
    ///
    /// [`InvalidSpki`] if `spki` isn't one, or says that it is an RSA key and isn't.
    pub fn from_spki(spki: &[u8]) -> Result<Option<Self>, InvalidSpki> {
        let spki = SubjectPublicKeyInfoRef::from_der(spki)?;
        if spki.algorithm.oid != RSA_ENCRYPTION {
            return Ok(None);
        }
        let modulus = rsa_modulus(spki.subject_public_key.raw_bytes())?;
        let digits: String = modulus.iter().map(|byte| format!("{byte:02X}")).collect();
        Ok(Some(Self(Sha256::digest(digits.trim_start_matches('0')).into())))
    }

    /// Whether it is all zeros, which stands for "none" on the wire.
    #[must_use]
    pub fn is_zero(&self) -> bool {
        self.0 == [0; 32]
    }
}

/// Reads `RSAPublicKey ::= SEQUENCE { modulus INTEGER, publicExponent INTEGER }` (RFC 8017 appendix A.1.1).
fn rsa_modulus(public_key: &[u8]) -> der::Result<Vec<u8>> {
    let mut reader = SliceReader::new(public_key)?;
    let modulus = reader.sequence(|fields| {
        let modulus = UintRef::decode(fields)?.as_bytes().to_vec();
        UintRef::decode(fields)?;
        Ok::<_, der::Error>(modulus)
    })?;
    reader.finish()?;
    Ok(modulus)
}

macro_rules! hex_name {
    ($type:ident, $bytes:literal) => {
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }

        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($type), "({})"), self)
            }
        }

        impl FromStr for $type {
            type Err = InvalidKeyId;

            fn from_str(text: &str) -> Result<Self, InvalidKeyId> {
                hex(text).map(Self).ok_or(InvalidKeyId { digits: 2 * $bytes })
            }
        }
    };
}

hex_name!(Ski, 20);
hex_name!(Digest, 32);

/// Exactly `2 * N` hex digits of either case.
fn hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    let bytes: Option<Vec<u8>> =
        pairs.iter().map(|&[high, low]| Some(digit(high)? << 4 | digit(low)?)).collect();
    bytes.filter(|_| rest.is_empty())?.try_into().ok()
}

fn digit(character: u8) -> Option<u8> {
    char::from(character).to_digit(16).and_then(|digit| u8::try_from(digit).ok())
}

/// A text isn't the name of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct InvalidKeyId {
    /// How many hex digits it should have had.
    pub digits: usize,
}

impl fmt::Display for InvalidKeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "not the name of a key: expected {} hex digits", self.digits)
    }
}

impl Error for InvalidKeyId {}

/// Bytes aren't a public key in the form of a DER-encoded `SubjectPublicKeyInfo` (RFC 5280 section 4.1).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvalidSpki(der::Error);

impl fmt::Display for InvalidSpki {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not a DER-encoded SubjectPublicKeyInfo")
    }
}

impl Error for InvalidSpki {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&self.0)
    }
}

impl From<der::Error> for InvalidSpki {
    fn from(error: der::Error) -> Self {
        Self(error)
    }
}

impl From<spki::Error> for InvalidSpki {
    fn from(error: spki::Error) -> Self {
        match error {
            spki::Error::Asn1(error) => Self(error),
            _ => Self(der::ErrorKind::Failed.into()),
        }
    }
}
