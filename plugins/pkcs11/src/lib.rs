//! Private keys in hardware security modules, by PKCS#11.
//!
//! A store is a list of PKCS#11 URIs (RFC 7512). Those that mean the same token share one login and one pool of
//! sessions. The modules, in reading order: `uri` (what the operator writes), `store` (from there to tokens), `pin`,
//! `profile` (what is known of vendors), `module` (the libraries of this process), `token` (one login, and the ladder
//! of recovery), `recovery` (looking for lost tokens), `sessions` (a session per busy lane), `keys` (finding a key and
//! its public half), `mechanism` (algorithms), `pss` (padding that a token lacks), `calls` (signing in two calls), `ckr`
//! and `problem` (errors).

#![deny(unsafe_code)]

#[allow(unsafe_code, reason = "calls functions of a library by its list")]
mod calls;
mod ckr;
mod keys;
mod mechanism;
mod module;
mod pin;
mod problem;
mod profile;
#[allow(unsafe_code, reason = "AWS-LC's padding has no safe interface")]
mod pss;
mod recovery;
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
    time::{Duration, Instant},
};

use cryptoki::{error::Error as Failure, mechanism::Mechanism, object::ObjectHandle};
use keystead_plugin_api::{
    Advice, Algorithm, Backend, Call, CallClass, Code, Description, Error, Finding, Health, Host, Isolation,
    Listing, Output,
};
use zeroize::Zeroizing;

use crate::{
    calls::{Operation, Work},
    keys::{Candidate, KeyId, Usable},
    mechanism::{Allowed, KeyKind},
    problem::Problem,
    sessions::Session,
    store::{Entry, Opened},
    token::Token,
    uri::ObjectSelector,
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
    /// What the last listing saw of each entry: see [`keys::mark`].
    marks: Mutex<Vec<Option<u64>>>,
    /// How often a new listing would have told more than the last one.
    news: AtomicU64,
    /// What was said of tokens that fail while others serve.
    told: Mutex<Vec<String>>,
}

/// Bytes of the order of P-256, by far the fastest of the curves.
const P256_BYTES: usize = 32;

/// A key that the store has listed.
struct Key {
    id: KeyId,
    entry: Entry,
    label: String,
    /// By which it is found again.
    name: ObjectSelector,
    spki: Vec<u8>,
    kind: KeyKind,
    allowed: Allowed,
    algorithms: Vec<Algorithm>,
    /// Whether it wants a login for each operation.
    authenticates: bool,
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
        let (keys, marks, news, told) = Default::default();
        Ok(Self { host, tokens, entries, findings, keys, marks, news, told })
    }

    fn keys(&self, call: &Call<'_>) -> Result<Listing, Error> {
        let mut listing = Listing { keys: Vec::new(), findings: self.findings.clone() };
        let before = self.keys.read().unwrap_or_else(PoisonError::into_inner).clone();
        let mut now: HashMap<KeyId, Arc<Key>> = HashMap::new();
        let mut marks = Vec::with_capacity(self.entries.len());
        for entry in &self.entries {
            let (keys, mark) = self.look_up(call, entry, &before, &mut listing.findings);
            marks.push(mark);
            for key in keys {
                match now.get(&key.id) {
                    Some(first) => listing.findings.push(same(&key, first)),
                    None => {
                        listing.keys.push(key.listed());
                        now.insert(key.id, key);
                    }
                }
            }
        }
        listing.findings.extend(self.tokens.iter().flat_map(remarks));
        listing.findings.extend(store::notes(&self.tokens));
        *lock(&self.marks) = marks;
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
        let (mechanism, data) = key.kind.signing(algorithm, input, key.allowed)?;
        let work = Work { operation: Operation::Sign, mechanism: &mechanism, input: &data };
        let raw = self.operate(call, &key, &work)?;
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
        let work = Work { operation: Operation::Decrypt, mechanism: &Mechanism::RsaX509, input: &block };
        let raw = self.operate(call, &key, &work)?;
        out.write(&key.kind.plaintext(&raw)?)
    }

    /// Of several tokens, the one that does most at once and hangs longest decides.
    fn advice(&self) -> Advice {
        let profiles = || self.tokens.iter().map(|token| token.profile());
        Advice {
            lanes: self.tokens.iter().map(|token| token.lanes()).max(),
            stuck_after: profiles().map(|profile| profile.stuck_after).max(),
        }
    }

    fn health(&self, call: &Call<'_>) -> Result<Health, Error> {
        let failures: Vec<Error> = self.tokens.iter().filter_map(|token| token.check().err()).collect();
        let all = failures.len() == self.tokens.len();
        match failures.first() {
            Some(failure) if all => Err(failure.clone()), // which the server tells
            _ => {
                self.warn_of(&failures);
                self.look_for_news(call);
                Ok(Health { generation: self.generation() })
            }
        }
    }

    fn close(&self, grace: Duration) {
        let until = Instant::now() + grace;
        self.tokens.iter().for_each(|token| token.close());
        self.tokens.iter().for_each(|token| token.settle(until));
    }
}

