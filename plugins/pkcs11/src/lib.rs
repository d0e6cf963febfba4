//! Private keys in hardware security modules, by PKCS#11.
//!
//! A store is a list of PKCS#11 URIs (RFC 7512). Those that mean the same token share one login and one pool of
//! sessions. The modules, in reading order: `uri` (what the operator writes), `store` (from there to open tokens),
//! `module` (the libraries of this process), `token` (one login), `sessions` (a session per busy lane), `keys` (finding
//! a key and its public half), `mechanism` (algorithms), `ckr` (errors).

#![forbid(unsafe_code)]

mod ckr;
mod keys;
mod mechanism;
mod module;
mod sessions;
mod store;
mod token;
mod uri;

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use cryptoki::object::ObjectHandle;
use keystead_plugin_api::{
    Algorithm, Backend, Call, CallClass, Code, Description, Error, Finding, Health, Host, Isolation, Listing,
    Output, Severity,
};
use zeroize::Zeroizing;

use crate::{
    keys::KeyId,
    mechanism::KeyKind,
    sessions::Session,
    store::{Entry, Opened},
    token::Token,
};

keystead_plugin_api::export_backend!(Pkcs11);

/// An open store of keys on PKCS#11 tokens.
pub struct Pkcs11 {
    host: Host,
    tokens: Vec<Arc<Token>>,
    entries: Vec<Entry>,
    /// What opening found.
    findings: Vec<Finding>,
    keys: RwLock<HashMap<KeyId, Arc<Key>>>,
    /// How many listings were incomplete for reasons that may pass.
    unsettled: AtomicU64,
    /// What was said of tokens that fail while others serve.
    told: Mutex<Vec<String>>,
}

/// A key that the store has listed.
struct Key {
    id: KeyId,
    entry: Entry,
    label: String,
    spki: Vec<u8>,
    kind: KeyKind,
    algorithms: Vec<Algorithm>,
}

/// An error with its cure.
#[derive(Clone, Debug)]
struct Problem {
    error: Error,
    /// What to do next; may be empty.
    hint: String,
}

impl Backend for Pkcs11 {
    const DESCRIPTION: Description = Description {
        name: "pkcs11",
        version: env!("CARGO_PKG_VERSION"),
        vendor: "Keystead",
        isolation: Isolation::Process,
        lanes_max: None,
        schema: store::SCHEMA,
    };

    fn isolation_group(config: &serde_json::Value) -> Option<String> {
        store::modules(config)
    }

    fn open(host: Host) -> Result<Self, Error> {
        let Opened { tokens, entries, findings } = store::open(host)?;
        let (keys, unsettled, told) = Default::default();
        Ok(Self { host, tokens, entries, findings, keys, unsettled, told })
    }

    fn keys(&self, call: &Call<'_>) -> Result<Listing, Error> {
        let mut listing = Listing { keys: Vec::new(), findings: self.findings.clone() };
        let before = self.keys.read().unwrap_or_else(PoisonError::into_inner).clone();
        let mut now: HashMap<KeyId, Arc<Key>> = HashMap::new();
        for entry in &self.entries {
            let Some(key) = self.look_up(call, entry, &before, &mut listing) else { continue };
            if let Some(first) = now.get(&key.id) {
                let error =
                    Error::invalid(format!("is the same key as {}, which serves it", first.entry.subject));
                listing
                    .findings
                    .push(Problem::new(error).hint("remove one of the two").warning(&entry.subject));
                continue;
            }
            listing.keys.push(key.listed());
            now.insert(key.id, key);
        }
        listing.findings.extend(self.tokens.iter().filter_map(bottleneck));
        *self.keys.write().unwrap_or_else(PoisonError::into_inner) = now;
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
        let key = self.key(key, algorithm)?;
        let (mechanism, data) = key.kind.signing(algorithm, input)?;
        let raw =
            self.operate(call, &key, "signing", |session, handle| session.sign(&mechanism, handle, &data))?;
        out.write(&key.kind.signature(&raw)?)
    }

    fn decrypt(
        &self,
        call: &Call<'_>,
        key: &[u8],
        algorithm: Algorithm,
        input: &[u8],
        out: &mut Output<'_>,
    ) -> Result<(), Error> {
        let key = self.key(key, algorithm)?;
        let block = key.kind.block(input)?;
        let raw = self.operate(call, &key, "decrypting", |session, handle| {
            session.decrypt(&cryptoki::mechanism::Mechanism::RsaX509, handle, &block).map(Zeroizing::new)
        })?;
        out.write(&key.kind.plaintext(&raw)?)
    }

    fn health(&self, _call: &Call<'_>) -> Result<Health, Error> {
        let failures: Vec<Error> = self.tokens.iter().filter_map(|token| token.check().err()).collect();
        let all = failures.len() == self.tokens.len();
        match failures.first() {
            Some(failure) if all => Err(failure.clone()), // which the server tells
            _ => {
                self.warn_of(&failures);
                Ok(Health { generation: self.generation() })
            }
        }
    }

    fn close(&self, _grace: Duration) {
        self.tokens.iter().for_each(|token| token.close());
    }
}

