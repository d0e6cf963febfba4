//! Who may have an access token, and who a token is of.

use std::{
    collections::HashMap,
    time::{Duration, SystemTime},
};

use base64ct::{Base64UrlUnpadded, Encoding};
use openssl::{
    hash::MessageDigest,
    pkey::{PKey, Private},
    rand::rand_bytes,
    rsa::Rsa,
    sign::{Signer, Verifier},
};
use serde_json::{Value, json};

use super::{Cloud, error};
use crate::{Answer, Asked};

/// The service account, which the machine, its own key and the workload act as.
const EMAIL: &str = "signer@keystead-demo.iam.gserviceaccount.com";

/// The provider of the workload pool.
pub(super) const AUDIENCE: &str =
    "//iam.googleapis.com/projects/123456789012/locations/global/workloadIdentityPools/pool/providers/idp";

const ISSUER: &str = "https://idp.example.net";

/// What a token must be good for, to be taken by Cloud KMS.
const SCOPES: [&str; 2] =
    ["https://www.googleapis.com/auth/cloudkms", "https://www.googleapis.com/auth/cloud-platform"];

/// What it must be good for, to be taken for another account's, beside the wide one of these.
const IAM: &str = "https://www.googleapis.com/auth/iam";

/// The person: no more than what her file says.
const CLIENT_ID: &str = "764086051850-person.apps.googleusercontent.com";
const CLIENT_SECRET: &str = "d-client-secret-of-a-person";
const REFRESH_TOKEN: &str = "1//0e-refresh-token-of-a-person";

/// How far clocks may be apart.
const TOLERANCE: u64 = 30;

#[derive(Debug)]
pub(super) struct Identity {
    pub(super) account: Signatory,
    pub(super) provider: Signatory,
    pub(super) lives: Duration,
    pub(super) issued: u64,
    tokens: HashMap<String, Token>,
}

/// An access token that was handed out.
#[derive(Debug)]
struct Token {
    /// In seconds since 1970, by the cloud's clock.
    expires: u64,
    scope: String,
}

impl Token {
    fn is_for(&self, scopes: &[&str]) -> bool {
        self.scope.split(' ').any(|scope| scopes.contains(&scope))
    }
}

/// Who signs JWTs.
#[derive(Debug)]
pub(super) struct Signatory {
    id: String,
    pair: PKey<Private>,
}

impl Identity {
    pub(super) fn new() -> Self {
        let lives = Duration::from_secs(3599);
        let (account, provider) = (Signatory::new(), Signatory::new());
        Self { account, provider, lives, issued: 0, tokens: HashMap::new() }
    }

    pub(super) fn replace_account_key(&mut self) {
        self.account = Signatory::new();
    }

    pub(super) fn revoke(&mut self) {
        self.tokens.clear();
    }

    pub(super) fn live(&self) -> Vec<String> {
        self.tokens.keys().cloned().collect()
    }

    /// A new token, as Google's look.
    fn issue(&mut self, now: u64, scope: &str) -> String {
        let token = format!("ya29.{}", random(48));
        self.tokens
            .insert(token.clone(), Token { expires: now + self.lives.as_secs(), scope: scope.to_owned() });
        self.issued += 1;
        token
    }

    fn grant(&mut self, now: u64, scope: &str) -> Answer {
        let token = self.issue(now, scope);
        Answer::json(
            200,
            &json!({"access_token": token, "expires_in": self.lives.as_secs(), "token_type": "Bearer"}),
        )
    }

    /// Whether the service account signed a token itself, which lives, for what its subject, audience and scopes say.
    fn is_the_accounts(&self, token: &str, now: u64, good: impl Fn(&str, &str, bool) -> bool) -> bool {
        let Some((header, claims)) = self.account.verified(token) else { return false };
        let text = |name: &str| claims.get(name).and_then(Value::as_str).unwrap_or_default();
        let number = |name: &str| claims.get(name).and_then(Value::as_u64).unwrap_or_default();
        let scoped = text("scope").split(' ').any(|scope| SCOPES.contains(&scope));
        header.get("kid").and_then(Value::as_str) == Some(&self.account.id)
            && text("iss") == EMAIL
            && good(text("sub"), text("aud"), scoped)
            && number("iat") <= now + TOLERANCE
            && number("exp") > now
            && number("exp") - number("iat") <= 3600
    }

