//! Signing through the plugin's table beside bare aws-lc-rs.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a set-up that fails ends the benchmark")]

use std::{fs, os::unix::fs::PermissionsExt, path::Path};

use aws_lc_rs::{
    rand::SystemRandom,
    rsa,
    signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, RSA_PKCS1_SHA256},
};
use criterion::{Criterion, criterion_group, criterion_main};
use keystead_plugin_api::{Algorithm, abi::BackendTable, conformance::Subject, kit};
use keystead_plugin_file::FileBackend;
use openssl::pkey::PKey;
use serde_json::json;

static TABLE: BackendTable = kit::table::<FileBackend>();

fn sign(criterion: &mut Criterion) {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let place = tempfile::tempdir().unwrap();
    let pkcs8 = |name: &str| {
        let pem = fs::read(fixtures.join(format!("{name}.pem"))).unwrap();
        let file = place.path().join(format!("{name}.key"));
        fs::write(&file, &pem).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        PKey::private_key_from_pem(&pem).unwrap().private_key_to_pkcs8().unwrap()
    };
    let ec = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &pkcs8("p-256")).unwrap();
    let rsa = rsa::KeyPair::from_pkcs8(&pkcs8("rsa-2048")).unwrap();
    let session = Subject::new(&TABLE).config(json!({ "dir": place.path() })).open().unwrap();
    let keys = session.listing().unwrap().keys;
    let random = SystemRandom::new();

    let mut group = criterion.benchmark_group("p-256");
    group.bench_function("aws-lc-rs", |bencher| bencher.iter(|| ec.sign(&random, &[7; 32]).unwrap()));
    group.bench_function("plugin", |bencher| {
        bencher.iter(|| session.sign(&keys[0], Algorithm::EcdsaSha256, &[7; 32]).unwrap());
    });
    group.finish();

    let mut group = criterion.benchmark_group("rsa-2048");
    group.sample_size(50);
    group.bench_function("aws-lc-rs", |bencher| {
        let mut signature = vec![0; rsa.public_modulus_len()];
        bencher.iter(|| rsa.sign(&RSA_PKCS1_SHA256, &random, &[7; 32], &mut signature).unwrap());
    });
    group.bench_function("plugin", |bencher| {
        bencher.iter(|| session.sign(&keys[1], Algorithm::RsaPkcs1Sha256, &[7; 32]).unwrap());
    });
    group.finish();
}

criterion_group!(benches, sign);
criterion_main!(benches);
