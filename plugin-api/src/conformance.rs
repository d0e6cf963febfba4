//! The cases that every plugin passes.
//!
//! A plugin's own tests describe how its store is opened, and [`run`] drives it through the C table, as the server
//! does, or through another [`Door`]. Results are verified by OpenSSL, which shares no code with any plugin.
//!
//! ```text
//! static TABLE: BackendTable = kit::table::<FileBackend>();
//! conformance::run(&Subject::new(&TABLE).config(json!({"dir": keys})).secret("passphrase", b"open sesame"));
//! ```
//!
//! The store must hold at least one key. [`Subject::open`] gives a [`Session`] for a plugin's further tests.

macro_rules! ensure {
    ($condition:expr, $($message:tt)+) => {
        if !$condition {
            return Err(format!($($message)+));
        }
    };
}

mod door;
mod host;
mod table;
mod verify;

use std::{
    any::Any,
    collections::{BTreeMap, BTreeSet},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Mutex, PoisonError},
    thread,
    time::Duration,
};

use serde_json::Value;

pub use self::{
    door::{Described, Door, Failure, Opened, Request, Session},
    host::{Record, TestHost},
    verify::verify,
};
use crate::{
    Algorithm, CallClass, Code, Error, Input, Key, Listing,
    abi::{BackendTable, KEY_ID_MAX},
    algorithm::Operation,
};

/// What is tested: the way to a backend, and how a store of it is opened.
#[derive(Debug)]
pub struct Subject {
    door: Box<dyn Door>,
    config: Value,
    secrets: BTreeMap<String, Vec<u8>>,
    hosts: Mutex<Vec<&'static TestHost>>,
}

impl Subject {
    /// A backend whose stores are opened with an empty configuration.
    #[must_use]
    pub fn new(table: &'static BackendTable) -> Self {
        Self::behind(table::Table(table))
    }

    /// A backend that is reached by another way than its table.
    #[must_use]
    pub fn behind(door: impl Door + 'static) -> Self {
        let config = Value::Object(serde_json::Map::new());
        Self { door: Box::new(door), config, secrets: BTreeMap::new(), hosts: Mutex::default() }
    }

    /// The store's configuration.
    #[must_use]
    pub fn config(mut self, config: Value) -> Self {
        self.config = config;
        self
    }

    /// A secret of the store. At least 4 bytes, or it's found where it isn't.
    #[must_use]
    pub fn secret(mut self, name: &str, value: &[u8]) -> Self {
        self.secrets.insert(name.to_owned(), value.to_vec());
        self
    }

    /// A host for one store.
    pub fn host(&self) -> &'static TestHost {
        self.host_with(self.config.clone())
    }

    /// Opens a store, with a host of its own.
    ///
    /// # Errors
    ///
    /// What the backend answers.
    pub fn open(&self) -> Result<Session, Error> {
        self.host().open_behind(&*self.door)
    }

    fn host_with(&self, config: Value) -> &'static TestHost {
        let host = TestHost::leak(config, self.secrets.clone());
        self.hosts.lock().unwrap_or_else(PoisonError::into_inner).push(host);
        host
    }
}

