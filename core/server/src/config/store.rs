//! Stores: one plugin opened with one configuration.

mod cloud;
mod entry;
mod grants;
mod process;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::RangeInclusive;
use std::time::Duration;

use keystead_plugin_host::{Grant, Surroundings};

use super::notice::Position;
use super::secret::SecretSource;

#[cfg(test)]
pub(super) use entry::{ENTRY, LIMITS};
pub(super) use entry::{decrypt_warning, key_files, read_list};
pub(super) use process::hand_on;

/// One plugin opened with one configuration. Its `Debug` form leaves out what may hold secrets.
#[derive(Clone, PartialEq)]
#[non_exhaustive]
pub struct Store {
    /// Unique name: the operator's, else the plugin's and a number from 1, such as `pkcs11-1`; never a URI.
    pub name: String,
    /// Name of the plugin.
    pub plugin: String,
    /// The plugin's configuration, a JSON object. May contain secrets (a PIN in a URI): never print it.
    pub config: serde_json::Value,
    /// Secrets by the name the plugin asks for.
    pub secrets: BTreeMap<String, SecretSource>,
    /// The secrets that a component may see.
    pub exposed: BTreeSet<String>,
    /// The services that it may reach through the host.
    pub grants: Vec<Grant>,
    /// What clients may do with its keys. Native default: sign. Legacy entries: sign and decrypt.
    pub operations: BTreeSet<Operation>,
    /// Where the plugin runs; `None` for what it prefers.
    pub isolation: Option<Isolation>,
    /// What its process gets, where it runs in one of its own. Memory is 64 MiB to 1 TiB, default 1 GiB for a
    /// process and 64 MiB for an instance of a component; `stuck_after` 1 s to 1 h, default 60 s: an HSM that fails over
    /// takes some 20.
    pub surroundings: Surroundings,
    /// Whether the server refuses to run without this store. Default no.
    pub critical: bool,
    /// Whether it was written in the form of `gokeyless.yaml`.
    pub legacy: bool,
    /// When the host checks that each key does what it says. Default in the background.
    pub prove: Prove,
    /// Whether signatures are verified before they leave. Default where it's cheap.
    pub verify_signatures: VerifySignatures,
    /// Bounds on what the store may be asked at once.
    pub limits: StoreLimits,
    /// Where its (first) entry stands in the file; `None` when it comes from a flag or a variable.
    pub position: Option<Position>,
}

/// Something a client may ask of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Operation {
    /// RSA decryption, as the RSA key exchange of old TLS needs.
    Decrypt,
    /// Signatures.
    Sign,
}

/// Where a plugin runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Isolation {
    /// In the server's own process.
    Inline,
    /// In a process of its own.
    Process,
}

/// When the host checks that each key does what it says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Prove {
    /// After the start, rate-limited, and on first use.
    #[default]
    Background,
    /// Not at all.
    Never,
    /// Before the key serves anything.
    Start,
}

/// Whether signatures are verified before they leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum VerifySignatures {
    /// Those of RSA keys, where it is cheap and stops fault attacks.
    #[default]
    Auto,
    /// None.
    Off,
    /// All.
    On,
}

/// Bounds on what a store may be asked at once.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct StoreLimits {
    /// Calls at once; 1 to 1,024. `None` for 24, or as many as the plugin says it can where
    /// that is less.
    pub lanes: Option<usize>,
    /// Requests waiting for a lane; 1 to 65,536, default 256. Beyond it requests are shed.
    pub queue: usize,
    /// From the arrival of a request to its answer; 10 ms to 10 min, and never more than the server's. `None` for that.
    pub deadline: Option<Duration>,
    /// Instances of a component, 1 to 1,024; `None` for as many as lanes.
    pub instances: Option<u32>,
    /// How often the store is asked how it is, and whether its keys have changed; 1 s to 1 h, default 30 s.
    pub health_interval: Duration,
}

impl Operation {
    /// Its name in YAML.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Decrypt => "decrypt",
            Self::Sign => "sign",
        }
    }
}

impl StoreLimits {
    /// Default of [`StoreLimits::queue`]: some thirty calls deep for eight lanes, which most deadlines outlast.
    pub(super) const QUEUE: usize = 256;
    /// Default of [`StoreLimits::health_interval`]: often enough to keep a session with an HSM alive.
    pub(super) const HEALTH_INTERVAL: Duration = Duration::from_secs(30);
    /// Legal deadlines, of a store and of the server.
    pub(super) const DEADLINES: RangeInclusive<Duration> =
        Duration::from_millis(10)..=Duration::from_secs(600);
}

impl Store {
    /// Whether the configuration file holds a secret of this store.
    pub(super) fn has_secret_in_file(&self) -> bool {
        let in_value = |source: &SecretSource| matches!(source.whole(), SecretSource::Value(_));
        self.secrets.values().any(in_value) || has_pin(&self.config)
    }
}

/// Whether a PKCS#11 URI holds its PIN (RFC 7512 section 2.4, `pin-value`).
fn has_pin(config: &serde_json::Value) -> bool {
    let uris = config.get("uris").and_then(serde_json::Value::as_array).into_iter().flatten();
    let mut texts = uris.filter_map(serde_json::Value::as_str);
    texts.any(|uri| uri.contains("pin-value="))
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store")
            .field("name", &self.name)
            .field("plugin", &self.plugin)
            .field("operations", &self.operations)
            .field("isolation", &self.isolation)
            .field("surroundings", &self.surroundings)
            .field("critical", &self.critical)
            .field("legacy", &self.legacy)
            .field("prove", &self.prove)
            .field("verify_signatures", &self.verify_signatures)
            .field("limits", &self.limits)
            .field("position", &self.position)
            .finish_non_exhaustive()
    }
}
