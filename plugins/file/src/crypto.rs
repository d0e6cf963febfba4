//! Private keys on AWS-LC: the only unsafe code of this plugin.
//!
//! The safe interface, aws-lc-rs, signs messages, not digests, and has neither the raw RSA operation nor PKCS#1
//! signatures over MD5‖SHA-1, SHA-1 and SHA-224, nor P-224. All of that is in the library below it, which is called
//! here for every operation alike.
//!
//! # Threads
//!
//! A key may be used by many threads at once. AWS-LC says so where it declares the functions used: `openssl/rsa.h`
//! under "Signing / Verification" and "Encryption / Decryption" ("considered non-mutating for thread-safety purposes
//! and may be used concurrently"), `openssl/ec_key.h` and `openssl/evp.h` of every function that takes a `const`
//! pointer, as `ECDSA_sign` does.
//!
//! # Side channels and memory
//!
//! RSA is blinded, constant in time and checked against faults before a result leaves (`rsa_private_transform` in
//! AWS-LC's `rsa_impl.c`). AWS-LC zeroes all memory that it frees (`OPENSSL_free` in `openssl/mem.h`).

use std::{
    ffi::{CStr, c_int, c_uint},
    fmt,
    ptr::{NonNull, null, null_mut},
};

use aws_lc_sys as sys;
use keystead_plugin_api::{Algorithm, Code, Error, Output, algorithm::Family};
use zeroize::Zeroizing;

/// The sizes of RSA keys that are served, in bits. Less is broken or soon will be; more takes longer than an edge waits.
const RSA_BITS: std::ops::RangeInclusive<u32> = 2048..=8192;

/// The curves that are served, by AWS-LC's numbers.
const CURVES: [c_int; 4] =
    [sys::NID_secp224r1, sys::NID_X9_62_prime256v1, sys::NID_secp384r1, sys::NID_secp521r1];

/// Room for an ECDSA signature: DER of two integers of 66 bytes (P-521), each with a leading zero.
const ECDSA_MAX: usize = 3 + 2 * (2 + 67);

/// A private key, checked for consistency.
pub(crate) struct PrivateKey {
    handle: Handle,
    kind: Kind,
    spki: Vec<u8>,
}

enum Kind {
    /// The modulus, big-endian without leading zeros.
    Rsa(Vec<u8>),
    Ec,
    /// Seed and public key, as `ED25519_sign` wants them.
    Ed25519(Zeroizing<[u8; 64]>),
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKey(…)")
    }
}

impl PrivateKey {
    /// Reads a PKCS#8 `PrivateKeyInfo` or `OneAsymmetricKey` (RFC 5958 section 2).
    pub(crate) fn from_pkcs8(der: &[u8]) -> Result<Self, Error> {
        let pointer = consume(der, |cbs| {
            // SAFETY: `cbs` is initialised and what it spans lives through the call.
            unsafe { sys::EVP_parse_private_key(cbs) }
        })?;
        Self::check(Handle(pointer))
    }

    /// Reads a PKCS#1 `RSAPrivateKey` (RFC 8017 appendix A.1.2).
    pub(crate) fn from_pkcs1(der: &[u8]) -> Result<Self, Error> {
        let rsa = consume(der, |cbs| {
            // SAFETY: `cbs` is initialised and what it spans lives through the call.
            unsafe { sys::RSA_parse_private_key(cbs) }
        })?;
        let handle = Handle::new()?;
        // SAFETY: both are valid; the handle takes the key over where 1 is answered, and only then.
        if unsafe { sys::EVP_PKEY_assign_RSA(handle.as_ptr(), rsa.as_ptr()) } != 1 {
            // SAFETY: the key is still ours, and is not used again.
            unsafe { sys::RSA_free(rsa.as_ptr()) };
            return Err(failure(Code::Internal, "the key can't be kept"));
        }
        Self::check(handle)
    }

    /// Reads a SEC1 `ECPrivateKey` (RFC 5915 section 3) that names its curve.
    pub(crate) fn from_sec1(der: &[u8]) -> Result<Self, Error> {
        let ec = consume(der, |cbs| {
            // SAFETY: `cbs` is initialised and what it spans lives through the call; without a group the curve is
            // taken from the key.
            unsafe { sys::EC_KEY_parse_private_key(cbs, null()) }
        })?;
        let handle = Handle::new()?;
        // SAFETY: both are valid; the handle takes the key over where 1 is answered, and only then.
        if unsafe { sys::EVP_PKEY_assign_EC_KEY(handle.as_ptr(), ec.as_ptr()) } != 1 {
            // SAFETY: the key is still ours, and is not used again.
            unsafe { sys::EC_KEY_free(ec.as_ptr()) };
            return Err(failure(Code::Internal, "the key can't be kept"));
        }
        Self::check(handle)
    }

