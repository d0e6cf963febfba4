//! REST of Cloud KMS, as <https://cloud.google.com/kms/docs/reference/rest> has it.

use std::{collections::HashMap, sync::Mutex};

use base64ct::{Base64, Encoding};
use crc::{CRC_32_ISCSI, Crc};
use serde_json::{Map, Value, json};

use super::{
    Cloud, RING, error,
    keys::{Input, Key, Version},
    lock,
};
use crate::{Answer, Asked};

static CRC32C: Crc<u32> = Crc::<u32>::new(&CRC_32_ISCSI);

/// What Cloud KMS answers. The lock isn't held while a signature is made.
pub(super) fn answer(cloud: &Mutex<Cloud>, asked: &Asked) -> Answer {
    if let Err(refused) = lock(cloud).admit(asked) {
        return refused;
    }
    let path = decoded(&asked.path);
    let Some(name) = path.strip_prefix("/v1/") else {
        return error(404, "NOT_FOUND", "Method not found.");
    };
    match (asked.method.as_str(), name.rsplit_once([':', '/'])) {
        ("POST", Some((version, "asymmetricSign"))) => sign(cloud, version, asked),
        ("GET", Some((version, "publicKey"))) => lock(cloud).public_key(version),
        ("GET", Some((parent, "cryptoKeys"))) => lock(cloud).list_keys(parent, asked),
        ("GET", Some((parent, "cryptoKeyVersions"))) => lock(cloud).list_versions(parent, asked),
        ("GET", Some(_)) => lock(cloud).get(name),
        _ => error(404, "NOT_FOUND", "Method not found."),
    }
}

fn sign(cloud: &Mutex<Cloud>, name: &str, asked: &Asked) -> Answer {
    let found = lock(cloud).usable(name, "cloudkms.cryptoKeyVersions.useToSign");
    let version = match found {
        Ok(version) => version,
        Err(refused) => return refused,
    };
    let Ok(Value::Object(body)) = serde_json::from_slice(&asked.body) else {
        return invalid("Invalid JSON payload received.");
    };
    let (input, verified) = match input(&body) {
        Ok(input) => input,
        Err(refused) => return refused,
    };
    let field =
        if matches!(input, Input::Digest(..)) { "verifiedDigestCrc32c" } else { "verifiedDataCrc32c" };
    match version.sign(input) {
        Err(message) => invalid(&message),
        Ok(signature) => {
            lock(cloud).signatures += 1;
            let mut answer = json!({
                "signature": Base64::encode_string(&signature),
                "signatureCrc32c": crc32c(&signature).to_string(),
                "name": name,
                "protectionLevel": "HSM",
            });
            answer[field] = verified.into();
            Answer::json(200, &answer)
        }
    }
}

/// What is to be signed, and whether a checksum of it came along.
fn input(body: &Map<String, Value>) -> Result<(Input, bool), Answer> {
    let known = ["name", "digest", "digestCrc32c", "data", "dataCrc32c"];
    if let Some(unknown) = body.keys().find(|member| !known.contains(&member.as_str())) {
        return Err(invalid(&format!(
            "Invalid JSON payload received. Unknown name \"{unknown}\": Cannot find field."
        )));
    }
    match (body.get("digest"), body.get("data")) {
        (Some(digest), None) => {
            let digest = digest.as_object().filter(|digest| digest.len() == 1);
            let (hash, digest) =
                digest.and_then(|digest| digest.iter().next()).ok_or_else(|| invalid("Invalid digest."))?;
            let hash = ["sha256", "sha384", "sha512"].into_iter().find(|known| known == hash);
            let bytes = bytes(digest)?;
            let verified = verified("digest", &bytes, body.get("digestCrc32c"))?;
            Ok((Input::Digest(hash.ok_or_else(|| invalid("Invalid digest."))?, bytes), verified))
        }
        (None, Some(data)) => {
            let bytes = bytes(data)?;
            let verified = verified("data", &bytes, body.get("dataCrc32c"))?;
            Ok((Input::Data(bytes), verified))
        }
        _ => Err(invalid("Exactly one of digest and data must be specified.")),
    }
}

fn bytes(value: &Value) -> Result<Vec<u8>, Answer> {
    let bytes = value.as_str().and_then(|text| Base64::decode_vec(text).ok());
    bytes.ok_or_else(|| invalid("Base64 decoding failed."))
}

fn verified(field: &str, bytes: &[u8], sum: Option<&Value>) -> Result<bool, Answer> {
    let Some(sum) = sum else { return Ok(false) };
    let sum = sum.as_str().and_then(|text| text.parse().ok()).or_else(|| sum.as_u64());
    match sum == Some(u64::from(crc32c(bytes))) {
        true => Ok(true),
        false => Err(invalid(&format!(
            "The checksum in field {field}_crc32c did not match the data in field {field}."
        ))),
    }
}

impl Cloud {
    fn public_key(&self, name: &str) -> Answer {
        match self.usable(name, "cloudkms.cryptoKeyVersions.viewPublicKey") {
            Err(refused) => refused,
            Ok(version) => {
                let pem = version.pem();
                Answer::json(
                    200,
                    &json!({"pem": pem, "algorithm": version.algorithm, "name": name, "protectionLevel": "HSM",
                    "pemCrc32c": crc32c(pem.as_bytes()).to_string()}),
                )
            }
        }
    }

    fn list_keys(&self, ring: &str, asked: &Asked) -> Answer {
        if let Err(refused) = self.permit("cloudkms.cryptoKeys.list", ring) {
            return refused;
        }
        if ring != RING {
            return error(404, "NOT_FOUND", &format!("KeyRing {ring} not found."));
        }
        let keys = self.keys.0.iter().map(|(name, key)| described(name, key)).collect();
        self.paged("cryptoKeys", keys, asked)
    }