    /// Whether a bearer's token is such a one, for Cloud KMS (AIP 4111): there, it says whose it is.
    fn is_self_signed(&self, token: &str, now: u64) -> bool {
        let good = |subject: &str, audience: &str, scoped| {
            subject == EMAIL && (scoped || audience == "https://cloudkms.googleapis.com/")
        };
        self.is_the_accounts(token, now, good)
    }

    /// Whether an assertion is one, for the token endpoint (RFC 7523).
    fn is_assertion(&self, token: &str, now: u64) -> bool {
        let good =
            |_: &str, audience: &str, scoped| scoped && audience == "https://oauth2.googleapis.com/token";
        self.is_the_accounts(token, now, good)
    }
}

impl Signatory {
    fn new() -> Self {
        let pair = PKey::from_rsa(Rsa::generate(2048).expect("a key")).expect("a key");
        Self { id: random(20), pair }
    }

    /// The file of a service account's key.
    pub(super) fn file(&self) -> Value {
        let pem = self.pair.private_key_to_pem_pkcs8().expect("PEM");
        json!({
            "type": "service_account",
            "project_id": "keystead-demo",
            "private_key_id": self.id,
            "private_key": String::from_utf8(pem).expect("PEM"),
            "client_email": EMAIL,
            "client_id": "123456789012345678901",
            "auth_uri": "https://accounts.google.com/o/oauth2/auth",
            "token_uri": "https://oauth2.googleapis.com/token",
            "universe_domain": "googleapis.com",
        })
    }

    /// A token of an identity provider for the workload pool.
    pub(super) fn token(&self, now: u64, lives: Duration) -> String {
        let header = json!({"alg": "RS256", "typ": "JWT", "kid": self.id});
        let audience = format!("https:{AUDIENCE}");
        let expires = now + lives.as_secs();
        let claims = json!({"iss": ISSUER, "sub": "keystead", "aud": audience, "iat": now, "exp": expires});
        let encoded = |part: &Value| Base64UrlUnpadded::encode_string(part.to_string().as_bytes());
        let unsigned = format!("{}.{}", encoded(&header), encoded(&claims));
        let mut signer = Signer::new(MessageDigest::sha256(), &self.pair).expect("a signer");
        let signature = signer.sign_oneshot_to_vec(unsigned.as_bytes()).expect("a signature");
        format!("{unsigned}.{}", Base64UrlUnpadded::encode_string(&signature))
    }

    /// Header and claims of a JWT, if this one signed it.
    fn verified(&self, token: &str) -> Option<(Value, Value)> {
        let (unsigned, signature) = token.rsplit_once('.')?;
        let (header, claims) = unsigned.split_once('.')?;
        let json = |part| serde_json::from_slice::<Value>(&Base64UrlUnpadded::decode_vec(part).ok()?).ok();
        let signature = Base64UrlUnpadded::decode_vec(signature).ok()?;
        let mut verifier = Verifier::new(MessageDigest::sha256(), &self.pair).ok()?;
        let header = json(header).filter(|header| header["alg"] == "RS256")?;
        verifier.verify_oneshot(&signature, unsigned.as_bytes()).ok()?.then_some((header, json(claims)?))
    }
}

/// The file of a person.
pub(super) fn person() -> Value {
    json!({
        "type": "authorized_user",
        "client_id": CLIENT_ID,
        "client_secret": CLIENT_SECRET,
        "refresh_token": REFRESH_TOKEN,
        "universe_domain": "googleapis.com",
    })
}

