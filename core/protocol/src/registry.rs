//! The numbers of the protocol and their names. A number that isn't listed is kept as it is.

use std::borrow::Cow;
use std::fmt;

macro_rules! names {
    ($type:ident: $($(#[$doc:meta])* $constant:ident = $number:literal, $name:literal;)*) => {
        impl $type {
            $($(#[$doc])* pub const $constant: Self = Self($number);)*

            /// The name; `None` for a number that the protocol doesn't list.
            #[must_use]
            pub const fn name(self) -> Option<&'static str> {
                match self.0 { $($number => Some($name),)* _ => None }
            }
        }
    };
}

/// What an item is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tag(pub u8);

names! { Tag:
    /// The legacy name of a key: SHA-256 of its RSA modulus in upper-case hex, 32 bytes.
    DIGEST = 0x01, "digest";
    /// The server name that the terminator's client asked for.
    SNI = 0x02, "sni";
    /// The address of the terminator's client, 4 or 16 bytes.
    CLIENT_IP = 0x03, "client ip";
    /// The name of a key: SHA-1 of its public key bits, 20 bytes.
    SKI = 0x04, "ski";
    /// The address that the terminator's client connected to, 4 or 16 bytes.
    SERVER_IP = 0x05, "server ip";
    /// The sender's own name of the certificate.
    CERT_ID = 0x06, "certificate id";
    /// The operation, 1 byte.
    OPCODE = 0x11, "opcode";
    /// The input or the result of the operation.
    PAYLOAD = 0x12, "payload";
    /// The function that [`Opcode::CUSTOM`] calls.
    CUSTOM_FUNCTION = 0x13, "custom function";
    /// Further input of the operation.
    EXTRA = 0x14, "extra";
    /// A Jaeger span, binary or text.
    JAEGER_SPAN = 0x15, "jaeger span";
    /// The context of the request, a JSON object.
    REQUEST_CONTEXT = 0x16, "request context";
    /// Where the operation may take place, 1 byte.
    COMPLIANCE_REGION = 0x17, "compliance region";
    /// Zeros that hide how long a message is.
    PADDING = 0x20, "padding";
}

impl fmt::Display for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "tag {:#04x}", self.0),
        }
    }
}

impl fmt::Debug for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tag({:#04x}: {self})", self.0)
    }
}

/// What is to be done, or what kind of answer this is.
///
/// Names are those of the reference's metrics, so that logs, errors and metrics of old and new servers grep alike.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Opcode(pub u8);

names! { Opcode:
    /// The raw RSA private-key operation: no padding is checked or removed.
    RSA_DECRYPT = 0x01, "OpRSADecrypt";
    /// RSASSA-PKCS1-v1_5 over MD5 and SHA-1, without DigestInfo.
    RSA_SIGN_MD5SHA1 = 0x02, "OpRSASignMD5SHA1";
    /// RSASSA-PKCS1-v1_5 over a SHA-1 digest.
    RSA_SIGN_SHA1 = 0x03, "OpRSASignSHA1";
    /// RSASSA-PKCS1-v1_5 over a SHA-224 digest.
    RSA_SIGN_SHA224 = 0x04, "OpRSASignSHA224";
    /// RSASSA-PKCS1-v1_5 over a SHA-256 digest.
    RSA_SIGN_SHA256 = 0x05, "OpRSASignSHA256";
    /// RSASSA-PKCS1-v1_5 over a SHA-384 digest.
    RSA_SIGN_SHA384 = 0x06, "OpRSASignSHA384";
    /// RSASSA-PKCS1-v1_5 over a SHA-512 digest.
    RSA_SIGN_SHA512 = 0x07, "OpRSASignSHA512";
    /// ECDSA over MD5 and SHA-1.
    ECDSA_SIGN_MD5SHA1 = 0x12, "OpECDSASignMD5SHA1";
    /// ECDSA over a SHA-1 digest.
    ECDSA_SIGN_SHA1 = 0x13, "OpECDSASignSHA1";
    /// ECDSA over a SHA-224 digest.
    ECDSA_SIGN_SHA224 = 0x14, "OpECDSASignSHA224";
    /// ECDSA over a SHA-256 digest.
    ECDSA_SIGN_SHA256 = 0x15, "OpECDSASignSHA256";
    /// ECDSA over a SHA-384 digest.
    ECDSA_SIGN_SHA384 = 0x16, "OpECDSASignSHA384";
    /// ECDSA over a SHA-512 digest.
    ECDSA_SIGN_SHA512 = 0x17, "OpECDSASignSHA512";
    /// Ed25519 (pure) over the message itself.
    ED25519_SIGN = 0x18, "OpEd25519Sign";
    /// Encrypts a blob for later.
    SEAL = 0x21, "OpSeal";
    /// Decrypts a sealed blob.
    UNSEAL = 0x22, "OpUnseal";
    /// A remote procedure call in the reference's own encoding.
    RPC = 0x23, "OpRPC";
    /// A function of the server's own, named by [`Tag::CUSTOM_FUNCTION`].
    CUSTOM = 0x24, "OpCustom";
    /// RSASSA-PSS over a SHA-256 digest; MGF1 with the same hash, salt as long as the digest.
    RSA_PSS_SIGN_SHA256 = 0x35, "OpRSAPSSSignSHA256";
    /// RSASSA-PSS over a SHA-384 digest; MGF1 with the same hash, salt as long as the digest.
    RSA_PSS_SIGN_SHA384 = 0x36, "OpRSAPSSSignSHA384";
    /// RSASSA-PSS over a SHA-512 digest; MGF1 with the same hash, salt as long as the digest.
    RSA_PSS_SIGN_SHA512 = 0x37, "OpRSAPSSSignSHA512";
    /// An answer: the operation succeeded.
    RESPONSE = 0xf0, "OpResponse";
    /// Asks for the payload to be sent back.
    PING = 0xf1, "OpPing";
    /// An answer: to [`Opcode::PING`].
    PONG = 0xf2, "OpPong";
    /// An answer: the operation failed; the payload is an [`ErrorCode`].
    ERROR = 0xff, "OpError";
}

