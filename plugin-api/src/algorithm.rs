//! The registry of algorithms: a number, a name and the kind of input each.
//!
//! Numbers are never reused. A host or plugin that meets a number it doesn't know leaves that algorithm aside.

use std::fmt;

/// What an algorithm takes as input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Input {
    /// A digest of exactly this many bytes.
    Digest(usize),
    /// The message itself, any length.
    Message,
    /// A block for the raw key operation: a big-endian integer smaller than the modulus.
    Block,
}

/// What an algorithm does with a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Operation {
    /// `sign` of the table.
    Sign,
    /// `decrypt` of the table.
    Decrypt,
}

/// The type of key an algorithm belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Family {
    /// ECDSA on a prime curve.
    Ecdsa,
    /// Ed25519 (RFC 8032).
    Ed25519,
    /// RSA.
    Rsa,
}

macro_rules! algorithms {
    ($($(#[doc = $doc:literal])* $variant:ident = $number:literal, $name:literal, $family:ident, $operation:ident, $input:expr;)*) => {
        /// One algorithm of the registry.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[non_exhaustive]
        #[repr(u32)]
        pub enum Algorithm { $($(#[doc = $doc])* $variant = $number),* }

        impl Algorithm {
            /// Every algorithm of the registry, in the order of their numbers.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// The algorithm of a number; `None` for one that this build doesn't know.
            #[must_use]
            pub const fn from_number(number: u32) -> Option<Self> {
                match number { $($number => Some(Self::$variant),)* _ => None }
            }

            /// The name used in logs, output and documents.
            #[must_use]
            pub const fn name(self) -> &'static str { match self { $(Self::$variant => $name),* } }

            /// The type of key it belongs to.
            #[must_use]
            pub const fn family(self) -> Family { match self { $(Self::$variant => Family::$family),* } }

            /// Whether it signs or decrypts.
            #[must_use]
            pub const fn operation(self) -> Operation { match self { $(Self::$variant => Operation::$operation),* } }

            /// What it takes as input.
            #[must_use]
            pub const fn input(self) -> Input { match self { $(Self::$variant => $input),* } }

            /// What is documented here, for the C header.
            #[doc(hidden)]
            #[must_use]
            pub const fn documentation(self) -> &'static str {
                match self { $(Self::$variant => concat!($($doc),*)),* }
            }
        }
    };
}

algorithms! {
    /// RSASSA-PKCS1-v1_5 over MD5‖SHA-1, 36 bytes without DigestInfo (TLS 1.0, RFC 2246 section 4.7).
    RsaPkcs1Md5Sha1 = 0x01, "rsa-pkcs1-md5sha1", Rsa, Sign, Input::Digest(36);
    /// RSASSA-PKCS1-v1_5 (RFC 8017 section 8.2) with SHA-1.
    RsaPkcs1Sha1 = 0x02, "rsa-pkcs1-sha1", Rsa, Sign, Input::Digest(20);
    /// RSASSA-PKCS1-v1_5 with SHA-224.
    RsaPkcs1Sha224 = 0x03, "rsa-pkcs1-sha224", Rsa, Sign, Input::Digest(28);
    /// RSASSA-PKCS1-v1_5 with SHA-256.
    RsaPkcs1Sha256 = 0x04, "rsa-pkcs1-sha256", Rsa, Sign, Input::Digest(32);
    /// RSASSA-PKCS1-v1_5 with SHA-384.
    RsaPkcs1Sha384 = 0x05, "rsa-pkcs1-sha384", Rsa, Sign, Input::Digest(48);
    /// RSASSA-PKCS1-v1_5 with SHA-512.
    RsaPkcs1Sha512 = 0x06, "rsa-pkcs1-sha512", Rsa, Sign, Input::Digest(64);
    /// RSASSA-PSS (RFC 8017 section 8.1) with SHA-256, MGF1 with the same hash, salt as long as the hash.
    RsaPssSha256 = 0x11, "rsa-pss-sha256", Rsa, Sign, Input::Digest(32);
    /// RSASSA-PSS with SHA-384, likewise.
    RsaPssSha384 = 0x12, "rsa-pss-sha384", Rsa, Sign, Input::Digest(48);
    /// RSASSA-PSS with SHA-512, likewise.
    RsaPssSha512 = 0x13, "rsa-pss-sha512", Rsa, Sign, Input::Digest(64);
    /// ECDSA over MD5‖SHA-1. The result of every ECDSA is DER `ECDSA-Sig-Value` (RFC 3279 section 2.2.3).
    EcdsaMd5Sha1 = 0x21, "ecdsa-md5sha1", Ecdsa, Sign, Input::Digest(36);
    /// ECDSA over a SHA-1 digest.
    EcdsaSha1 = 0x22, "ecdsa-sha1", Ecdsa, Sign, Input::Digest(20);
    /// ECDSA over a SHA-224 digest.
    EcdsaSha224 = 0x23, "ecdsa-sha224", Ecdsa, Sign, Input::Digest(28);
    /// ECDSA over a SHA-256 digest. A digest longer than the curve's order is truncated (FIPS 186-5 section 6.4).
    EcdsaSha256 = 0x24, "ecdsa-sha256", Ecdsa, Sign, Input::Digest(32);
    /// ECDSA over a SHA-384 digest.
    EcdsaSha384 = 0x25, "ecdsa-sha384", Ecdsa, Sign, Input::Digest(48);
    /// ECDSA over a SHA-512 digest.
    EcdsaSha512 = 0x26, "ecdsa-sha512", Ecdsa, Sign, Input::Digest(64);
    /// Pure Ed25519 over the message itself (RFC 8032 section 5.1); 64 bytes result.
    Ed25519 = 0x31, "ed25519", Ed25519, Sign, Input::Message;
    /// The raw RSA private-key operation (RFC 8017 section 5.1.2). The input is an integer smaller than the modulus,
    /// shorter inputs count as left-padded; the result is always as long as the modulus, padding and all.
    RsaRaw = 0x41, "rsa-raw", Rsa, Decrypt, Input::Block;
}

impl Algorithm {
    /// The number that crosses the boundary.
    #[must_use]
    pub const fn number(self) -> u32 {
        self as u32
    }

    /// Every algorithm of a family, raw decryption included: what a key without limits can do.
    pub fn of(family: Family) -> impl Iterator<Item = Self> {
        Self::ALL.iter().copied().filter(move |algorithm| algorithm.family() == family)
    }

    /// Whether an input has a length that this algorithm takes. A [`Input::Block`] is judged by the backend, which
    /// knows the modulus.
    #[must_use]
    pub const fn takes(self, input: &[u8]) -> bool {
        match self.input() {
            Input::Digest(len) => input.len() == len,
            Input::Message | Input::Block => true,
        }
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
