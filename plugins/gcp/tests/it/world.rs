//! A cloud, and stores that lead to it.

use std::{
    ops::Deref,
    thread,
    time::{Duration, Instant},
};

use keystead_fakes::gcp::{Gcp, RING};
use keystead_plugin_api::{
    Algorithm, Error, Finding, Key, Listing,
    conformance::{self, Door, Session, Subject},
};
use keystead_plugin_host::{
    Grant,
    testing::{self, InServer},
};
use serde_json::{Value, json};
use tempfile::TempDir;

pub(crate) const PACKAGE: &str = "keystead-plugin-gcp";

/// The ways that the plugin is built.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Build {
    Library,
    Component,
}

/// A cloud with its folder.
pub(crate) struct World {
    gcp: Gcp,
    _folder: TempDir,
}

impl Deref for World {
    type Target = Gcp;

    fn deref(&self) -> &Gcp {
        &self.gcp
    }
}

/// The secrets that aren't credentials: what the plugin may see.
const PUBLIC: [&str; 2] = ["client_email", "private_key_id"];

impl World {
    pub(crate) fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self { gcp: Gcp::start(folder.path()), _folder: folder }
    }

    /// One with a key `www` on P-256.
    pub(crate) fn with_a_key() -> Self {
        let world = Self::start();
        world.make_key("www", "EC_SIGN_P256_SHA256");
        world
    }

    /// All that a store may need, as the README has it.
    pub(crate) fn grants(&self) -> Vec<Grant> {
        let grant = |origin: &str, method: &str, secrets: &[&str]| Grant {
            origin: origin.parse().unwrap(),
            methods: [method, "POST"].map(str::to_owned).into(),
            secrets: secrets.iter().copied().map(str::to_owned).collect(),
            addresses: Vec::new(),
            ca: Some(self.ca().to_owned()),
            client: None,
            proxy: Some(self.proxy().parse().unwrap()),
        };
        let person = ["client_id", "client_secret", "refresh_token"];
        vec![
            grant("https://cloudkms.googleapis.com", "GET", &[]),
            grant("https://oauth2.googleapis.com", "POST", &person),
            grant("https://sts.googleapis.com", "POST", &["subject_token"]),
            grant("https://iamcredentials.googleapis.com", "POST", &[]),
            Grant { ca: None, proxy: None, ..grant(&self.metadata(), "GET", &[]) },
        ]
    }

    /// A store of the whole ring by the service account's file, and what this adds to its configuration.
    pub(crate) fn store(&self, build: Build, config: Value) -> Subject {
        self.behind(self.door(build), config)
    }

    pub(crate) fn door(&self, build: Build) -> InServer {
        let door = InServer::load(&match build {
            Build::Library => testing::library(PACKAGE),
            Build::Component => testing::component(PACKAGE),
        });
        door.granting(self.grants()).exposing(&PUBLIC)
    }

    pub(crate) fn behind(&self, door: impl Door + 'static, config: Value) -> Subject {
        let subject = Subject::behind(door).config(with_account(config));
        with_file(subject, &self.service_account(), &["private_key", "client_email", "private_key_id"])
    }

    /// A component's store, open.
    pub(crate) fn open(&self, config: Value) -> Session {
        self.store(Build::Component, config).open().unwrap()
    }
}

fn with_account(mut config: Value) -> Value {
    let members = [("uris", json!([RING])), ("credential", json!({"type": "service_account"}))];
    for (name, value) in members {
        config.as_object_mut().unwrap().entry(name).or_insert(value);
    }
    config
}

/// Secrets out of a file of Google's.
pub(crate) fn with_file(subject: Subject, file: &Value, names: &[&str]) -> Subject {
    names.iter().fold(subject, |subject, name| subject.secret(name, file[name].as_str().unwrap().as_bytes()))
}

/// The name of a version in the ring.
pub(crate) fn version(key: &str, number: u64) -> String {
    format!("{RING}/cryptoKeys/{key}/cryptoKeyVersions/{number}")
}

pub(crate) fn labels(listing: &Listing) -> Vec<&str> {
    listing.keys.iter().map(|key| key.label.as_str()).collect()
}

/// The findings, each in one line, without the ring.
pub(crate) fn findings(listing: &Listing) -> Vec<String> {
    let line = |finding: &Finding| {
        let line = format!("{} {}: {}", finding.severity.name(), finding.subject, finding.error);
        line.replace(&format!("{RING}/cryptoKeys/"), "")
    };
    listing.findings.iter().map(line).collect()
}

/// Signs with the first key of a listing, which is on P-256, and has the signature verified.
pub(crate) fn sign(session: &Session, listing: &Listing) -> Result<(), Error> {
    sign_by(session, &listing.keys[0], Algorithm::EcdsaSha256, &[1; 32])
}

pub(crate) fn sign_by(session: &Session, key: &Key, algorithm: Algorithm, input: &[u8]) -> Result<(), Error> {
    let signature = session.sign(key, algorithm, input)?;
    conformance::verify(&key.spki, algorithm, input, &signature).unwrap();
    Ok(())
}

/// What something comes to once the pause after a failure is over, which is five seconds long.
pub(crate) fn after_a_pause<T>(attempt: impl Fn() -> Result<T, Error>) -> T {
    let until = Instant::now() + Duration::from_secs(30);
    loop {
        match attempt() {
            Ok(done) => return done,
            Err(error) => assert!(Instant::now() < until, "{error}"),
        }
        thread::sleep(Duration::from_millis(100));
    }
}
