//! Who makes tokens: Entra ID for applications (OAuth 2.0 client credentials), and the metadata services for what runs
//! in Azure itself.

use std::fmt;

use base64ct::{Base64UrlUnpadded, Encoding};
use openssl::{
    asn1::Asn1Time,
    bn::BigNum,
    hash::MessageDigest,
    pkey::{PKey, PKeyRef, Private, Public},
    rsa::{Padding, Rsa},
    sign::{RsaPssSaltlen, Signer, Verifier},
    x509::{X509, X509NameBuilder},
};
use serde_json::{Value, json};

use super::{State, TENANT, random};
use crate::{Answer, Asked};

/// The application.
pub(super) const CLIENT: &str = "c0ffee00-1111-4222-8333-444455556666";

/// Whom tokens of a cluster are for, and who they say it is.
const FEDERATION: &str = "api://AzureADTokenExchange";
const SUBJECT: &str = "system:serviceaccount:keystead:keystead";

/// How far the clocks of others may be ahead, in seconds.
const LEEWAY: u64 = 300;

/// What can show that one is the application.
pub(super) struct Accounts {
    pub(super) secret: String,
    pub(super) certificate: X509,
    pub(super) certificate_key: PKey<Private>,
    pub(super) identity_header: String,
    cluster: PKey<Private>,
}

impl fmt::Debug for Accounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Accounts").finish_non_exhaustive()
    }
}

impl Accounts {
    pub(super) fn create() -> Self {
        let [certificate_key, cluster] =
            [(); 2].map(|()| PKey::from_rsa(Rsa::generate(2048).expect("a key")).expect("a key"));
        Self {
            secret: random(30),
            certificate: certificate(&certificate_key),
            certificate_key,
            identity_header: random(32),
            cluster,
        }
    }

    /// A token of the cluster's.
    pub(super) fn federated(&self, until: u64) -> String {
        let claims =
            json!({"iss": "https://cluster.example", "sub": SUBJECT, "aud": [FEDERATION], "exp": until});
        let encoded = |json: &Value| Base64UrlUnpadded::encode_string(json.to_string().as_bytes());
        let text = format!("{}.{}", encoded(&json!({"alg": "RS256", "typ": "JWT"})), encoded(&claims));
        let mut signer = Signer::new(MessageDigest::sha256(), &self.cluster).expect("a signer");
        let signature = signer.sign_oneshot_to_vec(text.as_bytes()).expect("a signature");
        format!("{text}.{}", Base64UrlUnpadded::encode_string(&signature))
    }
}

/// A self-signed certificate over a key.
fn certificate(key: &PKeyRef<Private>) -> X509 {
    let mut name = X509NameBuilder::new().expect("a name");
    name.append_entry_by_text("CN", "keystead").expect("a name");
    let name = name.build();
    let mut builder = X509::builder().expect("a certificate");
    let days = |days| Asn1Time::days_from_now(days).expect("a time");
    let serial = BigNum::from_u32(1).and_then(|number| number.to_asn1_integer()).expect("a number");
    builder.set_version(2).expect("a version");
    builder.set_serial_number(&serial).expect("a number");
    builder.set_subject_name(&name).expect("a name");
    builder.set_issuer_name(&name).expect("a name");
    builder.set_not_before(&days(0)).expect("a time");
    builder.set_not_after(&days(30)).expect("a time");
    builder.set_pubkey(key).expect("a key");
    builder.sign(key, MessageDigest::sha256()).expect("a signature");
    builder.build()
}

/// Answers a request for a token.
pub(super) fn answer(state: &State, asked: &Asked) -> Answer {
    let answer = match (asked.method.as_str(), asked.path.as_str()) {
        ("POST", path) if path == format!("/{TENANT}/oauth2/v2.0/token") => {
            issued(state, asked).unwrap_or_else(|refusal| refusal)
        }
        (_, path) if path.ends_with("/oauth2/v2.0/token") => refusal(
            400,
            "invalid_request",
            90002,
            "Tenant not found. Check to make sure you have the correct tenant ID.",
        ),
        _ => Answer::text(404, ""),
    };
    answer.header("date", &state.date())
}

