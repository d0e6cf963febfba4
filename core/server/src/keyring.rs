//! Which stores hold the key? An immutable snapshot that is swapped whole.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use keystead_plugin_host::{Failure, Key, Request};
use keystead_protocol::{Digest, Ski};

use crate::{policy::Permit, store::ManagedStore};

/// Every key that is served, by its names on the wire.
#[derive(Default)]
pub struct Keyring {
    by_ski: HashMap<Ski, Arc<[Holder]>>,
    by_digest: HashMap<Digest, Ski>,
    complete: bool,
}

/// A key in one of the stores that hold it.
#[derive(Clone)]
pub struct Holder {
    store: Arc<ManagedStore>,
    key: Arc<Key>,
    disproven: Arc<AtomicBool>,
}

/// Why a key was not found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "a caller answers each differently")]
pub enum Missing {
    /// The request names no key.
    Unnamed,
    /// No store has it, though a store hasn't listed its keys yet.
    Perhaps,
    /// No store has it.
    Unknown,
}

impl Keyring {
    /// A keyring of these keys; a key in several stores is served by the first of them that can. `complete` says
    /// whether every store has listed its keys.
    #[must_use]
    pub fn new(holders: impl IntoIterator<Item = Holder>, complete: bool) -> Self {
        let mut by_ski: HashMap<Ski, Vec<Holder>> = HashMap::new();
        let mut by_digest = HashMap::new();
        for holder in holders {
            let Ok(ski) = Ski::from_spki(holder.key.spki()) else { continue };
            if let Ok(Some(digest)) = Digest::from_spki(holder.key.spki()) {
                by_digest.insert(digest, ski);
            }
            by_ski.entry(ski).or_default().push(holder);
        }
        let by_ski = by_ski.into_iter().map(|(ski, holders)| (ski, holders.into())).collect();
        Self { by_ski, by_digest, complete }
    }

    /// The stores that hold a key, in order of preference: by SKI, or by the legacy digest where there is no SKI.
    ///
    /// # Errors
    ///
    /// Why there is none.
    pub fn find(&self, ski: Option<Ski>, digest: Option<Digest>) -> Result<Arc<[Holder]>, Missing> {
        let unknown = if self.complete { Missing::Unknown } else { Missing::Perhaps };
        let ski = match (ski, digest) {
            (Some(ski), _) => ski,
            (None, Some(digest)) => *self.by_digest.get(&digest).ok_or(unknown)?,
            (None, None) => return Err(Missing::Unnamed),
        };
        self.by_ski.get(&ski).cloned().ok_or(unknown)
    }

    /// How many different keys there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.by_ski.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.by_ski.is_empty()
    }
}

impl Holder {
    /// A key of a store.
    #[must_use]
    pub fn new(store: Arc<ManagedStore>, key: Arc<Key>) -> Self {
        Self { store, key, disproven: Arc::default() }
    }

    /// The store.
    #[must_use]
    pub fn store(&self) -> &Arc<ManagedStore> {
        &self.store
    }

    /// The key.
    #[must_use]
    pub fn key(&self) -> &Arc<Key> {
        &self.key
    }

    /// Does with the key what the permit is for.
    ///
    /// # Errors
    ///
    /// As [`keystead_plugin_host::Store::perform`].
    pub async fn perform(
        &self,
        permit: Permit,
        input: &[u8],
        request: Request<'_>,
    ) -> Result<Vec<u8>, Failure> {
        self.store.store().perform(&self.key, permit.algorithm(), input, request).await
    }

    /// Whether it failed to prove that it is the key it says it is; then it isn't used.
    #[must_use]
    pub fn is_disproven(&self) -> bool {
        self.disproven.load(Ordering::Relaxed)
    }

    pub(crate) fn disprove(&self) {
        self.disproven.store(true, Ordering::Relaxed);
    }
}
