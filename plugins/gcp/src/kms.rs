//! The JSON of Cloud KMS, and what is checked of it: everything that comes back says whose it is and has a CRC32C.

use std::collections::BTreeMap;

use base64ct::{Base64, Encoding};
use crc::{CRC_32_ISCSI, Crc};
use keystead_plugin_api::{Code, Error, http::Response};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value, json};

use crate::{ability::Input, resource::Version};

/// The Castagnoli polynomial, as all of Cloud KMS has it.
static CRC32C: Crc<u32> = Crc::<u32>::new(&CRC_32_ISCSI);

const PEM_BEGIN: &str = "-----BEGIN PUBLIC KEY-----";
const PEM_END: &str = "-----END PUBLIC KEY-----";

/// An integer of 64 bits: text in the JSON of protobuf, though a number is right, too.
#[derive(Deserialize)]
#[serde(untagged)]
enum Int64 {
    Text(String),
    Number(u64),
}

impl Int64 {
    fn value(&self) -> Option<u64> {
        match self {
            Self::Text(text) => text.parse().ok(),
            Self::Number(number) => Some(*number),
        }
    }
}

/// The public half of a version.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PublicKey {
    #[serde(default)]
    pem: String,
    pem_crc32c: Option<Int64>,
    #[serde(default)]
    name: String,
    #[serde(default)]
    pub(crate) algorithm: String,
    #[serde(default)]
    pub(crate) protection_level: String,
}

impl PublicKey {
    /// As DER, if it is this version's, and arrived whole.
    pub(crate) fn spki(&self, version: &Version) -> Result<Vec<u8>, Error> {
        is_of(version, &self.name)?;
        is_whole("the public key", self.pem.as_bytes(), self.pem_crc32c.as_ref())?;
        let encoded: String = self.pem.trim().lines().collect();
        let encoded = encoded.strip_prefix(PEM_BEGIN).and_then(|rest| rest.strip_suffix(PEM_END));
        let der = encoded.and_then(|encoded| Base64::decode_vec(encoded).ok());
        der.ok_or_else(|| broken("no public key that can be read"))
    }
}

/// What is sent to have something signed. Its own CRC32C goes with it.
pub(crate) fn request(input: &Input<'_>) -> Value {
    match input {
        Input::Digest(hash, digest) => {
            let (digest, sum) = (json!({*hash: Base64::encode_string(digest)}), crc32c(digest));
            json!({"digest": digest, "digestCrc32c": sum.to_string()})
        }
        Input::Data(data) => {
            json!({"data": Base64::encode_string(data), "dataCrc32c": crc32c(data).to_string()})
        }
    }
}

/// A signature, as it is answered.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[derive(Default)]
pub(crate) struct Signature {
    signature: String,
    signature_crc32c: Option<Int64>,
    verified_digest_crc32c: bool,
    verified_data_crc32c: bool,
    name: String,
}

impl Signature {
    /// Its bytes, if they are of this version, over what was sent, and arrived whole.
    pub(crate) fn bytes(&self, version: &Version, input: &Input<'_>) -> Result<Vec<u8>, Error> {
        is_of(version, &self.name)?;
        let verified = match input {
            Input::Digest(..) => self.verified_digest_crc32c,
            Input::Data(_) => self.verified_data_crc32c,
        };
        if !verified {
            return Err(broken("that it did not check the CRC32C of what it signed, which was sent along"));
        }
        let signature = Base64::decode_vec(&self.signature).ok().filter(|bytes| !bytes.is_empty());
        let signature = signature.ok_or_else(|| broken("a signature that isn't Base64"))?;
        is_whole("the signature", &signature, self.signature_crc32c.as_ref())?;
        Ok(signature)
    }
}

/// A page of a ring's keys.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Keys {
    #[serde(default)]
    pub(crate) crypto_keys: Vec<Described>,
    #[serde(default)]
    pub(crate) next_page_token: String,
}

/// A key of a ring.
#[derive(Deserialize)]
pub(crate) struct Described {
    pub(crate) name: String,
    #[serde(default)]
    pub(crate) purpose: String,
    #[serde(default)]
    pub(crate) labels: BTreeMap<String, String>,
}

/// A page of a key's versions.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Versions {
    #[serde(default)]
    pub(crate) crypto_key_versions: Vec<DescribedVersion>,
    #[serde(default)]
    pub(crate) next_page_token: String,
}

/// A version of a key.
#[derive(Deserialize)]
pub(crate) struct DescribedVersion {
    pub(crate) name: String,
    #[serde(default)]
    pub(crate) state: String,
    #[serde(default)]
    pub(crate) algorithm: String,
}

/// Takes a successful answer apart.
pub(crate) fn read<T: DeserializeOwned>(doing: &str, response: &Response) -> Result<T, Error> {
    response.object().map_err(|error| about(doing, error))
}

/// An error with what was being done.
pub(crate) fn about(doing: &str, mut error: Error) -> Error {
    error.message = format!("{doing}: {}", error.message);
    error
}

fn is_of(version: &Version, name: &str) -> Result<(), Error> {
    match version.is_called(name) {
        true => Ok(()),
        false => Err(broken("for another version of a key than the one that was asked for")),
    }
}

