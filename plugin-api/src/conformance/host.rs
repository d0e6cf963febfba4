//! A host in miniature: what a plugin gets from it, and all that the plugin said.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use serde_json::Value;

use super::{Door, Session, table::Table};
use crate::{Error, abi::BackendTable};

/// The host of one store: its configuration and secrets, and all that the plugin said.
pub struct TestHost {
    config: Value,
    secrets: Mutex<BTreeMap<String, Vec<u8>>>,
    secret_reads: AtomicU64,
    records: Mutex<Vec<Record>>,
    said: Mutex<Vec<String>>,
    refused: Mutex<BTreeSet<(String, Vec<u8>)>>,
    accepted: Mutex<BTreeSet<(String, Vec<u8>)>>,
    keys_changed: AtomicU64,
}

impl fmt::Debug for TestHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TestHost").finish_non_exhaustive()
    }
}

/// A log event of the plugin.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_structs, reason = "a door writes it as a literal")]
pub struct Record {
    /// 1 error, 2 warn, 3 info, 4 debug, 5 trace.
    pub level: u32,
    /// Module or component.
    pub target: String,
    /// The sentence.
    pub message: String,
    /// Further fields as a JSON object; may be empty.
    pub fields: String,
    /// The request's id; may be empty.
    pub request_id: String,
}

impl TestHost {
    /// A host that lives until the process ends, as the contract demands.
    #[must_use]
    pub fn leak(config: Value, secrets: BTreeMap<String, Vec<u8>>) -> &'static Self {
        Box::leak(Box::new(Self {
            config,
            secrets: Mutex::new(secrets),
            secret_reads: AtomicU64::new(0),
            records: Mutex::default(),
            said: Mutex::default(),
            refused: Mutex::default(),
            accepted: Mutex::default(),
            keys_changed: AtomicU64::new(0),
        }))
    }

    /// Opens a store of a backend with this host, by the C table, if its configuration fits the backend's schema.
    ///
    /// # Errors
    ///
    /// What the backend answers; [`Code::Internal`](crate::Code::Internal) where it succeeds without setting the store.
    pub fn open(&'static self, table: &'static BackendTable) -> Result<Session, Error> {
        self.open_behind(&Table(table))
    }

    /// Opens a store of a backend with this host, by another way.
    ///
    /// # Errors
    ///
    /// What the backend answers.
    pub fn open_behind(&'static self, door: &dyn Door) -> Result<Session, Error> {
        Session::open(door, self)
    }

    /// Gives a secret a new value.
    pub fn set_secret(&self, name: &str, value: &[u8]) {
        lock(&self.secrets).insert(name.to_owned(), value.to_vec());
    }

    /// How often the plugin has read a secret.
    pub fn secret_reads(&self) -> u64 {
        self.secret_reads.load(Ordering::Relaxed)
    }

    /// Every log event so far.
    pub fn records(&self) -> Vec<Record> {
        lock(&self.records).clone()
    }

    /// The refusals that the plugin reported: token and secret.
    pub fn refusals(&self) -> Vec<(String, Vec<u8>)> {
        lock(&self.refused).iter().cloned().collect()
    }

    /// What the plugin reported as accepted: token and secret.
    pub fn acceptances(&self) -> Vec<(String, Vec<u8>)> {
        lock(&self.accepted).iter().cloned().collect()
    }

    /// How often the plugin asked for its keys to be listed again.
    pub fn keys_changed(&self) -> u64 {
        self.keys_changed.load(Ordering::Relaxed)
    }

    /// Everything the plugin logged, reported or listed that holds the value of a secret.
    pub fn leaks(&self) -> Vec<String> {
        let secrets = lock(&self.secrets);
        let leaks = |text: &&String| {
            secrets.values().any(|secret| {
                !secret.is_empty() && text.as_bytes().windows(secret.len()).any(|window| window == secret)
            })
        };
        lock(&self.said).iter().filter(leaks).cloned().collect()
    }
}

/// What a door serves a plugin with that asks from elsewhere.
impl TestHost {
    /// The store's configuration.
    pub fn config(&self) -> &Value {
        &self.config
    }

    /// The value of a secret. Counts as a read of the plugin's.
    pub fn secret(&self, name: &str) -> Option<Vec<u8>> {
        self.secret_reads.fetch_add(1, Ordering::Relaxed);
        lock(&self.secrets).get(name).cloned()
    }

    /// Takes a log event.
    pub fn log(&self, record: Record) {
        self.hear(format!("{} {}", record.message, record.fields));
        lock(&self.records).push(record);
    }

    /// Takes the word that keys have changed.
    pub fn note_keys_changed(&self) {
        self.keys_changed.fetch_add(1, Ordering::Relaxed);
    }

    /// Whether a token has refused a secret.
    pub fn was_refused(&self, token: &str, secret: &[u8]) -> bool {
        lock(&self.refused).contains(&(token.to_owned(), secret.to_vec()))
    }

    /// Takes the word that a token has refused a secret.
    pub fn note_refusal(&self, token: &str, secret: &[u8]) {
        lock(&self.refused).insert((token.to_owned(), secret.to_vec()));
    }

    /// Takes the word that a token has accepted a secret.
    pub fn note_acceptance(&self, token: &str, secret: &[u8]) {
        lock(&self.accepted).insert((token.to_owned(), secret.to_vec()));
    }

    /// Keeps a text of the plugin's, to be searched for secrets.
    pub fn hear(&self, text: impl Into<String>) {
        lock(&self.said).push(text.into());
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