impl Opcode {
    /// The value of the metrics label `opcode`: the name, or `Op(n)` with a decimal number.
    #[must_use]
    pub fn metric_name(self) -> Cow<'static, str> {
        self.name().map_or_else(|| Cow::Owned(format!("Op({})", self.0)), Cow::Borrowed)
    }

    /// The value of the metrics label `type`.
    #[must_use]
    pub const fn kind(self) -> OpcodeKind {
        match self.0 {
            0x01..=0x07 | 0x35..=0x37 => OpcodeKind::Rsa,
            0x12..=0x17 => OpcodeKind::Ecdsa,
            0x18 => OpcodeKind::Ed25519,
            0x23 => OpcodeKind::Rpc,
            0x24 => OpcodeKind::Custom,
            _ if self.name().is_some() => OpcodeKind::Other,
            _ => OpcodeKind::Unknown,
        }
    }

    /// Whether it belongs in an answer, and never in a request.
    #[must_use]
    pub const fn is_answer(self) -> bool {
        matches!(self, Self::RESPONSE | Self::PONG | Self::ERROR)
    }
}

impl fmt::Display for Opcode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "Op({})", self.0),
        }
    }
}

impl fmt::Debug for Opcode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Opcode({:#04x}: {self})", self.0)
    }
}

/// The kinds of opcode that the reference's metrics tell apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum OpcodeKind {
    /// A function of the server's own.
    Custom,
    /// An ECDSA signature.
    Ecdsa,
    /// An Ed25519 signature.
    Ed25519,
    /// Any other opcode of the protocol.
    Other,
    /// A remote procedure call.
    Rpc,
    /// An RSA signature or decryption.
    Rsa,
    /// An opcode that the protocol doesn't list.
    Unknown,
}

impl OpcodeKind {
    /// The value of the metrics label `type`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Custom => "custom",
            Self::Ecdsa => "ecdsa",
            Self::Ed25519 => "ed25519",
            Self::Other => "other",
            Self::Rpc => "rpc",
            Self::Rsa => "rsa",
            Self::Unknown => "unknown",
        }
    }
}

/// Why an operation failed, as the client is told.
///
/// Names are the values of the metrics label `error` wherever the reference has one.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ErrorCode(pub u8);

names! { ErrorCode:
    /// Nothing failed; never sent.
    NONE = 0x00, "no error";
    /// The operation failed, or isn't one for this key.
    CRYPTOGRAPHY = 0x01, "cryptography error";
    /// No key has the SKI that was asked for.
    KEY_NOT_FOUND = 0x02, "key not found due to no matching SKI/SNI/ServerIP";
    /// The request couldn't be read.
    READ = 0x03, "read error";
    /// The major version isn't supported.
    VERSION = 0x04, "version mismatch";
    /// The opcode is unknown or missing.
    BAD_OPCODE = 0x05, "bad opcode";
    /// The opcode belongs in an answer.
    UNEXPECTED_OPCODE = 0x06, "unexpected opcode";
    /// The request is malformed.
    FORMAT = 0x07, "malformed message";
    /// The server failed, is overloaded, or was given no usable SKI.
    INTERNAL = 0x08, "internal error";
    /// No certificate has the name that was asked for.
    CERTIFICATE_NOT_FOUND = 0x09, "certificate not found";
    /// A sealed blob is too old.
    EXPIRED = 0x0a, "sealed blob expired";
    /// A key server behind the key server is misconfigured.
    REMOTE_CONFIGURATION = 0x0b, "remote key server misconfigured";
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "error code {:#04x}", self.0),
        }
    }
}

impl fmt::Debug for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ErrorCode({:#04x}: {self})", self.0)
    }
}

/// Where an operation may take place. The reference parses it, and it has no effect there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ComplianceRegion(pub u8);

impl ComplianceRegion {
    /// FedRAMP High.
    pub const FEDRAMP_HIGH: Self = Self(1);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metric_names_are_those_of_the_reference() {
        let names = |opcode: Opcode| opcode.metric_name().into_owned();
        assert_eq!(names(Opcode::RSA_SIGN_SHA256), "OpRSASignSHA256");
        assert_eq!(names(Opcode::ECDSA_SIGN_MD5SHA1), "OpECDSASignMD5SHA1");
        assert_eq!(names(Opcode::RSA_PSS_SIGN_SHA512), "OpRSAPSSSignSHA512");
        assert_eq!(names(Opcode(0x42)), "Op(66)");
    }

    #[test]
    fn every_opcode_has_the_kind_its_name_says() {
        for opcode in (0..=u8::MAX).map(Opcode) {
            let expected = match opcode.name() {
                None => "unknown",
                Some(name) if name.starts_with("OpRSA") => "rsa",
                Some(name) if name.starts_with("OpECDSA") => "ecdsa",
                Some("OpEd25519Sign") => "ed25519",
                Some("OpCustom") => "custom",
                Some("OpRPC") => "rpc",
                Some(_) => "other",
            };
            assert_eq!(opcode.kind().name(), expected, "{opcode:?}");
        }
    }

    #[test]
    fn unknown_numbers_are_kept_and_shown() {
        assert_eq!(Tag(0x99).to_string(), "tag 0x99");
        assert_eq!(ErrorCode(0x7f).to_string(), "error code 0x7f");
        assert_eq!(format!("{:?}", Opcode(0x42)), "Opcode(0x42: Op(66))");
    }
}