    /// DER SubjectPublicKeyInfo (RFC 5280 section 4.1), points uncompressed.
    pub(crate) fn spki(&self) -> &[u8] {
        &self.spki
    }

    /// What the key can do: all of its family. The smallest RSA key served has room for the largest PSS encoding,
    /// 2 × 64 + 2 bytes (RFC 8017 section 9.1.1).
    pub(crate) fn family(&self) -> Family {
        match self.kind {
            Kind::Rsa(_) => Family::Rsa,
            Kind::Ec => Family::Ecdsa,
            Kind::Ed25519(_) => Family::Ed25519,
        }
    }

    /// The length of the modulus in bytes; 0 for a key that isn't RSA.
    pub(crate) fn modulus_len(&self) -> usize {
        match &self.kind {
            Kind::Rsa(modulus) => modulus.len(),
            Kind::Ec | Kind::Ed25519(_) => 0,
        }
    }

    /// Signs, or decrypts with [`Algorithm::RsaRaw`]. The length of a digest has been checked.
    pub(crate) fn perform(
        &self,
        algorithm: Algorithm,
        input: &[u8],
        out: &mut Output<'_>,
    ) -> Result<(), Error> {
        match (&self.kind, Scheme::of(algorithm)) {
            (Kind::Rsa(_), Some(Scheme::Pkcs1(hash))) => self.pkcs1(hash, input, out),
            (Kind::Rsa(_), Some(Scheme::Pss(hash))) => self.pss(hash, input, out),
            (Kind::Rsa(modulus), Some(Scheme::Raw)) => self.raw(&left_padded(input, modulus)?, modulus, out),
            (Kind::Ec, Some(Scheme::Ecdsa)) => self.ecdsa(input, out),
            (Kind::Ed25519(key), Some(Scheme::Ed25519)) => ed25519(key, input, out),
            _ => Err(Error::unsupported(algorithm)),
        }
    }

    fn check(handle: Handle) -> Result<Self, Error> {
        // SAFETY: the handle is valid.
        let kind = match unsafe { sys::EVP_PKEY_id(handle.as_ptr()) } {
            sys::EVP_PKEY_RSA => check_rsa(&handle)?,
            sys::EVP_PKEY_EC => check_ec(&handle)?,
            sys::EVP_PKEY_ED25519 => Kind::Ed25519(expand(&handle)?),
            _ => {
                return Err(Error::new(
                    Code::Unsupported,
                    "the type of the key is not supported, RSA, EC and Ed25519 are",
                ));
            }
        };
        Ok(Self { spki: public(&handle)?, handle, kind })
    }

    fn pkcs1(&self, hash: c_int, digest: &[u8], out: &mut Output<'_>) -> Result<(), Error> {
        let out = out.reserve(self.modulus_len())?;
        let mut len: c_uint = 0;
        // SAFETY: digest and buffer live through the call, and the buffer is as long as the modulus.
        let done = unsafe {
            let rsa = self.handle.rsa();
            sys::RSA_sign(hash, digest.as_ptr(), digest.len(), out.as_mut_ptr(), &raw mut len, rsa)
        };
        complete(done, len as usize == out.len())
    }

    fn pss(&self, hash: Hash, digest: &[u8], out: &mut Output<'_>) -> Result<(), Error> {
        let out = out.reserve(self.modulus_len())?;
        let mut len = 0;
        // SAFETY: digest and buffer live through the call, the buffer has the length stated, and `hash` answers a
        // static description.
        let done = unsafe {
            sys::RSA_sign_pss_mgf1(
                self.handle.rsa(),
                &raw mut len,
                out.as_mut_ptr(),
                out.len(),
                digest.as_ptr(),
                digest.len(),
                hash(),
                null(),
                sys::RSA_PSS_SALTLEN_DIGEST,
            )
        };
        complete(done, len == out.len())
    }

    fn raw(&self, block: &[u8], modulus: &[u8], out: &mut Output<'_>) -> Result<(), Error> {
        if is_its_own_power(block, modulus) {
            return out.write(block);
        }
        let out = out.reserve(self.modulus_len())?;
        let mut len = 0;
        // SAFETY: block and buffer live through the call and have the lengths stated.
        let done = unsafe {
            sys::RSA_decrypt(
                self.handle.rsa(),
                &raw mut len,
                out.as_mut_ptr(),
                out.len(),
                block.as_ptr(),
                block.len(),
                sys::RSA_NO_PADDING,
            )
        };
        complete(done, len == out.len())
    }

