//! The memory of refused credentials: one wrong PIN costs a token one attempt, whichever store presents it.

use std::{
    collections::HashSet,
    sync::{Mutex, PoisonError},
};

use aws_lc_rs::{hmac, rand::SystemRandom};

/// Remembers which token of which plugin refused which secret, as a keyed hash. The key lives and dies with the process.
pub(crate) struct Latch {
    key: Option<hmac::Key>,
    refused: Mutex<HashSet<[u8; 32]>>,
}

impl Latch {
    pub(crate) fn new() -> Self {
        let key = hmac::Key::generate(hmac::HMAC_SHA256, &SystemRandom::new()).ok();
        Self { key, refused: Mutex::default() }
    }

    pub(crate) fn is_refused(&self, plugin: &str, token: &[u8], secret: &[u8]) -> bool {
        self.digest(plugin, token, secret).is_some_and(|digest| self.lock().contains(&digest))
    }

    pub(crate) fn remember(&self, plugin: &str, token: &[u8], secret: &[u8]) {
        if let Some(digest) = self.digest(plugin, token, secret) {
            self.lock().insert(digest);
        }
    }

    fn digest(&self, plugin: &str, token: &[u8], secret: &[u8]) -> Option<[u8; 32]> {
        let mut context = hmac::Context::with_key(self.key.as_ref()?);
        for part in [plugin.as_bytes(), token, secret] {
            context.update(&(part.len() as u64).to_be_bytes());
            context.update(part);
        }
        context.sign().as_ref().try_into().ok()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashSet<[u8; 32]>> {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remembers_per_plugin_token_and_secret() {
        let latch = Latch::new();
        latch.remember("pkcs11", b"token", b"1234");
        assert!(latch.is_refused("pkcs11", b"token", b"1234"));
        assert!(!latch.is_refused("pkcs11", b"token", b"4321"));
        assert!(!latch.is_refused("pkcs11", b"other", b"1234"));
        assert!(!latch.is_refused("azure", b"token", b"1234"));
        assert!(!latch.is_refused("pkcs11", b"token1", b"234"));
    }
}
