//! An async Keyless SSL client, and a rustls signing key that lives elsewhere.
