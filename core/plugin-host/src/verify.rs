//! Does a key do what it says? Verification with the public half, by AWS-LC: for proofs of possession, and for
//! results before they leave.
//!
//! aws-lc-rs has no verification of some digests and curves that the wire protocol has (MD5‖SHA-1, SHA-224, P-224), so
//! this module calls AWS-LC itself.

use std::{
    ffi::c_int,
    ptr::{self, NonNull},
};

use aws_lc_sys as sys;
use keystead_plugin_api::{
    Algorithm, Input,
    algorithm::{Family, Operation},
};

/// Separates what a proof signs from everything that is signed in earnest: TLS 1.3 signs 64 spaces and a context, and
/// TLS 1.2 two random values, none of which starts like this.
const DOMAIN: &[u8] = b"keystead: proof of possession\0";

/// A public key that AWS-LC has parsed.
pub struct PublicKey {
    key: NonNull<sys::EVP_PKEY>,
    family: Family,
}

// SAFETY: AWS-LC lets many threads use an EVP_PKEY at once as long as none changes it (evp.h), and none does.
unsafe impl Send for PublicKey {}
// SAFETY: as above.
unsafe impl Sync for PublicKey {}

impl PublicKey {
    /// Parses a DER SubjectPublicKeyInfo (RFC 5280 section 4.1); `None` where it isn't one of an RSA, EC or Ed25519 key.
    #[must_use]
    pub fn parse(spki: &[u8]) -> Option<Self> {
        let mut input = sys::CBS { data: ptr::null(), len: 0 };
        // SAFETY: `input` and `spki` live through both calls; the result is an owned key or NULL.
        let (key, rest) = unsafe {
            sys::CBS_init(&raw mut input, spki.as_ptr(), spki.len());
            (NonNull::new(sys::EVP_parse_public_key(&raw mut input))?, input.len)
        };
        // SAFETY: `key` is valid and owned.
        let family = match unsafe { sys::EVP_PKEY_id(key.as_ptr()) } {
            sys::EVP_PKEY_RSA => Some(Family::Rsa),
            sys::EVP_PKEY_EC => Some(Family::Ecdsa),
            sys::EVP_PKEY_ED25519 => Some(Family::Ed25519),
            _ => None,
        };
        // From here on dropping frees the key.
        let parsed = Self { key, family: family.unwrap_or(Family::Rsa) };
        (family.is_some() && rest == 0).then_some(parsed)
    }

    /// Its type.
    #[must_use]
    pub fn family(&self) -> Family {
        self.family
    }

    /// Bits of the modulus, or of the curve's field.
    #[must_use]
    pub fn bits(&self) -> u32 {
        // SAFETY: the key is valid.
        u32::try_from(unsafe { sys::EVP_PKEY_bits(self.key.as_ptr()) }).unwrap_or(0)
    }

    /// How long results of this key can be, in bytes.
    pub(crate) fn result_max(&self) -> usize {
        // SAFETY: the key is valid. For EC this is the longest DER ECDSA-Sig-Value.
        usize::try_from(unsafe { sys::EVP_PKEY_size(self.key.as_ptr()) }).unwrap_or(0)
    }

    /// Whether a result is what the private half makes of an input by the algorithm: a signature over it, or the raw
    /// RSA operation on it.
    #[must_use]
    pub fn verifies(&self, algorithm: Algorithm, input: &[u8], result: &[u8]) -> bool {
        if algorithm.family() != self.family || !algorithm.takes(input) {
            return false;
        }
        match algorithm {
            Algorithm::Ed25519 => self.verifies_message(input, result),
            _ if algorithm.operation() == Operation::Decrypt => self.reverts(input, result),
            _ => self.verifies_digest(algorithm, input, result).is_some(),
        }
    }

    /// Whether the public operation leads from `result` back to `input`, which may lack zeros on the left.
    fn reverts(&self, input: &[u8], result: &[u8]) -> bool {
        let block = self.encrypt(result, sys::RSA_NO_PADDING).unwrap_or_default();
        block
            .len()
            .checked_sub(input.len())
            .and_then(|zeros| block.split_at_checked(zeros))
            .is_some_and(|(zeros, rest)| rest == input && zeros.iter().all(|byte| *byte == 0))
    }