impl Cloud {
    /// Whether whoever asks Cloud KMS may ask it anything.
    pub(super) fn admit(&self, asked: &Asked) -> Result<(), Answer> {
        let Some(token) = asked.header("authorization").and_then(|value| value.strip_prefix("Bearer "))
        else {
            return Err(unauthenticated(
                "CREDENTIALS_MISSING",
                "Request is missing required authentication credential.",
            ));
        };
        let now = self.now();
        match self.identity.tokens.get(token) {
            Some(token) if token.expires <= now => Err(unauthenticated("ACCESS_TOKEN_EXPIRED", INVALID)),
            Some(token) if !token.is_for(&SCOPES) => {
                Err(error(403, "PERMISSION_DENIED", "Request had insufficient authentication scopes."))
            }
            Some(_) => Ok(()),
            None if self.identity.is_self_signed(token, now) => Ok(()),
            None => Err(unauthenticated("ACCESS_TOKEN_TYPE_UNSUPPORTED", INVALID)),
        }
    }

    /// The token endpoint of OAuth: a refresh token, or what a service account signed.
    pub(super) fn refresh(&mut self, asked: &Asked) -> Answer {
        let (now, form) = (self.now(), form(asked));
        let field = |name: &str| form.get(name).map_or("", String::as_str);
        match (asked.line().as_str(), field("grant_type")) {
            ("POST /token", "refresh_token") => {
                match (field("client_id"), field("client_secret"), field("refresh_token")) {
                    (CLIENT_ID, CLIENT_SECRET, REFRESH_TOKEN) => self.identity.grant(now, SCOPES[1]),
                    (CLIENT_ID, CLIENT_SECRET, _) => refused(400, "invalid_grant", "Bad Request"),
                    _ => refused(401, "invalid_client", "The OAuth client was not found."),
                }
            }
            ("POST /token", "urn:ietf:params:oauth:grant-type:jwt-bearer") => {
                match self.identity.is_assertion(field("assertion"), now) {
                    true => self.identity.grant(now, SCOPES[1]),
                    false => refused(400, "invalid_grant", "Invalid JWT Signature."),
                }
            }
            ("POST /token", _) => refused(400, "unsupported_grant_type", "Invalid grant_type"),
            _ => error(404, "NOT_FOUND", "Method not found."),
        }
    }

    /// The exchange of a token of the provider's for a federated one (RFC 8693).
    pub(super) fn exchange(&mut self, asked: &Asked) -> Answer {
        let (now, form) = (self.now(), form(asked));
        let field = |name: &str| form.get(name).map_or("", String::as_str);
        if asked.line() != "POST /v1/token" {
            return error(404, "NOT_FOUND", "Method not found.");
        }
        if field("grant_type") != "urn:ietf:params:oauth:grant-type:token-exchange" {
            return refused(400, "unsupported_grant_type", "Invalid grant_type");
        }
        if field("audience") != AUDIENCE {
            return refused(
                400,
                "invalid_target",
                "The target service indicated by the \"audience\" parameters is invalid.",
            );
        }
        let wanted =
            ("urn:ietf:params:oauth:token-type:access_token", "urn:ietf:params:oauth:token-type:jwt");
        if (field("requested_token_type"), field("subject_token_type")) != wanted {
            return refused(400, "invalid_request", "Invalid requested or subject token type.");
        }
        let Some((_, claims)) = self.identity.provider.verified(field("subject_token")) else {
            return refused(400, "invalid_grant", "The signature of the ID Token is invalid.");
        };
        if claims["iss"] != ISSUER || claims["aud"] != format!("https:{AUDIENCE}") {
            return refused(
                400,
                "invalid_grant",
                "The audience in ID Token does not match the expected audience.",
            );
        }
        if claims["exp"].as_u64().unwrap_or_default() <= now {
            return refused(400, "invalid_grant", "ID Token issued is stale to sign-in.");
        }
        let scope = field("scope");
        match scope.split(' ').any(|scope| scope == IAM || SCOPES.contains(&scope)) {
            true => self.identity.grant(now, scope),
            false => refused(400, "invalid_scope", "Invalid OAuth scope."),
        }
    }

