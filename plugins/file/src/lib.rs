//! Private keys in files.
//!
//! - `files` knows which files hold keys, `decode` what their bytes say, `crypto` what can be done with a key.
//! - Every listing reads all files anew and swaps the whole set of keys; operations take keys from the set without
//!   waiting for anybody.

#![deny(unsafe_code)]

#[expect(unsafe_code, reason = "AWS-LC's C functions, for what aws-lc-rs lacks")]
mod crypto;
mod decode;
mod files;

use std::{
    cell::OnceCell,
    collections::{HashMap, hash_map::Entry},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use arc_swap::ArcSwap;
use aws_lc_rs::digest::{SHA256, digest};
use keystead_plugin_api::{
    Algorithm, Backend, Call, CallClass, Code, Description, Error, Finding, Health, Host, Isolation, Key,
    Lane, Listing, Output, Secret, Severity,
};
use serde::Deserialize;

use crate::{
    crypto::PrivateKey,
    decode::Refusal,
    files::{Permissions, Place},
};

/// The largest RSA modulus whose private operation takes about 1 ms, in bytes.
const INLINE_MODULUS_MAX: usize = 256;

/// A store of key files.
pub struct FileBackend {
    host: Host,
    place: Place,
    permissions: Permissions,
    keys: ArcSwap<HashMap<Id, PrivateKey>>,
    seen: Mutex<Seen>,
}

/// SHA-256 of the SPKI: the same wherever the file lies, whatever it's called, and however many there are.
type Id = [u8; 32];

/// The last look at the files.
#[derive(Debug, Default)]
struct Seen {
    fingerprint: Option<u64>,
    generation: u64,
    /// Whether the place couldn't be looked at the last time.
    lost: bool,
}

/// The configuration, as the README explains it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    dir: Option<PathBuf>,
    file: Option<PathBuf>,
    #[serde(default)]
    permissions: Permissions,
}

impl Config {
    fn place(self) -> Result<Place, Error> {
        match (self.dir, self.file) {
            (Some(dir), None) => Ok(Place::Directory(dir)),
            (None, Some(file)) => Ok(Place::File(file)),
            (None, None) => {
                Err(Error::invalid("config: one of `dir` and `file` is needed, neither is there"))
            }
            (Some(_), Some(_)) => {
                Err(Error::invalid("config: one of `dir` and `file` is needed, both are there"))
            }
        }
    }
}

impl Backend for FileBackend {
    const DESCRIPTION: Description = Description {
        name: "file",
        version: env!("CARGO_PKG_VERSION"),
        vendor: "Keystead",
        isolation: Isolation::Inline,
        lanes_max: None,
        schema: include_str!("schema.json"),
    };

    fn open(host: Host) -> Result<Self, Error> {
        let config: Config = host.config()?;
        let permissions = config.permissions;
        let store = Self {
            host,
            place: config.place()?,
            permissions,
            keys: ArcSwap::default(),
            seen: Mutex::default(),
        };
        let files = store.place.files()?;
        store.observe(files.fingerprint);
        Ok(store)
    }

    fn keys(&self, _call: &Call<'_>) -> Result<Listing, Error> {
        let files = self.place.files()?;
        self.observe(files.fingerprint);
        let mut load = Load::new(self.host, files.findings);
        for path in &files.paths {
            load.file(path, self.permissions);
        }
        self.keys.store(load.keys.into());
        Ok(load.listing)
    }

    fn sign(
        &self,
        call: &Call<'_>,
        key: &[u8],
        algorithm: Algorithm,
        input: &[u8],
        out: &mut Output<'_>,
    ) -> Result<(), Error> {
        if matches!(call.lane, Lane::Number(_)) && call.time_left().is_some_and(|left| left.is_zero()) {
            return Err(Error::new(Code::Deadline, "the time ran out before the operation began"));
        }
        let keys = self.keys.load();
        keys.get(key).ok_or_else(Error::unknown_key)?.perform(algorithm, input, out)
    }

