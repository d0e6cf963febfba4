//! The plugin with a real OpenBao: as a library, and in the sandbox.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "whatever fails, fails the test")]

mod openbao;

use keystead_plugin_api::{
    Algorithm, Code, Error, Listing, Severity,
    conformance::{self, Session, Subject},
};
use keystead_plugin_host::{
    Grant,
    testing::{self, InProcess, InServer},
};
use serde_json::{Value, json};

use openbao::OpenBao;

const PACKAGE: &str = "keystead-plugin-openbao-transit";

const TYPES: [(&str, &str); 7] = [
    ("rsa-2048", "rsa-2048"),
    ("rsa-3072", "rsa-3072"),
    ("rsa-4096", "rsa-4096"),
    ("p256", "ecdsa-p256"),
    ("p384", "ecdsa-p384"),
    ("p521", "ecdsa-p521"),
    ("ed25519", "ed25519"),
];

/// The ways that the plugin is built.
#[derive(Clone, Copy, Debug)]
enum Build {
    Library,
    Component,
}

/// A store with a token, and what this adds to its configuration.
fn store(openbao: &OpenBao, build: Build, token: &str, mut config: Value) -> Subject {
    config["url"] = openbao.url().into();
    let door = built(build).granting(vec![grant(openbao)]);
    Subject::behind(door).config(config).secret("token", token.as_bytes())
}

fn grant(openbao: &OpenBao) -> Grant {
    Grant {
        origin: openbao.url().parse().unwrap(),
        methods: ["GET", "POST"].map(str::to_owned).into(),
        secrets: ["token".to_owned()].into(),
        addresses: Vec::new(),
        ca: Some(openbao.ca()),
        client: None,
        proxy: None,
    }
}

fn built(build: Build) -> InServer {
    InServer::load(&match build {
        Build::Library => testing::library(PACKAGE),
        Build::Component => testing::component(PACKAGE),
    })
}

/// A component's store of all keys, open.
fn component(openbao: &OpenBao, token: &str) -> Session {
    store(openbao, Build::Component, token, json!({})).open().unwrap()
}

fn labels(listing: &Listing) -> Vec<&str> {
    listing.keys.iter().map(|key| key.label.as_str()).collect()
}

/// The findings, each in one line.
fn findings(listing: &Listing) -> Vec<String> {
    let line = |finding: &keystead_plugin_api::Finding| {
        format!("{} {}: {}", finding.severity.name(), finding.subject, finding.error)
    };
    listing.findings.iter().map(line).collect()
}

fn sign(session: &Session, listing: &Listing, label: &str) -> Result<Vec<u8>, Error> {
    let key = listing.keys.iter().find(|key| key.label == label).unwrap();
    session.sign(key, Algorithm::EcdsaSha256, &[1; 32])
}

#[test]
fn passes_the_conformance_cases_as_a_library_and_as_a_component() {
    let openbao = OpenBao::start();
    TYPES.iter().for_each(|(name, key_type)| openbao.make(name, key_type));
    for build in [Build::Library, Build::Component] {
        let subject = store(&openbao, build, &openbao.token(), json!({}));
        conformance::run(&subject);
        let listing = subject.open().unwrap().listing().unwrap();
        assert_eq!((listing.keys.len(), findings(&listing).len()), (TYPES.len(), 0), "{build:?}");
    }
}

#[test]
fn passes_the_conformance_cases_as_a_library_in_a_process_of_its_own() {
    let openbao = OpenBao::start();
    TYPES.iter().for_each(|(name, key_type)| openbao.make(name, key_type));
    let door = InProcess::load(&testing::library(PACKAGE)).granting(vec![grant(&openbao)]);
    let subject = Subject::behind(door).config(json!({"url": openbao.url()}));
    conformance::run(&subject.secret("token", openbao.token().as_bytes()));
}

#[test]
fn serves_every_version_so_that_certificates_outlive_a_rotation() {
    let openbao = OpenBao::start();
    openbao.make("www", "ecdsa-p256");
    let session = component(&openbao, &openbao.token());
    let (first, before) = (session.listing().unwrap(), session.health().unwrap());
    assert_eq!(labels(&first), ["www version 1"]);
    openbao.bao(&["write", "-f", "transit/keys/www/rotate"]);
    assert_ne!(session.health().unwrap(), before, "the server lists again");
    let both = session.listing().unwrap();
    assert_eq!(labels(&both), ["www version 2", "www version 1"]);
    assert_eq!(both.keys[1].id, first.keys[0].id);
    for key in &both.keys {
        let signature = session.sign(key, Algorithm::EcdsaSha256, &[1; 32]).unwrap();
        conformance::verify(&key.spki, Algorithm::EcdsaSha256, &[1; 32], &signature).unwrap();
    }
    openbao.bao(&["write", "transit/keys/www/config", "min_encryption_version=2"]);
    let newest = session.listing().unwrap();
    assert_eq!(labels(&newest), ["www version 2"]);
    let why = "note www: passed over: version 1 is below the key's min_encryption_version";
    assert!(findings(&newest)[0].starts_with(why), "{:?}", findings(&newest));
    assert!(sign(&session, &first, "www version 1").is_err());
}

#[test]
fn an_engine_without_keys_has_an_empty_listing() {
    let openbao = OpenBao::start();
    let listing = component(&openbao, &openbao.token()).listing().unwrap();
    assert_eq!((listing.keys.len(), listing.findings.len()), (0, 0));
}

