//! Which stores hold the key? An immutable snapshot that is swapped whole.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use keystead_plugin_host::{Class, Failure, Key, Proof, Request};
use keystead_protocol::{Digest, Ski};
use tokio::time::timeout_at;

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
    ski: Option<Ski>,
    proof: Arc<Trial>,
}

/// Whether a key is what it says it is.
#[derive(Default)]
struct Trial {
    going_on: tokio::sync::Mutex<()>,
    failed: AtomicBool,
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
            let Some(ski) = holder.ski else { continue };
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
}

impl Holder {
    /// A key of a store.
    #[must_use]
    pub fn new(store: Arc<ManagedStore>, key: Arc<Key>) -> Self {
        let ski = Ski::from_spki(key.spki()).ok();
        Self { store, key, ski, proof: Arc::default() }
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

    /// Does with the key what the permit is for, once the key has proven itself where that is asked for.
    ///
    /// # Errors
    ///
    /// As [`keystead_plugin_host::Store::perform`], and [`Class::Internal`] for a key that isn't what it says it is.
    pub async fn perform(
        &self,
        permit: Permit,
        input: &[u8],
        request: Request<'_>,
    ) -> Result<Vec<u8>, Failure> {
        if self.store.wants_proof(&self.key) {
            self.prove(request.deadline).await?;
        }
        let algorithm = permit.algorithm();
        self.store.serve(algorithm, self.store.store().perform(&self.key, algorithm, input, request)).await
    }

    /// Has the key prove itself, unless it has. A key that fails is not used any more; one whose backend fails may try
    /// again.
    ///
    /// # Errors
    ///
    /// That it failed, or what the backend answered.
    pub async fn prove(&self, deadline: Instant) -> Result<(), Failure> {
        let late = |_| Failure::new(Class::Deadline, "the key was still proving itself");
        let _alone = timeout_at(deadline.into(), self.proof.going_on.lock()).await.map_err(late)?;
        if self.key.is_proven() {
            return Ok(());
        }
        match self.store.ask(self.store.store().prove(&self.key, deadline)).await? {
            Proof::Met => Ok(()),
            Proof::Failed => {
                self.proof.failed.store(true, Ordering::Relaxed);
                Err(Failure::new(
                    Class::Internal,
                    format!("key `{}` could not prove itself: its answer was wrong", self.key.label()),
                ))
            }
        }
    }

    /// Whether it failed to prove that it is the key it says it is; then it isn't used.
    #[must_use]
    pub fn is_disproven(&self) -> bool {
        self.proof.failed.load(Ordering::Relaxed)
    }
}
