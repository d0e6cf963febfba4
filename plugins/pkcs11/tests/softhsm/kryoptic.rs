//! Kryoptic: a soft token by other hands, in Rust, that keeps its keys in a file of SQLite.

use std::path::{Path, PathBuf};

use keystead_plugin_api::{Algorithm, Severity, algorithm::Family, conformance};

use crate::bench::{Token, in_process, key, lines, on_softhsm, store};

/// Kryoptic's module. No package brings it, so `cargo xtask test` builds it.
fn module() -> PathBuf {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap().join("tools/kryoptic");
    let library = target.join("debug/libkryoptic_pkcs11.so");
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/kryoptic/Cargo.toml");
    assert!(
        library.is_file(),
        "this test needs Kryoptic; build it: cargo build --locked --package kryoptic --manifest-path {manifest} \
         --target-dir {}",
        target.display()
    );
    library
}

on_softhsm!(kryoptic_passes_the_conformance_suite, |_bench| {
    let types = [
        ("rsa:2048", "rsa", Family::Rsa),
        ("EC:prime256v1", "p256", Family::Ecdsa),
        ("EC:secp384r1", "p384", Family::Ecdsa),
        ("EC:secp521r1", "p521", Family::Ecdsa),
    ];
    let token = Token::make(module(), "kryoptic");
    for (number, (key_type, label, _)) in types.iter().enumerate() {
        token.generate(key_type, label, &format!("0{number}"));
    }
    let uris = types.map(|(_, label, _)| token.uri(&format!("object={label}")));
    let subject = store(&uris);
    conformance::run(&subject);
    conformance::run(&in_process(&uris));

    let listing = subject.open().unwrap().listing().unwrap();
    let notes = lines(&listing.findings, Severity::Note);
    assert_eq!(notes.lines().count(), listing.findings.len(), "{:?}", listing.findings);
    for (_, label, family) in types {
        assert_eq!(key(&listing, label).algorithms, Algorithm::of(family).collect::<Vec<_>>(), "{label}");
    }
});