impl Pkcs11 {
    /// The keys of an entry as its token has them now, and the mark of what was seen. Where the token doesn't answer for
    /// reasons that may pass, keys stay listed as they were: their requests fail by themselves, and they come back
    /// without a new listing.
    fn look_up(
        &self,
        call: &Call<'_>,
        entry: &Entry,
        before: &HashMap<KeyId, Arc<Key>>,
        findings: &mut Vec<Finding>,
    ) -> (Vec<Arc<Key>>, Option<u64>) {
        let problem = match entry.candidates(call) {
            Ok(candidates) => {
                let mark = keys::mark(candidates.iter().map(|candidate| candidate.handle));
                return (chosen(entry, candidates, findings), Some(mark));
            }
            Err(problem) => problem,
        };
        let passing = ckr::may_pass(&problem.error);
        self.news.fetch_add(u64::from(passing), Ordering::Relaxed);
        let is_known = |key: &&Arc<Key>| passing && key.entry.subject == entry.subject;
        let known: Vec<_> = before.values().filter(is_known).cloned().collect();
        findings.push(match known.is_empty() {
            true => problem.finding(&entry.subject),
            false => problem.warning(&entry.subject),
        });
        (known, None)
    }

    fn key(&self, id: &[u8], algorithm: Algorithm) -> Result<Arc<Key>, Error> {
        let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
        let key = keys.get(id).ok_or_else(Error::unknown_key)?;
        if !key.algorithms.contains(&algorithm) {
            return Err(Error::unsupported(algorithm));
        }
        Ok(Arc::clone(key))
    }

    /// Runs one operation with a key, on any session of its token.
    fn operate(&self, call: &Call<'_>, key: &Key, work: &Work<'_, '_>) -> Result<Zeroizing<Vec<u8>>, Error> {
        let mut answer = Zeroizing::new(vec![0; key.kind.answer_len()]);
        let len = key.entry.token.with(call, |session| {
            let handle = self.handle(session, key)?;
            key.perform(session, handle, work, &mut answer)
        })?;
        answer.truncate(len);
        Ok(answer)
    }

    /// The key's handle in this session. What is found must be the very key that was listed: an object of the same
    /// name may be another key by now.
    fn handle(&self, session: &mut Session, key: &Key) -> Result<ObjectHandle, Error> {
        if let Some(&handle) = session.handles.get(&key.id) {
            return Ok(handle);
        }
        let token = &key.entry.token;
        let handle = match token.shared_handle(session, &key.id) {
            Some(handle) => handle,
            None => self.find_again(session, key)?,
        };
        session.handles.insert(key.id, handle);
        Ok(handle)
    }

