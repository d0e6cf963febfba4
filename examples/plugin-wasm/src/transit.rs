//! What the transit engine says, and how it is asked: JSON in, keys and signatures out. No I/O.

use std::collections::BTreeMap;

use base64ct::{Base64, Encoding};
use keystead_plugin_api::{
    Algorithm, CallClass, Code, Error, Finding, Input, Key, Listing, Severity,
    algorithm::Family,
    encode,
    http::{Response, one_line},
};
use serde::Deserialize;
use serde_json::{Value, json};

/// What is shown of a message of the server's.
const MESSAGE_MAX: usize = 300;

/// One version of a named key. As text it is the key's id: all that is needed to sign with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Version<'a> {
    pub(crate) name: &'a str,
    pub(crate) number: u64,
    family: Family,
}

impl<'a> Version<'a> {
    /// Reads an id that [`Version::id`] has written, to the byte.
    pub(crate) fn parse(id: &'a [u8]) -> Option<Self> {
        let (family, rest) = str::from_utf8(id).ok()?.split_once('/')?;
        let (number, name) = rest.split_once('/')?;
        let version = Self { name, number: number.parse().ok()?, family: family_of(family)? };
        (is_name(name) && version.id() == id).then_some(version)
    }

    fn id(&self) -> Vec<u8> {
        let family = match self.family {
            Family::Rsa => "rsa",
            Family::Ecdsa => "ecdsa",
            _ => "ed25519",
        };
        format!("{family}/{}/{}", self.number, self.name).into_bytes()
    }

    /// What is sent to have an input signed.
    pub(crate) fn request(&self, algorithm: Algorithm, input: &[u8]) -> Result<Value, Error> {
        if algorithm.family() != self.family {
            return Err(Error::unsupported(algorithm));
        }
        let mut request = json!({"input": Base64::encode_string(input), "key_version": self.number});
        let Some(members) = request.as_object_mut() else { return Ok(request) };
        if algorithm.input() != Input::Message {
            let hash = hash(algorithm).ok_or_else(|| Error::unsupported(algorithm))?;
            members.extend([("prehashed".into(), true.into()), ("hash_algorithm".into(), hash.into())]);
        }
        match algorithm {
            Algorithm::RsaPssSha256 | Algorithm::RsaPssSha384 | Algorithm::RsaPssSha512 => members.extend([
                ("signature_algorithm".into(), "pss".into()),
                ("salt_length".into(), "hash".into()),
            ]),
            _ if self.family == Family::Rsa => {
                members.insert("signature_algorithm".into(), "pkcs1v15".into());
            }
            _ => {
                members.insert("marshaling_algorithm".into(), "asn1".into());
            }
        }
        Ok(request)
    }
}

/// Whether the server could have a key of this name: such a name is also a segment of a path, as it is.
pub(crate) fn is_name(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    (1..=200).contains(&name.len()) && name.chars().all(plain) && !name.starts_with('.')
}

fn family_of(key_type: &str) -> Option<Family> {
    match key_type.split_once('-').map_or(key_type, |(family, _)| family) {
        "rsa" => Some(Family::Rsa),
        "ecdsa" => Some(Family::Ecdsa),
        "ed25519" => Some(Family::Ed25519),
        _ => None,
    }
}

/// The server's name of what made a digest.
fn hash(algorithm: Algorithm) -> Option<&'static str> {
    match algorithm.input() {
        Input::Digest(20) => Some("sha1"),
        Input::Digest(28) => Some("sha2-224"),
        Input::Digest(32) => Some("sha2-256"),
        Input::Digest(48) => Some("sha2-384"),
        Input::Digest(64) => Some("sha2-512"),
        _ => None,
    }
}

/// The envelope of every answer.
#[derive(Deserialize)]
pub(crate) struct Answer<T> {
    pub(crate) data: T,
}

/// The names of an engine's keys.
#[derive(Deserialize)]
pub(crate) struct Names {
    pub(crate) keys: Vec<String>,
}

/// A signature, as `vault:v1:` and Base64.
#[derive(Deserialize)]
pub(crate) struct Signature {
    signature: String,
}

impl Signature {
    pub(crate) fn bytes(&self) -> Result<Vec<u8>, Error> {
        let encoded = self.signature.rsplit(':').next().unwrap_or_default();
        Base64::decode_vec(encoded).map_err(|_| broken("a signature that isn't Base64"))
    }
}

/// A named key with all its versions, as far as they are of interest here.
#[derive(Deserialize)]
pub(crate) struct Named {
    #[serde(rename = "type")]
    key_type: String,
    /// By number. Of a key that can't sign, a time stands in place of the public half.
    keys: BTreeMap<String, Value>,
    #[serde(default)]
    derived: bool,
    #[serde(default)]
    soft_deleted: bool,
    #[serde(default)]
    min_encryption_version: u64,
}

