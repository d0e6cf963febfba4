//! What the host does for a library: HTTP within grants, values that expire, the use of secrets.

use std::time::Duration;

use keystead_plugin_host::{Isolation, Secrets};
use openssl::{
    ec::{EcGroup, EcKey},
    hash::MessageDigest,
    nid::Nid,
    pkey::{PKey, Private},
    sign::Verifier,
};
use serde_json::json;
use zeroize::Zeroizing;

use crate::rig::{Rig, logged, opened};

/// The secrets `key` and `mac`.
struct Vault(PKey<Private>);

impl Vault {
    fn new() -> Self {
        let group = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1).unwrap();
        Self(PKey::from_ec_key(EcKey::generate(&group).unwrap()).unwrap())
    }
}

impl Secrets for Vault {
    fn read(&self, name: &str) -> Option<Result<Zeroizing<Vec<u8>>, String>> {
        match name {
            "key" => Some(Ok(Zeroizing::new(self.0.private_key_to_pem_pkcs8().unwrap()))),
            "mac" => Some(Ok(Zeroizing::new(b"fe".to_vec()))),
            _ => None,
        }
    }
}

fn unhex(text: &str) -> Vec<u8> {
    let byte = |at: usize| u8::from_str_radix(text.get(at..at + 2).unwrap(), 16).unwrap();
    (0..text.len()).step_by(2).map(byte).collect()
}

async fn errands(rig: Rig, name: &str, isolation: Isolation) {
    let vault = Vault::new();
    let public = vault.0.clone();
    let store = rig.store_with(name, json!({"errands": true}), |spec| {
        spec.secrets = Box::new(vault);
        spec.isolation = Some(isolation);
    });
    opened(&store).await;
    store.health().await.unwrap();
    let line = |what: &str| logged(&[name, what]).pop().unwrap_or_else(|| panic!("no line with {what}"));
    line("errands: Err(Throttled), then [[2], [2], [3]], and [4] after it was forgotten");
    // RFC 4231, test case 2: the key is \"Jefe\".
    let used = line("errands: mac 5bdcc146, signature ");
    let signature = used.split("signature ").nth(1).unwrap().split(' ').next().unwrap();
    let mut verifier = Verifier::new(MessageDigest::sha256(), &public).unwrap();
    assert!(verifier.verify_oneshot(&unhex(signature), b"message").unwrap(), "{used}");
    let denied = "errands: Err(NotFound); GET https://kms.example:443 is not granted to the store";
    assert!(line(denied).contains(name));
    store.close(Duration::from_secs(1)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_library_in_the_server_has_the_host_do_what_it_may_not_see() {
    errands(Rig::new(), "errands-here", Isolation::Inline).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_library_in_a_process_of_its_own_has_the_host_do_the_same() {
    errands(Rig::with_processes(), "errands-there", Isolation::Process).await;
}