    fn decrypt(
        &self,
        call: &Call<'_>,
        key: &[u8],
        algorithm: Algorithm,
        input: &[u8],
        out: &mut Output<'_>,
    ) -> Result<(), Error> {
        self.sign(call, key, algorithm, input, out)
    }

    /// Keys that have been read work on when their files can't be looked at for a time.
    fn health(&self, _call: &Call<'_>) -> Result<Health, Error> {
        let generation = match self.place.files() {
            Ok(files) => self.observe(files.fingerprint),
            Err(error) => self.lose(&error),
        };
        Ok(Health { generation })
    }

    fn close(&self, _grace: Duration) {
        self.keys.store(HashMap::new().into());
    }
}

impl FileBackend {
    /// Notes a look at the files; answers with a generation that counts the changes.
    fn observe(&self, fingerprint: u64) -> u64 {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.lost = false;
        if seen.fingerprint.replace(fingerprint).is_some_and(|before| before != fingerprint) {
            seen.generation += 1;
        }
        seen.generation
    }

    /// Notes a look that failed, with a word to the operator for the first of several.
    fn lose(&self, error: &Error) -> u64 {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if !std::mem::replace(&mut seen.lost, true) {
            tracing::warn!("{error}; the keys read before are still served");
        }
        seen.generation
    }
}

/// One reading of all files.
struct Load {
    host: Host,
    /// Read once, when the first encrypted key is met.
    passphrase: OnceCell<Result<Secret, Error>>,
    keys: HashMap<Id, PrivateKey>,
    listing: Listing,
}

impl Load {
    fn new(host: Host, findings: Vec<Finding>) -> Self {
        let listing = Listing { keys: Vec::new(), findings };
        Self { host, passphrase: OnceCell::new(), keys: HashMap::new(), listing }
    }

    fn file(&mut self, path: &Path, permissions: Permissions) {
        let result = files::read(path, permissions).and_then(|(bytes, finding)| {
            self.listing.findings.extend(finding);
            decode::private_key(&bytes, || self.passphrase())
        });
        match result {
            Ok(key) => self.add(path, key),
            Err(refusal) => self.find(Severity::Error, path, refusal),
        }
    }

    fn add(&mut self, path: &Path, key: PrivateKey) {
        let entry = describe(path, &key);
        match self.keys.entry(id(&key)) {
            Entry::Vacant(vacant) => {
                vacant.insert(key);
                self.listing.keys.push(entry);
            }
            Entry::Occupied(_) => {
                let first = self.listing.keys.iter().find(|other| other.id == entry.id);
                let first = first.map_or("", |first| first.label.as_str());
                let message = format!("it holds the same key as `{first}`");
                self.find(
                    Severity::Warning,
                    path,
                    Refusal::new(Code::InvalidInput, message, "remove one of them"),
                );
            }
        }
    }

    fn find(&mut self, severity: Severity, path: &Path, refusal: Refusal) {
        self.listing.findings.push(files::finding(severity, path, refusal));
    }

    fn passphrase(&self) -> Result<Secret, Error> {
        self.passphrase.get_or_init(|| self.host.secret("passphrase")).clone()
    }
}

fn id(key: &PrivateKey) -> Id {
    let mut id = Id::default();
    id.copy_from_slice(digest(&SHA256, key.spki()).as_ref());
    id
}

fn describe(path: &Path, key: &PrivateKey) -> Key {
    Key {
        id: id(key).to_vec(),
        spki: key.spki().to_vec(),
        label: path.display().to_string(),
        algorithms: Algorithm::of(key.family()).collect(),
        call_class: match key.modulus_len() > INLINE_MODULUS_MAX {
            true => CallClass::Blocking,
            false => CallClass::Inline,
        },
    }
}

keystead_plugin_api::export_backend!(FileBackend);