/// One rule of the contract: its name, and the function that answers with what breaks it.
pub type Case = (&'static str, fn(&Subject) -> Result<(), String>);

/// Every case, in the order in which [`run`] takes them.
pub const CASES: &[Case] = &[
    ("describes_itself", describes_itself),
    ("lists_well_formed_keys", lists_well_formed_keys),
    ("lists_the_same_keys_after_reopening", lists_the_same_keys_after_reopening),
    ("keeps_two_stores_apart", keeps_two_stores_apart),
    ("does_what_its_keys_claim", does_what_its_keys_claim),
    ("refuses_what_its_keys_do_not_claim", refuses_what_its_keys_do_not_claim),
    ("refuses_unknown_algorithms", refuses_unknown_algorithms),
    ("refuses_unknown_keys", refuses_unknown_keys),
    ("refuses_inputs_of_the_wrong_length", refuses_inputs_of_the_wrong_length),
    ("handles_raw_rsa_blocks", handles_raw_rsa_blocks),
    ("respects_the_output_buffer", respects_the_output_buffer),
    ("serves_many_threads", serves_many_threads),
    ("returns_after_an_expired_deadline", returns_after_an_expired_deadline),
    ("answers_health", answers_health),
    ("refuses_unknown_configuration", refuses_unknown_configuration),
    ("closes", closes),
    ("keeps_secrets", keeps_secrets),
];

/// Runs every case.
///
/// # Panics
///
/// Where any case fails, with a list of all that do.
pub fn run(subject: &Subject) {
    let failures: Vec<String> = CASES
        .iter()
        .filter_map(|(name, case)| {
            let result = catch_unwind(AssertUnwindSafe(|| case(subject)))
                .unwrap_or_else(|panic| Err(panicked(&*panic)));
            Some(format!("  {name}: {}", result.err()?))
        })
        .collect();
    assert!(failures.is_empty(), "{} cases fail:\n{}", failures.len(), failures.join("\n"));
}

/// What the plugin says it is can be used, and so can the table that says it.
///
/// # Errors
///
/// What breaks the rule.
pub fn describes_itself(subject: &Subject) -> Result<(), String> {
    let Described { name, version, schema, .. } = subject.door.describe()?;
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '_';
    let is_plain = !name.is_empty() && name.len() <= 64 && name.chars().all(plain);
    ensure!(is_plain, "the name {name:?} is not a plain one");
    ensure!(!version.is_empty(), "there is no version");
    let schema = serde_json::from_str::<Value>(&schema);
    ensure!(schema.is_ok_and(|schema| schema.is_object()), "the schema is not a JSON object");
    Ok(())
}

/// Ids are 1 to 255 bytes and unique, SPKIs parse, algorithms fit their keys, findings say something.
///
/// # Errors
///
/// What breaks the rule.
pub fn lists_well_formed_keys(subject: &Subject) -> Result<(), String> {
    let (_, listing) = opened(subject)?;
    let mut ids = BTreeSet::new();
    for key in &listing.keys {
        let (label, id) = (&key.label, key.id.len());
        ensure!((1..=KEY_ID_MAX).contains(&id), "key `{label}` has an id of {id} bytes");
        ensure!(ids.insert(&key.id), "the id of key `{label}` is another key's too");
        let family =
            verify::family(&key.spki).ok_or_else(|| format!("the SPKI of key `{label}` can't be read"))?;
        ensure!(!key.algorithms.is_empty(), "key `{label}` can do nothing");
        let alien = key.algorithms.iter().find(|algorithm| algorithm.family() != family);
        ensure!(alien.is_none(), "key `{label}` is not one for {alien:?}");
        let distinct: BTreeSet<_> = key.algorithms.iter().collect();
        ensure!(distinct.len() == key.algorithms.len(), "key `{label}` lists an algorithm twice");
    }
    for finding in &listing.findings {
        ensure!(!finding.subject.is_empty(), "a finding says nothing about its subject: {}", finding.error);
        ensure!(!finding.error.message.is_empty(), "the finding about `{}` has no message", finding.subject);
    }
    Ok(())
}

/// A second listing, and one after closing and opening again, have the same ids and public keys.
///
/// # Errors
///
/// What breaks the rule.
pub fn lists_the_same_keys_after_reopening(subject: &Subject) -> Result<(), String> {
    let (session, first) = opened(subject)?;
    let again = session.listing().map_err(|error| format!("listing again: {error}"))?;
    ensure!(identities(&first) == identities(&again), "a second listing differs from the first");
    session.close().map_err(|error| format!("closing: {error}"))?;
    let (_, reopened) = opened(subject)?;
    ensure!(identities(&first) == identities(&reopened), "the listing differs after re-opening");
    Ok(())
}

/// A store works on when another of the same plugin is closed.
///
/// # Errors
///
/// What breaks the rule.
pub fn keeps_two_stores_apart(subject: &Subject) -> Result<(), String> {
    let (one, _) = opened(subject)?;
    let (other, listing) = opened(subject)?;
    one.close().map_err(|error| format!("closing one store: {error}"))?;
    listing.keys.iter().try_for_each(|key| prove(&other, key, 0))
}

/// Every algorithm that a key claims gives a result that verifies.
///
/// # Errors
///
/// What breaks the rule.
pub fn does_what_its_keys_claim(subject: &Subject) -> Result<(), String> {
    for_each_claim(subject, |session, key, algorithm| {
        let input = input(key, algorithm);
        let result = session.perform(algorithm.operation(), &Request::new(key, algorithm, &input));
        verify(&key.spki, algorithm, &input, &result.map_err(|failure| failure.error.to_string())?)
    })
}

/// An algorithm of the registry that a key doesn't claim is answered `unsupported`.
///
/// # Errors
///
/// What breaks the rule.
pub fn refuses_what_its_keys_do_not_claim(subject: &Subject) -> Result<(), String> {
    let (session, listing) = opened(subject)?;
    for key in &listing.keys {
        for algorithm in
            Algorithm::ALL.iter().copied().filter(|algorithm| !key.algorithms.contains(algorithm))
        {
            let input = input(key, algorithm);
            let request = Request::new(key, algorithm, &input);
            refused(&session, algorithm.operation(), &request, Code::Unsupported)
                .map_err(|error| format!("key `{}`: {algorithm}: {error}", key.label))?;
        }
    }
    Ok(())
}

/// A number that isn't in the registry, or belongs to the other function, is answered `unsupported`.
///
/// # Errors
///
/// What breaks the rule.
pub fn refuses_unknown_algorithms(subject: &Subject) -> Result<(), String> {
    for_each_claim(subject, |session, key, algorithm| {
        let input = input(key, algorithm);
        let request = Request::new(key, algorithm, &input);
        refused(session, other(algorithm.operation()), &request, Code::Unsupported)?;
        [0, 0x7fff_fff0, u32::MAX].into_iter().try_for_each(|number| {
            let request = Request { algorithm: number, ..request };
            refused(session, algorithm.operation(), &request, Code::Unsupported)
        })
    })
}

/// An id that no key has is answered `not found`, whatever its length.
///
/// # Errors
///
/// What breaks the rule.
pub fn refuses_unknown_keys(subject: &Subject) -> Result<(), String> {
    for_each_claim(subject, |session, key, algorithm| {
        let input = input(key, algorithm);
        let request = Request::new(key, algorithm, &input);
        let longer = [key.id.as_slice(), b"?"].concat();
        [b"".as_slice(), b"no such key", &longer, &[0xff; 4096]].into_iter().try_for_each(|id| {
            refused(session, algorithm.operation(), &Request { key: id, ..request }, Code::NotFound)
        })
    })
}

/// A digest of the wrong length is answered `invalid input`.
///
/// # Errors
///
/// What breaks the rule.
pub fn refuses_inputs_of_the_wrong_length(subject: &Subject) -> Result<(), String> {
    for_each_claim(subject, |session, key, algorithm| {
        let Input::Digest(right) = algorithm.input() else { return Ok(()) };
        [0, right - 1, right + 1, 1000].into_iter().try_for_each(|len| {
            let digest = vec![0x5a; len];
            let request = Request::new(key, algorithm, &digest);
            refused(session, algorithm.operation(), &request, Code::InvalidInput)
                .map_err(|error| format!("a digest of {len} bytes: {error}"))
        })
    })
}

/// Raw RSA: a short block counts as left-padded, one that isn't smaller than the modulus is `invalid input`.
///
/// # Errors
///
/// What breaks the rule.
pub fn handles_raw_rsa_blocks(subject: &Subject) -> Result<(), String> {
    for_each_claim(subject, |session, key, algorithm| {
        let (Algorithm::RsaRaw, Some(modulus)) = (algorithm, verify::modulus(&key.spki)) else {
            return Ok(());
        };
        for short in [[1].as_slice(), b"a short block"] {
            let block = session.decrypt(key, algorithm, short).map_err(|error| error.to_string())?;
            verify(&key.spki, algorithm, short, &block)?;
        }
        let longer = vec![1; modulus.len() + 1];
        [modulus.clone(), vec![0xff; modulus.len()], longer].iter().try_for_each(|block| {
            refused(session, Operation::Decrypt, &Request::new(key, algorithm, block), Code::InvalidInput)
        })
    })
}

/// A buffer that is too small is answered so, with what is needed, and nothing is written beyond it.
///
/// # Errors
///
/// What breaks the rule.
pub fn respects_the_output_buffer(subject: &Subject) -> Result<(), String> {
    for_each_claim(subject, |session, key, algorithm| {
        let input = input(key, algorithm);
        for capacity in [0, 1, 7] {
            let request = Request { capacity, ..Request::new(key, algorithm, &input) };
            let Err(failure) = session.perform(algorithm.operation(), &request) else {
                return Err(format!("a result in {capacity} bytes"));
            };
            let (code, needed) = (failure.error.code, failure.needed);
            ensure!(code == Code::BufferTooSmall, "answered `{}` for a small buffer", failure.error);
            ensure!(needed > capacity, "{needed} bytes needed where {capacity} are too few");
        }
        Ok(())
    })
}

/// Keys of class `inline` answer eight threads at once, those of class `blocking` as many lanes as there are.
///
/// # Errors
///
/// What breaks the rule.
pub fn serves_many_threads(subject: &Subject) -> Result<(), String> {
    let (session, listing) = opened(subject)?;
    let lanes = subject.door.describe()?.lanes_max.unwrap_or(8).min(8);
    let (inline, blocking): (Vec<_>, Vec<_>) =
        listing.keys.into_iter().partition(|key| key.call_class == CallClass::Inline);
    let (session, inline, blocking) = (&session, &inline, &blocking);
    thread::scope(|scope| {
        let both = |lane: u32| [inline, if lane < lanes { blocking } else { const { &Vec::new() } }];
        let threads: Vec<_> = (0..8)
            .map(|lane| {
                scope.spawn(move || {
                    both(lane).into_iter().flatten().try_for_each(|key| prove(session, key, lane))
                })
            })
            .collect();
        threads
            .into_iter()
            .try_for_each(|thread| thread.join().unwrap_or_else(|panic| Err(panicked(&*panic))))
    })
}

/// A call whose time has run out returns, with a right result or with an error.
///
/// # Errors
///
/// What breaks the rule.
pub fn returns_after_an_expired_deadline(subject: &Subject) -> Result<(), String> {
    for_each_claim(subject, |session, key, algorithm| {
        let input = input(key, algorithm);
        let request = Request { time: Some(Duration::ZERO), ..Request::new(key, algorithm, &input) };
        match session.perform(algorithm.operation(), &request) {
            Ok(result) => verify(&key.spki, algorithm, &input, &result),
            Err(failure) if matches!(failure.error.code, Code::Deadline | Code::Unavailable) => Ok(()),
            Err(failure) => Err(format!("answered `{}` ({})", failure.error, failure.error.code)),
        }
    })
}

/// `health` answers, and its generation stays while nothing changes.
///
/// # Errors
///
/// What breaks the rule.
pub fn answers_health(subject: &Subject) -> Result<(), String> {
    let (session, _) = opened(subject)?;
    let first = session.health().map_err(|error| error.to_string())?;
    let second = session.health().map_err(|error| error.to_string())?;
    ensure!(first == second, "the generation went from {} to {}", first.generation, second.generation);
    Ok(())
}

/// A member of the configuration that the plugin doesn't know is refused by name: by its schema, or by itself.
///
/// # Errors
///
/// What breaks the rule.
pub fn refuses_unknown_configuration(subject: &Subject) -> Result<(), String> {
    let mut config = subject.config.clone();
    if let Some(members) = config.as_object_mut() {
        members.insert("no_such_member".to_owned(), Value::Bool(true));
    }
    let Err(error) = subject.host_with(config).open_behind(&*subject.door) else {
        return Err("a store with an unknown member of its configuration was opened".to_owned());
    };
    ensure!(error.code == Code::InvalidInput, "answered `{error}` ({}) for an unknown member", error.code);
    ensure!(error.message.contains("no_such_member"), "`{error}` does not name the unknown member");
    Ok(())
}

/// A store that has done its work closes.
///
/// # Errors
///
/// What breaks the rule.
pub fn closes(subject: &Subject) -> Result<(), String> {
    let (session, listing) = opened(subject)?;
    listing.keys.iter().try_for_each(|key| prove(&session, key, 0))?;
    session.close().map_err(|error| error.to_string())
}

/// No secret is in anything that the plugin logged, reported or listed, in this case or any before it.
///
/// # Errors
///
/// What breaks the rule.
pub fn keeps_secrets(subject: &Subject) -> Result<(), String> {
    closes(subject)?;
    let hosts = subject.hosts.lock().unwrap_or_else(PoisonError::into_inner);
    let leaks: Vec<String> = hosts.iter().flat_map(|host| host.leaks()).collect();
    ensure!(leaks.is_empty(), "a secret is in: {}", leaks.join(" | "));
    Ok(())
}

/// A store and its keys, of which there must be one at least.
fn opened(subject: &Subject) -> Result<(Session, Listing), String> {
    let session = subject.open().map_err(|error| format!("opening: {error} ({})", error.code))?;
    let listing = session.listing().map_err(|error| format!("listing: {error} ({})", error.code))?;
    ensure!(!listing.keys.is_empty(), "the store has no keys; findings: {:?}", listing.findings);
    Ok((session, listing))
}

fn for_each_claim(
    subject: &Subject,
    check: impl Fn(&Session, &Key, Algorithm) -> Result<(), String>,
) -> Result<(), String> {
    let (session, listing) = opened(subject)?;
    for key in &listing.keys {
        for algorithm in key.algorithms.iter().copied() {
            check(&session, key, algorithm)
                .map_err(|error| format!("key `{}`: {algorithm}: {error}", key.label))?;
        }
    }
    Ok(())
}

/// Performs one operation and verifies it. `lane` counts only for a key of class `blocking`.
fn prove(session: &Session, key: &Key, lane: u32) -> Result<(), String> {
    let algorithm = key.algorithms.first().copied().ok_or("a key that can do nothing")?;
    let input = input(key, algorithm);
    let request = Request::new(key, algorithm, &input);
    let request = match key.call_class {
        CallClass::Inline => request,
        CallClass::Blocking => Request { lane, ..request },
    };
    session
        .perform(algorithm.operation(), &request)
        .map_err(|failure| failure.error.to_string())
        .and_then(|result| verify(&key.spki, algorithm, &input, &result))
        .map_err(|error| format!("key `{}`: {algorithm}: {error}", key.label))
}

fn refused(session: &Session, operation: Operation, request: &Request<'_>, code: Code) -> Result<(), String> {
    match session.perform(operation, request) {
        Err(failure) if failure.error.code == code => Ok(()),
        Err(failure) => Err(format!("answered `{}` ({}), not `{code}`", failure.error, failure.error.code)),
        Ok(_) => Err(format!("succeeded where `{code}` is the answer")),
    }
}

/// An input that fits: high bits everywhere, so that a digest that isn't truncated rightly shows.
fn input(key: &Key, algorithm: Algorithm) -> Vec<u8> {
    let pattern = |len: usize| (0..len).map(|index| 0xff - u8::try_from(index % 128).unwrap_or(0)).collect();
    match algorithm.input() {
        Input::Digest(len) => pattern(len),
        Input::Message => pattern(300),
        // One byte shorter than the modulus is smaller than the modulus.
        Input::Block => pattern(verify::modulus(&key.spki).map_or(256, |modulus| modulus.len()) - 1),
    }
}

fn identities(listing: &Listing) -> BTreeSet<(&[u8], &[u8])> {
    listing.keys.iter().map(|key| (key.id.as_slice(), key.spki.as_slice())).collect()
}

fn other(operation: Operation) -> Operation {
    match operation {
        Operation::Sign => Operation::Decrypt,
        Operation::Decrypt => Operation::Sign,
    }
}

fn panicked(panic: &(dyn Any + Send)) -> String {
    let text =
        panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    format!("the case panicked: {}", text.unwrap_or("no message"))
}