#[test]
fn what_cannot_sign_is_passed_over_and_what_is_named_and_not_there_is_said() {
    let openbao = OpenBao::start();
    openbao.make("sealer", "aes256-gcm96");
    openbao.make("www", "ecdsa-p256");
    openbao.make("other", "ecdsa-p256");
    let all = component(&openbao, &openbao.token()).listing().unwrap();
    assert_eq!(labels(&all), ["other version 1", "www version 1"]);
    let note = "note sealer: passed over: keys of type aes256-gcm96 don't sign for TLS";
    assert!(findings(&all)[0].starts_with(note), "{:?}", findings(&all));

    let named = store(&openbao, Build::Component, &openbao.token(), json!({"keys": ["www", "wwww"]}));
    let session = named.open().unwrap();
    let listing = session.listing().unwrap();
    assert_eq!(labels(&listing), ["www version 1"]);
    let missing =
        "error wwww: reading the key `wwww`: the server says that there is no such thing (HTTP 404)";
    assert_eq!(findings(&listing), [missing]);
    assert!(listing.findings[0].hint.contains("bao write -f"), "{}", listing.findings[0].hint);
    let not_named = sign(&session, &all, "other version 1").unwrap_err();
    assert_eq!(not_named.code, Code::NotFound);
}

#[test]
fn a_token_that_is_refused_is_told_from_one_that_may_not() {
    let openbao = OpenBao::start();
    openbao.make("www", "ecdsa-p256");
    let token = openbao.token();
    let session = component(&openbao, &token);
    let listing = session.listing().unwrap();
    assert!(sign(&session, &listing, "www version 1").is_ok());

    let policy = r#"path "transit/keys/*" { capabilities = ["read"] }"#;
    openbao.write_policy(policy);
    let denied = sign(&session, &listing, "www version 1").unwrap_err();
    let what = "signing with `www` version 1: the server says";
    assert_eq!((denied.code, denied.vendor.as_ref().unwrap().number), (Code::Denied, 403), "{denied}");
    assert!(denied.message.starts_with(what) && denied.message.ends_with("permission denied"), "{denied}");
    assert_eq!(session.listing().unwrap_err().code, Code::Denied, "it may not list");
    let named = store(&openbao, Build::Component, &token, json!({"keys": ["www"]})).open().unwrap();
    assert_eq!(named.listing().unwrap().keys.len(), 1, "it may read what is named");

    openbao.bao(&["token", "revoke", &token]);
    for refused in [session.listing().unwrap_err(), sign(&session, &listing, "www version 1").unwrap_err()] {
        assert_eq!(refused.code, Code::Credentials, "{refused}");
        assert!(refused.message.contains("it doesn't know the token"), "{refused}");
    }
    assert_eq!(session.host().leaks(), [""; 0]);
}

#[test]
fn a_server_that_is_sealed_or_gone_is_unavailable_and_serves_again() {
    let mut openbao = OpenBao::start();
    openbao.make("www", "ecdsa-p256");
    let session = component(&openbao, &openbao.token());
    let listing = session.listing().unwrap();
    openbao.kill();
    for gone in [session.health().unwrap_err(), sign(&session, &listing, "www version 1").unwrap_err()] {
        assert_eq!(gone.code, Code::Unavailable, "{gone}");
    }
    openbao.restart();
    let sealed = sign(&session, &listing, "www version 1").unwrap_err();
    assert_eq!((sealed.code, sealed.vendor.as_ref().unwrap().number), (Code::Unavailable, 503), "{sealed}");
    assert!(sealed.message.contains("sealed"), "{sealed}");
    openbao.unseal();
    assert!(sign(&session, &listing, "www version 1").is_ok());
    assert_eq!(labels(&session.listing().unwrap()), ["www version 1"]);
}

#[test]
fn an_engine_elsewhere_is_reached_and_one_that_is_nowhere_is_said() {
    let openbao = OpenBao::start();
    openbao.bao(&["secrets", "enable", "-path=team/tls", "transit"]);
    openbao.bao(&["write", "-f", "team/tls/keys/www", "type=ed25519"]);
    openbao.write_policy(r#"path "team/tls/*" { capabilities = ["list", "read", "update"] }"#);
    let at = |mount: &str| {
        store(&openbao, Build::Component, &openbao.token(), json!({"mount": mount})).open().unwrap()
    };
    let session = at("/team/tls/");
    let listing = session.listing().unwrap();
    let signature = session.sign(&listing.keys[0], Algorithm::Ed25519, b"hello").unwrap();
    conformance::verify(&listing.keys[0].spki, Algorithm::Ed25519, b"hello", &signature).unwrap();

    openbao.bao(&["secrets", "disable", "team/tls"]);
    let nowhere = session.listing().unwrap_err();
    assert_eq!(nowhere.code, Code::NotFound, "{nowhere}");
    assert!(nowhere.message.contains("no handler for route"), "{nowhere}");
    assert!(listing.findings.iter().all(|finding| finding.severity == Severity::Note));
}

#[test]
fn what_would_lead_elsewhere_is_refused() {
    let refused =
        |config: Value| Subject::behind(built(Build::Library)).config(config).open().unwrap_err().message;
    for url in
        ["bao.example.net", "ftp://bao", "https://", "https://bao/v1", "https://bao?x", "https://me@bao"]
    {
        assert!(refused(json!({ "url": url })).contains("`url`: expected https://HOST:PORT"), "{url}");
    }
    for mount in ["..", "a/../b", "a//b", "transit?x", "tran sit", "/"] {
        let message = refused(json!({"url": "https://bao:8200", "mount": mount}));
        assert!(message.contains("`mount`: expected a path"), "{mount}");
    }
    let message = refused(json!({"url": "https://bao:8200", "keys": ["www", "../sys"]}));
    assert!(message.contains("`../sys` can't be the name of a key"), "{message}");
}
