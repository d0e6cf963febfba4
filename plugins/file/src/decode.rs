//! From the bytes of a file to a key: PEM or DER, encrypted or not.

use base64ct::{Base64, Encoding as _};
use der::{AnyRef, Decode, SliceReader, Tag, Tagged};
use keystead_plugin_api::{Code, Error, Secret};
use pkcs8::{
    EncryptedPrivateKeyInfoRef,
    pkcs5::{EncryptionScheme, pbes2::Kdf},
};
use zeroize::Zeroizing;

use crate::crypto::PrivateKey;

/// The most rounds of PBKDF2, per file: what RFC 8018 section 4.2 thinks of for the most critical keys. It takes some
/// seconds; without a bound, a damaged or hostile file would keep the store from opening for an hour.
const PBKDF2_ROUNDS_MAX: u32 = 10_000_000;

/// The most blocks of scrypt, `N·r·p` of RFC 7914, per file: 16 times what OpenSSL chooses, 256 MiB, about a second.
const SCRYPT_BLOCKS_MAX: u64 = 1 << 21;

const SUPPORTED: &str =
    "supported are RSA of 2048 to 8192 bits, EC on P-224, P-256, P-384 and P-521, and Ed25519";
const REENCRYPT: &str = "encrypt it anew: `openssl pkcs8 -topk8 -v2 aes-256-cbc -in FILE -out NEW`";
const GIVE_PASSPHRASE: &str = "give it to the store: `secrets: {passphrase: {file: /path/to/passphrase}}`";

/// Why a file gives no key, and what to do.
#[derive(Debug)]
pub(crate) struct Refusal {
    pub(crate) error: Error,
    pub(crate) hint: String,
}

impl Refusal {
    pub(crate) fn new(code: Code, message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { error: Error::new(code, message), hint: hint.into() }
    }
}

/// Reads the private key of a file: DER, or the first private key of a PEM file. `passphrase` is called for an
/// encrypted key only.
pub(crate) fn private_key(
    file: &[u8],
    passphrase: impl Fn() -> Result<Secret, Error>,
) -> Result<PrivateKey, Refusal> {
    match find(file, b"-----BEGIN ") {
        Some(_) => from_der(&from_pem(file)?, passphrase),
        None => from_der(file, passphrase),
    }
}

/// The private-key structures, told apart by their first members.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Structure {
    /// `SEQUENCE { SEQUENCE, … }`
    EncryptedPkcs8,
    /// `SEQUENCE { INTEGER, SEQUENCE, … }`
    Pkcs8,
    /// `SEQUENCE { INTEGER, INTEGER, … }`
    Pkcs1,
    /// `SEQUENCE { INTEGER, OCTET STRING, … }`
    Sec1,
}

impl Structure {
    /// `None` for anything else, and where bytes follow.
    fn of(der: &[u8]) -> Option<Self> {
        let whole = AnyRef::from_der(der).ok().filter(|whole| whole.tag() == Tag::Sequence)?;
        let mut members = SliceReader::new(whole.value()).ok()?;
        if AnyRef::decode(&mut members).ok()?.tag() == Tag::Sequence {
            return Some(Self::EncryptedPkcs8);
        }
        match Tag::peek(&members).ok()? {
            Tag::Sequence => Some(Self::Pkcs8),
            Tag::Integer => Some(Self::Pkcs1),
            Tag::OctetString => Some(Self::Sec1),
            _ => None,
        }
    }
}

fn from_der(der: &[u8], passphrase: impl Fn() -> Result<Secret, Error>) -> Result<PrivateKey, Refusal> {
    let key = match Structure::of(der) {
        Some(Structure::Pkcs8) => PrivateKey::from_pkcs8(der),
        Some(Structure::Pkcs1) => PrivateKey::from_pkcs1(der),
        Some(Structure::Sec1) => PrivateKey::from_sec1(der),
        Some(Structure::EncryptedPkcs8) => PrivateKey::from_pkcs8(&decrypt(der, passphrase)?),
        None => Err(Error::invalid("it is not a private key in PEM or DER")),
    };
    key.map_err(|error| Refusal { error, hint: SUPPORTED.to_owned() })
}

