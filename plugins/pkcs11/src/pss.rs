//! EMSA-PSS (RFC 8017 section 9.1.1) by AWS-LC, for tokens that know raw RSA only.

use std::ptr::{self, NonNull};

use aws_lc_sys as sys;
use keystead_plugin_api::{Code, Error};

/// Encodes a digest for a modulus, with a salt as long as the digest; MGF1 by the same hash, which the digest's length
/// tells.
///
/// # Errors
///
/// [`Code::Internal`] where the modulus has no room for it.
pub(crate) fn encode(modulus: &[u8], digest: &[u8]) -> Result<Vec<u8>, Error> {
    let failed = || Error::new(Code::Internal, "the digest can't be encoded for this key (EMSA-PSS)");
    let hash = hash(digest.len()).ok_or_else(failed)?;
    let key = PublicKey::new(modulus).ok_or_else(failed)?;
    let mut block = vec![0; modulus.len()];
    // SAFETY: the key is valid; AWS-LC writes as many bytes as the modulus has, and reads a digest as long as the hash
    // makes them (`openssl/rsa.h`), which is how the hash was chosen.
    let done = unsafe {
        let salt = -1; // as long as the digest
        sys::RSA_padding_add_PKCS1_PSS_mgf1(
            key.0.as_ptr(),
            block.as_mut_ptr(),
            digest.as_ptr(),
            hash,
            hash,
            salt,
        )
    };
    if done == 1 { Ok(block) } else { Err(failed()) }
}

fn hash(len: usize) -> Option<*const sys::EVP_MD> {
    // SAFETY: these take nothing, and answer pointers to what lives for ever.
    unsafe {
        match len {
            32 => Some(sys::EVP_sha256()),
            48 => Some(sys::EVP_sha384()),
            64 => Some(sys::EVP_sha512()),
            _ => None,
        }
    }
}

/// The public half of an RSA key, as far as padding needs it.
struct PublicKey(NonNull<sys::RSA>);

impl PublicKey {
    fn new(modulus: &[u8]) -> Option<Self> {
        let exponent = [1, 0, 1]; // padding doesn't look at it, but a key must have one
        let (n, e) = (Number::new(modulus)?, Number::new(&exponent)?);
        // SAFETY: both numbers are valid; the key copies them.
        let key = unsafe { sys::RSA_new_public_key(n.0.as_ptr(), e.0.as_ptr()) };
        NonNull::new(key).map(Self)
    }
}

impl Drop for PublicKey {
    fn drop(&mut self) {
        // SAFETY: the key is valid, and isn't used again.
        unsafe { sys::RSA_free(self.0.as_ptr()) }
    }
}

struct Number(NonNull<sys::BIGNUM>);

impl Number {
    fn new(bytes: &[u8]) -> Option<Self> {
        // SAFETY: the bytes live through the call; without a place for the result, a new one is made.
        NonNull::new(unsafe { sys::BN_bin2bn(bytes.as_ptr(), bytes.len(), ptr::null_mut()) }).map(Self)
    }
}

impl Drop for Number {
    fn drop(&mut self) {
        // SAFETY: the number is valid, and isn't used again.
        unsafe { sys::BN_free(self.0.as_ptr()) }
    }
}

#[cfg(test)]
mod tests {
    use keystead_plugin_api::{Algorithm, conformance};
    use openssl::rsa::{Padding, Rsa};

    use super::*;

    #[test]
    fn what_is_encoded_here_and_signed_raw_is_a_signature() {
        let key = Rsa::generate(2048).unwrap();
        let spki = key.public_key_to_der().unwrap();
        for (algorithm, len) in
            [(Algorithm::RsaPssSha256, 32), (Algorithm::RsaPssSha384, 48), (Algorithm::RsaPssSha512, 64)]
        {
            let digest = vec![0x5a; len];
            let block = encode(&key.n().to_vec(), &digest).unwrap();
            let mut signature = vec![0; 256];
            key.private_encrypt(&block, &mut signature, Padding::NONE).unwrap();
            conformance::verify(&spki, algorithm, &digest, &signature).unwrap();
        }
    }

    #[test]
    fn two_encodings_differ_by_their_salt() {
        let modulus = Rsa::generate(2048).unwrap().n().to_vec();
        assert_ne!(encode(&modulus, &[7; 32]).unwrap(), encode(&modulus, &[7; 32]).unwrap());
    }

    #[test]
    fn a_digest_for_which_there_is_no_room_is_refused() {
        let modulus = Rsa::generate(1024).unwrap().n().to_vec();
        assert_eq!(encode(&modulus, &[7; 64]).unwrap_err().code, Code::Internal);
        assert_eq!(encode(&modulus, &[7; 20]).unwrap_err().code, Code::Internal);
    }
}