    fn verifies_message(&self, message: &[u8], signature: &[u8]) -> bool {
        // SAFETY: the context is freed on every way out; all pointers live through the calls.
        unsafe {
            let context = sys::EVP_MD_CTX_new();
            let good = !context.is_null()
                && sys::EVP_DigestVerifyInit(
                    context,
                    ptr::null_mut(),
                    ptr::null(),
                    ptr::null_mut(),
                    self.key.as_ptr(),
                ) == 1
                && sys::EVP_DigestVerify(
                    context,
                    signature.as_ptr(),
                    signature.len(),
                    message.as_ptr(),
                    message.len(),
                ) == 1;
            sys::EVP_MD_CTX_free(context);
            forget_errors();
            good
        }
    }

    fn verifies_digest(&self, algorithm: Algorithm, digest: &[u8], signature: &[u8]) -> Option<()> {
        let context = Context::new(self)?;
        let raw = context.0.as_ptr();
        // SAFETY: the context is valid and made for this key; digests and signature live through the call.
        unsafe {
            done(sys::EVP_PKEY_verify_init(raw))?;
            if self.family == Family::Rsa {
                set_rsa(raw, algorithm, digest.len())?;
            }
            done(sys::EVP_PKEY_verify(
                raw,
                signature.as_ptr(),
                signature.len(),
                digest.as_ptr(),
                digest.len(),
            ))
        }
    }

    /// The public RSA operation (RFC 8017 section 5.1.1), after one of AWS-LC's paddings.
    fn encrypt(&self, plain: &[u8], padding: c_int) -> Option<Vec<u8>> {
        let context = Context::new(self)?;
        let raw = context.0.as_ptr();
        let mut block = vec![0; self.result_max()];
        let mut len = block.len();
        // SAFETY: the context is valid and made for this key; `block` has `len` bytes.
        unsafe {
            done(sys::EVP_PKEY_encrypt_init(raw))?;
            done(sys::EVP_PKEY_CTX_set_rsa_padding(raw, padding))?;
            done(sys::EVP_PKEY_encrypt(raw, block.as_mut_ptr(), &raw mut len, plain.as_ptr(), plain.len()))?;
        }
        block.truncate(len);
        Some(block)
    }
}

impl Drop for PublicKey {
    fn drop(&mut self) {
        // SAFETY: the key is valid and owned, and not used after this.
        unsafe { sys::EVP_PKEY_free(self.key.as_ptr()) }
    }
}

struct Context(NonNull<sys::EVP_PKEY_CTX>);

impl Context {
    fn new(key: &PublicKey) -> Option<Self> {
        // SAFETY: the key is valid; the context takes a reference of its own.
        NonNull::new(unsafe { sys::EVP_PKEY_CTX_new(key.key.as_ptr(), ptr::null_mut()) }).map(Self)
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: the context is valid and owned, and not used after this.
        unsafe { sys::EVP_PKEY_CTX_free(self.0.as_ptr()) }
        forget_errors();
    }
}

/// # Safety
///
/// `raw` is a valid context for an RSA key, initialised for verification.
unsafe fn set_rsa(raw: *mut sys::EVP_PKEY_CTX, algorithm: Algorithm, digest: usize) -> Option<()> {
    let pss =
        matches!(algorithm, Algorithm::RsaPssSha256 | Algorithm::RsaPssSha384 | Algorithm::RsaPssSha512);
    // SAFETY: the caller promises the context; digests are static.
    unsafe {
        let md = match digest {
            20 => sys::EVP_sha1(),
            28 => sys::EVP_sha224(),
            32 => sys::EVP_sha256(),
            36 => sys::EVP_md5_sha1(),
            48 => sys::EVP_sha384(),
            _ => sys::EVP_sha512(),
        };
        if pss {
            done(sys::EVP_PKEY_CTX_set_rsa_padding(raw, sys::RSA_PKCS1_PSS_PADDING))?;
            done(sys::EVP_PKEY_CTX_set_signature_md(raw, md))?;
            done(sys::EVP_PKEY_CTX_set_rsa_mgf1_md(raw, md))?;
            done(sys::EVP_PKEY_CTX_set_rsa_pss_saltlen(raw, -1)) // as long as the hash
        } else {
            done(sys::EVP_PKEY_CTX_set_rsa_padding(raw, sys::RSA_PKCS1_PADDING))?;
            done(sys::EVP_PKEY_CTX_set_signature_md(raw, md))
        }
    }
}