fn decrypt(
    der: &[u8],
    passphrase: impl Fn() -> Result<Secret, Error>,
) -> Result<Zeroizing<Vec<u8>>, Refusal> {
    let info = EncryptedPrivateKeyInfoRef::from_der(der).map_err(|_| {
        Refusal::new(Code::Unsupported, "it is not a key, or encrypted in an unsupported way", REENCRYPT)
    })?;
    check_cost(&info.encryption_algorithm)?;
    let passphrase = passphrase().map_err(|error| match error.code {
        Code::NotFound => Refusal::new(
            Code::Credentials,
            "the key is encrypted and the store has no passphrase",
            GIVE_PASSPHRASE,
        ),
        _ => Refusal { error, hint: GIVE_PASSPHRASE.to_owned() },
    })?;
    let mut data = Zeroizing::new(info.encrypted_data.as_bytes().to_vec());
    let len = match info.encryption_algorithm.decrypt_in_place(passphrase.expose(), &mut data) {
        Ok(plain) => plain.len(),
        Err(pkcs8::pkcs5::Error::DecryptFailed) => return Err(wrong_passphrase()),
        Err(error) => return Err(Refusal::new(Code::Unsupported, error.to_string(), REENCRYPT)),
    };
    data.truncate(len);
    // One wrong passphrase in 256 goes unnoticed by the padding.
    if Structure::of(&data) == Some(Structure::Pkcs8) { Ok(data) } else { Err(wrong_passphrase()) }
}

fn wrong_passphrase() -> Refusal {
    Refusal::new(Code::Credentials, "the passphrase of the store doesn't decrypt the key", GIVE_PASSPHRASE)
}

/// Refuses a key derivation that would take too long.
fn check_cost(scheme: &EncryptionScheme) -> Result<(), Refusal> {
    let affordable = match scheme.pbes2().map(|parameters| &parameters.kdf) {
        Some(Kdf::Pbkdf2(parameters)) => parameters.iteration_count <= PBKDF2_ROUNDS_MAX,
        Some(Kdf::Scrypt(parameters)) => {
            let (n, r, p) = (parameters.cost_parameter, parameters.block_size, parameters.parallelization);
            n.saturating_mul(u64::from(r)).saturating_mul(u64::from(p)) <= SCRYPT_BLOCKS_MAX
        }
        _ => return Err(Refusal::new(Code::Unsupported, "it is encrypted in an unsupported way", REENCRYPT)),
    };
    if affordable {
        return Ok(());
    }
    let limits =
        format!("at most {PBKDF2_ROUNDS_MAX} rounds of PBKDF2 or {SCRYPT_BLOCKS_MAX} blocks of scrypt");
    Err(Refusal::new(Code::Denied, format!("decrypting the key would take too long: {limits}"), REENCRYPT))
}

/// The DER of the first private key. Certificates and `EC PARAMETERS` before it are skipped.
fn from_pem(file: &[u8]) -> Result<Zeroizing<Vec<u8>>, Refusal> {
    let block = Blocks { rest: file }.find(|block| block.label.ends_with(b"PRIVATE KEY"));
    let block = block.ok_or_else(|| {
        let message = "the PEM file has no whole private key";
        Refusal::new(
            Code::InvalidInput,
            message,
            "a key stands between `-----BEGIN …PRIVATE KEY-----` and its end",
        )
    })?;
    match block.label {
        b"OPENSSH PRIVATE KEY" => Err(Refusal::new(
            Code::Unsupported,
            "the key is in OpenSSH's own format",
            "convert a copy of it: `ssh-keygen -p -m PKCS8 -f COPY`",
        )),
        b"DSA PRIVATE KEY" => Err(Refusal::new(Code::Unsupported, "DSA keys are not supported", SUPPORTED)),
        _ => block.der(),
    }
}