fn issued(state: &State, asked: &Asked) -> Result<Answer, Answer> {
    let form: Vec<(String, String)> = form_urlencoded::parse(&asked.body).into_owned().collect();
    let field = |name: &str| form.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str());
    if field("grant_type") != Some("client_credentials") {
        return Err(refusal(
            400,
            "unsupported_grant_type",
            70003,
            "The app requested an unsupported grant type.",
        ));
    }
    if field("client_id") != Some(CLIENT) {
        let what = "Application with that identifier was not found in the directory.";
        return Err(refusal(400, "unauthorized_client", 700_016, what));
    }
    match (field("client_secret"), field("client_assertion")) {
        (Some(secret), None) if secret == state.accounts.secret => {}
        (Some(_), None) => {
            let what = "Invalid client secret provided. Ensure the secret being sent in the request is the client \
                        secret value, not the client secret ID, for a secret added to app.";
            return Err(refusal(401, "invalid_client", 7_000_215, what));
        }
        (None, Some(assertion)) => {
            let jwt_bearer = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";
            if field("client_assertion_type") != Some(jwt_bearer) {
                return Err(refusal(400, "invalid_request", 900_144, "client_assertion_type is missing."));
            }
            let host = asked.header("host").unwrap_or_default();
            Assertion::read(assertion)?.check(state, &format!("https://{host}{}", asked.path))?;
        }
        _ => {
            let what = "The request body must contain client_assertion or client_secret.";
            return Err(refusal(401, "invalid_client", 7_000_218, what));
        }
    }
    let scope = field("scope").and_then(|scope| scope.strip_suffix("/.default"));
    let resource = scope
        .ok_or_else(|| refusal(400, "invalid_scope", 70011, "The provided value for scope is not valid."))?;
    let (token, life) = state.issue(resource);
    let seconds = life.as_secs();
    Ok(Answer::json(
        200,
        &json!({
            "token_type": "Bearer", "expires_in": seconds, "ext_expires_in": seconds, "access_token": token,
        }),
    ))
}

/// A JWT that is to show who somebody is.
struct Assertion<'a> {
    header: Value,
    claims: Value,
    signed: &'a str,
    signature: Vec<u8>,
}

impl<'a> Assertion<'a> {
    fn read(text: &'a str) -> Result<Self, Answer> {
        let none = || refusal(401, "invalid_client", 50027, "JWT token is invalid or malformed.");
        let (signed, signature) = text.rsplit_once('.').ok_or_else(none)?;
        let (header, claims) = signed.split_once('.').ok_or_else(none)?;
        let decoded = |text: &str| Base64UrlUnpadded::decode_vec(text).map_err(|_| none());
        let json = |text: &str| serde_json::from_slice(&decoded(text)?).map_err(|_| none());
        Ok(Self { header: json(header)?, claims: json(claims)?, signed, signature: decoded(signature)? })
    }

    /// Of a certificate's, or of the cluster's.
    fn check(&self, state: &State, url: &str) -> Result<(), Answer> {
        let accounts = &state.accounts;
        match self.header.get("x5t#S256") {
            Some(thumbprint) => {
                let digest = accounts.certificate.digest(MessageDigest::sha256()).expect("a digest");
                if *thumbprint != Base64UrlUnpadded::encode_string(&digest) {
                    let what = "The certificate with that identifier used to sign the client assertion is not \
                                registered on application.";
                    return Err(refusal(401, "invalid_client", 700_027, what));
                }
                let key = accounts.certificate.public_key().expect("a key");
                self.verify(&key, "PS256")?;
                self.claims_are(&[("iss", CLIENT), ("sub", CLIENT), ("aud", url)])?;
                self.is_new(state)?;
            }
            None => {
                let key =
                    accounts.cluster.public_key_to_pem().and_then(|pem| PKey::public_key_from_pem(&pem));
                self.verify(&key.expect("a key"), "RS256")?;
                self.claims_are(&[("sub", SUBJECT), ("aud", FEDERATION)])?;
            }
        }
        self.is_timely(state)
    }

