//! What is served of what there is.

use keystead_fakes::{Answer, Disturbance, gcp::RING};
use keystead_plugin_api::{Algorithm, Code, Severity, conformance::Subject};
use openssl::{pkey::PKey, rsa::Rsa};
use serde_json::{Value, json};

use crate::world::{Build, World, findings, labels, sign, sign_by, version};

#[test]
fn each_entry_chooses_a_version_a_key_or_a_ring() {
    let world = World::with_a_key();
    let [first, second] = ["www", "api"].map(|key| format!("{RING}/cryptoKeys/{key}"));
    world.make_key("www", "EC_SIGN_P256_SHA256");
    world.make_key("api", "EC_SIGN_P384_SHA384");
    let listed = |uris: Value| {
        let listing = world.open(json!({"uris": uris})).listing().unwrap();
        assert_eq!(findings(&listing), [""; 0]);
        labels(&listing).into_iter().map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(listed(json!([version("www", 1)])), ["tls/www version 1 (HSM)"]);
    assert_eq!(listed(json!([first])), ["tls/www version 2 (HSM)"]);
    assert_eq!(listed(json!([RING])), ["tls/api version 1 (HSM)", "tls/www version 2 (HSM)"]);
    let all = listed(json!([version("www", 1), first, second, RING]));
    assert_eq!(
        all,
        ["tls/www version 1 (HSM)", "tls/www version 2 (HSM)", "tls/api version 1 (HSM)"],
        "each once"
    );
}

#[test]
fn a_rotation_is_noticed_and_a_certificate_outlives_it_where_all_enabled_versions_are_served() {
    let world = World::with_a_key();
    let newest = world.open(json!({"uris": [format!("{RING}/cryptoKeys/www")]}));
    let enabled = world.open(json!({"versions": "enabled"}));
    let [_, before] = [&newest, &enabled].map(|store| store.listing().unwrap());
    let generations = [&newest, &enabled].map(|store| store.health().unwrap());
    world.make_key("www", "EC_SIGN_P256_SHA256");
    for (store, generation) in [&newest, &enabled].into_iter().zip(generations) {
        assert_ne!(store.health().unwrap(), generation, "the server lists again");
    }
    assert_eq!(labels(&newest.listing().unwrap()), ["tls/www version 2 (HSM)"]);
    let both = enabled.listing().unwrap();
    assert_eq!(labels(&both), ["tls/www version 2 (HSM)", "tls/www version 1 (HSM)"]);
    assert_eq!((&both.keys[1].id, &both.keys[1].spki), (&before.keys[0].id, &before.keys[0].spki));
    for key in &both.keys {
        sign_by(&enabled, key, Algorithm::EcdsaSha256, &[1; 32]).unwrap();
    }
    world.set_state("www", 2, "DISABLED");
    assert_eq!(labels(&newest.listing().unwrap()), ["tls/www version 1 (HSM)"], "the newest that is enabled");
}

#[test]
fn a_version_that_is_disabled_is_said_and_served_again_once_it_is_enabled() {
    let world = World::with_a_key();
    world.make_key("api", "EC_SIGN_P256_SHA256");
    let session = world.open(json!({"uris": [version("www", 1), version("api", 1)]}));
    let (listing, generation) = (session.listing().unwrap(), session.health().unwrap());
    world.set_state("www", 1, "DISABLED");
    let refused = sign(&session, &listing).unwrap_err();
    assert_eq!(refused.code, Code::Denied);
    let said = "signing with `tls/www version 1`: the service says FAILED_PRECONDITION: ";
    assert!(
        refused.message.starts_with(said) && refused.message.ends_with("current state is: DISABLED."),
        "{refused}"
    );
    assert_ne!(session.health().unwrap(), generation);
    let without = session.listing().unwrap();
    assert_eq!(labels(&without), ["tls/api version 1 (HSM)"]);
    assert!(without.findings[0].hint.contains("gcloud kms keys versions enable"), "{:?}", without.findings);
    world.set_state("www", 1, "ENABLED");
    assert_eq!(session.health().unwrap(), generation);
    assert_eq!(labels(&session.listing().unwrap()), labels(&listing));
    sign(&session, &listing).unwrap();
}

#[test]
fn what_is_not_there_or_does_not_sign_is_said_and_the_rest_is_served() {
    let world = World::with_a_key();
    world.make_other_key("disk", "ENCRYPT_DECRYPT");
    world.make_key("coin", "EC_SIGN_SECP256K1_SHA256");
    world.make_key("old", "EC_SIGN_P256_SHA256");
    world.set_state("old", 1, "DESTROYED");
    let listing = world
        .open(json!({"uris": [RING, version("www", 7), format!("{RING}/cryptoKeys/wwww")]}))
        .listing()
        .unwrap();
    assert_eq!(labels(&listing), ["tls/www version 1 (HSM)"]);
    let mut said = findings(&listing);
    said.sort();
    let expected = [
        "error www/cryptoKeyVersions/7: reading the public key of `tls/www version 7`: the service says NOT_FOUND: \
         CryptoKeyVersion www/cryptoKeyVersions/7 not found. (HTTP 404)",
        "error wwww: listing the versions of `tls/wwww`: the service says NOT_FOUND: CryptoKey wwww not found. (HTTP 404)",
        "note coin/cryptoKeyVersions/1: passed over: EC_SIGN_SECP256K1_SHA256 doesn't sign for TLS",
        "note coin: passed over: no version of it that signs for TLS is enabled",
        "note disk: passed over: its purpose is ENCRYPT_DECRYPT, and not ASYMMETRIC_SIGN",
        "note old: passed over: no version of it that signs for TLS is enabled",
    ];
    assert_eq!(said, expected);
    let asked = world.server().asked();
    let for_coin = asked.iter().find(|asked| asked.path.ends_with("/coin/cryptoKeyVersions/1/publicKey"));
    assert!(for_coin.is_none(), "the service would refuse it for some algorithms");
    let named = world.open(json!({"uris": [format!("{RING}/cryptoKeys/coin")]})).listing().unwrap();
    assert_eq!(findings(&named)[1], "error coin: no version of it that signs for TLS is enabled");
}

#[test]
fn a_ring_is_narrowed_by_prefix_and_labels() {
    let world = World::start();
    for key in ["tls-a", "tls-b", "code"] {
        world.make_key(key, "EC_SIGN_P256_SHA256");
    }
    world.label("tls-b", "env", "prod");
    world.label("code", "env", "prod");
    let listed = |config: Value| labels(&world.open(config).listing().unwrap()).join(", ");
    assert_eq!(listed(json!({"prefix": "tls-"})), "tls/tls-a version 1 (HSM), tls/tls-b version 1 (HSM)");
    assert_eq!(
        listed(json!({"labels": {"env": "prod"}})),
        "tls/code version 1 (HSM), tls/tls-b version 1 (HSM)"
    );
    assert_eq!(listed(json!({"prefix": "tls-", "labels": {"env": "prod"}})), "tls/tls-b version 1 (HSM)");
    assert_eq!(listed(json!({"labels": {"env": "test"}})), "");
    let (all, narrow) = (world.open(json!({})), world.open(json!({"prefix": "tls-"})));
    let code = all.listing().unwrap().keys.into_iter().find(|key| key.label.contains("code")).unwrap();
    assert_eq!(sign_by(&narrow, &code, Algorithm::EcdsaSha256, &[1; 32]).unwrap_err().code, Code::NotFound);
}

#[test]
fn lists_are_read_to_their_last_page_and_one_without_end_is_broken() {
    let world = World::start();
    world.page(2);
    for key in ["a", "b", "c", "d", "e"] {
        world.make_key(key, "EC_SIGN_ED25519");
        world.make_key(key, "EC_SIGN_ED25519");
        world.make_key(key, "EC_SIGN_ED25519");
    }
    let session = world.open(json!({"versions": "enabled"}));
    assert_eq!(session.listing().unwrap().keys.len(), 15);
    let page = Answer::json(200, &json!({"nextPageToken": "more"}));
    world.server().disturb(Disturbance::answer("/cryptoKeys?", page));
    let endless = session.listing().unwrap_err();
    assert_eq!(endless.code, Code::Unavailable);
    assert!(endless.message.contains("the service answered more than 100 pages"), "{endless}");
}

#[test]
fn what_a_key_of_rsa_cannot_do_is_said_unless_a_twin_in_the_store_does_it() {
    let world = World::start();
    let pair = PKey::from_rsa(Rsa::generate(2048).unwrap()).unwrap().private_key_to_pkcs8().unwrap();
    let spki = world.import_key("www-pkcs1", "RSA_SIGN_PKCS1_2048_SHA256", &pair);
    world.make_key("modern", "RSA_SIGN_PSS_2048_SHA256");
    let session = world.open(json!({}));
    let alone = session.listing().unwrap();
    let said = findings(&alone);
    assert!(
        said[0].starts_with("note modern/cryptoKeyVersions/1: it signs with PSS and not with PKCS#1"),
        "{said:?}"
    );
    assert!(
        said[1]
            .starts_with("warning www-pkcs1/cryptoKeyVersions/1: it signs with PKCS#1 v1.5 and not with PSS"),
        "{said:?}"
    );
    assert!(
        alone.findings[1].hint.starts_with("import the same private key a second time"),
        "{:?}",
        alone.findings
    );
    assert_eq!(alone.findings[1].severity, Severity::Warning);

    assert_eq!(world.import_key("www-pss", "RSA_SIGN_PSS_2048_SHA256", &pair), spki);
    let both = session.listing().unwrap();
    assert_eq!(findings(&both).len(), 1, "{:?}", findings(&both));
    let twins: Vec<_> = both.keys.iter().filter(|key| key.spki == spki).collect();
    let can: Vec<_> = twins.iter().map(|key| key.algorithms.as_slice()).collect();
    assert_eq!(can, [[Algorithm::RsaPkcs1Sha256], [Algorithm::RsaPssSha256]]);
    sign_by(&session, twins[0], Algorithm::RsaPkcs1Sha256, &[1; 32]).unwrap();
    sign_by(&session, twins[1], Algorithm::RsaPssSha256, &[1; 32]).unwrap();
}

#[test]
fn what_would_lead_elsewhere_is_refused() {
    let world = World::start();
    let refused = |config: Value| world.store(Build::Library, config).open().unwrap_err().message;
    for uri in [
        "",
        "projects/p",
        &format!("{RING}/"),
        &format!("{RING}/cryptoKeys/../x"),
        "https://cloudkms.googleapis.com/v1/x",
    ] {
        let message = refused(json!({"uris": [uri]}));
        assert!(message.contains("`uris[0]`") || message.contains("uris/0"), "{uri}: {message}");
    }
    for endpoint in
        ["cloudkms.googleapis.com", "https://", "https://h/v1", "https://h?x", "https://me@h", "ftp://h"]
    {
        let message = refused(json!({"endpoint": endpoint}));
        assert!(message.contains("`endpoint`: expected https://HOST and no path"), "{endpoint}: {message}");
    }
    assert!(refused(json!({"prefix": "a/b"})).contains("`prefix`"));
    assert!(refused(json!({"uris": []})).contains("uris"));
    let alien = Subject::behind(world.door(Build::Library))
        .config(json!({"uris": [RING], "credential": {"type": "external_account"}}));
    assert!(alien.open().unwrap_err().message.contains("credential"));
}
