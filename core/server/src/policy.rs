//! May this peer use this key for this operation? The answer is a [`Permit`], and no
//! request reaches a backend without one.

use keystead_plugin_host::Algorithm;

use crate::{config::Operation, store::ManagedStore, tls::Peer};

/// The right to perform one operation with one key; only [`decide`] makes one.
#[derive(Debug)]
pub struct Permit {
    algorithm: Algorithm,
}

impl Permit {
    /// What may be done.
    #[must_use]
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }
}

/// Decides. Every peer whose certificate was verified may use every key, for the operations that its store allows.
///
/// # Errors
///
/// Why not, for the log; the peer learns only that it failed.
pub fn decide(_peer: &Peer, store: &ManagedStore, algorithm: Algorithm) -> Result<Permit, String> {
    let operation = match algorithm {
        Algorithm::RsaRaw => Operation::Decrypt,
        _ => Operation::Sign,
    };
    if !store.operations().contains(&operation) {
        return Err(format!(
            "store `{}` doesn't allow {algorithm}; its `operations` would have to name `{}`",
            store.name(),
            operation.name()
        ));
    }
    Ok(Permit { algorithm })
}