impl Named {
    /// Adds every version that the server signs with to a listing, newest first, and notes what is passed over.
    pub(crate) fn list(&self, name: &str, listing: &mut Listing) {
        let refusal = match family_of(&self.key_type) {
            None => Some(format!("keys of type {} don't sign for TLS", self.key_type)),
            Some(_) if self.derived => Some("a derived key is another key for each context".to_owned()),
            Some(_) if self.soft_deleted => Some("it is deleted, and can be restored".to_owned()),
            Some(family) => return self.list_versions(name, family, listing),
        };
        let why = refusal.unwrap_or_default();
        listing.findings.push(Finding::note(name, format!("passed over: {why}")));
    }

    fn list_versions(&self, name: &str, family: Family, listing: &mut Listing) {
        let mut versions: Vec<(u64, &Value)> =
            self.keys.iter().filter_map(|(number, key)| Some((number.parse().ok()?, key))).collect();
        versions.sort_by_key(|(number, _)| std::cmp::Reverse(*number));
        for (number, key) in versions {
            if number < self.min_encryption_version {
                let why = format!("version {number} is below the key's min_encryption_version");
                listing.findings.push(Finding::note(name, format!("passed over: {why}")));
                continue;
            }
            match spki(family, key) {
                Ok(spki) => listing.keys.push(self.key(Version { name, number, family }, spki)),
                Err(error) => listing.findings.push(finding(name, error)),
            }
        }
    }

    fn key(&self, version: Version<'_>, spki: Vec<u8>) -> Key {
        let signs = |algorithm: &Algorithm| hash(*algorithm).is_some() || *algorithm == Algorithm::Ed25519;
        Key {
            id: version.id(),
            spki,
            label: format!("{} version {}", version.name, version.number),
            algorithms: Algorithm::of(version.family).filter(signs).collect(),
            call_class: CallClass::Blocking,
        }
    }
}

/// The public half of a version: PEM, but of Ed25519 the bare key.
fn spki(family: Family, key: &Value) -> Result<Vec<u8>, Error> {
    let text = key.get("public_key").and_then(Value::as_str).unwrap_or_default();
    let encoded: String = text.lines().filter(|line| !line.starts_with("-----")).collect();
    let decoded = Base64::decode_vec(&encoded).ok().filter(|bytes| !bytes.is_empty());
    let spki = match family {
        Family::Ed25519 => decoded.and_then(|key| encode::ed25519_spki(&key)),
        _ => decoded,
    };
    spki.ok_or_else(|| broken("no public key that can be read"))
}

/// Something that keeps one key from being served.
pub(crate) fn finding(name: &str, error: Error) -> Finding {
    let hint = match error.code {
        Code::NotFound => format!(
            "`bao list` the keys of the engine, or make it: `bao write -f …/keys/{name} type=ecdsa-p256`"
        ),
        Code::Denied => {
            format!("a policy of the token must give `read` on …/keys/{name} and `update` on …/sign/{name}")
        }
        _ => String::new(),
    };
    Finding { severity: Severity::Error, subject: name.to_owned(), error, hint }
}

/// An answer that isn't what the server's documentation has.
pub(crate) fn broken(what: &str) -> Error {
    Error::new(Code::Unavailable, format!("the server answered {what}"))
}

/// What an answer with a status that isn't a success means. 403 is the caller's to look into.
pub(crate) fn refusal(doing: &str, response: &Response) -> Error {
    let (status, said) = (response.status, said(&response.body));
    let code = match status {
        404 => Code::NotFound,
        400 if said.contains("key not found") => Code::NotFound,
        403 => Code::Denied,
        412 => Code::Unavailable, // a stand-by that doesn't know yet what another server wrote
        429 => Code::Throttled,
        400..500 => Code::InvalidInput,
        _ => Code::Unavailable, // 503 is a server that is sealed
    };
    let said = match (said.as_str(), status) {
        ("", 404) => "that there is no such thing",
        ("", _) => "nothing more",
        (said, _) => said,
    };
    let error =
        Error::new(code, format!("{doing}: the server says {said}")).with_vendor("HTTP", status.into());
    match response.retry_after() {
        Some(after) => error.with_retry_after(after),
        None => error,
    }
}