    fn ecdsa(&self, digest: &[u8], out: &mut Output<'_>) -> Result<(), Error> {
        let mut signature = [0; ECDSA_MAX];
        let mut len: c_uint = 0;
        // SAFETY: digest and buffer live through the call, and the buffer has room for the largest curve served.
        let done = unsafe {
            let ec = sys::EVP_PKEY_get0_EC_KEY(self.handle.as_ptr());
            sys::ECDSA_sign(0, digest.as_ptr(), digest.len(), signature.as_mut_ptr(), &raw mut len, ec)
        };
        let signature = signature.get(..len as usize).unwrap_or_default();
        complete(done, !signature.is_empty())?;
        out.write(signature)
    }
}

/// An integer as a block as long as the modulus, which it must be smaller than. Neither is secret.
fn left_padded(integer: &[u8], modulus: &[u8]) -> Result<Vec<u8>, Error> {
    let zeros = integer.iter().take_while(|byte| **byte == 0).count();
    let significant = integer.get(zeros..).unwrap_or_default();
    let mut block = vec![0; modulus.len().saturating_sub(significant.len())];
    block.extend_from_slice(significant);
    if block.len() > modulus.len() || block.as_slice() >= modulus {
        return Err(Error::invalid("the block is not smaller than the modulus"));
    }
    Ok(block)
}

/// Whether a block is 0, 1 or the modulus less one, which every key leaves as they are. AWS-LC refuses them, as
/// NIST SP 800-56B section 7.1.2 has it; the reference doesn't.
fn is_its_own_power(block: &[u8], modulus: &[u8]) -> bool {
    let (Some((last, high)), Some((last_of_modulus, high_of_modulus))) =
        (block.split_last(), modulus.split_last())
    else {
        return false;
    };
    (*last <= 1 && high.iter().all(|byte| *byte == 0))
        || (high == high_of_modulus && *last == *last_of_modulus ^ 1)
}

fn ed25519(key: &[u8; 64], message: &[u8], out: &mut Output<'_>) -> Result<(), Error> {
    let out = out.reserve(64)?;
    // SAFETY: the buffer has 64 bytes as the function demands, the key too; all live through the call.
    let done = unsafe { sys::ED25519_sign(out.as_mut_ptr(), message.as_ptr(), message.len(), key.as_ptr()) };
    complete(done, true)
}

/// A hash as AWS-LC describes it.
type Hash = unsafe extern "C" fn() -> *const sys::EVP_MD;

/// How an algorithm is done.
enum Scheme {
    /// With the number of the hash, which chooses the DigestInfo; none for MD5‖SHA-1.
    Pkcs1(c_int),
    Pss(Hash),
    Raw,
    Ecdsa,
    Ed25519,
}

impl Scheme {
    /// `None` for an algorithm that came into the registry later.
    fn of(algorithm: Algorithm) -> Option<Self> {
        Some(match algorithm {
            Algorithm::RsaPkcs1Md5Sha1 => Self::Pkcs1(sys::NID_md5_sha1),
            Algorithm::RsaPkcs1Sha1 => Self::Pkcs1(sys::NID_sha1),
            Algorithm::RsaPkcs1Sha224 => Self::Pkcs1(sys::NID_sha224),
            Algorithm::RsaPkcs1Sha256 => Self::Pkcs1(sys::NID_sha256),
            Algorithm::RsaPkcs1Sha384 => Self::Pkcs1(sys::NID_sha384),
            Algorithm::RsaPkcs1Sha512 => Self::Pkcs1(sys::NID_sha512),
            Algorithm::RsaPssSha256 => Self::Pss(sys::EVP_sha256),
            Algorithm::RsaPssSha384 => Self::Pss(sys::EVP_sha384),
            Algorithm::RsaPssSha512 => Self::Pss(sys::EVP_sha512),
            Algorithm::RsaRaw => Self::Raw,
            Algorithm::Ed25519 => Self::Ed25519,
            other if other.family() == Family::Ecdsa => Self::Ecdsa,
            _ => return None,
        })
    }
}

/// An owned `EVP_PKEY`.
struct Handle(NonNull<sys::EVP_PKEY>);

// SAFETY: AWS-LC's objects belong to no thread, and the functions called on a shared one don't change it (see above).
unsafe impl Send for Handle {}
// SAFETY: as above.
unsafe impl Sync for Handle {}

impl Handle {
    fn new() -> Result<Self, Error> {
        // SAFETY: takes nothing; NULL where there is no memory.
        let pointer = unsafe { sys::EVP_PKEY_new() };
        NonNull::new(pointer).map(Self).ok_or_else(|| failure(Code::Internal, "no memory for a key"))
    }

    fn as_ptr(&self) -> *mut sys::EVP_PKEY {
        self.0.as_ptr()
    }

    /// NULL where the key isn't RSA.
    fn rsa(&self) -> *mut sys::RSA {
        // SAFETY: the handle is valid; what is answered belongs to it.
        unsafe { sys::EVP_PKEY_get0_RSA(self.as_ptr()) }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: the handle is valid and not used again.
        unsafe { sys::EVP_PKEY_free(self.as_ptr()) }
    }
}

