//! Throw-away keys outside of tokens, by the openssl tool.

use std::process::Command;

use crate::failure::Result;
use crate::process;

/// What openssl makes a key of.
pub(crate) type Kind = &'static [&'static str];

/// Of Ed25519.
pub(crate) const ED25519: Kind = &["-algorithm", "ED25519"];
/// Of an elliptic curve.
pub(crate) const P256: Kind = &["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"];
/// Of RSA.
pub(crate) const RSA_2048: Kind = &["-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"];

/// Both halves of a key, PEM.
pub(crate) struct KeyPair {
    /// What only its owner may read.
    pub(crate) private: String,
    /// What anybody may.
    pub(crate) public: String,
}

impl KeyPair {
    /// Makes a new one.
    pub(crate) fn generate(kind: Kind) -> Result<Self> {
        let mut generate = Command::new("openssl");
        let private = process::output(generate.args(["genpkey", "-quiet"]).args(kind))?.stdout;
        let public = process::output_for(Command::new("openssl").args(["pkey", "-pubout"]), &private)?.stdout;
        Ok(Self { private, public })
    }
}
