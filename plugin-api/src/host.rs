//! The host as a plugin sees it: configuration, secrets, HTTP, values that expire, the memory of refused credentials.
//!
//! What goes over the boundary is in `way`: the C table's for a library, the imports of WIT for a component.

#[cfg_attr(target_family = "wasm", path = "host/guest.rs")]
#[cfg_attr(not(target_family = "wasm"), path = "host/native.rs")]
mod way;

use std::time::Duration;

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{
    Algorithm, Call, Code, Error, Secret, Vendor,
    http::{Request, Response},
};

pub(crate) use way::Way;

/// A store's way to the host. Cheap to copy, usable from any thread until the process ends.
#[derive(Clone, Copy)]
pub struct Host {
    way: Way,
}

impl Host {
    pub(crate) fn by(way: Way) -> Self {
        Self { way }
    }

    #[cfg(not(target_family = "wasm"))]
    pub(crate) fn way(self) -> Way {
        self.way
    }

    /// The store's configuration.
    ///
    /// # Errors
    ///
    /// [`Code::InvalidInput`] which names the member and what was expected there, and not the value, which may be
    /// a secret.
    pub fn config<T: DeserializeOwned>(&self) -> Result<T, Error> {
        let json = self.way.config()?;
        decode(json.expose()).map_err(|message| Error::invalid(format!("config: {message}")))
    }

    /// The value of a secret that the store's `secrets` name, read afresh at each call. A component gets only those with
    /// `expose: true`.
    ///
    /// # Errors
    ///
    /// [`Code::NotFound`] where `secrets` has no such name, [`Code::Denied`] where a component may not have it,
    /// [`Code::Unavailable`] where its source can't be read.
    pub fn secret(&self, name: &str) -> Result<Secret, Error> {
        self.way.secret(name)
    }

    /// Tells the host to list the keys again.
    pub fn keys_changed(&self) {
        self.way.keys_changed();
    }

    /// The host's memory of refused credentials; `None` where the host has none, as for components: what is presented for
    /// those, the host presents.
    #[must_use]
    pub fn credentials(&self) -> Option<Credentials> {
        self.way.credentials().map(Credentials)
    }

    /// Sends a request and waits for the whole answer, no longer than the call has time.
    ///
    /// # Errors
    ///
    /// [`Code::Denied`] where no grant of the store covers it, with the line of YAML that would; [`Code::Unavailable`]
    /// without a connection or with a broken one, [`Code::Deadline`], [`Code::InvalidInput`] for a request that can't be
    /// sent. A status of any kind is an answer.
    pub fn fetch(&self, call: &Call<'_>, request: &Request) -> Result<Response, Error> {
        self.way.fetch(call, request)
    }

    /// A value that expires, shared by all that serve this store: an access token. Where none lives for `at_least` from
    /// now, one caller gets a new one by `get`, with how long it lives, and the others wait for it.
    ///
    /// # Errors
    ///
    /// What `get` answers; [`Code::Deadline`] where another's took too long.
    pub fn cached(
        &self,
        call: &Call<'_>,
        name: &str,
        at_least: Duration,
        get: impl FnOnce() -> Result<(Secret, Duration), Error>,
    ) -> Result<Secret, Error> {
        if let Some(value) = self.way.cached(call, name, at_least)? {
            return Ok(value);
        }
        let duty = Duty { way: self.way, name };
        let (value, lives) = get()?;
        std::mem::forget(duty);
        self.way.keep(name, &value, lives)?;
        Ok(value)
    }

    /// As [`cached`](Self::cached), where whoever is asked for the value may be overrun: once `get` has failed, all are
    /// answered its error for `pause`, or until it says to come back where that is sooner, and nobody asks again. Not so
    /// where a call had too little time: that is its own trouble.
    ///
    /// # Errors
    ///
    /// As [`cached`](Self::cached), or what `get` answered just now.
    pub fn cached_or_failed(
        &self,
        call: &Call<'_>,
        name: &str,
        at_least: Duration,
        pause: Duration,
        get: impl FnOnce() -> Result<(Secret, Duration), Error>,
    ) -> Result<Secret, Error> {
        let failed = format!("{name} failed");
        self.cached(call, name, at_least, || {
            if let Some(error) = self.kept(call, &failed).and_then(|noted| Noted::read(&noted)) {
                return Err(error);
            }
            get().inspect_err(|error| {
                if error.code != Code::Deadline {
                    let lives = error.retry_after.unwrap_or(pause).min(pause);
                    let _ = self.keep(call, &failed, Noted::of(error), lives); // what isn't kept isn't missed
                }
            })
        })
    }

    /// What [`keep`](Self::keep) has kept under a name, as long as it lives.
    #[must_use]
    pub fn kept(&self, call: &Call<'_>, name: &str) -> Option<Secret> {
        let nothing = || Err(Error::new(Code::NotFound, "nothing is kept"));
        self.cached(call, name, Duration::ZERO, nothing).ok()
    }

    /// Keeps a value for all that serve this store, in place of what was kept under the name; for a day at most.
    ///
    /// # Errors
    ///
    /// [`Code::InvalidInput`] where the value or the name is too long, or the store keeps too many.
    pub fn keep(&self, call: &Call<'_>, name: &str, value: Secret, lives: Duration) -> Result<(), Error> {
        self.cached(call, name, DAY, || Ok((value, lives))).map(drop) // nothing lives longer: so it is always put anew
    }