/// Parses DER; that nothing follows it has been checked.
fn consume<T>(der: &[u8], parse: impl FnOnce(*mut sys::CBS) -> *mut T) -> Result<NonNull<T>, Error> {
    let mut cbs = sys::CBS { data: der.as_ptr(), len: der.len() };
    let parsed = NonNull::new(parse(&raw mut cbs));
    parsed.ok_or_else(|| failure(Code::InvalidInput, "the key can't be read"))
}

fn check_rsa(handle: &Handle) -> Result<Kind, Error> {
    // SAFETY: the handle is valid and holds an RSA key.
    let bits = unsafe { sys::RSA_bits(handle.rsa()) };
    if !RSA_BITS.contains(&bits) {
        let (least, most) = (RSA_BITS.start(), RSA_BITS.end());
        return Err(Error::new(
            Code::Unsupported,
            format!("RSA keys of {bits} bits are not supported, {least} to {most} are"),
        ));
    }
    // SAFETY: as above.
    if unsafe { sys::RSA_check_key(handle.rsa()) } != 1 {
        return Err(failure(Code::InvalidInput, "the parts of the key don't fit together"));
    }
    let mut modulus = vec![0; bits.div_ceil(8) as usize];
    // SAFETY: as above; the buffer has as many bytes as the modulus.
    unsafe { sys::BN_bn2bin(sys::RSA_get0_n(handle.rsa()), modulus.as_mut_ptr()) };
    Ok(Kind::Rsa(modulus))
}

fn check_ec(handle: &Handle) -> Result<Kind, Error> {
    // SAFETY: the handle is valid and holds an EC key, which nobody else uses yet.
    let (curve, consistent) = unsafe {
        let ec = sys::EVP_PKEY_get0_EC_KEY(handle.as_ptr());
        sys::EC_KEY_set_conv_form(ec, sys::point_conversion_form_t::POINT_CONVERSION_UNCOMPRESSED);
        (sys::EC_GROUP_get_curve_name(sys::EC_KEY_get0_group(ec)), sys::EC_KEY_check_key(ec))
    };
    if !CURVES.contains(&curve) {
        return Err(Error::new(
            Code::Unsupported,
            "the curve of the key is not supported, P-224, P-256, P-384 and P-521 are",
        ));
    }
    match consistent {
        1 => Ok(Kind::Ec),
        _ => Err(failure(Code::InvalidInput, "the public key doesn't belong to the private key")),
    }
}

fn expand(handle: &Handle) -> Result<Zeroizing<[u8; 64]>, Error> {
    let mut seed = Zeroizing::new([0; 32]);
    let mut len = seed.len();
    // SAFETY: the handle is valid, and the seed has the length stated.
    if unsafe { sys::EVP_PKEY_get_raw_private_key(handle.as_ptr(), seed.as_mut_ptr(), &raw mut len) } != 1 {
        return Err(failure(Code::InvalidInput, "the key has no seed"));
    }
    let (mut public, mut private) = ([0; 32], Zeroizing::new([0; 64]));
    // SAFETY: the lengths are 32, 64 and 32 bytes, as the function demands.
    unsafe { sys::ED25519_keypair_from_seed(public.as_mut_ptr(), private.as_mut_ptr(), seed.as_ptr()) };
    Ok(private)
}

fn public(handle: &Handle) -> Result<Vec<u8>, Error> {
    // SAFETY: the handle is valid; without a place for the bytes only their number is answered.
    let len = unsafe { sys::i2d_PUBKEY(handle.as_ptr(), null_mut()) };
    let mut spki = vec![0; usize::try_from(len).unwrap_or(0)];
    let mut end = spki.as_mut_ptr();
    // SAFETY: the handle is valid, and `end` points to as many bytes as the call before answered.
    let written = unsafe { sys::i2d_PUBKEY(handle.as_ptr(), &raw mut end) };
    if len <= 0 || written != len {
        return Err(failure(Code::Internal, "the public key can't be written"));
    }
    Ok(spki)
}

fn complete(done: c_int, whole: bool) -> Result<(), Error> {
    if done == 1 && whole { Ok(()) } else { Err(failure(Code::Internal, "the operation failed")) }
}

/// An error with AWS-LC's reason for the failure just now.
fn failure(code: Code, what: &str) -> Error {
    // SAFETY: the queue belongs to this thread; the text is static or NULL.
    let reason = unsafe {
        let text = sys::ERR_reason_error_string(sys::ERR_peek_last_error());
        sys::ERR_clear_error();
        (!text.is_null()).then(|| CStr::from_ptr(text))
    };
    match reason.map(CStr::to_string_lossy) {
        Some(reason) => Error::new(code, format!("{what} ({reason})")),
        None => Error::new(code, what),
    }
}