fn is_whole(what: &str, bytes: &[u8], sum: Option<&Int64>) -> Result<(), Error> {
    match sum.and_then(Int64::value) {
        Some(sum) if sum == u64::from(crc32c(bytes)) => Ok(()),
        Some(_) => Err(broken(&format!("with a CRC32C that is not the one of {what}"))),
        None => Err(broken(&format!("without the CRC32C of {what}"))),
    }
}

fn crc32c(bytes: &[u8]) -> u32 {
    CRC32C.checksum(bytes)
}

/// An answer that isn't what the documentation has. It may be right the next time: a bit that flipped on the way.
pub(crate) fn broken(what: &str) -> Error {
    Error::new(Code::Unavailable, format!("the service answered {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::Selector;

    const NAME: &str = "projects/p/locations/l/keyRings/r/cryptoKeys/k/cryptoKeyVersions/1";
    /// RFC 8410 section 10.1.
    const PEM: &str = "-----BEGIN PUBLIC KEY-----\n\
                       MCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=\n\
                       -----END PUBLIC KEY-----\n";

    fn version() -> Version {
        match Selector::parse(NAME).unwrap() {
            Selector::Version(version) => version,
            other => panic!("{other}"),
        }
    }

    fn spki(change: impl FnOnce(&mut Value)) -> Result<Vec<u8>, Error> {
        let mut key = json!({
            "pem": PEM,
            "algorithm": "EC_SIGN_ED25519",
            "pemCrc32c": crc32c(PEM.as_bytes()).to_string(),
            "name": NAME,
            "protectionLevel": "HSM",
        });
        change(&mut key);
        serde_json::from_value::<PublicKey>(key).unwrap().spki(&version())
    }

    #[test]
    fn the_checksum_is_that_of_castagnoli() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn a_public_key_is_read_where_name_and_checksum_are_right() {
        assert_eq!(spki(|_| ()).unwrap().len(), 44);
        assert_eq!(spki(|key| key["pemCrc32c"] = crc32c(PEM.as_bytes()).into()).unwrap().len(), 44);
        let message = |change: fn(&mut Value)| {
            let error = spki(change).unwrap_err();
            assert_eq!(error.code, Code::Unavailable);
            error.message
        };
        assert!(message(|key| key["pemCrc32c"] = "1".into()).contains("with a CRC32C that is not"));
        assert!(message(|key| key["pemCrc32c"] = "-1".into()).contains("without the CRC32C"));
        assert!(message(|key| key["pemCrc32c"] = Value::Null).contains("without the CRC32C"));
        assert!(message(|key| key["name"] = NAME.replace("/1", "/2").into()).contains("another version"));
        assert!(message(|key| key["name"] = "".into()).contains("another version"));
        for odd in [
            "",
            "-----BEGIN PUBLIC KEY-----\n-----END",
            "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        ] {
            let odd = |key: &mut Value| {
                key["pem"] = odd.into();
                key["pemCrc32c"] = crc32c(odd.as_bytes()).to_string().into();
            };
            assert!(spki(odd).unwrap_err().message.contains("no public key that can be read"));
        }
    }

    #[test]
    fn a_request_has_its_input_in_base64_and_its_checksum_as_text() {
        let digest = request(&Input::Digest("sha256", vec![1; 32].into()));
        assert_eq!(digest["digest"]["sha256"], Base64::encode_string(&[1; 32]));
        assert_eq!(digest["digestCrc32c"], crc32c(&[1; 32]).to_string());
        let data = request(&Input::Data(b"123456789".into()));
        assert_eq!(data.to_string(), r#"{"data":"MTIzNDU2Nzg5","dataCrc32c":"3808858755"}"#);
    }

    #[test]
    fn a_signature_is_taken_where_name_flag_and_checksum_are_right() {
        let digest = Input::Digest("sha256", vec![1; 32].into());
        let bytes = |input: &Input<'_>, change: fn(&mut Value)| {
            let mut answer = json!({
                "signature": "MTIzNDU2Nzg5",
                "signatureCrc32c": "3808858755",
                "verifiedDigestCrc32c": true,
                "name": NAME,
                "protectionLevel": "HSM",
            });
            change(&mut answer);
            serde_json::from_value::<Signature>(answer).unwrap().bytes(&version(), input)
        };
        assert_eq!(bytes(&digest, |_| ()).unwrap(), b"123456789");
        let message = |change| bytes(&digest, change).unwrap_err().message;
        assert!(
            message(|answer| answer["signatureCrc32c"] = "3808858756".into())
                .contains("with a CRC32C that is not")
        );
        assert!(
            message(|answer| answer["signature"] = "MTIzNDU2Nzg4".into())
                .contains("with a CRC32C that is not")
        );
        assert!(message(|answer| answer["signatureCrc32c"] = Value::Null).contains("without the CRC32C"));
        assert!(
            message(|answer| answer["verifiedDigestCrc32c"] = false.into())
                .contains("did not check the CRC32C")
        );
        assert!(message(|answer| answer["name"] = "projects/p".into()).contains("another version"));
        assert!(message(|answer| answer["signature"] = "_-".into()).contains("isn't Base64"));
        assert!(message(|answer| answer["signature"] = "".into()).contains("isn't Base64"));
        let data = Input::Data(b"m".into());
        assert!(
            bytes(&data, |_| ()).unwrap_err().message.contains("did not check the CRC32C"),
            "of another input"
        );
    }
}
