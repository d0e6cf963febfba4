//! How a token is got: the five ways in which this server may say who it is. What is secret in them stays with the
//! host, which fills it in, or signs with it.

use std::{
    hash::{BuildHasher, RandomState},
    time::{Duration, SystemTime},
};

use base64ct::{Base64, Base64UrlUnpadded, Encoding};
use keystead_plugin_api::{
    Algorithm, Call, Code, Error, Host, Secret,
    http::{Request, Response, Value},
};
use serde::Deserialize;
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::{challenge::Challenge, refusal};

/// Where a machine's own identity is asked for.
const IMDS: &str = "http://169.254.169.254";

/// How long an assertion is good for.
const ASSERTION: Duration = Duration::from_secs(300);

const BY_ASSERTION: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";

/// Who this server is, and how it shows that.
#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(crate) enum Credential {
    ClientSecret(Application),
    ClientCertificate(Application),
    WorkloadIdentity(Application),
    ManagedIdentity(Identity),
    AppService(Identity),
}

/// An application of Entra ID.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Application {
    client_id: Option<String>,
    tenant: Option<String>,
    authority: Option<String>,
    /// Of a certificate: whether those above it are sent, too.
    send_chain: Option<bool>,
}

/// The identity of a machine or an app, and which of several.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Identity {
    endpoint: Option<String>,
    client_id: Option<String>,
    object_id: Option<String>,
    resource_id: Option<String>,
}

impl Credential {
    /// Whatever becomes part of a URL stays the part that it is.
    pub(crate) fn check(self) -> Result<Self, Error> {
        match &self {
            Self::ClientCertificate(application) => application.check()?,
            Self::ClientSecret(application) | Self::WorkloadIdentity(application) => {
                application.check()?;
                if application.send_chain.is_some() {
                    let what = "config: `credential.send_chain`: expected only with `client_certificate`";
                    return Err(Error::invalid(what));
                }
            }
            Self::ManagedIdentity(identity) => {
                identity.check()?;
                is_origin("credential.endpoint", identity.endpoint.as_deref(), &["http://", "https://"])?;
            }
            Self::AppService(identity) => identity.check()?,
        }
        Ok(self)
    }

    /// A new token for what a vault asks for, and how long it lives.
    pub(crate) fn token(
        &self,
        host: Host,
        call: &Call<'_>,
        challenge: &Challenge,
    ) -> Result<(Secret, Duration), Error> {
        self.ask(host, call, challenge).map_err(|error| self.judged(error))
    }

    /// A credential that was refused is presented no more until the operator gives another. One that renews itself is:
    /// the next may be good, and there is nothing that could be locked.
    fn judged(&self, mut error: Error) -> Error {
        if matches!(self, Self::WorkloadIdentity(_)) && error.code == Code::Credentials {
            error.code = Code::Denied;
        }
        error
    }

    fn ask(&self, host: Host, call: &Call<'_>, challenge: &Challenge) -> Result<(Secret, Duration), Error> {
        match self {
            Self::ClientSecret(application) => {
                application.token(host, call, challenge, |_, _| Ok(Proof::Secret("client_secret")))
            }
            Self::WorkloadIdentity(application) => application
                .token(host, call, challenge, |_, _| Ok(Proof::Assertion(Value::secret("federated_token")))),
            Self::ClientCertificate(application) => {
                let send_chain = application.send_chain.unwrap_or_default();
                application.token(host, call, challenge, |client, url| {
                    Ok(Proof::Assertion(assertion(host, client, url, send_chain)?.into()))
                })
            }
            Self::ManagedIdentity(identity) => identity.of_the_machine(host, call, challenge),
            Self::AppService(identity) => identity.of_the_app(host, call, challenge),
        }
    }
}

/// What shows that it is the application.
enum Proof {
    /// A secret by its name, also the form's.
    Secret(&'static str),
    Assertion(Value),
}

impl Application {
    fn check(&self) -> Result<(), Error> {
        is_origin("credential.authority", self.authority.as_deref(), &["https://"])
    }

