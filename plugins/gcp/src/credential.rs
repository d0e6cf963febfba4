//! Who asks: credentials, and the access tokens that they are traded for.
//!
//! What is a credential stays with the host: it fills it into the fields of a form, and signs with it.

use std::time::{Duration, SystemTime};

use base64ct::{Base64UrlUnpadded, Encoding};
use keystead_plugin_api::{
    Algorithm, Call, Code, Error, Host, Secret,
    http::{Request, Response, Value},
};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::json;

use crate::{endpoint, kms, refusal};

/// What a token is asked for: no more than Cloud KMS.
const SCOPE: &str = "https://www.googleapis.com/auth/cloudkms";

/// What a token is asked for that is traded for another account's, and for nothing else.
const IAM: &str = "https://www.googleapis.com/auth/iam";

/// How long a token lives that says so itself: the longest that Google takes.
const LIFE: Duration = Duration::from_secs(3600);

/// How far a clock may be behind ours: tokens are dated back by so much.
const DATED_BACK: Duration = Duration::from_secs(10);

/// The configuration's `credential`.
#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum Credential {
    /// The service account of the machine, by its metadata server.
    Metadata {
        #[serde(default = "metadata_server")]
        endpoint: String,
        #[serde(default = "default_account")]
        account: String,
    },
    /// The key of a service account.
    ServiceAccount { client_email: Option<String>, private_key_id: Option<String> },
    /// A person, by a refresh token.
    AuthorizedUser {
        client_id: Option<String>,
        #[serde(default = "token_endpoint")]
        token_url: String,
    },
    /// A token of another identity provider, by federation.
    WorkloadIdentity {
        audience: String,
        #[serde(default = "jwt")]
        subject_token_type: String,
        #[serde(default = "exchange")]
        token_url: String,
        impersonate: Option<String>,
        #[serde(default = "impersonation")]
        impersonation_endpoint: String,
    },
}

fn metadata_server() -> String {
    "http://metadata.google.internal".to_owned()
}

fn default_account() -> String {
    "default".to_owned()
}

fn token_endpoint() -> String {
    "https://oauth2.googleapis.com/token".to_owned()
}

fn exchange() -> String {
    "https://sts.googleapis.com/v1/token".to_owned()
}

fn impersonation() -> String {
    "https://iamcredentials.googleapis.com".to_owned()
}

fn jwt() -> String {
    "urn:ietf:params:oauth:token-type:jwt".to_owned()
}

impl Default for Credential {
    fn default() -> Self {
        Self::Metadata { endpoint: metadata_server(), account: default_account() }
    }
}

/// What a token endpoint answers.
#[derive(Deserialize)]
struct Granted {
    access_token: String,
    expires_in: u64,
}

/// What a service account's impersonation answers.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Impersonated {
    access_token: String,
}

impl Credential {
    /// Whatever becomes part of a URL stays the part that it is.
    pub(crate) fn check(self) -> Result<Self, Error> {
        let named = |member: &str, name: &str| match is_account(name) {
            true => Ok(()),
            false => {
                Err(expected(member, "the email of a service account, or `default` at a metadata server"))
            }
        };
        Ok(match self {
            Self::Metadata { endpoint: of, account } => {
                named("account", &account)?;
                Self::Metadata { endpoint: endpoint::of("credential: `endpoint`", &of)?, account }
            }
            Self::AuthorizedUser { client_id, token_url } => {
                endpoint::with_path("credential: `token_url`", &token_url)?;
                Self::AuthorizedUser { client_id, token_url }
            }
            Self::WorkloadIdentity {
                audience,
                subject_token_type,
                token_url,
                impersonate,
                impersonation_endpoint,
            } => {
                endpoint::with_path("credential: `token_url`", &token_url)?;
                impersonate.iter().try_for_each(|email| named("impersonate", email))?;
                let impersonation_endpoint =
                    endpoint::of("credential: `impersonation_endpoint`", &impersonation_endpoint)?;
                Self::WorkloadIdentity {
                    audience,
                    subject_token_type,
                    token_url,
                    impersonate,
                    impersonation_endpoint,
                }
            }
            account @ Self::ServiceAccount { .. } => account,
        })
    }

    /// A new access token, and how long it lives. A credential that was refused is presented no more until the operator
    /// gives another. One that renews itself is: the next may be good, and there is nothing that could be locked.
    pub(crate) fn token(&self, host: Host, call: &Call<'_>) -> Result<(Secret, Duration), Error> {
        let renews_itself = matches!(self, Self::Metadata { .. } | Self::WorkloadIdentity { .. });
        self.get(host, call).map_err(|mut error| {
            if renews_itself && error.code == Code::Credentials {
                error.code = Code::Denied;
            }
            error
        })
    }

