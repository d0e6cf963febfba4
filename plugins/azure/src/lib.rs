//! Private keys in Azure Key Vault and Azure Managed HSM, which never leave there: the plugin asks for signatures over
//! HTTP, and needs nothing else of the machine or the network.
//!
//! It keeps nothing between two calls, since its instance may be gone after any of them; a key's id says all that is
//! needed to sign with it. Secrets stay with the host, which puts them where they belong; tokens live in the host's
//! cache.
//!
//! ```text
//! place (URLs, ids) -> service (challenge -> token -> request) -> keys (JSON) -> Listing, signature
//!                              credential: five ways to a token     refusal: what went wrong
//! ```

#![forbid(unsafe_code)]

mod challenge;
mod config;
mod credential;
mod keys;
mod place;
mod refusal;
mod service;

use std::{
    cmp::Reverse,
    collections::BTreeSet,
    hash::{DefaultHasher, Hash, Hasher},
    time::{Duration, SystemTime},
};

use keystead_plugin_api::{
    Advice, Algorithm, Backend, Call, Code, Description, Error, Finding, Health, Host, Isolation, Listing,
    Output, Secret, Severity,
};

use crate::{
    config::{Config, Versions},
    keys::{Bundle, Item, Signature, Unfit},
    place::{Id, Keys, Place, of_kid},
    service::{Service, Trouble},
};

keystead_plugin_api::export_backend!(Azure);

/// The names of what `health` last answered and of what the last listing was, in the host's cache, and for how long
/// they count.
const GENERATION: &str = "generation";
const LISTED: &str = "listed";
const KEPT: Duration = Duration::from_secs(24 * 3600);

/// A store of keys in vaults and managed HSMs.
pub struct Azure {
    host: Host,
    config: Config,
}

impl Backend for Azure {
    const DESCRIPTION: Description = Description {
        name: "azure",
        version: env!("CARGO_PKG_VERSION"),
        vendor: "Keystead",
        isolation: Isolation::Inline,
        lanes_max: None,
        schema: include_str!("schema.json"),
    };

    /// Asks nobody: an instance may be made for a single signature.
    fn open(host: Host) -> Result<Self, Error> {
        Ok(Self { config: Config::of(host)?, host })
    }

    /// What can't be asked doesn't hide the other keys, as long as they were never all there; later on, the host keeps
    /// the former listing.
    fn keys(&self, call: &Call<'_>) -> Result<Listing, Error> {
        let survey = self.survey(call);
        let mut listing = Listing::default();
        let mut failures = Vec::new();
        for place in &self.config.places {
            if let Err(error) = survey.list(place, &mut listing) {
                failures.push(finding(place.to_string(), error));
            }
        }
        match failures.first() {
            None => self.note_listed(call, ALL)?,
            Some(first) if failures.len() == self.config.places.len() || self.was_whole(call) => {
                return Err(first.error.clone());
            }
            Some(_) => self.note_listed(call, &mark())?,
        }
        let mut known = BTreeSet::new();
        listing.keys.retain(|key| known.insert(key.id.clone()));
        listing.findings.extend(failures);
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
        let id = self.served(key)?;
        let body = keys::request(id.kind, self.config.rsnull(&id.vault), algorithm, input)?;
        let path = format!("/keys/{}/{}/sign", id.name, id.version);
        let doing = format!("signing with `{}` version {}", id.name, id.version);
        let answer = self.service(call).post(&id.vault, &path, &body, &doing);
        let signature: Signature = answer.map_err(not_of_the_input)?;
        out.write(&signature.bytes(&id)?)
    }

    /// Never: see the README.
    fn decrypt(
        &self,
        _call: &Call<'_>,
        key: &[u8],
        algorithm: Algorithm,
        _input: &[u8],
        _out: &mut Output<'_>,
    ) -> Result<(), Error> {
        Err(self.served(key).map_or_else(|unknown| unknown, |_| Error::unsupported(algorithm)))
    }

    fn advice(&self) -> Advice {
        // Each lane waits for the network nearly all of the time.
        Advice { lanes: Some(64), stuck_after: None }
    }

    /// Gets another token before the one that is used ends, and looks for what has changed.
    fn health(&self, call: &Call<'_>) -> Result<Health, Error> {
        let service = self.service(call);
        self.config.vaults().into_iter().try_for_each(|vault| service.refresh(vault))?;
        let generation = match self.generation(call) {
            Err(error) if error.code == Code::Throttled => self.last_generation(call, error)?,
            generation => self.keep_generation(call, generation?)?,
        };
        Ok(Health { generation })
    }

    fn close(&self, _grace: Duration) {}
}

