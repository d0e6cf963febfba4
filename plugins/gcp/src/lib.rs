//! Private keys in Google Cloud KMS and Cloud HSM, which never give them away: the plugin asks for signatures by REST.
//!
//! It keeps nothing between two calls, since its instance may be gone after any of them: a key's id says all that is
//! needed to sign with it, and the access token lives with the host. Credentials are filled in, or signed with, by the
//! host. In reading order: `resource` knows names, `ability` algorithms, `kms` the service's JSON and its checksums,
//! `refusal` what its errors mean, `credential` who asks, `memory` what the host keeps.

#![forbid(unsafe_code)]

mod ability;
mod credential;
mod endpoint;
mod kms;
mod listing;
mod memory;
mod refusal;
mod resource;

use std::{collections::BTreeMap, time::Duration};

use keystead_plugin_api::{
    Advice, Algorithm, Backend, Call, Code, Description, Error, Health, Host, Isolation, Listing, Output,
    Secret,
    http::{Request, Response},
};
use serde::{Deserialize, de::DeserializeOwned};

use crate::{
    credential::{Credential, authorized},
    listing::Look,
    memory::{Listed, Memory},
    resource::{Selector, Version},
};

keystead_plugin_api::export_backend!(Kms);

/// How long a token must still live to be sent along: as long as a request may take.
const SPARE: Duration = Duration::from_secs(10);

/// When a token is replaced ahead of time: a metadata server has another one from four minutes before the end on.
const EARLY: Duration = Duration::from_secs(225);

/// A store of keys in Cloud KMS.
pub struct Kms {
    host: Host,
    config: Config,
}

/// The configuration, as the README explains it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    uris: Vec<String>,
    #[serde(default)]
    versions: Wanted,
    prefix: Option<String>,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    #[serde(default)]
    credential: Credential,
    #[serde(default = "Written::endpoint")]
    endpoint: String,
    quota_project: Option<String>,
}

/// Which of a key's enabled versions are served.
#[derive(Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Wanted {
    #[default]
    Newest,
    Enabled,
}

/// The same, checked.
struct Config {
    chosen: Vec<Selector>,
    versions: Wanted,
    prefix: String,
    labels: BTreeMap<String, String>,
    credential: Credential,
    endpoint: String,
    quota_project: Option<String>,
}

impl Written {
    fn endpoint() -> String {
        "https://cloudkms.googleapis.com".to_owned()
    }

    /// Whatever becomes part of a URL stays the part that it is.
    fn check(self) -> Result<Config, Error> {
        let Self { uris, versions, prefix, labels, credential, endpoint, quota_project } = self;
        let selector = |(index, uri): (usize, &String)| {
            let unknown = || Error::invalid(format!("config: `uris[{index}]`: {}", resource::EXPECTED));
            Selector::parse(uri).ok_or_else(unknown)
        };
        let prefix = prefix.unwrap_or_default();
        if !prefix.is_empty() && !resource::is_prefix(&prefix) {
            return Err(Error::invalid(
                "config: `prefix`: expected how names of keys begin: letters, digits, `-` and `_`",
            ));
        }
        Ok(Config {
            chosen: uris.iter().enumerate().map(selector).collect::<Result<_, _>>()?,
            versions,
            prefix,
            labels,
            credential: credential.check()?,
            endpoint: endpoint::of("`endpoint`", &endpoint)?,
            quota_project,
        })
    }
}

impl Config {
    fn serves(&self, version: &Version) -> bool {
        self.chosen.iter().any(|chosen| {
            let whole_ring = matches!(chosen, Selector::Ring(_));
            chosen.covers(version) && (!whole_ring || version.key.key.starts_with(&self.prefix))
        })
    }
}

impl Backend for Kms {
    const DESCRIPTION: Description = Description {
        name: "gcp",
        version: env!("CARGO_PKG_VERSION"),
        vendor: "Keystead",
        isolation: Isolation::Inline,
        lanes_max: None,
        schema: include_str!("schema.json"),
    };

    /// Asks nobody: an instance may be made for a single signature.
    fn open(host: Host) -> Result<Self, Error> {
        Ok(Self { config: host.config::<Written>()?.check()?, host })
    }

    /// What can't be asked doesn't hide the other keys at first; later on, where more than before can't be asked, the host
    /// keeps the former listing.
    fn keys(&self, call: &Call<'_>) -> Result<Listing, Error> {
        self.refresh(call)?;
        let before = self.memory(call).listed().unwrap_or_default();
        let Look { listing, lacks, looks } = listing::list(self, call, before.lacks)?;
        self.memory(call).note_listed(before.again(lacks, looks))?;
        Ok(listing)
    }