    fn get(&self, host: Host, call: &Call<'_>) -> Result<(Secret, Duration), Error> {
        match self {
            Self::Metadata { endpoint, account } => of_the_machine(host, call, endpoint, account),
            Self::ServiceAccount { client_email, private_key_id } => {
                let email = required(host, "client_email", client_email.as_deref())?;
                let id = public(host, "private_key_id", private_key_id.as_deref())?;
                signed(host, &email, id.as_deref(), SystemTime::now())
            }
            Self::AuthorizedUser { client_id, token_url } => {
                let client_id = client_id.as_deref().map_or_else(|| Value::secret("client_id"), Value::from);
                let form = [
                    ("grant_type", Value::from("refresh_token")),
                    ("client_id", client_id),
                    ("client_secret", Value::secret("client_secret")),
                    ("refresh_token", Value::secret("refresh_token")),
                ];
                granted(
                    host,
                    call,
                    "refreshing the access token",
                    &Request::new("POST", token_url.as_str()).form(form),
                )
            }
            Self::WorkloadIdentity {
                audience,
                subject_token_type,
                token_url,
                impersonate,
                impersonation_endpoint,
            } => {
                let scope = if impersonate.is_some() { IAM } else { SCOPE };
                let form = [
                    ("grant_type", Value::from("urn:ietf:params:oauth:grant-type:token-exchange")),
                    ("audience", audience.as_str().into()),
                    ("scope", scope.into()),
                    ("requested_token_type", "urn:ietf:params:oauth:token-type:access_token".into()),
                    ("subject_token_type", subject_token_type.as_str().into()),
                    ("subject_token", Value::secret("subject_token")),
                ];
                let exchange = Request::new("POST", token_url.as_str()).form(form);
                let own = granted(host, call, "exchanging the subject token", &exchange)?;
                match impersonate {
                    Some(email) => impersonated(host, call, impersonation_endpoint, email, &own.0),
                    None => Ok(own),
                }
            }
        }
    }
}

/// The token of the machine's own service account.
fn of_the_machine(
    host: Host,
    call: &Call<'_>,
    endpoint: &str,
    account: &str,
) -> Result<(Secret, Duration), Error> {
    let doing = "asking the metadata server for an access token";
    let url = format!("{endpoint}/computeMetadata/v1/instance/service-accounts/{account}/token");
    let request = Request::new("GET", url).header("metadata-flavor", "Google");
    let response = host.fetch(call, &request).map_err(|error| kms::about(doing, error))?;
    if response.status == 404 {
        let what = format!(
            "{doing}: the machine has no service account `{account}`; attach one, or configure another \
             `credential`"
        );
        return Err(Error::new(Code::Denied, what).with_vendor("HTTP", 404));
    }
    if response.header("metadata-flavor") != Some("Google") {
        return Err(kms::about(
            doing,
            kms::broken("that isn't a metadata server's: without `Metadata-Flavor: Google`"),
        ));
    }
    lives(doing, response)
}

/// A token that the service account signs itself: nobody has to be asked for it.
fn signed(host: Host, email: &str, id: Option<&str>, now: SystemTime) -> Result<(Secret, Duration), Error> {
    let now = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let unsigned = unsigned(email, id, now.saturating_sub(DATED_BACK).as_secs());
    let signature = host.sign_with("private_key", Algorithm::RsaPkcs1Sha256, unsigned.as_bytes())?;
    let token = format!("{unsigned}.{}", Base64UrlUnpadded::encode_string(&signature));
    Ok((Secret::new(token.into_bytes()), LIFE.saturating_sub(DATED_BACK)))
}

/// The two parts of such a token that are signed.
fn unsigned(email: &str, id: Option<&str>, issued: u64) -> String {
    let mut header = json!({"alg": "RS256", "typ": "JWT"});
    if let (Some(id), Some(header)) = (id, header.as_object_mut()) {
        header.insert("kid".to_owned(), id.into());
    }
    let claims =
        json!({"iss": email, "sub": email, "scope": SCOPE, "iat": issued, "exp": issued + LIFE.as_secs()});
    let encoded = |part: serde_json::Value| Base64UrlUnpadded::encode_string(part.to_string().as_bytes());
    format!("{}.{}", encoded(header), encoded(claims))
}

/// A token of a service account that another identity may act as.
fn impersonated(
    host: Host,
    call: &Call<'_>,
    endpoint: &str,
    email: &str,
    own: &Secret,
) -> Result<(Secret, Duration), Error> {
    let doing = format!("impersonating `{email}`");
    let url = format!("{endpoint}/v1/projects/-/serviceAccounts/{email}:generateAccessToken");
    let body = json!({"scope": [SCOPE], "lifetime": format!("{}s", LIFE.as_secs())});
    let request = authorized(Request::new("POST", url), own).json(&body);
    let response = host.fetch(call, &request).map_err(|error| kms::about(&doing, error))?;
    if response.status != 200 {
        return Err(no_key_is_meant(refusal::of_the_api(&doing, &response)));
    }
    let Impersonated { access_token } = take(&doing, response)?;
    Ok((checked(&doing, access_token)?, LIFE))
}

fn granted(host: Host, call: &Call<'_>, doing: &str, request: &Request) -> Result<(Secret, Duration), Error> {
    let response = host.fetch(call, request).map_err(|error| kms::about(doing, error))?;
    lives(doing, response)
}

