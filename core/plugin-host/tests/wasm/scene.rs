//! Stores of the component that does deeds.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{Arc, LazyLock},
    time::Duration,
};

use aws_lc_rs::{
    digest::{Digest, SHA256},
    encoding::{AsDer, PublicKeyX509Der},
    signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair},
};
use keystead_plugin_host::{Failure, Limits, Listing, Secrets, Settings, Store, StoreSpec, testing};
use serde_json::{Value, json};
use tokio::sync::OnceCell;
use zeroize::Zeroizing;

use crate::{
    rig::{DIGEST, PATIENCE, Rig, key, opened, sign},
    service::Service,
};

/// The plugin's name here.
pub(crate) const PRISONER: &str = "prisoner";

/// Has compiled components kept.
pub(crate) fn kept(settings: &mut Settings) {
    settings.cache = Some(Path::new(env!("CARGO_TARGET_TMPDIR")).join("components"));
}

/// A key whose signature of the one digest was made before: a guest needs no private half.
pub(crate) struct Signed {
    pub(crate) spki: String,
    pub(crate) signature: String,
}

/// The key of all those that are well-behaved.
pub(crate) static SIGNED: LazyLock<Signed> = LazyLock::new(Signed::new);

impl Signed {
    pub(crate) fn new() -> Self {
        let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).unwrap();
        let spki: PublicKeyX509Der<'_> = pair.public_key().as_der().unwrap();
        let signature = pair.sign_digest(&Digest::import_less_safe(&DIGEST, &SHA256).unwrap()).unwrap();
        Self { spki: hex(spki.as_ref()), signature: hex(signature.as_ref()) }
    }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Secrets that are known beforehand; the one called `open` is exposed.
pub(crate) struct Vault(BTreeMap<&'static str, String>);

impl Vault {
    pub(crate) fn of<const N: usize>(secrets: [(&'static str, String); N]) -> Self {
        Self(secrets.into())
    }
}

impl Secrets for Vault {
    fn read(&self, name: &str) -> Option<Result<Zeroizing<Vec<u8>>, String>> {
        self.0.get(name).map(|value| Ok(Zeroizing::new(value.as_bytes().to_vec())))
    }

    fn exposed(&self, name: &str) -> bool {
        name == "open"
    }
}

/// A key that does a deed when it signs.
pub(crate) fn plan(name: &str, deed: &Value) -> Value {
    json!({"name": name, "spki": SIGNED.spki, "signature": SIGNED.signature, "sign": deed})
}

/// A host with the component.
pub(crate) struct Scene {
    rig: Rig,
}

impl Scene {
    pub(crate) async fn new() -> Self {
        Self::of(Rig::with(kept)).await
    }

    /// Of a host that is [`kept`]: the component is compiled once for all tests, and all processes.
    pub(crate) async fn of(rig: Rig) -> Self {
        static COMPILED: OnceCell<()> = OnceCell::const_new();
        testing::install_component(rig.directory.path(), "keystead-plugin-hostile-wasm", PRISONER);
        let scene = Self { rig };
        let compile = async || scene.store("compiles", json!({}), |_| ()).open().await.unwrap();
        COMPILED.get_or_init(compile).await;
        scene
    }

    /// A store with one lane, so that a call that didn't end would keep all others from being made.
    pub(crate) fn store(&self, name: &str, config: Value, change: impl FnOnce(&mut StoreSpec)) -> Arc<Store> {
        self.rig.store_with(name, config, |spec| {
            spec.plugin = PRISONER.to_owned();
            spec.secrets = Box::new(Vault::of([
                ("token", "hunter2".to_owned()),
                ("open", "sesame".to_owned()),
                ("long", "x".repeat(10_000)),
            ]));
            spec.limits = Limits { lanes: Some(1), queue: 16 };
            change(spec);
        })
    }

    /// An open store with a key `well`, and one whose signing does a deed.
    pub(crate) async fn doer(&self, name: &str, deed: Value, change: impl FnOnce(&mut StoreSpec)) -> Doer {
        let keys = [plan("well", &json!("behave")), plan("ill", &deed)];
        let store = self.store(name, json!({"keys": keys}), change);
        let listing = opened(&store).await;
        Doer { store, listing }
    }

    /// The same, where a service is granted.
    pub(crate) async fn doer_of(&self, name: &str, deed: Value, service: &Service) -> Doer {
        self.doer(name, deed, |spec| service.grant(spec)).await
    }

    /// What comes of a deed, after which the store signs as ever.
    pub(crate) async fn comes_of(&self, name: &str, deed: Value) -> Failure {
        self.doer(name, deed, |_| ()).await.does_it(PATIENCE).await
    }
}

/// A store one of whose keys does a deed.
pub(crate) struct Doer {
    pub(crate) store: Arc<Store>,
    pub(crate) listing: Listing,
}

impl Doer {
    /// Has it do the deed, which must fail, within a time; and then sign, which must not.
    pub(crate) async fn does_it(&self, time: Duration) -> Failure {
        let failure = self.sign("ill", time).await.unwrap_err();
        self.sign("well", PATIENCE).await.unwrap();
        failure
    }

    pub(crate) async fn sign(&self, label: &str, time: Duration) -> Result<Vec<u8>, Failure> {
        sign(&self.store, &key(&self.listing, label), label, time).await
    }
}
