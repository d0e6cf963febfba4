//! The configuration, as the README explains it.

use std::collections::BTreeMap;

use keystead_plugin_api::{Error, Host};
use serde::Deserialize;

use crate::{
    credential::Credential,
    place::{Id, Place, Vault},
};

/// How many vaults a store may have: the host keeps at most 64 values that expire, two for each vault, two for each token,
/// and two of the store.
const VAULTS_MAX: usize = 24;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    uris: Vec<String>,
    credential: Credential,
    prefix: Option<String>,
    #[serde(default)]
    tags: BTreeMap<String, String>,
    #[serde(default)]
    versions: Versions,
    rsnull: Option<bool>,
}

/// Which versions of a key are served that isn't named with one.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Versions {
    #[default]
    Newest,
    Enabled,
}

/// What was written, understood.
pub(crate) struct Config {
    pub(crate) places: Vec<Place>,
    pub(crate) credential: Credential,
    prefix: String,
    tags: BTreeMap<String, String>,
    pub(crate) versions: Versions,
    rsnull: Option<bool>,
}

impl Config {
    pub(crate) fn of(host: Host) -> Result<Self, Error> {
        let written: Written = host.config()?;
        let place = |url: &String| {
            Place::parse(url).ok_or_else(|| {
                Error::invalid(format!(
                    "config: `uris`: expected https://NAME.vault.azure.net/keys, /keys/NAME or /keys/NAME/VERSION, \
                     got `{url}`"
                ))
            })
        };
        let config = Self {
            places: written.uris.iter().map(place).collect::<Result<_, _>>()?,
            credential: written.credential.check()?,
            prefix: written.prefix.unwrap_or_default().to_ascii_lowercase(),
            tags: written.tags,
            versions: written.versions,
            rsnull: written.rsnull,
        };
        let vaults = config.vaults().len();
        if vaults > VAULTS_MAX {
            let what = format!("config: `uris`: {vaults} vaults, of which a store has at most {VAULTS_MAX}");
            return Err(Error::invalid(what));
        }
        Ok(config)
    }

    /// The vaults, each once.
    pub(crate) fn vaults(&self) -> Vec<&Vault> {
        let mut vaults: Vec<_> = self.places.iter().map(|place| &place.vault).collect();
        vaults.sort();
        vaults.dedup();
        vaults
    }

    /// Whether a listed key is wanted: by its name, which is in lower case, and its tags.
    pub(crate) fn wants(&self, name: &str, tags: &BTreeMap<String, String>) -> bool {
        name.starts_with(&self.prefix) && self.tags.iter().all(|(tag, value)| tags.get(tag) == Some(value))
    }

    /// Whether a key is one of this store's, as far as its id says.
    pub(crate) fn serves(&self, id: &Id) -> bool {
        self.places.iter().any(|place| place.covers(id, &self.prefix))
    }

    /// Whether signatures without a hash of the service's own are asked for. A managed HSM was seen to refuse them.
    pub(crate) fn rsnull(&self, vault: &Vault) -> bool {
        self.rsnull.unwrap_or(!vault.is_hsm())
    }
}
