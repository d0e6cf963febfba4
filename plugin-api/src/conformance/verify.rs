//! The independent judge: OpenSSL.

use openssl::{
    ecdsa::EcdsaSig,
    error::ErrorStack,
    md::{Md, MdRef},
    pkey::{Id, PKey, Public},
    pkey_ctx::PkeyCtx,
    rsa::Padding,
    sign::{RsaPssSaltlen, Verifier},
};

use crate::{Algorithm, Input, algorithm::Family};

/// Checks a result: a signature over `input`, or with [`Algorithm::RsaRaw`] that raising it to the public exponent
/// gives `input` again.
///
/// # Errors
///
/// A sentence that says what doesn't hold.
pub fn verify(spki: &[u8], algorithm: Algorithm, input: &[u8], result: &[u8]) -> Result<(), String> {
    let key = PKey::public_key_from_der(spki).map_err(|error| format!("the SPKI can't be read: {error}"))?;
    let valid = match algorithm.family() {
        Family::Rsa => rsa(&key, algorithm, input, result),
        Family::Ecdsa => ecdsa(&key, input, result),
        Family::Ed25519 => {
            Verifier::new_without_digest(&key).and_then(|mut verifier| verifier.verify_oneshot(result, input))
        }
    };
    match valid {
        Ok(true) => Ok(()),
        Ok(false) => Err(format!("the result of {algorithm} does not verify")),
        Err(error) => Err(format!("the result of {algorithm} can't be verified: {error}")),
    }
}

/// The family of a public key; `None` for a key that no algorithm of the registry fits.
pub(super) fn family(spki: &[u8]) -> Option<Family> {
    match PKey::public_key_from_der(spki).ok()?.id() {
        Id::RSA => Some(Family::Rsa),
        Id::EC => Some(Family::Ecdsa),
        Id::ED25519 => Some(Family::Ed25519),
        _ => None,
    }
}

/// The modulus of an RSA key; `None` for another key.
pub(super) fn modulus(spki: &[u8]) -> Option<Vec<u8>> {
    Some(PKey::public_key_from_der(spki).ok()?.rsa().ok()?.n().to_vec())
}

fn rsa(key: &PKey<Public>, algorithm: Algorithm, input: &[u8], result: &[u8]) -> Result<bool, ErrorStack> {
    if result.len() != key.size() {
        return Ok(false);
    }
    match algorithm {
        Algorithm::RsaRaw => {
            let mut block = vec![0; key.size() - input.len().min(key.size())];
            block.extend_from_slice(input);
            Ok(raw(key, result, Padding::NONE)? == block)
        }
        Algorithm::RsaPkcs1Md5Sha1 => {
            let mut recovered = vec![0; key.size()];
            let len = key.rsa()?.public_decrypt(result, &mut recovered, Padding::PKCS1)?;
            Ok(recovered.get(..len) == Some(input))
        }
        _ => padded(key, algorithm, input, result),
    }
}

fn raw(key: &PKey<Public>, block: &[u8], padding: Padding) -> Result<Vec<u8>, ErrorStack> {
    let mut out = vec![0; key.size()];
    key.rsa()?.public_encrypt(block, &mut out, padding)?;
    Ok(out)
}

fn padded(
    key: &PKey<Public>,
    algorithm: Algorithm,
    digest: &[u8],
    result: &[u8],
) -> Result<bool, ErrorStack> {
    let Some(hash) = hash(algorithm) else { return Ok(false) };
    let mut context = PkeyCtx::new(key)?;
    context.verify_init()?;
    if is_pss(algorithm) {
        context.set_rsa_padding(Padding::PKCS1_PSS)?;
        context.set_signature_md(hash)?;
        context.set_rsa_mgf1_md(hash)?;
        context.set_rsa_pss_saltlen(RsaPssSaltlen::DIGEST_LENGTH)?;
    } else {
        context.set_rsa_padding(Padding::PKCS1)?;
        context.set_signature_md(hash)?;
    }
    // A signature that doesn't fit is an error of OpenSSL's here, not `false`.
    context.verify(digest, result)
}

fn is_pss(algorithm: Algorithm) -> bool {
    matches!(algorithm, Algorithm::RsaPssSha256 | Algorithm::RsaPssSha384 | Algorithm::RsaPssSha512)
}

fn hash(algorithm: Algorithm) -> Option<&'static MdRef> {
    match algorithm.input() {
        Input::Digest(20) => Some(Md::sha1()),
        Input::Digest(28) => Some(Md::sha224()),
        Input::Digest(32) => Some(Md::sha256()),
        Input::Digest(48) => Some(Md::sha384()),
        Input::Digest(64) => Some(Md::sha512()),
        _ => None,
    }
}

fn ecdsa(key: &PKey<Public>, digest: &[u8], result: &[u8]) -> Result<bool, ErrorStack> {
    let signature = EcdsaSig::from_der(result)?;
    Ok(signature.to_der()? == result && signature.verify(digest, key.ec_key()?.as_ref())?)
}
