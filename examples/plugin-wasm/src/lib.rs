//! Private keys in the transit engine of [OpenBao](https://openbao.org), or of HashiCorp Vault, which never gives them
//! away: the plugin asks for signatures over HTTP.
//!
//! An example of a plugin for the sandbox. It is an ordinary [`Backend`]: built for `wasm32-wasip2` it becomes a
//! component, built natively a library. It keeps nothing between two calls, since its instance may be gone after any of
//! them; a key's id says all that is needed to sign with it. It works without seeing its token: it says where in a
//! request the token belongs, and the host puts it there.
//!
//! `transit` knows the engine's JSON.

#![forbid(unsafe_code)]

mod transit;

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    time::Duration,
};

use keystead_plugin_api::{
    Advice, Algorithm, Backend, Call, Code, Description, Error, Health, Host, Isolation, Listing, Output,
    http,
};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::json;

use crate::transit::{Answer, Named, Names, Signature, Version};

keystead_plugin_api::export_backend!(Transit);

/// A store of keys in a transit engine.
pub struct Transit {
    host: Host,
    config: Config,
}

/// The configuration, as the README explains it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    url: String,
    #[serde(default = "Config::mount")]
    mount: String,
    namespace: Option<String>,
    keys: Option<Vec<String>>,
}

impl Config {
    fn mount() -> String {
        "transit".to_owned()
    }

    /// Whatever becomes part of a URL stays the part that it is.
    fn check(mut self) -> Result<Self, Error> {
        self.url.truncate(self.url.trim_end_matches('/').len());
        let host = self.url.strip_prefix("https://").or_else(|| self.url.strip_prefix("http://"));
        if !host.is_some_and(|host| !host.is_empty() && !host.contains(['/', '?', '#', '@'])) {
            return Err(Error::invalid("config: `url`: expected https://HOST:PORT and no path"));
        }
        self.mount = self.mount.trim_matches('/').to_owned();
        if !self.mount.split('/').all(transit::is_name) {
            return Err(Error::invalid(
                "config: `mount`: expected a path of letters, digits, `-`, `_` and `.`",
            ));
        }
        match self.keys.iter().flatten().find(|name| !transit::is_name(name)) {
            Some(name) => Err(Error::invalid(format!("config: `keys`: `{name}` can't be the name of a key"))),
            None => Ok(self),
        }
    }

    fn serves(&self, name: &str) -> bool {
        self.keys.as_ref().is_none_or(|keys| keys.iter().any(|key| key == name))
    }
}

impl Backend for Transit {
    const DESCRIPTION: Description = Description {
        name: "openbao-transit",
        version: env!("CARGO_PKG_VERSION"),
        vendor: "Keystead",
        isolation: Isolation::Inline,
        lanes_max: None,
        schema: include_str!("schema.json"),
    };

    /// Asks nobody: an instance may be made for a single signature.
    fn open(host: Host) -> Result<Self, Error> {
        Ok(Self { config: host.config::<Config>()?.check()?, host })
    }

    fn keys(&self, call: &Call<'_>) -> Result<Listing, Error> {
        let mut listing = Listing::default();
        for name in self.names(call)? {
            let response = self.host.fetch(call, &self.request("GET", &format!("keys/{name}")))?;
            match self.read::<Named>(call, &format!("reading the key `{name}`"), &response) {
                Ok(named) => named.list(&name, &mut listing),
                Err(error) if is_about_one_key(&error) => {
                    listing.findings.push(transit::finding(&name, error));
                }
                Err(error) => return Err(error),
            }
        }
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
        let version = Version::parse(key).filter(|version| self.config.serves(version.name));
        let version = version.ok_or_else(Error::unknown_key)?;
        let body = version.request(algorithm, input)?;
        let request = self.request("POST", &format!("sign/{}", version.name)).json(&body);
        let response = self.host.fetch(call, &request)?;
        let doing = format!("signing with `{}` version {}", version.name, version.number);
        out.write(&self.read::<Signature>(call, &doing, &response)?.bytes()?)
    }

