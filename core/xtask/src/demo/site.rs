//! The two sites of the demo, each with a key in the token.

use crate::token::Key;

/// A site, and the key of its certificate.
#[derive(Debug)]
pub(super) struct Site {
    /// Name in the certificate, and what clients ask for.
    pub(super) name: &'static str,
    /// Its key, in the token.
    pub(super) key: Key,
}

impl Site {
    /// With an elliptic curve.
    pub(super) const ECDSA: Self = Self { name: "ecdsa.demo.test", key: Key::p256("ecdsa", "01") };
    /// With RSA.
    pub(super) const RSA: Self = Self { name: "rsa.demo.test", key: Key::rsa_2048("rsa", "02") };
    /// Both.
    pub(super) const ALL: &[Self] = &[Self::ECDSA, Self::RSA];
}
