//! A component in C: bindings made of the WIT by wit-bindgen, compiled by Debian's clang against its wasi-libc.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
    time::Instant,
};

use keystead_plugin_host::{Algorithm, Class, Limits, Proof, Request, testing};
use openssl::{pkey::PKey, sign::Verifier};
use serde_json::json;
use wit_bindgen_core::Files;
use wit_component::ComponentEncoder;
use wit_parser::Resolve;

use crate::{
    rig::{PATIENCE, Rig, key, opened},
    scene::{Vault, hex, kept},
};

/// What Debian's packages clang, lld, wasi-libc and libclang-rt-14-dev-wasm32 compile a guest with.
const CLANG: &[&str] = &["--target=wasm32-wasi", "--sysroot=/usr", "-mexec-model=reactor", "-std=c11", "-O2"];

/// The guest, as a component in a directory.
fn build(directory: &Path) -> PathBuf {
    let made = tempfile::tempdir().unwrap();
    bindings(made.path());
    let module = made.path().join("guest.core.wasm");
    let file = |name: &str| made.path().join(name);
    let mut clang = Command::new("clang");
    clang.args(CLANG).args(["-Wall", "-Wextra", "-Werror", "-I"]).arg(made.path()).arg("-o").arg(&module);
    clang.arg(testing::source("guest.c")).args([file("backend.c"), file("backend_component_type.o")]);
    let output =
        clang.output().unwrap_or_else(|error| panic!("clang can't be run: {error}; is it installed?"));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut encoder = ComponentEncoder::default();
    let component = encoder.validate(true).module(&fs::read(module).unwrap()).unwrap().encode().unwrap();
    let guest = directory.join("guest.wasm");
    fs::write(&guest, component).unwrap();
    fs::set_permissions(&guest, fs::Permissions::from_mode(0o644)).unwrap();
    guest
}

/// The contract's WIT in C.
fn bindings(directory: &Path) {
    let mut resolve = Resolve::default();
    let wit = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../plugin-api/wit");
    let (package, _) = resolve.push_dir(wit).unwrap();
    let world = resolve.select_world(&[package], Some("backend")).unwrap();
    let mut files = Files::default();
    wit_bindgen_c::Opts::default().build().generate(&mut resolve, world, &mut files).unwrap();
    files.iter().for_each(|(name, content)| fs::write(directory.join(name), content).unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_in_c_lists_and_signs() {
    let rig = Rig::with(kept);
    build(rig.directory.path());
    let pair = PKey::generate_ed25519().unwrap();
    let private = pair.private_key_to_pem_pkcs8().unwrap();
    let spki = hex(&pair.public_key_to_der().unwrap());
    let keys = json!({"keys": [{"name": "www", "spki": spki}, {"name": "lost", "spki": spki}]});
    let store = rig.store_with("guest-in-c", keys, |spec| {
        spec.plugin = "guest".to_owned();
        spec.secrets = Box::new(Vault::of([("www", String::from_utf8(private).unwrap())]));
        spec.limits = Limits { lanes: Some(2), queue: 4 };
    });
    let listing = opened(&store).await;
    assert_eq!(store.description().unwrap().name, "guest");
    let request = || Request { id: "in-c", deadline: Instant::now() + PATIENCE };

    let www = key(&listing, "www");
    assert_eq!(store.prove(&www, Instant::now() + PATIENCE).await.unwrap(), Proof::Met);
    let signature = store.perform(&www, Algorithm::Ed25519, b"a message", request()).await.unwrap();
    assert!(Verifier::new_without_digest(&pair).unwrap().verify_oneshot(&signature, b"a message").unwrap());

    let lost = store.perform(&key(&listing, "lost"), Algorithm::Ed25519, b"a message", request()).await;
    let lost = lost.unwrap_err();
    let said = (lost.class, lost.message.as_str());
    assert_eq!(said, (Class::NotFound, "`secrets` of the store names no `lost`"));
    assert_eq!(store.health().await.unwrap(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_guest_in_c_refuses_is_told() {
    let rig = Rig::with(kept);
    build(rig.directory.path());
    let keys = json!({"keys": [{"name": "www", "spki": "no digits"}]});
    let store = rig.store_with("guest-refuses", keys, |spec| spec.plugin = "guest".to_owned());
    store.open().await.unwrap();
    let failure = store.keys().await.unwrap_err();
    let said = (failure.class, failure.message.as_str());
    assert_eq!(said, (Class::InvalidInput, "config: `spki` must be hexadecimal, in lower case"));
    let none = rig.store_with("guest-misfit", json!({}), |spec| spec.plugin = "guest".to_owned());
    assert_eq!(none.open().await.unwrap_err().class, Class::InvalidInput, "its schema asks for keys");
}