    fn find_again(&self, session: &Session, key: &Key) -> Result<ObjectHandle, Error> {
        let token = &key.entry.token;
        let found = keys::find_again(&session.raw, &key.name, &key.id, key.entry.public.as_ref());
        let handle = found.map_err(|error| {
            if error.code != Code::NotFound {
                return error;
            }
            token.lost(session).unwrap_or_else(|| {
                self.host.keys_changed();
                Error::new(Code::NotFound, format!("key `{}`: {}", key.label, error.message))
            })
        })?;
        token.share_handle(session, key.id, handle);
        Ok(handle)
    }

    /// Says which tokens fail while others serve: once, not at every look.
    fn warn_of(&self, failures: &[Error]) {
        let now: Vec<String> = failures.iter().map(ToString::to_string).collect();
        let mut told = lock(&self.told);
        for failure in now.iter().filter(|failure| !told.contains(failure)) {
            tracing::warn!("{failure}");
        }
        *told = now;
    }

    /// Looks whether any entry means other keys than it did when they were listed.
    fn look_for_news(&self, call: &Call<'_>) {
        let marks = lock(&self.marks).clone();
        let changed = self.entries.iter().zip(marks).any(|(entry, mark)| {
            let census = |session: &mut Session| keys::census(&session.raw, &entry.object);
            mark.is_some() && entry.token.with(call, census).is_ok_and(|now| Some(now) != mark)
        });
        self.news.fetch_add(u64::from(changed), Ordering::Relaxed);
    }

    /// Changes when a new listing would tell more than the last one.
    fn generation(&self) -> u64 {
        let bottlenecks = self.tokens.iter().filter_map(|token| token.bottleneck()).count();
        self.news.load(Ordering::Relaxed) + bottlenecks as u64
    }
}

impl Entry {
    /// The private keys that it means, at least one.
    fn candidates(&self, call: &Call<'_>) -> Result<Vec<Candidate>, Problem> {
        let mut hint = String::new();
        let found = self.token.with(call, |session| {
            let candidates = keys::list(&session.raw, &self.object, self.public.as_ref())?;
            if candidates.is_empty() {
                let problem = match self.token.lost(session) {
                    Some(lost) => Problem::new(lost),
                    None => keys::not_found(&session.raw),
                };
                hint = problem.hint;
                return Err(problem.error);
            }
            let usable =
                candidates.iter().filter_map(|candidate| Some((candidate, candidate.usable.as_ref().ok()?)));
            for (Candidate { handle, .. }, usable) in usable {
                session.handles.insert(usable.public.id(), *handle);
                self.token.share_handle(session, usable.public.id(), *handle);
            }
            Ok(candidates)
        });
        found.map_err(|error| {
            let hint = if hint.is_empty() { self.token.hint() } else { hint };
            Problem { error, hint }
        })
    }
}

/// The keys that can be served of those that an entry means. What can't be is told of: as a fault where the entry means
/// nothing else.
fn chosen(entry: &Entry, candidates: Vec<Candidate>, findings: &mut Vec<Finding>) -> Vec<Arc<Key>> {
    let alone = candidates.len() == 1;
    let mut keys = Vec::new();
    for candidate in candidates {
        let label = candidate.label.clone();
        match Key::new(entry, candidate) {
            Ok(key) => keys.push(Arc::new(key)),
            Err(problem) if alone => findings.push(problem.finding(&entry.subject)),
            Err(problem) => findings.push(problem.passed_over(&format!("{}, key `{label}`", entry.subject))),
        }
    }
    keys
}

fn same(key: &Key, first: &Key) -> Finding {
    let subject = &key.entry.subject;
    if *subject == first.entry.subject {
        let error = Error::invalid(format!("`{}` and `{}` are the same key", key.label, first.label));
        return Problem::new(error).hint("remove one of the two from the token").warning(subject);
    }
    let error = Error::invalid(format!("is the same key as {}, which serves it", first.entry.subject));
    Problem::new(error).hint("remove one of the two").warning(subject)
}

