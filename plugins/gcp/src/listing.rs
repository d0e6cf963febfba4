//! Which versions are served, and what an operator should know of them.

use std::{
    cmp::Reverse,
    collections::BTreeSet,
    hash::{DefaultHasher, Hash, Hasher},
};

use keystead_plugin_api::{Call, CallClass, Code, Error, Finding, Key, Listing, Severity, http::Request};
use serde::de::DeserializeOwned;

use crate::{
    Config, Kms, Wanted,
    ability::Ability,
    kms::{self, Keys, PublicKey, Versions},
    resource::{CryptoKey, Ring, Selector, Version},
};

/// How many entries a page has. With all the labels that a key can have, it stays below what the host takes.
const PAGE: u32 = 200;

/// How many pages are read, at most: a service that never ends is broken.
const PAGES_MAX: u32 = 100;

/// The purpose of a key that signs.
const SIGNS: &str = "ASYMMETRIC_SIGN";

/// Why nothing of a key is served.
const NONE_ENABLED: &str = "no version of it that signs for TLS is enabled";

/// What a look at everything finds.
pub(crate) struct Look {
    pub(crate) listing: Listing,
    /// How much couldn't be asked.
    pub(crate) lacks: usize,
    /// What [`looks`] answers of it.
    pub(crate) looks: u64,
}

/// The versions that the configuration chooses, and what came of the rest.
#[derive(Default)]
struct Chosen {
    /// How much couldn't be asked before: now, it may be no more.
    may_lack: usize,
    versions: Vec<Version>,
    findings: Vec<Finding>,
    /// What couldn't be asked.
    failures: Vec<Finding>,
}

/// A version that is served.
struct Served {
    version: Version,
    ability: Ability,
    key: Key,
}

/// Every key, with what could not be opened and why.
pub(crate) fn list(store: &Kms, call: &Call<'_>, may_lack: usize) -> Result<Look, Error> {
    let mut chosen = chosen(store, call, may_lack)?;
    let mut hasher = chosen.hasher();
    let mut served = Vec::new();
    for version in std::mem::take(&mut chosen.versions) {
        let public = public_key(store, call, &version);
        note_state(store, &version, &public, &mut hasher);
        match public.and_then(|key| serve(version.clone(), &key)) {
            Ok(Ok(key)) => served.push(key),
            Ok(Err(note)) => chosen.findings.push(note),
            Err(error) => chosen.lacks(version, error)?,
        }
    }
    let lacks = chosen.failures.len();
    let mut findings = chosen.findings_beside(served.len())?;
    findings.extend(served.iter().filter_map(|one| lack(one, &served)));
    let listing = Listing { keys: served.into_iter().map(|one| one.key).collect(), findings };
    Ok(Look { listing, lacks, looks: hasher.finish() })
}

/// A number that changes with what [`list`] would answer. The public half of a version never does: only where nothing
/// else says whether a version can be used, it is asked for.
pub(crate) fn looks(store: &Kms, call: &Call<'_>, may_lack: usize) -> Result<u64, Error> {
    let mut chosen = chosen(store, call, may_lack)?;
    let mut hasher = chosen.hasher();
    let mut reached = 0;
    for version in std::mem::take(&mut chosen.versions) {
        let public = store.names(&version).then(|| public_key(store, call, &version));
        match public.inspect(|public| note_state(store, &version, public, &mut hasher)) {
            Some(Err(error)) => chosen.lacks(version, error)?,
            Some(Ok(_)) | None => reached += 1,
        }
    }
    chosen.findings_beside(reached)?;
    Ok(hasher.finish())
}

/// Of a version that is named, whether it can be used is part of how it looks.
fn note_state(store: &Kms, version: &Version, public: &Result<PublicKey, Error>, hasher: &mut DefaultHasher) {
    if store.names(version) {
        public.as_ref().err().map(|error| error.code).hash(hasher);
    }
}

impl Kms {
    /// Whether the configuration names a version.
    fn names(&self, version: &Version) -> bool {
        self.config.chosen.contains(&Selector::Version(version.clone()))
    }
}

fn chosen(store: &Kms, call: &Call<'_>, may_lack: usize) -> Result<Chosen, Error> {
    let mut chosen = Chosen { may_lack, ..Chosen::default() };
    for selector in &store.config.chosen {
        let added = match selector {
            Selector::Version(version) => {
                chosen.versions.push(version.clone());
                Ok(())
            }
            Selector::Key(key) => chosen.add_named(store, call, key),
            Selector::Ring(ring) => chosen.add_ring(store, call, ring),
        };
        added.or_else(|error| chosen.lacks(selector, error))?;
    }
    let mut seen = BTreeSet::new();
    chosen.versions.retain(|version| seen.insert(version.to_string()));
    Ok(chosen)
}