    fn sign(
        &self,
        call: &Call<'_>,
        key: &[u8],
        algorithm: Algorithm,
        input: &[u8],
        out: &mut Output<'_>,
    ) -> Result<(), Error> {
        let known = Version::of_id(key).filter(|(version, _)| self.config.serves(version));
        let (version, ability) = known.ok_or_else(Error::unknown_key)?;
        let input = ability.input(algorithm, input)?;
        let request =
            Request::new("POST", self.url(&format!("{version}:asymmetricSign"))).json(&kms::request(&input));
        let doing = format!("signing with `{}`", version.label());
        let signature: kms::Signature = self.ask(call, &doing, &request).map_err(not_of_the_input)?;
        out.write(&signature.bytes(&version, &input).map_err(|error| kms::about(&doing, error))?)
    }

    /// Cloud KMS decrypts OAEP alone, which no handshake has.
    fn decrypt(
        &self,
        _call: &Call<'_>,
        key: &[u8],
        algorithm: Algorithm,
        _input: &[u8],
        _out: &mut Output<'_>,
    ) -> Result<(), Error> {
        let known = Version::of_id(key).filter(|(version, _)| self.config.serves(version));
        Err(known.map_or_else(Error::unknown_key, |_| Error::unsupported(algorithm)))
    }

    fn advice(&self) -> Advice {
        // Each lane waits for the network nearly all of the time.
        Advice { lanes: Some(64), stuck_after: None }
    }

    /// Gets another token before the one that is used ends, and looks for what was rotated, enabled or disabled. Before the
    /// first listing nothing can have changed, and a ring that is read twice at a start could cost a minute's quota.
    fn health(&self, call: &Call<'_>) -> Result<Health, Error> {
        self.refresh(call)?;
        let Some(listed) = self.memory(call).listed() else {
            return Ok(Health { generation: Listed::default().last });
        };
        self.memory(call).note_listed(listed)?; // it must not end in a long outage
        let listed = match listing::looks(self, call, listed.lacks) {
            // A quota that is used up keeps from looking, and is no outage: the store signs, and to ask more often, as of
            // one that is down, would use it up for good. What was last seen counts on.
            Err(error) if error.code == Code::Throttled => listed,
            looks => listed.answered(looks?),
        };
        self.memory(call).note_listed(listed)?;
        Ok(Health { generation: listed.last })
    }

    fn close(&self, _grace: Duration) {}
}

impl Kms {
    fn url(&self, path: &str) -> String {
        format!("{}/v1/{path}", self.config.endpoint)
    }

    fn memory<'a>(&self, call: &'a Call<'a>) -> Memory<'a> {
        Memory { host: self.host, call }
    }

    fn token(&self, call: &Call<'_>, at_least: Duration) -> Result<Secret, Error> {
        self.memory(call).token(at_least, || self.config.credential.token(self.host, call))
    }

    /// Has a token that lives for a while. As long as the old one does, it is no matter where this fails.
    fn refresh(&self, call: &Call<'_>) -> Result<(), Error> {
        let Err(error) = self.token(call, EARLY) else { return Ok(()) };
        self.token(call, SPARE)?;
        tracing::warn!("no new access token, while the old one still lives: {error}");
        Ok(())
    }

    /// Asks the service, and takes a successful answer apart.
    fn ask<T: DeserializeOwned>(&self, call: &Call<'_>, doing: &str, request: &Request) -> Result<T, Error> {
        let (token, mut response) = self.fetch(call, request).map_err(|error| kms::about(doing, error))?;
        if response.status == 200 {
            return kms::read(doing, &response);
        }
        if let (Ok(token), Ok(said)) = (str::from_utf8(token.expose()), str::from_utf8(&response.body)) {
            response.body = said.replace(token, "…").into_bytes(); // whoever repeats it, it goes no further
        }
        Err(refusal::of_the_api(doing, &response))
    }

    /// Where a token is refused that should live, it was revoked: another one is tried, once.
    fn fetch(&self, call: &Call<'_>, request: &Request) -> Result<(Secret, Response), Error> {
        let (token, response) = self.send(call, request)?;
        if response.status != 401 || self.memory(call).was_refused() {
            return Ok((token, response));
        }
        self.memory(call).forget_token(&token);
        let sent = self.send(call, request)?;
        if sent.1.status == 401 {
            self.memory(call).note_refused();
        }
        Ok(sent)
    }

    /// Sends a request with a token.
    fn send(&self, call: &Call<'_>, request: &Request) -> Result<(Secret, Response), Error> {
        let token = self.token(call, SPARE).map_err(not_of_a_key)?;
        let response = self.host.fetch(call, &self.with(request, &token))?;
        Ok((token, response))
    }

    fn with(&self, request: &Request, token: &Secret) -> Request {
        let request = authorized(request.clone(), token);
        match &self.config.quota_project {
            Some(project) => request.header("x-goog-user-project", project.as_str()),
            None => request,
        }
    }
}

/// What a token endpoint refuses in the middle of a listing is not about the key that was just asked for: those errors have
/// the status of the service of keys.
fn not_of_a_key(mut error: Error) -> Error {
    error.vendor = None;
    error
}

/// While signing, nothing that is wrong with the configuration or a request of ours is wrong with the input: another
/// store that has the key may sign it.
fn not_of_the_input(mut error: Error) -> Error {
    if error.code == Code::InvalidInput {
        error.code = Code::Denied;
    }
    error
}