impl Pkcs11 {
    /// The key of an entry as the token has it now. Where the token doesn't answer for reasons that may pass, the key
    /// stays listed as it was: its requests fail by themselves, and it comes back without a new listing.
    fn look_up(
        &self,
        call: &Call<'_>,
        entry: &Entry,
        before: &HashMap<KeyId, Arc<Key>>,
        listing: &mut Listing,
    ) -> Option<Arc<Key>> {
        let problem = match Key::read(call, entry) {
            Ok(key) => return Some(Arc::new(key)),
            Err(problem) => problem,
        };
        let known = before.values().find(|key| key.entry.subject == entry.subject);
        let passing = ckr::may_pass(&problem.error);
        if passing {
            self.unsettled.fetch_add(1, Ordering::Relaxed);
        }
        match known.filter(|_| passing) {
            Some(key) => {
                listing.findings.push(problem.warning(&entry.subject));
                Some(Arc::clone(key))
            }
            None => {
                listing.findings.push(problem.finding(&entry.subject));
                None
            }
        }
    }

    fn key(&self, id: &[u8], algorithm: Algorithm) -> Result<Arc<Key>, Error> {
        let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
        let key = keys.get(id).ok_or_else(Error::unknown_key)?;
        if !key.algorithms.contains(&algorithm) {
            return Err(Error::unsupported(algorithm));
        }
        Ok(Arc::clone(key))
    }

    /// Runs one operation with a key. Where the module has forgotten the handle, the key is found again, once.
    fn operate<T>(
        &self,
        call: &Call<'_>,
        key: &Key,
        doing: &str,
        operation: impl Fn(&cryptoki::session::Session, ObjectHandle) -> cryptoki::error::Result<T>,
    ) -> Result<T, Error> {
        let attempt = |session: &mut Session| {
            let handle = self.handle(session, key)?;
            operation(&session.raw, handle)
                .map_err(|failure| ckr::error(&format!("{doing} with `{}`", key.label), &failure))
        };
        key.entry.token.with(call, |session| match attempt(session) {
            Err(error) if ckr::is_stale_handle(&error) => {
                session.handles.remove(&key.id);
                attempt(session)
            }
            done => done,
        })
    }

    /// The key's handle in this session. What is found must be the very key that was listed: an object of the same
    /// name may be another key by now.
    fn handle(&self, session: &mut Session, key: &Key) -> Result<ObjectHandle, Error> {
        if let Some(&handle) = session.handles.get(&key.id) {
            return Ok(handle);
        }
        let found = key.entry.find(session)?;
        if found.public.id() != key.id {
            self.host.keys_changed();
            let message = format!("another key has taken the place of `{}` on the token", key.label);
            return Err(Error::new(Code::NotFound, message));
        }
        session.handles.insert(key.id, found.handle);
        Ok(found.handle)
    }

    /// Says which tokens fail while others serve: once, not at every look.
    fn warn_of(&self, failures: &[Error]) {
        let now: Vec<String> = failures.iter().map(ToString::to_string).collect();
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        for failure in now.iter().filter(|failure| !told.contains(failure)) {
            tracing::warn!("{failure}");
        }
        *told = now;
    }

    /// Changes when a new listing would tell more than the last one.
    fn generation(&self) -> u64 {
        let bottlenecks = self.tokens.iter().filter_map(|token| token.bottleneck()).count();
        self.unsettled.load(Ordering::Relaxed) + bottlenecks as u64
    }
}

fn bottleneck(token: &Arc<Token>) -> Option<Finding> {
    let lanes = token.bottleneck()?;
    let message =
        format!("lanes had to wait for a session: max-sessions, or the token, allows {lanes} at once");
    let problem = Problem::new(Error::new(Code::Throttled, message));
    let hint = "raise max-sessions (one of them holds the login) or lower the store's limits.lanes";
    Some(problem.hint(hint).warning(&format!("token `{}`", token.label)))
}

impl Key {
    fn read(call: &Call<'_>, entry: &Entry) -> Result<Self, Problem> {
        let mut hint = String::new();
        let read = entry.token.with(call, |session| {
            Self::read_in(session, entry).map_err(|problem| {
                hint = problem.hint;
                problem.error
            })
        });
        read.map_err(|error| Problem { error, hint })
    }

    fn read_in(session: &mut Session, entry: &Entry) -> Result<Self, Problem> {
        let keys::Found { handle, public } = entry.find(session)?;
        let allowed = keys::allowed(&session.raw, handle)?.and(entry.token.allowed);
        let algorithms = public.kind.algorithms(allowed);
        if algorithms.is_empty() {
            let error = Error::new(Code::Unsupported, "neither the token nor the key allows any algorithm");
            return Err(Problem::new(error).hint("see CKA_SIGN and the token's mechanisms"));
        }
        let id = public.id();
        session.handles.insert(id, handle);
        let label = keys::label(&session.raw, handle)?;
        Ok(Self { id, entry: entry.clone(), label, spki: public.spki, kind: public.kind, algorithms })
    }

    fn listed(&self) -> keystead_plugin_api::Key {
        keystead_plugin_api::Key {
            id: self.id.to_vec(),
            spki: self.spki.clone(),
            label: self.label.clone(),
            algorithms: self.algorithms.clone(),
            call_class: CallClass::Blocking,
        }
    }
}

impl Problem {
    fn new(error: Error) -> Self {
        Self { error, hint: String::new() }
    }

    fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = hint.into();
        self
    }

    /// An entry that isn't served. A finding crosses the contract without the module's own code, so that code becomes
    /// part of the text.
    fn finding(self, subject: &str) -> Finding {
        let error = Error::new(self.error.code, self.error.to_string());
        Finding { severity: Severity::Error, subject: subject.to_owned(), error, hint: self.hint }
    }

    /// Something to know about an entry that is.
    fn warning(self, subject: &str) -> Finding {
        Finding { severity: Severity::Warning, ..self.finding(subject) }
    }
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        Self::new(error)
    }
}

impl From<Problem> for Error {
    fn from(problem: Problem) -> Self {
        problem.error
    }
}