impl Azure {
    fn service<'a>(&'a self, call: &'a Call<'a>) -> Service<'a> {
        Service { host: self.host, config: &self.config, call }
    }

    fn survey<'a>(&'a self, call: &'a Call<'a>) -> Survey<'a> {
        Survey(self.service(call))
    }

    /// What the listing depends on, as a number.
    fn generation(&self, call: &Call<'_>) -> Result<u64, Error> {
        let survey = self.survey(call);
        let mut hasher = DefaultHasher::new();
        self.config.places.iter().try_for_each(|place| survey.look(place, &mut hasher))?;
        if let Some(listed) = self.listed(call) {
            self.note_listed(call, listed.expose())?;
            // Now that all could be asked, what lacked something is another listing than the next.
            if listed.expose() != ALL {
                listed.expose().hash(&mut hasher);
            }
        }
        Ok(hasher.finish())
    }

    /// Keeps what the last listing was: whole, or a mark of its own.
    fn note_listed(&self, call: &Call<'_>, what: &[u8]) -> Result<(), Error> {
        self.host.keep(call, LISTED, Secret::new(what.to_vec()), KEPT)
    }

    fn listed(&self, call: &Call<'_>) -> Option<Secret> {
        self.host.kept(call, LISTED)
    }

    fn was_whole(&self, call: &Call<'_>) -> bool {
        self.listed(call).is_some_and(|listed| listed.expose() == ALL)
    }

    fn keep_generation(&self, call: &Call<'_>, generation: u64) -> Result<u64, Error> {
        self.host.keep(call, GENERATION, Secret::new(generation.to_be_bytes().to_vec()), KEPT)?;
        Ok(generation)
    }

    /// A vault that is busy signing throttles whoever looks, too. That is no outage: the store signs, and to look more
    /// often, as at one that is down, would make it worse. What was last seen counts on.
    fn last_generation(&self, call: &Call<'_>, throttled: Error) -> Result<u64, Error> {
        let last = self.host.kept(call, GENERATION);
        last.and_then(|last| last.expose().try_into().ok()).map(u64::from_be_bytes).ok_or(throttled)
    }

    /// The id of a key of this store's.
    fn served(&self, key: &[u8]) -> Result<Id, Error> {
        Id::parse(key).filter(|id| self.config.serves(id)).ok_or_else(Error::unknown_key)
    }
}

/// What went wrong with a signature, whose input is right by now: whoever sent that can't mend it, and another store may
/// do what this one doesn't.
fn not_of_the_input(Trouble { mut error, of_the_key }: Trouble) -> Error {
    if error.code == Code::InvalidInput {
        error.code = if of_the_key { Code::Unsupported } else { Code::Denied };
    }
    error
}

/// A listing that lacks nothing.
const ALL: &[u8] = b"all";

/// What no other listing is marked with.
fn mark() -> Vec<u8> {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    now.as_nanos().to_be_bytes().to_vec()
}

/// Finds keys.
struct Survey<'a>(Service<'a>);