    /// Asks for a token (RFC 6749 section 4.4).
    fn token(
        &self,
        host: Host,
        call: &Call<'_>,
        challenge: &Challenge,
        prove: impl FnOnce(&str, &str) -> Result<Proof, Error>,
    ) -> Result<(Secret, Duration), Error> {
        let client = member(host, "client_id", self.client_id.as_deref())?;
        let authority = self.authority(challenge, self.tenant(host)?)?;
        let url = format!("{authority}/oauth2/v2.0/token");
        let mut form: Vec<(&str, Value)> = vec![
            ("grant_type", "client_credentials".into()),
            ("client_id", client.as_str().into()),
            ("scope", format!("{}/.default", challenge.resource).into()),
        ];
        match prove(&client, &url)? {
            Proof::Secret(name) => form.push((name, Value::secret(name))),
            Proof::Assertion(assertion) => {
                form.push(("client_assertion_type", BY_ASSERTION.into()));
                form.push(("client_assertion", assertion));
            }
        }
        let response = host.fetch(call, &Request::new("POST", url).form(form))?;
        let doing = format!("getting a token for {} from {authority}", challenge.resource);
        taken(&doing, response, refusal::by_authority)
    }

    /// The tenant of the configuration, or of an exposed secret of that name, if either is there.
    fn tenant(&self, host: Host) -> Result<Option<String>, Error> {
        if self.tenant.is_some() {
            return Ok(self.tenant.clone());
        }
        match host.secret("tenant") {
            Ok(secret) => Ok(Some(String::from_utf8_lossy(secret.expose()).trim().to_owned())),
            Err(error) if error.code == Code::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Where tokens are made: as the vault says, whose tenant it is, unless the configuration knows better.
    fn authority(&self, challenge: &Challenge, tenant: Option<String>) -> Result<String, Error> {
        let theirs = challenge.tenant();
        let tenant = tenant.unwrap_or_else(|| theirs.to_owned());
        if is_guid(&tenant) && is_guid(theirs) && !tenant.eq_ignore_ascii_case(theirs) {
            let what = format!("the tenant is `{tenant}`, and the vault belongs to the tenant `{theirs}`");
            return Err(Error::invalid(format!("config: `credential.tenant`: {what}")));
        }
        if !is_tenant(&tenant) {
            return Err(Error::invalid("config: `credential.tenant`: expected a tenant's id or domain"));
        }
        let (host, _) = challenge.authority.rsplit_once('/').unwrap_or_default();
        let host = self.authority.as_deref().map_or(host, |authority| authority.trim_end_matches('/'));
        Ok(format!("{host}/{tenant}"))
    }
}

impl Identity {
    fn check(&self) -> Result<(), Error> {
        let named = [&self.client_id, &self.object_id, &self.resource_id];
        if named.into_iter().flatten().count() > 1 {
            let what = "config: `credential`: expected one of `client_id`, `object_id` and `resource_id`, got several";
            return Err(Error::invalid(what));
        }
        Ok(())
    }

    /// A virtual machine's, from its instance metadata service.
    fn of_the_machine(
        &self,
        host: Host,
        call: &Call<'_>,
        challenge: &Challenge,
    ) -> Result<(Secret, Duration), Error> {
        let endpoint = self.endpoint.as_deref().unwrap_or(IMDS);
        let url = format!("{}/metadata/identity/oauth2/token", endpoint.trim_end_matches('/'));
        let url = self.query(&url, "2018-02-01", "msi_res_id", challenge);
        let request = Request::new("GET", url).header("metadata", "true");
        let doing = format!("getting a token for {} by the machine's identity", challenge.resource);
        taken(&doing, host.fetch(call, &request)?, refusal::by_identity)
    }

    /// An app's, of App Service, Functions or Container Apps.
    fn of_the_app(
        &self,
        host: Host,
        call: &Call<'_>,
        challenge: &Challenge,
    ) -> Result<(Secret, Duration), Error> {
        let endpoint = member(host, "endpoint", self.endpoint.as_deref())?;
        let is_plain = endpoint.starts_with("http") && !endpoint.contains(['?', '#', '@', ' ']);
        if !is_plain {
            return Err(Error::invalid(
                "config: `credential.endpoint`: expected the URL in IDENTITY_ENDPOINT",
            ));
        }
        let url = self.query(&endpoint, "2019-08-01", "mi_res_id", challenge);
        let request = Request::new("GET", url).header("x-identity-header", Value::secret("identity_header"));
        let doing = format!("getting a token for {} by the app's identity", challenge.resource);
        taken(&doing, host.fetch(call, &request)?, refusal::by_identity)
    }

    fn query(&self, url: &str, version: &str, resource_id: &str, challenge: &Challenge) -> String {
        let mut query = form_urlencoded::Serializer::for_suffix(format!("{url}?"), url.len() + 1);
        query.append_pair("api-version", version).append_pair("resource", &challenge.resource);
        let which = [
            ("client_id", &self.client_id),
            ("object_id", &self.object_id),
            (resource_id, &self.resource_id),
        ];
        for (name, value) in which {
            query.extend_pairs(value.iter().map(|value| (name, value)));
        }
        query.finish()
    }
}

/// A member of `credential`; one that isn't there is an exposed secret of that name.
fn member(host: Host, name: &str, written: Option<&str>) -> Result<String, Error> {
    if let Some(written) = written {
        return Ok(written.to_owned());
    }
    let secret = host.secret(name).map_err(|error| match error.code {
        Code::NotFound => Error::invalid(format!("config: `credential.{name}` is missing")),
        _ => error,
    })?;
    let text = str::from_utf8(secret.expose()).map(str::trim).unwrap_or_default();
    match text.is_empty() {
        true => Err(Error::invalid(format!("the secret `{name}`: expected text"))),
        false => Ok(text.to_owned()),
    }
}

/// Refuses a URL that is more than scheme, host and port.
fn is_origin(name: &str, url: Option<&str>, schemes: &[&str]) -> Result<(), Error> {
    let Some(url) = url else { return Ok(()) };
    let host = schemes.iter().find_map(|scheme| url.strip_prefix(scheme));
    let host = host.map(|host| host.trim_end_matches('/'));
    match host.is_some_and(|host| !host.is_empty() && !host.contains(['/', '?', '#', '@', ' '])) {
        true => Ok(()),
        false => Err(Error::invalid(format!(
            "config: `{name}`: expected {}HOST and no path",
            schemes.join("HOST or ")
        ))),
    }
}

/// Whether a text can stand in a URL for a tenant.
fn is_tenant(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '.'))
}

fn is_guid(text: &str) -> bool {
    text.len() == 36 && text.chars().all(|c| c.is_ascii_hexdigit() || c == '-')
}

/// What is answered to whoever asks for a token. Numbers may be text, and one of the two times is there.
#[derive(Deserialize)]
struct Token {
    access_token: String,
    expires_in: Option<Seconds>,
    expires_on: Option<Seconds>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Seconds {
    Number(u64),
    Text(String),
}

impl Seconds {
    fn get(&self) -> Option<Duration> {
        let seconds = match self {
            Self::Number(number) => Some(*number),
            Self::Text(text) => text.parse().ok(),
        };
        seconds.map(Duration::from_secs)
    }
}

impl Token {
    /// The shorter of two times: of a token that its issuer has kept for a while, `expires_in` may be the whole life.
    fn lives(&self) -> Option<Duration> {
        let until = |on| Some(SystemTime::UNIX_EPOCH.checked_add(on)?.duration_since(SystemTime::now()));
        let on =
            self.expires_on.as_ref().and_then(Seconds::get).and_then(until).map(Result::unwrap_or_default);
        let within = self.expires_in.as_ref().and_then(Seconds::get);
        within.into_iter().chain(on).min()
    }
}

/// Takes the token out of an answer, and leaves nothing of it behind.
fn taken(
    doing: &str,
    response: Response,
    refused: fn(&str, &Response) -> Error,
) -> Result<(Secret, Duration), Error> {
    if response.status != 200 {
        return Err(refused(doing, &response));
    }
    let broken =
        |what: &str| Error::new(Code::Unavailable, format!("{doing}: {what}")).with_vendor("HTTP", 200);
    let token: Result<Token, Error> = response.json();
    drop(Secret::new(response.body));
    let token = token.map_err(|error| broken(&error.message))?;
    let lives = token.lives();
    let text = Secret::new(token.access_token.into_bytes());
    if text.expose().is_empty() || !text.expose().iter().all(u8::is_ascii_graphic) {
        return Err(broken("the answer has no token"));
    }
    let lives = lives.ok_or_else(|| broken("the answer doesn't say how long the token lives"))?;
    Ok((text, lives))
}

/// A JWT by the certificate's key that says who the application is (RFC 7523), good for the token endpoint alone.
fn assertion(host: Host, client: &str, url: &str, send_chain: bool) -> Result<String, Error> {
    let certificates = certificates(host.secret("certificate")?.expose());
    let Some(first) = certificates.first() else {
        return Err(Error::invalid("the secret `certificate`: expected a certificate in PEM"));
    };
    let thumbprint = Base64UrlUnpadded::encode_string(&Sha256::digest(first));
    let mut header = json!({"alg": "PS256", "typ": "JWT", "x5t#S256": thumbprint});
    if let (true, Some(header)) = (send_chain, header.as_object_mut()) {
        let chain: Vec<_> = certificates.iter().map(|der| Base64::encode_string(der)).collect();
        header.insert("x5c".to_owned(), chain.into());
    }
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let claims = json!({
        "aud": url, "iss": client, "sub": client, "jti": unique(now),
        "nbf": now.as_secs(), "iat": now.as_secs(), "exp": (now + ASSERTION).as_secs(),
    });
    let encoded = |json: serde_json::Value| Base64UrlUnpadded::encode_string(json.to_string().as_bytes());
    let text = format!("{}.{}", encoded(header), encoded(claims));
    let signature = host.sign_with("certificate_key", Algorithm::RsaPssSha256, text.as_bytes())?;
    Ok(format!("{text}.{}", Base64UrlUnpadded::encode_string(&signature)))
}

/// The certificates of a PEM file, its other parts left aside.
fn certificates(pem: &[u8]) -> Vec<Vec<u8>> {
    let text = str::from_utf8(pem).unwrap_or_default();
    let blocks = text.split("-----BEGIN CERTIFICATE-----").skip(1);
    let base64 = blocks.filter_map(|block| block.split_once("-----END CERTIFICATE-----"));
    base64
        .filter_map(|(base64, _)| Base64::decode_vec(&base64.split_whitespace().collect::<String>()).ok())
        .collect()
}

/// No two are alike: keys of `RandomState` are random.
fn unique(now: Duration) -> String {
    let part = || RandomState::new().hash_one(now);
    format!("{:016x}{:016x}", part(), part())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn challenge() -> Challenge {
        Challenge {
            authority: "https://login.microsoftonline.com/11111111-1111-1111-1111-111111111111".to_owned(),
            resource: "https://vault.azure.net".to_owned(),
        }
    }

    fn application(authority: Option<&str>) -> Application {
        Application { authority: authority.map(str::to_owned), ..Application::default() }
    }

    #[test]
    fn tokens_are_made_where_the_vault_says_unless_the_configuration_knows_better() {
        let authority = |tenant: Option<&str>, authority| {
            let tenant = tenant.map(str::to_owned);
            application(authority).authority(&challenge(), tenant).map_err(|error| error.message)
        };
        assert_eq!(authority(None, None), Ok(challenge().authority));
        let domain = "https://login.microsoftonline.com/contoso.onmicrosoft.com";
        assert_eq!(authority(Some("contoso.onmicrosoft.com"), None), Ok(domain.to_owned()));
        let stack = "https://login.azurestack.example/11111111-1111-1111-1111-111111111111";
        assert_eq!(authority(None, Some("https://login.azurestack.example/")), Ok(stack.to_owned()));
        let other = authority(Some("22222222-1111-1111-1111-111111111111"), None).unwrap_err();
        assert!(other.contains("the vault belongs to the tenant `11111111-"), "{other}");
    }

    #[test]
    fn what_would_lead_elsewhere_is_refused() {
        for authority in
            ["http://login.example", "https://login.example/x", "https://me@login.example", "https://"]
        {
            let error = application(Some(authority)).check().unwrap_err();
            assert!(error.message.starts_with("config: `credential.authority`"), "{error}");
        }
        application(Some("https://login.example:8443/")).check().unwrap();
        for tenant in ["a/b", "", "a?b"] {
            let error = application(None).authority(&challenge(), Some(tenant.to_owned())).unwrap_err();
            assert!(error.message.starts_with("config: `credential.tenant`"), "{error}");
        }
    }

    #[test]
    fn an_identity_is_asked_for_by_one_name() {
        let identity = |json| serde_json::from_value::<Identity>(json).unwrap();
        let one = identity(json!({"resource_id": "/subscriptions/a b"}));
        one.check().unwrap();
        let query = one.query("http://h/token", "2018-02-01", "msi_res_id", &challenge());
        let resource = "resource=https%3A%2F%2Fvault.azure.net&msi_res_id=%2Fsubscriptions%2Fa+b";
        assert_eq!(query, format!("http://h/token?api-version=2018-02-01&{resource}"));
        let error = identity(json!({"client_id": "a", "object_id": "b"})).check().unwrap_err();
        assert!(error.message.contains("got several"), "{error}");
    }

    #[test]
    fn a_token_lives_as_long_as_each_time_says() {
        let taken = |json: serde_json::Value| {
            let response = Response { status: 200, headers: Vec::new(), body: json.to_string().into_bytes() };
            taken("getting it", response, refusal::by_authority)
        };
        let lives = |json| taken(json).map(|(_, lives)| lives.as_secs());
        assert_eq!(lives(json!({"access_token": "t", "expires_in": 3599})), Ok(3599));
        assert_eq!(lives(json!({"access_token": "t", "expires_in": "86399"})), Ok(86399));
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
        let on = lives(json!({"access_token": "t", "expires_on": (now + 500).to_string()})).unwrap();
        assert!((490..=500).contains(&on), "{on}");
        assert_eq!(lives(json!({"access_token": "t", "expires_on": "1"})), Ok(0));
        let kept = json!({"access_token": "t", "expires_in": "86399", "expires_on": (now + 500).to_string()});
        assert!((490..=500).contains(&lives(kept).unwrap()), "one that its issuer kept");
        let slow = json!({"access_token": "t", "expires_in": 300, "expires_on": now + 500});
        assert_eq!(lives(slow), Ok(300));
        for broken in [
            json!({"access_token": "t"}),
            json!({"access_token": "", "expires_in": 1}),
            json!({"access_token": "a\nb", "expires_in": 1}),
            json!({"expires_in": 1}),
            json!([]),
        ] {
            let error = taken(broken).unwrap_err();
            assert_eq!(error.code, Code::Unavailable, "{error}");
        }
    }

    #[test]
    fn certificates_are_found_among_other_things_in_a_file() {
        let pem = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n\
                   -----BEGIN CERTIFICATE-----\nAQID\nBAUG\n-----END CERTIFICATE-----\n\
                   -----BEGIN CERTIFICATE-----\r\nBwgJ\r\n-----END CERTIFICATE-----\r\n";
        assert_eq!(certificates(pem.as_bytes()), [vec![1, 2, 3, 4, 5, 6], vec![7, 8, 9]]);
        assert!(certificates(b"\xff").is_empty() && certificates(b"-----BEGIN CERTIFICATE-----").is_empty());
    }

    #[test]
    fn no_two_assertions_have_the_same_number() {
        let numbers: std::collections::BTreeSet<_> = (0..1000).map(|_| unique(Duration::ZERO)).collect();
        assert_eq!(numbers.len(), 1000);
    }
}