    /// Forgets a value that [`cached`](Self::cached) gave and that turned out to be no longer good.
    pub fn forget(&self, name: &str, value: &Secret) {
        self.way.forget(name, value);
    }

    /// Signs a message with the private key that a secret is: PEM or DER, PKCS#8, PKCS#1 or SEC 1. The algorithm is one
    /// that signs a digest, which the host makes of the message, or Ed25519; ECDSA gives DER.
    ///
    /// # Errors
    ///
    /// As [`secret`](Self::secret); [`Code::InvalidInput`] where the secret is no such key.
    pub fn sign_with(&self, secret: &str, algorithm: Algorithm, message: &[u8]) -> Result<Vec<u8>, Error> {
        self.way.sign_with(secret, algorithm, message)
    }

    /// HMAC-SHA-256 (RFC 2104) of a message; the key is a secret, with `prefix` before it.
    ///
    /// # Errors
    ///
    /// As [`secret`](Self::secret).
    pub fn hmac_with(&self, secret: &str, prefix: &[u8], message: &[u8]) -> Result<Vec<u8>, Error> {
        self.way.hmac_with(secret, prefix, message)
    }
}

/// The longest that a value is kept.
const DAY: Duration = Duration::from_secs(24 * 3600);

/// An error, as it is kept.
#[derive(Serialize, Deserialize)]
struct Noted {
    code: u32,
    message: String,
    vendor: Option<(String, u64)>,
    retry_after: Option<Duration>,
}

impl Noted {
    fn of(error: &Error) -> Secret {
        let Error { code, message, vendor, retry_after } = error.clone();
        let vendor = vendor.map(|vendor| (vendor.name, vendor.number));
        let noted = Self { code: code as u32, message, vendor, retry_after };
        Secret::new(serde_json::to_vec(&noted).unwrap_or_default())
    }

    fn read(noted: &Secret) -> Option<Error> {
        let Self { code, message, vendor, retry_after } = serde_json::from_slice(noted.expose()).ok()?;
        let vendor = vendor.map(|(name, number)| Vendor::new(name, number));
        Some(Error { vendor, retry_after, ..Error::new(Code::from_number(code), message) })
    }
}

/// The duty to get a value that others may wait for: who doesn't, hands it on.
struct Duty<'a> {
    way: Way,
    name: &'a str,
}

impl Drop for Duty<'_> {
    fn drop(&mut self) {
        self.way.give_up(self.name);
    }
}

/// The host's memory of refused credentials: ask before presenting a secret to a token, report when it was refused.
#[derive(Clone, Copy)]
pub struct Credentials(way::Memory);

impl Credentials {
    /// Whether this token has refused this secret before. Then it must not be presented again.
    #[must_use]
    pub fn refused(&self, token: &str, secret: &[u8]) -> bool {
        self.0.refused(token, secret)
    }

    /// Remembers that this token refused this secret, until the secret or the configuration changes.
    pub fn report(&self, token: &str, secret: &[u8]) {
        self.0.report(token, secret);
    }

    /// Notes that this token accepted this secret. Until then, or until the store is open, the death of the plugin's
    /// process counts as a refusal.
    pub fn accepted(&self, token: &str, secret: &[u8]) {
        self.0.accepted(token, secret);
    }
}

/// Decodes JSON; a message names the member, and never its value.
fn decode<T: DeserializeOwned>(json: &[u8]) -> Result<T, String> {
    let mut decoder = serde_json::Deserializer::from_slice(json);
    serde_path_to_error::deserialize(&mut decoder).map_err(|error| {
        let message = without_value(&error.inner().to_string());
        match error.path().to_string().as_str() {
            "." => message,
            path => format!("`{path}`: {message}"),
        }
    })
}

/// A message of serde_json without the value it quotes, and without its place in a text that nobody wrote.
fn without_value(message: &str) -> String {
    let message = message.rsplit_once(" at line ").map_or(message, |(message, _)| message);
    for kind in ["invalid type", "invalid value", "unknown variant"] {
        if message.starts_with(kind) {
            let expected = message.rfind(", expected ").and_then(|at| message.get(at..));
            return format!("{kind}{}", expected.unwrap_or_default());
        }
    }
    message.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_that_was_kept_is_the_same() {
        let plain = Error::new(Code::Denied, "no");
        let whole = plain.clone().with_vendor("HTTP", 403).with_retry_after(Duration::from_millis(1500));
        for error in [plain, whole] {
            assert_eq!(Noted::read(&Noted::of(&error)), Some(error));
        }
        assert_eq!(Noted::read(&Secret::new(b"lately".to_vec())), None);
    }

    #[test]
    fn a_message_about_the_configuration_never_quotes_a_value() {
        #[derive(Debug, serde::Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Config {
            #[expect(dead_code, reason = "only decoding is tested")]
            uris: Vec<String>,
        }
        let message = |json: &str| decode::<Config>(json.as_bytes()).unwrap_err();
        assert_eq!(
            message(r#"{"uris": "hunter2, expected nothing"}"#),
            "`uris`: invalid type, expected a sequence"
        );
        assert_eq!(message(r#"{"uris": ["a", 2222]}"#), "`uris[1]`: invalid type, expected a string");
        assert_eq!(message(r#"{"uri": []}"#), "`uri`: unknown field `uri`, expected `uris`");
        assert_eq!(message("{}"), "missing field `uris`");
    }
}
