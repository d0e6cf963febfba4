//! What a component may import: the host's side of its world.

#[allow(clippy::all, clippy::pedantic, clippy::restriction, reason = "made by wasmtime of the WIT package")]
pub(super) mod bindings {
    wasmtime::component::bindgen!({
        path: "../../plugin-api/wit",
        world: "backend",
        imports: { "keystead:backend/http.fetch": async, "keystead:backend/cache.get": async },
        exports: { default: async },
    });
}

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use aws_lc_rs::rand;
use keystead_plugin_api::{
    Code, Error,
    http::{Body, Part, Request, Value},
};
use zeroize::Zeroizing;

use super::guest::State;
use crate::{
    failure::tame,
    instance::Refusal,
    native::RETRY_AFTER_MAX,
    reach::Reach,
    services::{Event, config_at},
};
use bindings::keystead::backend::{
    cache, credential, host,
    http::{self, Field},
    types,
};

/// How many random bytes there are at once.
pub(super) const RANDOM_MAX: u32 = 64 << 10;

impl State {
    fn reach(&self) -> Result<Arc<Reach>, types::Error> {
        let reach = self.served.as_ref().map(|served| Arc::clone(&served.reach));
        reach.ok_or_else(|| Error::new(Code::Denied, "a plugin that says what it is reaches nothing").into())
    }
}

impl types::Host for State {}

impl host::Host for State {
    fn log_enabled(&mut self, level: host::Level) -> bool {
        self.served.as_ref().is_some_and(|served| served.side.wants(number(level)))
    }

    fn log(&mut self, level: host::Level, target: String, message: String, fields: String) {
        let Some(served) = &self.served else { return };
        let event = Event {
            level: number(level),
            target: target.as_bytes(),
            message: message.as_bytes(),
            fields: fields.as_bytes(),
            request: self.request.as_bytes(),
        };
        if served.may_log() {
            served.side.log(&event);
        }
    }

    fn config(&mut self, path: String) -> Option<String> {
        let value = config_at(self.served.as_ref()?.side, &path)?;
        String::from_utf8(value.to_vec()).ok()
    }

    fn keys_changed(&mut self) {
        if let Some(served) = &self.served {
            served.side.keys_changed();
        }
    }

    fn unix_time(&mut self) -> u64 {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        u64::try_from(now.as_nanos()).unwrap_or(u64::MAX)
    }

    fn random(&mut self, len: u32) -> Result<Vec<u8>, types::Error> {
        if len > RANDOM_MAX {
            return Err(Error::invalid(format!("at most {RANDOM_MAX} random bytes at once")).into());
        }
        let mut bytes = vec![0; len as usize];
        let filled = rand::fill(&mut bytes);
        filled.map(|()| bytes).map_err(|_| Error::new(Code::Internal, "no random bytes").into())
    }
}

fn number(level: host::Level) -> u32 {
    match level {
        host::Level::Error => 1,
        host::Level::Warn => 2,
        host::Level::Info => 3,
        host::Level::Debug => 4,
        host::Level::Trace => 5,
    }
}

impl credential::Host for State {
    fn value(&mut self, name: String) -> Result<Vec<u8>, types::Error> {
        Ok(self.reach()?.exposed(&name)?.to_vec())
    }

    fn sign(&mut self, name: String, algorithm: u32, message: Vec<u8>) -> Result<Vec<u8>, types::Error> {
        Ok(self.reach()?.sign(&name, algorithm, &message)?)
    }

    fn hmac(&mut self, name: String, prefix: Vec<u8>, message: Vec<u8>) -> Result<Vec<u8>, types::Error> {
        Ok(self.reach()?.hmac(&name, &prefix, &message)?)
    }
}

impl http::Host for State {
    async fn fetch(&mut self, request: http::Request) -> Result<http::Response, types::Error> {
        let response = self.reach()?.fetch(request.into(), self.deadline).await?;
        Ok(http::Response { status: response.status, headers: response.headers, body: response.body })
    }
}

impl From<http::Request> for Request {
    fn from(request: http::Request) -> Self {
        let http::Request { method, url, headers, body } = request;
        let body = match body {
            http::Body::None => Body::None,
            http::Body::Bytes(bytes) => Body::Bytes(bytes),
            http::Body::Form(form) => Body::Form(fields(form)),
        };
        Self { method, url, headers: fields(headers), body }
    }
}

fn fields(fields: Vec<Field>) -> Vec<(String, Value)> {
    let part = |part| match part {
        http::Part::Text(text) => Part::Text(text),
        http::Part::Secret(name) => Part::Secret(name),
    };
    let field = |field: Field| (field.name, Value(field.value.into_iter().map(part).collect()));
    fields.into_iter().map(field).collect()
}

impl cache::Host for State {
    async fn get(&mut self, name: String, at_least_ms: u64) -> Result<Option<Vec<u8>>, types::Error> {
        let at_least = Duration::from_millis(at_least_ms);
        let got = self.reach()?.expiring.get(&name, at_least, self.deadline).await?;
        if got.is_none() {
            self.duties.push(name);
        }
        Ok(got.map(|value| value.to_vec()))
    }

    fn put(&mut self, name: String, value: Vec<u8>, for_ms: u64) -> Result<(), types::Error> {
        self.reach()?.expiring.put(&name, Zeroizing::new(value), Duration::from_millis(for_ms))?;
        self.duties.retain(|duty| *duty != name);
        Ok(())
    }

    fn give_up(&mut self, name: String) {
        if let Ok(reach) = self.reach() {
            reach.expiring.give_up(&name);
        }
        self.duties.retain(|duty| *duty != name);
    }

    fn forget(&mut self, name: String, value: Vec<u8>) {
        if let Ok(reach) = self.reach() {
            reach.expiring.forget(&name, &Zeroizing::new(value));
        }
    }
}

impl From<Error> for types::Error {
    fn from(error: Error) -> Self {
        Self {
            code: error.code as u32,
            message: error.message,
            vendor: error.vendor.map(|vendor| types::VendorCode { name: vendor.name, number: vendor.number }),
            retry_after_ms: error
                .retry_after
                .map(|after| u64::try_from(after.as_millis()).unwrap_or(u64::MAX)),
        }
    }
}

/// An error of a guest, its text cut and escaped.
impl From<types::Error> for Error {
    fn from(said: types::Error) -> Self {
        let mut error = Self::new(Code::from_number(said.code), tame(said.message.as_bytes(), 1024));
        if let Some(vendor) = said.vendor {
            error = error.with_vendor(tame(vendor.name.as_bytes(), 64), vendor.number);
        }
        if let Some(after) = said.retry_after_ms {
            error = error.with_retry_after(Duration::from_millis(after).min(RETRY_AFTER_MAX));
        }
        error
    }
}

impl From<types::Error> for Refusal {
    fn from(said: types::Error) -> Self {
        Error::from(said).into()
    }
}