impl Chosen {
    /// Notes why something isn't served. Where it could not even be asked, nothing is known of it, and it may still be
    /// what it was: an error, unless it never was there.
    fn lacks(&mut self, subject: impl ToString, error: Error) -> Result<(), Error> {
        match () {
            () if is_about_one_key(&error) => self.findings.push(finding(subject, error)),
            () if self.failures.len() >= self.may_lack || is_about_all(&error) => return Err(error),
            () => self.failures.push(finding(subject, error)),
        }
        Ok(())
    }

    /// All that is to be said, beside so many that could be asked. Where there are none, that is a failure.
    fn findings_beside(self, reached: usize) -> Result<Vec<Finding>, Error> {
        match self.failures.first() {
            Some(first) if reached == 0 => Err(first.error.clone()),
            _ => Ok([self.findings, self.failures].concat()),
        }
    }

    fn hasher(&self) -> DefaultHasher {
        let mut hasher = DefaultHasher::new();
        self.findings.iter().for_each(|finding| (&finding.subject, finding.error.code).hash(&mut hasher));
        self.versions.hash(&mut hasher);
        hasher
    }

    fn add_ring(&mut self, store: &Kms, call: &Call<'_>, ring: &Ring) -> Result<(), Error> {
        let doing = format!("listing the keys of `{}`", ring.label());
        let keys = pages(store, call, &doing, &format!("{ring}/cryptoKeys"), "", |page: Keys| {
            (page.crypto_keys, page.next_page_token)
        })?;
        let Config { prefix, labels, .. } = &store.config;
        for described in keys {
            let key = ring.key(&described.name).ok_or_else(|| strange(&doing))?;
            let labelled = labels.iter().all(|(name, value)| described.labels.get(name) == Some(value));
            if !key.key.starts_with(prefix) || !labelled {
                continue;
            }
            let added = self.add_found(store, call, &key, &described.purpose);
            added.or_else(|error| self.lacks(key, error))?;
        }
        Ok(())
    }

    /// A key that is named: it is wrong if there is nothing to serve of it.
    fn add_named(&mut self, store: &Kms, call: &Call<'_>, key: &CryptoKey) -> Result<(), Error> {
        if self.add_versions(store, call, key)? == 0 {
            self.findings.push(finding(key, Error::new(Code::NotFound, NONE_ENABLED)));
        }
        Ok(())
    }

    /// A key that was found in a ring, where there are others, too.
    fn add_found(
        &mut self,
        store: &Kms,
        call: &Call<'_>,
        key: &CryptoKey,
        purpose: &str,
    ) -> Result<(), Error> {
        let why = match purpose {
            SIGNS if self.add_versions(store, call, key)? > 0 => return Ok(()),
            SIGNS => NONE_ENABLED.to_owned(),
            other => format!("its purpose is {other}, and not {SIGNS}"),
        };
        self.findings.push(Finding::note(key.to_string(), format!("passed over: {why}")));
        Ok(())
    }

    /// Adds the versions of a key that are wanted; answers how many.
    fn add_versions(&mut self, store: &Kms, call: &Call<'_>, key: &CryptoKey) -> Result<usize, Error> {
        let doing = format!("listing the versions of `{}`", key.label());
        let (path, filter) = (format!("{key}/cryptoKeyVersions"), "&filter=state%3DENABLED");
        let versions = pages(store, call, &doing, &path, filter, |page: Versions| {
            (page.crypto_key_versions, page.next_page_token)
        })?;
        let mut enabled = Vec::new();
        for described in versions.into_iter().filter(|described| described.state == "ENABLED") {
            let version = key.version(&described.name).ok_or_else(|| strange(&doing))?;
            match Ability::of(&described.algorithm) {
                Some(_) => enabled.push(version),
                None => self.findings.push(no_use(&version, &described.algorithm)),
            }
        }
        enabled.sort_by_key(|version| Reverse(version.number));
        enabled.truncate(if store.config.versions == Wanted::Newest { 1 } else { usize::MAX });
        let added = enabled.len();
        self.versions.extend(enabled);
        Ok(added)
    }
}