fn done(result: c_int) -> Option<()> {
    (result == 1).then_some(())
}

/// AWS-LC keeps errors per thread; nobody here reads them, so that they must not pile up.
fn forget_errors() {
    // SAFETY: the call has no conditions.
    unsafe { sys::ERR_clear_error() }
}

/// A question that only the holder of the private key can answer, fresh and of a domain of its own.
pub(crate) struct Challenge {
    pub(crate) algorithm: Algorithm,
    pub(crate) input: Vec<u8>,
}

impl Challenge {
    /// A challenge for an algorithm; `None` where there is no randomness, or the key is too small for it.
    pub(crate) fn new(key: &PublicKey, algorithm: Algorithm) -> Option<Self> {
        let mut secret = [0; 32];
        aws_lc_rs::rand::fill(&mut secret).ok()?;
        let input = match algorithm.input() {
            Input::Digest(len) => digest(len, &secret),
            Input::Message => [DOMAIN, &secret].concat(),
            _ => key.encrypt(&secret, sys::RSA_PKCS1_PADDING)?,
        };
        Some(Self { algorithm, input })
    }

    /// Whether the answer is right.
    pub(crate) fn is_met(&self, key: &PublicKey, answer: &[u8]) -> bool {
        key.verifies(self.algorithm, &self.input, answer)
    }
}

/// As many bytes of SHA-512 as the algorithm's digest has: what is proven is the key, not the hash.
fn digest(len: usize, secret: &[u8]) -> Vec<u8> {
    let hash = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA512, &[DOMAIN, secret].concat());
    hash.as_ref().get(..len).unwrap_or_default().to_vec()
}

#[cfg(test)]
mod tests {
    use openssl::{
        ec::{EcGroup, EcKey},
        md::{Md, MdRef},
        nid::Nid,
        pkey::{PKey, Private},
        pkey_ctx::PkeyCtx,
        rsa::{Padding, Rsa},
        sign::{RsaPssSaltlen, Signer},
    };

    use super::*;

    fn rsa() -> PKey<Private> {
        PKey::from_rsa(Rsa::generate(2048).unwrap()).unwrap()
    }

    fn ec(curve: Nid) -> PKey<Private> {
        let group = EcGroup::from_curve_name(curve).unwrap();
        PKey::from_ec_key(EcKey::generate(&group).unwrap()).unwrap()
    }

    fn keys() -> Vec<PKey<Private>> {
        let curves = [Nid::SECP224R1, Nid::X9_62_PRIME256V1, Nid::SECP384R1, Nid::SECP521R1];
        curves.map(ec).into_iter().chain([rsa(), PKey::generate_ed25519().unwrap()]).collect()
    }

    fn public(key: &PKey<Private>) -> PublicKey {
        PublicKey::parse(&key.public_key_to_der().unwrap()).unwrap()
    }

    fn input_of(algorithm: Algorithm, fill: u8) -> Vec<u8> {
        match algorithm.input() {
            Input::Digest(len) => vec![fill; len],
            _ => vec![fill; 100],
        }
    }

    /// OpenSSL's answer.
    fn answer(key: &PKey<Private>, algorithm: Algorithm, input: &[u8]) -> Vec<u8> {
        match algorithm {
            Algorithm::Ed25519 => {
                Signer::new_without_digest(key).unwrap().sign_oneshot_to_vec(input).unwrap()
            }
            Algorithm::RsaRaw => decrypt(&key.rsa().unwrap(), input),
            _ => sign(key, algorithm, input),
        }
    }

    fn decrypt(key: &Rsa<Private>, input: &[u8]) -> Vec<u8> {
        let mut out = vec![0; key.size() as usize];
        let block = [vec![0; out.len() - input.len()], input.to_vec()].concat();
        key.private_decrypt(&block, &mut out, Padding::NONE).unwrap();
        out
    }