    /// The engine decrypts only what has a padding that it knows, which raw RSA hasn't.
    fn decrypt(
        &self,
        _call: &Call<'_>,
        key: &[u8],
        algorithm: Algorithm,
        _input: &[u8],
        _out: &mut Output<'_>,
    ) -> Result<(), Error> {
        let version = Version::parse(key).filter(|version| self.config.serves(version.name));
        Err(version.map_or_else(Error::unknown_key, |_| Error::unsupported(algorithm)))
    }

    fn advice(&self) -> Advice {
        // Each lane waits for the network most of the time.
        Advice { lanes: Some(16), stuck_after: None }
    }

    /// Lists: that needs what signing needs, and shows a key that was made, rotated or deleted.
    fn health(&self, call: &Call<'_>) -> Result<Health, Error> {
        let listing = self.keys(call)?;
        let mut hasher = DefaultHasher::new();
        listing.keys.iter().for_each(|key| (&key.id, &key.spki).hash(&mut hasher));
        listing
            .findings
            .iter()
            .for_each(|finding| (&finding.subject, &finding.error.message).hash(&mut hasher));
        Ok(Health { generation: hasher.finish() })
    }

    fn close(&self, _grace: Duration) {}
}

impl Transit {
    /// The names of the keys to serve. An engine without keys says that there is nothing.
    fn names(&self, call: &Call<'_>) -> Result<Vec<String>, Error> {
        if let Some(names) = &self.config.keys {
            return Ok(names.clone());
        }
        let response = self.host.fetch(call, &self.request("GET", "keys?list=true"))?;
        if response.status == 404 && transit::said(&response.body).is_empty() {
            return Ok(Vec::new());
        }
        let mut names = self.read::<Names>(call, "listing the keys", &response)?.keys;
        names.retain(|name| transit::is_name(name));
        Ok(names)
    }

    /// A request to the engine.
    fn request(&self, method: &str, path: &str) -> http::Request {
        self.to(method, &format!("{}/{path}", self.config.mount))
    }

    /// A request to the server, with the token. The header `x-vault-request` is what agents and proxies want to see.
    fn to(&self, method: &str, path: &str) -> http::Request {
        let request = http::Request::new(method, format!("{}/v1/{path}", self.config.url))
            .header("x-vault-token", http::Value::secret("token"))
            .header("x-vault-request", "true");
        match &self.config.namespace {
            Some(namespace) => request.header("x-vault-namespace", namespace.as_str()),
            None => request,
        }
    }

    /// Takes an answer apart.
    fn read<T: DeserializeOwned>(
        &self,
        call: &Call<'_>,
        doing: &str,
        response: &http::Response,
    ) -> Result<T, Error> {
        if response.status == 200 {
            return Ok(response.json::<Answer<T>>()?.data);
        }
        let error = transit::refusal(doing, response);
        Err(if error.code == Code::Denied { self.look_into(error, call) } else { error })
    }

    /// The server says `permission denied` whether it doesn't know the token or a policy says no. Every token that it
    /// knows may ask what it may do, by the policy `default`; asked about itself, the server would show the token.
    fn look_into(&self, mut denied: Error, call: &Call<'_>) -> Error {
        let paths = json!({"paths": [self.config.mount]});
        let asked = self.host.fetch(call, &self.to("POST", "sys/capabilities-self").json(&paths));
        if asked.is_ok_and(|response| response.status == 403) {
            denied.code = Code::Credentials;
            denied.message += ": it doesn't know the token, which is wrong, revoked or expired";
        }
        denied
    }
}

/// Whether an error of reading a key is the server's, and says nothing about the others.
fn is_about_one_key(error: &Error) -> bool {
    error.vendor.is_some() && matches!(error.code, Code::NotFound | Code::Denied | Code::InvalidInput)
}