    /// Acting as the service account.
    pub(super) fn impersonate(&mut self, asked: &Asked) -> Answer {
        let now = self.now();
        let bearer =
            asked.header("authorization").and_then(|value| value.strip_prefix("Bearer ")).unwrap_or_default();
        match self.identity.tokens.get(bearer) {
            Some(token) if token.expires > now && token.is_for(&[IAM, SCOPES[1]]) => {}
            _ => return unauthenticated("ACCESS_TOKEN_TYPE_UNSUPPORTED", INVALID),
        }
        let body: Value = serde_json::from_slice(&asked.body).unwrap_or_default();
        let scoped = body["scope"]
            .as_array()
            .is_some_and(|scopes| scopes.iter().any(|scope| SCOPES.iter().any(|known| scope == known)));
        match asked.line() == format!("POST /v1/projects/-/serviceAccounts/{EMAIL}:generateAccessToken") {
            true if scoped => {
                let token = self.identity.issue(now, SCOPES[1]);
                let expires = SystemTime::UNIX_EPOCH + Duration::from_secs(now) + self.identity.lives;
                let expires = time_of(expires);
                Answer::json(200, &json!({"accessToken": token, "expireTime": expires}))
            }
            true => error(400, "INVALID_ARGUMENT", "Scope required."),
            false => error(
                403,
                "PERMISSION_DENIED",
                "Permission 'iam.serviceAccounts.getAccessToken' denied on resource (or it may not exist).",
            ),
        }
    }

    /// The metadata server of a machine.
    pub(super) fn metadata(&mut self, asked: &Asked) -> Answer {
        let now = self.now();
        let accounts = "/computeMetadata/v1/instance/service-accounts";
        let answer = match asked.path.strip_prefix(accounts) {
            _ if asked.header("metadata-flavor") != Some("Google") => {
                return Answer::text(403, "Missing Metadata-Flavor:Google header.\n");
            }
            Some("/default/token") => self.identity.grant(now, SCOPES[1]),
            Some(path) if path == format!("/{EMAIL}/token") => self.identity.grant(now, SCOPES[1]),
            Some("/default/email") => Answer::text(200, EMAIL),
            Some("/default/") => {
                Answer::json(200, &json!({"aliases": ["default"], "email": EMAIL, "scopes": [SCOPES[1]]}))
            }
            _ => Answer::text(404, "<!DOCTYPE html><title>Error 404 (Not Found)!!1</title>"),
        };
        answer.header("metadata-flavor", "Google")
    }
}

const INVALID: &str = "Request had invalid authentication credentials. Expected OAuth 2 access token, login \
                       cookie or other valid authentication credential. See \
                       https://developers.google.com/identity/sign-in/web/devconsole-project.";

fn unauthenticated(reason: &str, message: &str) -> Answer {
    let detail = json!({
        "@type": "type.googleapis.com/google.rpc.ErrorInfo",
        "reason": reason,
        "domain": "googleapis.com",
        "metadata": {"service": "cloudkms.googleapis.com"},
    });
    let body =
        json!({"error": {"code": 401, "message": message, "status": "UNAUTHENTICATED", "details": [detail]}});
    Answer::json(401, &body)
        .header("www-authenticate", "Bearer realm=\"https://accounts.google.com/\", error=\"invalid_token\"")
}

fn refused(status: u16, name: &str, description: &str) -> Answer {
    Answer::json(status, &json!({"error": name, "error_description": description}))
}

fn form(asked: &Asked) -> HashMap<String, String> {
    form_urlencoded::parse(&asked.body).into_owned().collect()
}

/// A time as protobuf's JSON has it (RFC 3339).
fn time_of(time: SystemTime) -> String {
    const MONTHS: &str = "JanFebMarAprMayJunJulAugSepOctNovDec";
    let date = httpdate::fmt_http_date(time);
    let parts: Vec<_> = date.split(' ').collect();
    let [_, day, month, year, clock, _] = parts.as_slice() else { panic!("{date} has six parts") };
    let month = MONTHS.find(month).expect("a month") / 3 + 1;
    format!("{year}-{month:02}-{day}T{clock}Z")
}

fn random(bytes: usize) -> String {
    let mut random = vec![0; bytes];
    rand_bytes(&mut random).expect("random bytes");
    Base64UrlUnpadded::encode_string(&random)
}
