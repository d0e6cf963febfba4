//! A component's way to the host: the imports of its world.

use std::time::Duration;

use crate::{
    Algorithm, Call, Error, Secret,
    component::bindings::keystead::backend::{cache, credential, host, http},
    http::{Body, Part, Request, Response, Value},
};

/// The imports: there is one host.
#[derive(Clone, Copy)]
pub(crate) struct Way;

/// A component presents no credentials.
#[derive(Clone, Copy)]
pub(super) enum Memory {}

impl Way {
    pub(super) fn config(self) -> Result<Secret, Error> {
        Ok(Secret::new(host::config("").unwrap_or_default().into_bytes()))
    }

    pub(super) fn secret(self, name: &str) -> Result<Secret, Error> {
        Ok(Secret::new(credential::value(name)?))
    }

    pub(super) fn keys_changed(self) {
        host::keys_changed();
    }

    #[expect(clippy::unused_self, reason = "the shape of a way")]
    pub(super) fn credentials(self) -> Option<Memory> {
        None
    }

    /// The host knows how long the call lasts.
    pub(super) fn fetch(self, _call: &Call<'_>, request: &Request) -> Result<Response, Error> {
        let http::Response { status, headers, body } = http::fetch(&http::Request {
            method: request.method.clone(),
            url: request.url.clone(),
            headers: fields(&request.headers),
            body: match &request.body {
                Body::None => http::Body::None,
                Body::Bytes(bytes) => http::Body::Bytes(bytes.clone()),
                Body::Form(form) => http::Body::Form(fields(form)),
            },
        })?;
        Ok(Response { status, headers, body })
    }

    pub(super) fn cached(
        self,
        _call: &Call<'_>,
        name: &str,
        at_least: Duration,
    ) -> Result<Option<Secret>, Error> {
        Ok(cache::get(name, milliseconds(at_least))?.map(Secret::new))
    }

    pub(super) fn keep(self, name: &str, value: &Secret, lives: Duration) -> Result<(), Error> {
        Ok(cache::put(name, value.expose(), milliseconds(lives))?)
    }

    pub(super) fn give_up(self, name: &str) {
        cache::give_up(name);
    }

    pub(super) fn forget(self, name: &str, value: &Secret) {
        cache::forget(name, value.expose());
    }

    pub(super) fn sign_with(
        self,
        secret: &str,
        algorithm: Algorithm,
        message: &[u8],
    ) -> Result<Vec<u8>, Error> {
        Ok(credential::sign(secret, algorithm.number(), message)?)
    }

    pub(super) fn hmac_with(self, secret: &str, prefix: &[u8], message: &[u8]) -> Result<Vec<u8>, Error> {
        Ok(credential::hmac(secret, prefix, message)?)
    }
}

impl Memory {
    pub(super) fn refused(self, _token: &str, _secret: &[u8]) -> bool {
        match self {}
    }

    pub(super) fn report(self, _token: &str, _secret: &[u8]) {
        match self {}
    }

    pub(super) fn accepted(self, _token: &str, _secret: &[u8]) {
        match self {}
    }
}

fn fields(values: &[(String, Value)]) -> Vec<http::Field> {
    let field = |(name, value): &(String, Value)| http::Field {
        name: name.clone(),
        value: value.0.iter().map(part).collect(),
    };
    values.iter().map(field).collect()
}

fn part(part: &Part) -> http::Part {
    match part {
        Part::Text(text) => http::Part::Text(text.clone()),
        Part::Secret(name) => http::Part::Secret(name.clone()),
    }
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
