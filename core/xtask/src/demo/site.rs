//! The two sites of the demo, each with a key in the token.

/// A site, and the key of its certificate.
#[derive(Debug)]
pub(super) struct Site {
    /// Name in the certificate, and what clients ask for.
    pub(super) name: &'static str,
    /// Label of the key in the token.
    pub(super) label: &'static str,
    /// `CKA_ID` of the key, in hexadecimal.
    pub(super) id: &'static str,
    /// Type of the key, for people.
    pub(super) key_type: &'static str,
    /// Type of the key, for pkcs11-tool.
    pub(super) tool_type: &'static str,
}

impl Site {
    /// With an elliptic curve.
    pub(super) const ECDSA: Self = Self {
        name: "ecdsa.demo.test",
        label: "ecdsa",
        id: "01",
        key_type: "P-256",
        tool_type: "EC:prime256v1",
    };
    /// With RSA.
    pub(super) const RSA: Self =
        Self { name: "rsa.demo.test", label: "rsa", id: "02", key_type: "RSA-2048", tool_type: "rsa:2048" };
    /// Both.
    pub(super) const ALL: &[Self] = &[Self::ECDSA, Self::RSA];
}