    fn verify(&self, key: &PKey<Public>, algorithm: &str) -> Result<(), Answer> {
        let mut verifier = Verifier::new(MessageDigest::sha256(), key).expect("a verifier");
        if algorithm == "PS256" {
            verifier.set_rsa_padding(Padding::PKCS1_PSS).expect("a padding");
            verifier.set_rsa_pss_saltlen(RsaPssSaltlen::DIGEST_LENGTH).expect("a length");
        }
        let verified = verifier.verify_oneshot(&self.signature, self.signed.as_bytes()).unwrap_or(false);
        match verified && self.header.get("alg") == Some(&algorithm.into()) {
            true => Ok(()),
            false => {
                Err(refusal(401, "invalid_client", 700_027, "Client assertion failed signature validation."))
            }
        }
    }

    fn claims_are(&self, expected: &[(&str, &str)]) -> Result<(), Answer> {
        let is = |name: &str, value: &str| match self.claims.get(name) {
            Some(Value::Array(values)) => values.contains(&value.into()),
            Some(found) => *found == value,
            None => false,
        };
        match expected.iter().find(|(name, value)| !is(name, value)) {
            None => Ok(()),
            Some((name, _)) => {
                let what = format!("Client assertion contains an invalid `{name}`.");
                Err(refusal(401, "invalid_client", 700_021, &what))
            }
        }
    }

    fn is_timely(&self, state: &State) -> Result<(), Answer> {
        let now = state.now();
        let time = |name: &str| self.claims.get(name).and_then(Value::as_u64);
        let begun = time("nbf").is_none_or(|nbf| nbf <= now + LEEWAY);
        match begun && time("exp").is_some_and(|exp| exp > now) {
            true => Ok(()),
            false => {
                let what = "Client assertion is not within its valid time range.";
                Err(refusal(401, "invalid_client", 700_024, what))
            }
        }
    }

    fn is_new(&self, state: &State) -> Result<(), Answer> {
        let number = self.claims.get("jti").map(Value::to_string).unwrap_or_default();
        let mut changing = state.lock();
        if number.is_empty() || changing.assertions.contains(&number) {
            return Err(refusal(
                401,
                "invalid_client",
                700_021,
                "Client assertion contains a `jti` that was used.",
            ));
        }
        changing.assertions.push(number);
        Ok(())
    }
}

/// As Entra ID refuses.
fn refusal(status: u16, error: &str, number: u32, what: &str) -> Answer {
    let description = format!("AADSTS{number}: {what} Trace ID: 0 Correlation ID: 0 Timestamp: 0");
    Answer::json(status, &json!({"error": error, "error_description": description, "error_codes": [number]}))
}

/// The metadata services of a virtual machine (`/metadata/identity/oauth2/token`) and of an app (`/msi/token`).
pub(super) fn identity(state: &State, asked: &Asked) -> Answer {
    let bad = |what: &str| Answer::json(400, &json!({"error": "invalid_request", "error_description": what}));
    let parameter = |name: &str| {
        let mut query = form_urlencoded::parse(asked.query.as_bytes());
        query.find(|(found, _)| found == name).map(|(_, value)| value.into_owned())
    };
    let allowed = match asked.path.as_str() {
        "/metadata/identity/oauth2/token" => asked.header("metadata") == Some("true"),
        "/msi/token" => asked.header("x-identity-header") == Some(&state.accounts.identity_header),
        _ => return Answer::text(404, ""),
    };
    if asked.method != "GET" || !allowed || parameter("api-version").is_none() {
        return bad("Required metadata header not specified");
    }
    let named = ["client_id", "object_id", "msi_res_id", "mi_res_id"].map(&parameter);
    if named.into_iter().flatten().any(|name| name != CLIENT && !name.ends_with("/keystead")) {
        return bad("Identity not found");
    }
    let Some(resource) = parameter("resource") else { return bad("resource is missing") };
    let (token, life) = state.issue(&resource);
    let until = state.now() + life.as_secs();
    Answer::json(
        200,
        &json!({
            "access_token": token, "client_id": CLIENT, "expires_in": life.as_secs().to_string(),
            "expires_on": until.to_string(), "resource": resource, "token_type": "Bearer",
        }),
    )
}