impl Survey<'_> {
    /// Adds the keys of a place to a listing.
    fn list(&self, place: &Place, listing: &mut Listing) -> Result<(), Error> {
        match &place.keys {
            Keys::Version(name, version) => {
                let found = self.version(place, name, version).map(|bundle| vec![bundle]);
                self.add(place, name, found, Severity::Error, listing)
            }
            Keys::Named(name) => self.add(place, name, self.versions(place, name), Severity::Error, listing),
            Keys::All => self.wanted(place)?.into_iter().try_for_each(|(name, _)| {
                self.add(place, &name, self.versions(place, &name), Severity::Note, listing)
            }),
        }
    }

    /// Adds the versions of a key that were found, or a finding why not. `severity` is that of a key that can't be
    /// used: one that the configuration names is missed.
    fn add(
        &self,
        place: &Place,
        name: &str,
        found: Result<Vec<Bundle>, Trouble>,
        severity: Severity,
        listing: &mut Listing,
    ) -> Result<(), Error> {
        let subject = format!("{}/keys/{name}", place.vault.url());
        let bundles = match found {
            Ok(bundles) => bundles,
            Err(Trouble { error, of_the_key: true }) => {
                listing.findings.push(finding(subject, error));
                return Ok(());
            }
            Err(trouble) => return Err(trouble.error),
        };
        for bundle in bundles {
            let rsnull = self.0.config.rsnull(&place.vault);
            let passed = match (bundle.attributes.hindrance(), bundle.served(&place.vault, rsnull)) {
                (None, Ok(key)) => {
                    listing.findings.extend(ending(&key.label, &bundle));
                    listing.keys.push(key);
                    continue;
                }
                (_, Err(Unfit::Broken(error))) => {
                    listing.findings.push(finding(subject.clone(), error));
                    continue;
                }
                (_, Err(Unfit::Passed(why))) | (Some(why), _) => why,
            };
            listing.findings.push(unusable(&subject, &passed, severity));
        }
        Ok(())
    }

    /// Adds what the listing of a place depends on to a hash: as little as shows a change.
    fn look(&self, place: &Place, hasher: &mut DefaultHasher) -> Result<(), Error> {
        match &place.keys {
            Keys::Version(name, version) => {
                note(self.version(place, name, version).map(|bundle| vec![bundle]), hasher)
            }
            Keys::Named(name) => note(self.versions(place, name), hasher),
            Keys::All => self.wanted(place)?.into_iter().try_for_each(|(name, item)| {
                (&item, item.attributes.expires_soon()).hash(hasher);
                // A list tells of the newest version alone.
                match self.0.config.versions == Versions::Newest && item.attributes.hindrance().is_none() {
                    true => Ok(()),
                    false => note(self.versions(place, &name), hasher),
                }
            }),
        }
    }

    /// The keys of a vault that the configuration wants, by their names.
    fn wanted(&self, place: &Place) -> Result<Vec<(String, Item)>, Error> {
        let items =
            self.0.list(&place.vault, "/keys", &format!("listing the keys of {}", place.vault.url()))?;
        let named = items.into_iter().filter_map(|item| Some((of_kid(&item.kid)?.0, item)));
        Ok(named.filter(|(name, item)| self.0.config.wants(name, item.tags())).collect())
    }

    fn version(&self, place: &Place, name: &str, version: &str) -> Result<Bundle, Trouble> {
        let path = format!("/keys/{name}/{version}");
        let bundle: Bundle =
            self.0.get(&place.vault, &path, &format!("reading the key `{name}` version {version}"))?;
        match bundle.name() == Some((name.to_owned(), version.to_owned())) {
            true => Ok(bundle),
            false => Err(keys::broken("another key than was asked for").into()),
        }
    }

    /// The versions of a key to serve, newest first: the newest that can be used, or all. Where none can, the newest.
    fn versions(&self, place: &Place, name: &str) -> Result<Vec<Bundle>, Trouble> {
        let newest: Bundle =
            self.0.get(&place.vault, &format!("/keys/{name}/"), &format!("reading the key `{name}`"))?;
        if newest.name().is_none_or(|(found, _)| found != name) {
            return Err(keys::broken("another key than was asked for").into());
        }
        let all = self.0.config.versions == Versions::Enabled;
        if !all && newest.attributes.hindrance().is_none() {
            return Ok(vec![newest]);
        }
        let path = format!("/keys/{name}/versions");
        let mut items = self.0.list(&place.vault, &path, &format!("listing the versions of `{name}`"))?;
        items.retain(|item| item.attributes.hindrance().is_none());
        items.sort_by_key(|item| Reverse(item.attributes.created));
        let ids = items.iter().filter_map(|item| of_kid(&item.kid)?.1).take(if all { usize::MAX } else { 1 });
        let found = ids.map(|version| self.version(place, name, &version)).collect::<Result<Vec<_>, _>>()?;
        Ok(if found.is_empty() { vec![newest] } else { found })
    }
}

/// Adds what was found to a hash, and whether it can be used now.
fn note(found: Result<Vec<Bundle>, Trouble>, hasher: &mut DefaultHasher) -> Result<(), Error> {
    match found {
        Ok(bundles) => bundles.iter().for_each(|bundle| {
            (bundle, bundle.attributes.hindrance(), bundle.attributes.expires_soon()).hash(hasher);
        }),
        // Not in its words: they may be others each time.
        Err(Trouble { error, of_the_key: true }) => {
            (error.code.name(), error.vendor.map(|vendor| vendor.number)).hash(hasher);
        }
        Err(trouble) => return Err(trouble.error),
    }
    Ok(())
}

/// A key that can't be used: an error where the configuration names it, else a note.
fn unusable(subject: &str, why: &str, severity: Severity) -> Finding {
    if severity == Severity::Note {
        return Finding::note(subject, format!("passed over: {why}"));
    }
    let hint = "`az keyvault key list-versions` shows which version is enabled, and until when";
    let error = Error::new(Code::Denied, why);
    Finding { severity, subject: subject.to_owned(), error, hint: hint.to_owned() }
}

/// A word of warning about a key that soon can't be used.
fn ending(label: &str, bundle: &Bundle) -> Option<Finding> {
    let until = bundle.attributes.expires_soon()?;
    Some(Finding {
        severity: Severity::Warning,
        subject: label.to_owned(),
        error: Error::new(Code::Denied, format!("it expires on {until}, and signs no more then")),
        hint: "rotate it, and have a certificate made for the new version; or set a later date".to_owned(),
    })
}

/// Something that keeps keys from being served.
fn finding(subject: String, error: Error) -> Finding {
    let hint = match error.code {
        Code::NotFound => "`az keyvault key list` shows the vault's keys",
        Code::Denied if error.vendor.is_some() => {
            "give the identity the role `Key Vault Crypto User` for the vault or the key, in a managed HSM the local \
             role `Managed HSM Crypto User`, and look at the firewall"
        }
        _ => "",
    };
    Finding { severity: Severity::Error, subject, error, hint: hint.to_owned() }
}