    fn list_versions(&self, name: &str, asked: &Asked) -> Answer {
        if let Err(refused) = self.permit("cloudkms.cryptoKeyVersions.list", name) {
            return refused;
        }
        let Some((key, found)) = self.key(name) else {
            return error(404, "NOT_FOUND", &format!("CryptoKey {name} not found."));
        };
        let filter = query(asked).remove("filter").unwrap_or_default();
        let state = filter.strip_prefix("state=").map(|state| state.trim_matches('"'));
        if state.is_none() && !filter.is_empty() {
            return invalid(&format!("Invalid filter \"{filter}\"."));
        }
        let versions = found
            .versions
            .iter()
            .zip(1..)
            .filter(|(version, _)| state.is_none_or(|state| state == version.state));
        let versions = versions.map(|(version, number)| described_version(key, number, version)).collect();
        self.paged("cryptoKeyVersions", versions, asked)
    }

    /// A key, or a version of one.
    fn get(&self, name: &str) -> Answer {
        if let Some((key, found)) = self.key(name) {
            let answer = || Answer::json(200, &described(key, found));
            return self
                .permit("cloudkms.cryptoKeys.get", name)
                .map_or_else(|refused| refused, |()| answer());
        }
        match self.version(name) {
            None => error(404, "NOT_FOUND", &format!("{name} not found.")),
            Some((key, number, version)) => {
                let answer = || Answer::json(200, &described_version(key, number, version));
                self.permit("cloudkms.cryptoKeyVersions.get", name)
                    .map_or_else(|refused| refused, |()| answer())
            }
        }
    }

    fn paged(&self, member: &str, entries: Vec<Value>, asked: &Asked) -> Answer {
        let query = query(asked);
        let number = |name: &str, prefix: &str| {
            query.get(name).and_then(|text| text.strip_prefix(prefix)?.parse().ok())
        };
        let size = number("pageSize", "").filter(|size| *size > 0).unwrap_or(100).min(self.page);
        let start: usize = match query.get("pageToken").map_or("", String::as_str) {
            "" => 0,
            _ => match number("pageToken", PAGE_TOKEN) {
                Some(start) => start,
                None => return invalid("Invalid page token."),
            },
        };
        let total = entries.len();
        let page: Vec<Value> = entries.into_iter().skip(start).take(size).collect();
        let mut answer = json!({"totalSize": total});
        if start + page.len() < total {
            answer["nextPageToken"] = format!("{PAGE_TOKEN}{}", start + page.len()).into();
        }
        if !page.is_empty() {
            answer[member] = page.into(); // an empty list isn't written, as everywhere in protobuf
        }
        Answer::json(200, &answer)
    }

    /// A version that may be used for something, and can be.
    fn usable(&self, name: &str, permission: &str) -> Result<Version, Answer> {
        self.permit(permission, name)?;
        let Some((_, _, version)) = self.version(name) else {
            return Err(error(404, "NOT_FOUND", &format!("CryptoKeyVersion {name} not found.")));
        };
        match version.state.as_str() {
            "ENABLED" => Ok(version.clone()),
            state => {
                let message = format!("{name} is not enabled, current state is: {state}.");
                Err(error(400, "FAILED_PRECONDITION", &message))
            }
        }
    }

    fn permit(&self, permission: &str, resource: &str) -> Result<(), Answer> {
        match self.forbidden.iter().any(|forbidden| forbidden == permission) {
            false => Ok(()),
            true => {
                let message = format!(
                    "Permission '{permission}' denied on resource '{resource}' (or it may not exist)."
                );
                Err(error(403, "PERMISSION_DENIED", &message))
            }
        }
    }

    fn key<'n>(&self, name: &'n str) -> Option<(&'n str, &Key)> {
        let name = name.strip_prefix(RING)?.strip_prefix("/cryptoKeys/")?;
        Some((name, self.keys.0.get(name)?))
    }

    fn version<'n>(&self, name: &'n str) -> Option<(&'n str, u64, &Version)> {
        let (key, number) = name.split_once("/cryptoKeyVersions/")?;
        let (key, found) = self.key(key)?;
        let number: u64 = number.parse().ok()?;
        let version = found.versions.get(usize::try_from(number.checked_sub(1)?).ok()?)?;
        Some((key, number, version))
    }
}

/// What the text of a page's token begins with: it has to be encoded in a URL.
const PAGE_TOKEN: &str = "A+/=&";

fn described(name: &str, key: &Key) -> Value {
    let mut described = json!({"name": format!("{RING}/cryptoKeys/{name}"), "purpose": key.purpose});
    if !key.labels.is_empty() {
        described["labels"] = json!(key.labels);
    }
    described
}

fn described_version(key: &str, number: u64, version: &Version) -> Value {
    json!({"name": format!("{RING}/cryptoKeys/{key}/cryptoKeyVersions/{number}"), "state": version.state,
        "protectionLevel": "HSM", "algorithm": version.algorithm})
}

fn invalid(message: &str) -> Answer {
    error(400, "INVALID_ARGUMENT", message)
}

pub(super) fn query(asked: &Asked) -> HashMap<String, String> {
    form_urlencoded::parse(asked.query.as_bytes()).into_owned().collect()
}

/// A path without its percent-encoding; a plus is one.
fn decoded(path: &str) -> String {
    let path = format!("={}", path.replace('+', "%2B"));
    form_urlencoded::parse(path.as_bytes()).next().map(|(_, path)| path.into_owned()).unwrap_or_default()
}

fn crc32c(bytes: &[u8]) -> u32 {
    CRC32C.checksum(bytes)
}
