//! Directories of key files, and stores over them.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use keystead_plugin_api::{
    Finding, Key, Listing,
    abi::BackendTable,
    conformance::{Session, Subject},
    kit,
};
use keystead_plugin_file::FileBackend;
use openssl::pkey::{PKey, Private};
use serde_json::{Value, json};
use tempfile::TempDir;

pub(crate) static TABLE: BackendTable = kit::table::<FileBackend>();

/// The passphrase of all encrypted fixtures.
pub(crate) const PASSPHRASE: &[u8] = b"correct-horse-battery";

/// The unencrypted fixtures: one of every type, size and curve.
pub(crate) const EVERY_KEY: [&str; 9] = [
    "ed25519.pem",
    "p-224.pem",
    "p-256.pem",
    "p-384.pem",
    "p-521.pem",
    "rsa-2048.pem",
    "rsa-3072.pem",
    "rsa-4096.pem",
    "rsa-8192.pem",
];

/// A directory for key files, removed with the value.
pub(crate) struct Place {
    dir: TempDir,
}

impl Place {
    pub(crate) fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    pub(crate) fn with_every_key() -> Self {
        let place = Self::new();
        for name in EVERY_KEY {
            place.put(&name.replace(".pem", ".key"), &fixture(name));
        }
        place
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Writes a file that only its owner can read, in directories made as needed.
    pub(crate) fn put(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, bytes).unwrap();
        self.chmod(name, 0o600);
        path
    }

    pub(crate) fn chmod(&self, name: &str, mode: u32) {
        fs::set_permissions(self.path().join(name), fs::Permissions::from_mode(mode)).unwrap();
    }

    pub(crate) fn subject(&self) -> Subject {
        subject_of(&json!({ "dir": self.path() }))
    }

    pub(crate) fn open(&self) -> Session {
        self.subject().open().unwrap()
    }

    pub(crate) fn listing(&self) -> Listing {
        self.open().listing().unwrap()
    }

    /// The names of the files whose keys are served.
    pub(crate) fn served(&self) -> Vec<String> {
        self.listing().keys.iter().map(|key| self.name(&key.label)).collect()
    }

    /// The only finding, which must be about a file of this name.
    pub(crate) fn finding_about(&self, name: &str) -> Finding {
        let listing = self.listing();
        let [finding] = listing.findings.as_slice() else { panic!("{:?}", listing.findings) };
        assert_eq!(self.name(&finding.subject), name, "{finding:?}");
        finding.clone()
    }

    fn name(&self, path: &str) -> String {
        Path::new(path).strip_prefix(self.path()).unwrap().display().to_string()
    }
}

pub(crate) fn subject_of(config: &Value) -> Subject {
    Subject::new(&TABLE).config(config.clone())
}

/// The bytes of a fixture.
pub(crate) fn fixture(name: &str) -> Vec<u8> {
    fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)).unwrap()
}

/// A fixture as OpenSSL reads it.
pub(crate) fn key(name: &str) -> PKey<Private> {
    PKey::private_key_from_pem(&fixture(name)).unwrap()
}

/// The key of a listing whose label ends so.
pub(crate) fn labelled<'a>(listing: &'a Listing, end: &str) -> &'a Key {
    listing.keys.iter().find(|key| key.label.ends_with(end)).unwrap_or_else(|| panic!("{end}: {listing:?}"))
}