/// The `errors` of an answer in one line.
pub(crate) fn said(body: &[u8]) -> String {
    #[derive(Deserialize)]
    struct Errors {
        errors: Vec<String>,
    }
    let errors = serde_json::from_slice::<Errors>(body).map(|body| body.errors).unwrap_or_default();
    one_line(&errors.join("; "), MESSAGE_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_says_what_signing_needs_and_nothing_else_passes_for_one() {
        let version = Version { name: "www.example-1_a", number: 12, family: Family::Ecdsa };
        assert_eq!(version.id(), b"ecdsa/12/www.example-1_a");
        assert_eq!(Version::parse(&version.id()), Some(version));
        for id in
            ["", "ecdsa", "ecdsa/1", "ecdsa/1/", "ecdsa/01/a", "ecdsa/+1/a", "ecdsa-p256/1/a", "aes/1/a"]
        {
            assert_eq!(Version::parse(id.as_bytes()), None, "{id}");
        }
        for name in ["a/b", "..", "a?b", "a#b", "a%2fb", "ä", &"a".repeat(201)] {
            assert_eq!(Version::parse(format!("rsa/1/{name}").as_bytes()), None, "{name}");
        }
        let longest = "a".repeat(200);
        let version = Version { name: &longest, number: u64::MAX, family: Family::Ed25519 };
        assert!(version.id().len() <= 255);
    }

    #[test]
    fn a_request_says_padding_salt_hash_and_form() {
        let request = |family, algorithm, len| {
            Version { name: "www", number: 3, family }
                .request(algorithm, &vec![0; len])
                .map(|json| json.to_string())
        };
        let pss = request(Family::Rsa, Algorithm::RsaPssSha384, 48).unwrap();
        for part in
            [r#""signature_algorithm":"pss""#, r#""salt_length":"hash""#, r#""hash_algorithm":"sha2-384""#]
        {
            assert!(pss.contains(part), "{pss}");
        }
        let pkcs1 = request(Family::Rsa, Algorithm::RsaPkcs1Sha256, 32).unwrap();
        assert!(pkcs1.contains("pkcs1v15") && pkcs1.contains(r#""prehashed":true"#), "{pkcs1}");
        let ecdsa = request(Family::Ecdsa, Algorithm::EcdsaSha512, 64).unwrap();
        assert!(
            ecdsa.contains(r#""marshaling_algorithm":"asn1""#) && ecdsa.contains(r#""key_version":3"#),
            "{ecdsa}"
        );
        let ed25519 = request(Family::Ed25519, Algorithm::Ed25519, 5).unwrap();
        assert!(!ed25519.contains("prehashed"), "{ed25519}");
        for (family, algorithm) in [
            (Family::Rsa, Algorithm::RsaPkcs1Md5Sha1),
            (Family::Ecdsa, Algorithm::RsaPssSha256),
            (Family::Ed25519, Algorithm::EcdsaSha256),
        ] {
            assert_eq!(request(family, algorithm, 36).unwrap_err().code, Code::Unsupported);
        }
    }

    #[test]
    fn a_refusal_has_a_class_the_status_and_the_words_of_the_server_in_one_line() {
        let refusal = |status, body: &str| {
            refusal("signing", &Response { status, headers: Vec::new(), body: body.into() })
        };
        let classes = [
            (400, "signing key not found", Code::NotFound),
            (400, "invalid hash algorithm", Code::InvalidInput),
            (404, "no handler for route", Code::NotFound),
            (405, "unsupported operation", Code::InvalidInput),
            (403, "permission denied", Code::Denied),
            (412, "required index state not present", Code::Unavailable),
            (429, "request path: rate limit quota exceeded", Code::Throttled),
            (500, "internal error", Code::Unavailable),
            (503, "Vault is sealed", Code::Unavailable),
            (302, "elsewhere", Code::Unavailable),
        ];
        for (status, said, code) in classes {
            let error = refusal(status, &json!({"errors": [said]}).to_string());
            assert_eq!(error.code, code, "{status} {said}");
            assert_eq!(error.to_string(), format!("signing: the server says {said} (HTTP {status})"));
        }
        let lines = refusal(500, r#"{"errors": ["1 error occurred:\n\t* bad\n\n", "worse"]}"#);
        assert_eq!(lines.message, "signing: the server says 1 error occurred: * bad ; worse");
        let long = refusal(500, &json!({"errors": ["ä".repeat(5000)]}).to_string());
        assert!(long.message.chars().count() < 2 * MESSAGE_MAX, "{}", long.message);
        for odd in ["", "<html>", r#"{"errors": []}"#, r#"{"errors": 7}"#] {
            assert_eq!(refusal(502, odd).message, "signing: the server says nothing more");
        }
    }

    #[test]
    fn a_throttled_request_knows_when_to_come_back() {
        let headers = vec![("retry-after".to_owned(), "7".to_owned())];
        let error = refusal("signing", &Response { status: 429, headers, body: Vec::new() });
        assert_eq!(error.retry_after, Some(std::time::Duration::from_secs(7)));
    }

    #[test]
    fn a_signature_that_is_none_is_the_servers_fault() {
        let bytes = |text: &str| Signature { signature: text.to_owned() }.bytes();
        assert_eq!(bytes("vault:v1:AQID").unwrap(), [1, 2, 3]);
        assert_eq!(bytes("vault:v1:A-_=").unwrap_err().code, Code::Unavailable);
    }

    #[test]
    fn a_key_without_a_public_half_is_a_finding_and_the_others_are_listed() {
        let ed25519 = Base64::encode_string(&[7; 32]);
        let named = json!({"type": "ed25519", "keys": {
            "1": {"public_key": ed25519}, "2": {"public_key": "?"}, "10": {"public_key": ed25519},
        }});
        let mut listing = Listing::default();
        serde_json::from_value::<Named>(named).unwrap().list("www", &mut listing);
        let labels: Vec<_> = listing.keys.iter().map(|key| key.label.as_str()).collect();
        assert_eq!(labels, ["www version 10", "www version 1"]);
        assert_eq!(listing.keys[0].spki.len(), 44);
        assert_eq!(listing.findings.len(), 1);
        assert!(listing.findings[0].error.message.contains("no public key"));
    }
}
