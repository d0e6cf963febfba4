//! The memory of refused credentials: one wrong PIN costs a token one attempt, whichever store presents it.

use std::{
    collections::HashSet,
    sync::{Mutex, PoisonError},
};

use aws_lc_rs::{hmac, rand::SystemRandom};

/// A keyed hash of a plugin, a token and a secret.
pub(crate) type Digest = [u8; 32];

/// Remembers which token of which plugin refused which secret, as a keyed hash. The key lives and dies with the process.
pub(crate) struct Latch {
    key: Option<hmac::Key>,
    refused: Mutex<HashSet<Digest>>,
}

impl Latch {
    pub(crate) fn new() -> Self {
        let key = hmac::Key::generate(hmac::HMAC_SHA256, &SystemRandom::new()).ok();
        Self { key, refused: Mutex::default() }
    }

    pub(crate) fn is_refused(&self, digest: Digest) -> bool {
        self.lock().contains(&digest)
    }

    /// Remembers one; says whether it is new.
    pub(crate) fn remember(&self, digest: Digest) -> bool {
        self.lock().insert(digest)
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.lock().len()
    }

    /// What is remembered of a secret for a token; `None` where the system gave no key to hash with.
    pub(crate) fn digest(&self, plugin: &str, token: &[u8], secret: &[u8]) -> Option<Digest> {
        let mut context = hmac::Context::with_key(self.key.as_ref()?);
        for part in [plugin.as_bytes(), token, secret] {
            context.update(&(part.len() as u64).to_be_bytes());
            context.update(part);
        }
        context.sign().as_ref().try_into().ok()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashSet<Digest>> {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remembers_per_plugin_token_and_secret() {
        let latch = Latch::new();
        let digest = |plugin, token: &str, secret: &str| {
            latch.digest(plugin, token.as_bytes(), secret.as_bytes()).unwrap()
        };
        latch.remember(digest("pkcs11", "token", "1234"));
        assert!(latch.is_refused(digest("pkcs11", "token", "1234")));
        for (plugin, token, secret) in [
            ("pkcs11", "token", "4321"),
            ("pkcs11", "other", "1234"),
            ("azure", "token", "1234"),
            ("pkcs11", "token1", "234"),
        ] {
            assert!(!latch.is_refused(digest(plugin, token, secret)), "{plugin} {token} {secret}");
        }
    }
}