    fn sign(key: &PKey<Private>, algorithm: Algorithm, digest: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        let mut context = PkeyCtx::new(key).unwrap();
        context.sign_init().unwrap();
        if algorithm.name().starts_with("rsa-pss") {
            context.set_rsa_padding(Padding::PKCS1_PSS).unwrap();
            context.set_rsa_pss_saltlen(RsaPssSaltlen::DIGEST_LENGTH).unwrap();
        }
        if algorithm.family() == Family::Rsa {
            context.set_signature_md(hash(digest.len())).unwrap();
        }
        context.sign_to_vec(digest, &mut out).unwrap();
        out
    }

    fn hash(len: usize) -> &'static MdRef {
        match len {
            20 => Md::sha1(),
            28 => Md::sha224(),
            32 => Md::sha256(),
            36 => Md::from_nid(Nid::MD5_SHA1).unwrap(),
            48 => Md::sha384(),
            _ => Md::sha512(),
        }
    }

    #[test]
    fn what_openssl_makes_verifies_and_nothing_else_does() {
        for key in keys() {
            let public = public(&key);
            for algorithm in Algorithm::of(public.family()) {
                let input = input_of(algorithm, 7);
                let mut result = answer(&key, algorithm, &input);
                assert!(public.verifies(algorithm, &input, &result), "{algorithm}, {} bits", public.bits());
                assert!(!public.verifies(algorithm, &input[1..], &result), "{algorithm}");
                assert!(!public.verifies(algorithm, &input_of(algorithm, 8), &result), "{algorithm}");
                assert!(!public.verifies(algorithm, &input, &[]), "{algorithm}");
                *result.last_mut().unwrap() ^= 1;
                assert!(!public.verifies(algorithm, &input, &result), "{algorithm}");
            }
        }
    }

    #[test]
    fn a_challenge_is_fresh_and_met_by_the_private_half() {
        for key in keys() {
            let public = public(&key);
            for algorithm in Algorithm::of(public.family()) {
                let (one, other) = (
                    Challenge::new(&public, algorithm).unwrap(),
                    Challenge::new(&public, algorithm).unwrap(),
                );
                let answer = answer(&key, algorithm, &one.input);
                assert!(one.is_met(&public, &answer), "{algorithm}");
                assert!(!other.is_met(&public, &answer), "{algorithm}");
            }
        }
    }

    #[test]
    fn a_raw_block_may_be_shorter_than_the_modulus_and_no_longer() {
        let (key, input) = (rsa(), [9; 20]);
        let result = answer(&key, Algorithm::RsaRaw, &input);
        let padded = [&[0; 236][..], &input].concat();
        let public = public(&key);
        assert!(public.verifies(Algorithm::RsaRaw, &input, &result));
        assert!(public.verifies(Algorithm::RsaRaw, &padded, &result));
        assert!(!public.verifies(Algorithm::RsaRaw, &[&[0], &padded[..]].concat(), &result));
    }

    #[test]
    fn knows_type_and_size_of_a_key() {
        let keys: Vec<PublicKey> = keys().iter().map(public).collect();
        let told: Vec<(Family, u32)> = keys.iter().map(|key| (key.family(), key.bits())).collect();
        assert_eq!(told[..4], [224, 256, 384, 521].map(|bits| (Family::Ecdsa, bits)));
        assert_eq!(told[4], (Family::Rsa, 2048));
        assert_eq!(told[5].0, Family::Ed25519);
        assert_eq!((keys[4].result_max(), keys[5].result_max()), (256, 64));
    }

    #[test]
    fn refuses_what_is_no_public_key_of_a_known_type() {
        let der = rsa().public_key_to_der().unwrap();
        assert!(PublicKey::parse(&[&der[..], &[0]].concat()).is_none(), "a byte too many");
        assert!(PublicKey::parse(&der[..der.len() - 1]).is_none(), "a byte too few");
        assert!(PublicKey::parse(&[]).is_none());
        let x25519 = PKey::generate_x25519().unwrap();
        assert!(PublicKey::parse(&x25519.public_key_to_der().unwrap()).is_none());
    }
}