/// The blocks of a PEM file, read as leniently as Go reads them: any text around, any width of lines.
struct Blocks<'a> {
    rest: &'a [u8],
}

struct Block<'a> {
    label: &'a [u8],
    /// Between the two lines with the label.
    body: &'a [u8],
}

impl<'a> Iterator for Blocks<'a> {
    type Item = Block<'a>;

    fn next(&mut self) -> Option<Block<'a>> {
        let (_, begun) = split(self.rest, b"-----BEGIN ")?;
        let (label, inner) = split(begun, b"-----")?;
        let (body, rest) = split(inner, &[b"-----END ", label, b"-----"].concat())?;
        self.rest = rest;
        Some(Block { label, body })
    }
}

impl Block<'_> {
    fn der(&self) -> Result<Zeroizing<Vec<u8>>, Refusal> {
        if find(self.body, b"Proc-Type:").is_some() && find(self.body, b"ENCRYPTED").is_some() {
            return Err(Refusal::new(
                Code::Unsupported,
                "the key is encrypted in the legacy way of PEM (`Proc-Type: 4,ENCRYPTED`)",
                REENCRYPT,
            ));
        }
        let mut text = Zeroizing::new(Vec::with_capacity(self.body.len()));
        text.extend(self.body.iter().filter(|byte| !byte.is_ascii_whitespace()));
        let mut der = Zeroizing::new(vec![0; text.len()]);
        let len = Base64::decode(text.as_slice(), &mut der).map(<[u8]>::len).map_err(|_| {
            let hint = "copy it anew, it may have been cut or changed by an editor";
            Refusal::new(Code::InvalidInput, "the PEM file has a private key that is not base64", hint)
        })?;
        der.truncate(len);
        Ok(der)
    }
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}

fn split<'a>(bytes: &'a [u8], at: &[u8]) -> Option<(&'a [u8], &'a [u8])> {
    let start = find(bytes, at)?;
    Some((bytes.get(..start)?, bytes.get(start + at.len()..)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const P256: &[u8] = include_bytes!("../tests/fixtures/p-256.pem");
    const ENCRYPTED: &[u8] = include_bytes!("../tests/fixtures/encrypted-scrypt.pem");

    fn read(file: &[u8]) -> Result<PrivateKey, Refusal> {
        private_key(file, || Err(Error::new(Code::NotFound, "none")))
    }

    /// Damages reach AWS-LC's parsers too; what can't be a key of the same length is refused, and nothing crashes.
    #[test]
    fn survives_keys_that_are_cut_or_damaged() {
        let der = from_pem(P256).unwrap();
        let encrypted = from_pem(ENCRYPTED).unwrap();
        for whole in [P256, ENCRYPTED, &der, &encrypted] {
            for end in 0..whole.len() - 1 {
                assert!(read(&whole[..end]).is_err(), "{end} bytes of {}", whole.len());
            }
            for at in 0..whole.len() {
                let mut damaged = whole.to_vec();
                damaged[at] ^= 1 << (at % 8);
                let _ = read(&damaged);
            }
        }
    }

    #[test]
    fn tells_structures_apart() {
        let of = |pem| Structure::of(&from_pem(pem).unwrap());
        assert_eq!(of(P256), Some(Structure::Pkcs8));
        assert_eq!(of(ENCRYPTED), Some(Structure::EncryptedPkcs8));
        assert_eq!(Structure::of(&[0x30, 0x06, 2, 1, 0, 2, 1, 5]), Some(Structure::Pkcs1));
        assert_eq!(Structure::of(&[0x30, 0x05, 2, 1, 1, 4, 0]), Some(Structure::Sec1));
        assert_eq!(Structure::of(&[0x30, 0x05, 2, 1, 1, 4, 0, 0]), None);
        assert_eq!(Structure::of(&[0x31, 0x05, 2, 1, 1, 4, 0]), None);
    }
}