/// All of a list that comes in pages.
fn pages<P: DeserializeOwned, T>(
    store: &Kms,
    call: &Call<'_>,
    doing: &str,
    path: &str,
    filter: &str,
    parts: impl Fn(P) -> (Vec<T>, String),
) -> Result<Vec<T>, Error> {
    let (mut all, mut token) = (Vec::new(), String::new());
    for _ in 0..PAGES_MAX {
        let at: String = form_urlencoded::byte_serialize(token.as_bytes()).collect();
        let url = store.url(&format!("{path}?pageSize={PAGE}&pageToken={at}{filter}"));
        let (page, next) = parts(store.ask(call, doing, &Request::new("GET", url))?);
        all.extend(page);
        if next.is_empty() {
            return Ok(all);
        }
        token = next;
    }
    Err(kms::about(doing, kms::broken(&format!("more than {PAGES_MAX} pages"))))
}

fn public_key(store: &Kms, call: &Call<'_>, version: &Version) -> Result<PublicKey, Error> {
    let doing = format!("reading the public key of `{}`", version.label());
    let request = Request::new("GET", store.url(&format!("{version}/publicKey")));
    store.ask(call, &doing, &request)
}

/// A version as a key of the listing, or why it isn't one.
fn serve(version: Version, public: &PublicKey) -> Result<Result<Served, Finding>, Error> {
    let doing = format!("reading the public key of `{}`", version.label());
    let spki = public.spki(&version).map_err(|error| kms::about(&doing, error))?;
    let Some(ability) = Ability::of(&public.algorithm) else {
        return Ok(Err(no_use(&version, &public.algorithm)));
    };
    let Some(id) = version.id(ability) else {
        let error = Error::invalid("its name is longer than an id of a key can be (255 bytes)");
        return Ok(Err(finding(version, error)));
    };
    let label = format!("{} ({})", version.label(), public.protection_level);
    let key = Key { id, spki, label, algorithms: ability.algorithms(), call_class: CallClass::Blocking };
    Ok(Ok(Served { version, ability, key }))
}

/// What a key of RSA can't do that a handshake may need, where no other of the store does it with the same key pair.
fn lack(one: &Served, all: &[Served]) -> Option<Finding> {
    let beside = |does: fn(Ability) -> bool| {
        all.iter().any(|other| other.key.spki == one.key.spki && does(other.ability))
    };
    let subject = one.version.to_string();
    if one.ability.is_pkcs1() && !beside(Ability::is_pss) {
        let what = "it signs with PKCS#1 v1.5 and not with PSS, which TLS 1.3 needs: a key of Cloud KMS has one \
                    padding";
        let hint = "import the same private key a second time, with an algorithm RSA_SIGN_PSS_…, into a key of \
                    this store, and the two serve as one; or use a key on P-256";
        let error = Error::new(Code::Unsupported, what);
        return Some(Finding { severity: Severity::Warning, subject, error, hint: hint.to_owned() });
    }
    let note = "it signs with PSS and not with PKCS#1 v1.5, which clients of TLS 1.2 need that know no PSS";
    (one.ability.is_pss() && !beside(Ability::is_pkcs1)).then(|| Finding::note(subject, note))
}

fn no_use(version: &Version, algorithm: &str) -> Finding {
    Finding::note(version.to_string(), format!("passed over: {algorithm} doesn't sign for TLS"))
}

/// Something that keeps a key, or several, from being served.
fn finding(subject: impl ToString, error: Error) -> Finding {
    let hint = match error.code {
        Code::NotFound => {
            "`gcloud kms keys versions list` shows what there is; a name is as it is shown there"
        }
        Code::Denied if error.message.contains("FAILED_PRECONDITION") => {
            "`gcloud kms keys versions enable` enables it, where it isn't destroyed"
        }
        Code::Denied => {
            "to sign, an account needs the role `roles/cloudkms.signerVerifier` on the key or its ring; to find \
             versions and keys, `roles/cloudkms.viewer` as well"
        }
        _ => "",
    };
    Finding { severity: Severity::Error, subject: subject.to_string(), error, hint: hint.to_owned() }
}

/// Whether an error is the service's word on what was asked for, and says nothing about other keys. A refusal (401, 403)
/// may be about who asks and from where, and passes: a role, an API, a perimeter.
fn is_about_one_key(error: &Error) -> bool {
    error.vendor.as_ref().is_some_and(|vendor| matches!(vendor.number, 400 | 404))
        && matches!(error.code, Code::NotFound | Code::Denied | Code::InvalidInput)
}

/// Whether an error says that nothing else can be asked, either: time, a quota, a token, a grant.
fn is_about_all(error: &Error) -> bool {
    let of_who_asks = error.vendor.as_ref().is_none_or(|vendor| vendor.number == 401);
    matches!(error.code, Code::Throttled | Code::Deadline | Code::Credentials)
        || (of_who_asks && error.code != Code::Unavailable)
}

fn strange(doing: &str) -> Error {
    kms::about(doing, kms::broken("a name that isn't one of those asked for"))
}