/// What the operator should know of a token that serves.
fn remarks(token: &Arc<Token>) -> impl Iterator<Item = Finding> {
    let subject = format!("token `{}`", token.name());
    let bottleneck = token.bottleneck().map(|lanes| {
        let message =
            format!("lanes had to wait for a session: max-sessions, or the token, allows {lanes} at once");
        let problem = Problem::new(Error::new(Code::Throttled, message));
        problem.hint("raise max-sessions (one of them holds the login) or lower the store's limits.lanes")
    });
    let needless = token.needs_no_pin().then(|| {
        let problem = Problem::new(Error::invalid("needs no login; its PIN was not presented"));
        problem.hint("leave the PIN out")
    });
    [bottleneck, needless].into_iter().flatten().map(move |problem| problem.warning(&subject))
}

/// Why nothing can be done with a key.
fn no_use(kind: &KeyKind, on_token: Allowed) -> Problem {
    let unsupported = |what: String| Problem::new(Error::new(Code::Unsupported, what));
    if !kind.algorithms(on_token).is_empty() {
        return unsupported("the key may not be used for anything that the token can do".to_owned())
            .hint("see its CKA_SIGN, CKA_DECRYPT and CKA_ALLOWED_MECHANISMS");
    }
    unsupported(format!("the token lacks what such a key is used with: {}", kind.mechanisms()))
        .hint("keep the key on another token, or use one of another type")
}

impl Key {
    fn new(entry: &Entry, candidate: Candidate) -> Result<Self, Problem> {
        let Candidate { label, name, usable, .. } = candidate;
        let Usable { public, allowed, authenticates } = usable?;
        if authenticates && !entry.token.module().calls().can_log_in_between() {
            let what = "the key wants a PIN before each use (CKA_ALWAYS_AUTHENTICATE), and this module leaves no room";
            let hint = "name the vendor's own library instead of p11-kit's";
            return Err(Problem::new(Error::new(Code::Unsupported, what)).hint(hint));
        }
        let on_token = entry.token.allowed();
        let allowed = allowed.and(on_token);
        let algorithms = public.kind.algorithms(allowed);
        if algorithms.is_empty() {
            return Err(no_use(&public.kind, on_token));
        }
        let (id, entry) = (public.id(), entry.clone());
        let (spki, kind) = (public.spki, public.kind);
        Ok(Self { id, entry, label, name, spki, kind, allowed, algorithms, authenticates })
    }

    /// Does the work with it in one session, where that is its handle.
    fn perform(
        &self,
        session: &Session,
        handle: ObjectHandle,
        work: &Work<'_, '_>,
        out: &mut [u8],
    ) -> Result<usize, Error> {
        let (token, mut refused) = (&self.entry.token, None);
        let between = || match self.authenticates {
            true => token.authenticate(session).map_err(|error| {
                refused = Some(error);
                Failure::PinNotSet
            }),
            false => Ok(()),
        };
        let done = token.module().calls().perform(&session.raw, handle, work, out, between);
        done.map_err(|failure| {
            let doing = match work.operation {
                Operation::Sign => "signing",
                Operation::Decrypt => "decrypting",
            };
            refused.unwrap_or_else(|| ckr::error(&format!("{doing} with `{}`", self.label), &failure))
        })
    }

    fn listed(&self) -> keystead_plugin_api::Key {
        keystead_plugin_api::Key {
            id: self.id.to_vec(),
            spki: self.spki.clone(),
            label: self.label.clone(),
            algorithms: self.algorithms.clone(),
            call_class: self.call_class(),
        }
    }

    fn call_class(&self) -> CallClass {
        let token = &self.entry.token;
        match &self.kind {
            // A login takes longer than the signature.
            _ if self.authenticates || !token.profile().is_quick(token.module().path()) => {
                CallClass::Blocking
            }
            KeyKind::Ed25519 | KeyKind::Ec { order: P256_BYTES } => CallClass::Inline,
            _ => CallClass::Blocking,
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