fn lives(doing: &str, response: Response) -> Result<(Secret, Duration), Error> {
    if response.status != 200 {
        return Err(refusal::of_the_token_endpoint(doing, &response));
    }
    let Granted { access_token, expires_in } = take(doing, response)?;
    Ok((checked(doing, access_token)?, Duration::from_secs(expires_in)))
}

/// Takes an answer apart that holds a token, and leaves nothing of it behind.
fn take<T: DeserializeOwned>(doing: &str, response: Response) -> Result<T, Error> {
    let taken = kms::read(doing, &response);
    drop(Secret::new(response.body));
    taken
}

/// A token that can be sent in a header.
fn checked(doing: &str, token: String) -> Result<Secret, Error> {
    let token = Secret::new(token.into_bytes());
    match !token.expose().is_empty() && token.expose().iter().all(u8::is_ascii_graphic) {
        true => Ok(token),
        false => Err(kms::about(doing, kms::broken("an access token that can't be sent"))),
    }
}

/// A request with an access token.
pub(crate) fn authorized(request: Request, token: &Secret) -> Request {
    let token = str::from_utf8(token.expose()).unwrap_or_default();
    request.header("authorization", format!("Bearer {token}"))
}

/// What says that there is no such account must not be taken for saying that there is no such key.
fn no_key_is_meant(mut error: Error) -> Error {
    if error.code == Code::NotFound {
        error.code = Code::Denied;
    }
    error
}

fn required(host: Host, name: &str, configured: Option<&str>) -> Result<String, Error> {
    let found = public(host, name, configured)?;
    found.ok_or_else(|| {
        let secret = format!("`secrets: {{{name}: {{file: …, pointer: /{name}, expose: true}}}}`");
        expected(name, &format!("the one of the account's file, here or by {secret}"))
    })
}

/// What is no secret: from the configuration, or from beside the secrets in a file, if it is there.
fn public(host: Host, name: &str, configured: Option<&str>) -> Result<Option<String>, Error> {
    if let Some(value) = configured {
        return Ok(Some(value.to_owned()));
    }
    match host.secret(name) {
        Ok(value) => match str::from_utf8(value.expose()) {
            Ok(text) => Ok(Some(text.to_owned())),
            Err(_) => Err(Error::invalid(format!("the secret `{name}` is not text"))),
        },
        Err(error) if error.code == Code::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn expected(member: &str, what: &str) -> Error {
    Error::invalid(format!("config: credential: `{member}`: expected {what}"))
}

/// Whether a text can be the name of a service account, and is a segment of a path as it is.
fn is_account(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '@');
    (1..=254).contains(&name.len()) && name.chars().all(plain) && !name.starts_with('.')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn credential(json: &str) -> Result<Credential, Error> {
        serde_json::from_str::<Credential>(json).map_err(|error| Error::invalid(error.to_string()))?.check()
    }

    #[test]
    fn a_token_of_an_account_says_who_for_what_and_how_long() {
        let unsigned = unsigned("signer@p.iam.gserviceaccount.com", Some("k1"), 1000);
        let parts: Vec<serde_json::Value> = unsigned
            .split('.')
            .map(|part| serde_json::from_slice(&Base64UrlUnpadded::decode_vec(part).unwrap()).unwrap())
            .collect();
        assert_eq!(parts[0], json!({"alg": "RS256", "typ": "JWT", "kid": "k1"}));
        let email = "signer@p.iam.gserviceaccount.com";
        assert_eq!(parts[1], json!({"iss": email, "sub": email, "scope": SCOPE, "iat": 1000, "exp": 4600}));
    }

    #[test]
    fn what_would_lead_elsewhere_is_refused() {
        for odd in [
            r#"{"type": "metadata", "account": "../x"}"#,
            r#"{"type": "metadata", "account": "a/b"}"#,
            r#"{"type": "metadata", "endpoint": "http://169.254.169.254/x"}"#,
            r#"{"type": "authorized_user", "token_url": "oauth2.googleapis.com/token"}"#,
            r#"{"type": "authorized_user", "token_url": "https://me@oauth2.googleapis.com/token"}"#,
            r#"{"type": "workload_identity", "audience": "a", "impersonate": "a@b/c"}"#,
            r#"{"type": "workload_identity", "audience": "a", "impersonation_endpoint": "https://h/x"}"#,
            r#"{"type": "workload_identity"}"#,
            r#"{"type": "service_account", "private_key": "k"}"#,
            r#"{"type": "external_account"}"#,
        ] {
            assert_eq!(credential(odd).map(|_| ()).unwrap_err().code, Code::InvalidInput, "{odd}");
        }
        assert!(credential(r#"{"type": "metadata", "endpoint": "http://169.254.169.254/"}"#).is_ok());
        let acts =
            r#"{"type": "workload_identity", "audience": "a", "impersonate": "a@p.iam.gserviceaccount.com"}"#;
        assert!(credential(acts).is_ok());
    }

    #[test]
    fn a_token_that_no_header_can_hold_is_none() {
        assert!(checked("asking", "ya29.a-b_c".to_owned()).is_ok());
        for odd in ["", "a b", "a\r\nx: y", "ä"] {
            assert_eq!(checked("asking", odd.to_owned()).unwrap_err().code, Code::Unavailable);
        }
    }
}
