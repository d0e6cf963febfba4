//! Which keys are served, and what is said of the others.

use std::time::{SystemTime, UNIX_EPOCH};

use keystead_fakes::Disturbance;
use openssl::{pkey::PKey, rsa::Rsa};

use super::*;

const DAY: u64 = 24 * 3600;

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

#[test]
fn a_key_whose_modulus_begins_with_zero_is_the_key_that_was_imported() {
    let cloud = Cloud::start();
    let pair = PKey::from_rsa(Rsa::generate(2048).unwrap()).unwrap();
    cloud.import_key(DEMO, "www", &pair.private_key_to_pem_pkcs8().unwrap());
    let session = cloud.store(Build::Component, json!({"uris": [www()]})).open().unwrap();
    let key = only(&session);
    assert_eq!(key.spki, pair.public_key_to_der().unwrap());
    let signature = session.sign(&key, Algorithm::RsaPssSha384, &[7; 48]).unwrap();
    conformance::verify(&key.spki, Algorithm::RsaPssSha384, &[7; 48], &signature).unwrap();
}

#[test]
fn a_url_with_a_version_stays_with_it_and_one_without_follows_a_rotation() {
    let cloud = Cloud::with_key();
    let version = format!("{}/{}", www(), cloud.version(DEMO, "www"));
    let loud = version.replace("demo", "DEMO").replace("/www/", "/WWW/");
    let fixed = cloud.store(Build::Component, json!({"uris": [loud]}));
    let (fixed, following) = (fixed.open().unwrap(), cloud.www());
    let (first, before) = (only(&fixed), following.health().unwrap());
    assert_eq!((only(&following).id, first.label.as_str()), (first.id.clone(), version.as_str()));
    assert_eq!(following.health().unwrap(), before);

    let rotated = cloud.make_key(DEMO, "www", Type::P256);
    assert_ne!(following.health().unwrap(), before, "the server lists again");
    assert_eq!(only(&following).spki, rotated);
    assert_eq!(only(&fixed).id, first.id);
    sign(&fixed, &first).unwrap();
    sign(&following, &first).unwrap(); // one that was on its way
}

#[test]
fn every_enabled_version_is_served_where_that_is_asked_for() {
    let cloud = Cloud::with_key();
    let config = json!({"uris": [www()], "versions": "enabled"});
    let session = cloud.store(Build::Component, config).open().unwrap();
    let first = only(&session);
    let before = session.health().unwrap();
    cloud.make_key(DEMO, "www", Type::P256);
    assert_ne!(session.health().unwrap(), before);
    let both = session.listing().unwrap();
    assert_eq!(both.keys.len(), 2);
    for key in &both.keys {
        sign(&session, key).unwrap();
    }
    cloud.change_key(DEMO, "www", &json!({"attributes": {"enabled": false}}));
    assert_eq!(only(&session).id, first.id);
}

#[test]
fn the_newest_that_is_enabled_is_served_and_the_listing_of_a_vault_notices_which_that_is() {
    let cloud = Cloud::with_key();
    for (later, uris) in [(10, www()), (20, all(DEMO))] {
        let session = cloud.store(Build::Library, json!({"uris": [uris]})).open().unwrap();
        let first = only(&session);
        cloud.make_key(DEMO, "www", Type::P256);
        cloud.change_key(DEMO, "www", &json!({"attributes": {"created": now() + later}}));
        let (second, both) = (only(&session), session.health().unwrap());
        assert_ne!(second.id, first.id);
        cloud.change_key(DEMO, "www", &json!({"attributes": {"enabled": false}}));
        assert_ne!(session.health().unwrap(), both);
        assert_eq!(only(&session).id, first.id);
        let refused = sign(&session, &second).unwrap_err();
        assert_eq!(refused.code, Code::Denied);
        let why = "the vault says Operation sign is not allowed on a disabled key. (KeyDisabled) (HTTP 403)";
        assert!(refused.to_string().ends_with(why), "{refused}");
        cloud.change_key(DEMO, "www", &json!({"attributes": {"enabled": true}}));
    }
}

#[test]
fn a_vault_is_listed_by_prefix_and_tags_over_all_its_pages() {
    let cloud = Cloud::start();
    for number in 0..60 {
        let (prefix, tls) = (if number % 2 == 0 { "web" } else { "api" }, number % 3 == 0);
        let name = format!("{prefix}-{number:02}");
        cloud.make_key(DEMO, &name, Type::P256);
        cloud.change_key(DEMO, &name, &json!({"tags": {"tls": tls.to_string(), "team": "edge"}}));
    }
    let session = |config: Value| {
        cloud.store(Build::Component, with(config, "uris", json!([all(DEMO)]))).open().unwrap()
    };
    let listed = |config| names(&session(config).listing().unwrap()).len();
    assert_eq!(listed(json!({})), 60);
    assert_eq!(listed(json!({"prefix": "WEB-"})), 30);
    assert_eq!(listed(json!({"tags": {"tls": "true", "team": "edge"}})), 20);
    let both = session(json!({"prefix": "web-", "tags": {"tls": "true"}}));
    let listing = both.listing().unwrap();
    assert_eq!(names(&listing)[..2], ["web-00", "web-06"]);
    assert_eq!(listing.keys.len(), 10);
    let pages = cloud.vaults().asked().iter().filter(|asked| asked.query.contains("$skiptoken")).count();
    assert_eq!(pages, 4 * 2, "three pages of each listing");

    let other = session(json!({})).listing().unwrap().keys;
    let not_wanted = other.iter().find(|key| key.label.contains("api-")).unwrap();
    assert_eq!(sign(&both, not_wanted).unwrap_err().code, Code::NotFound);
    let asked = cloud.vaults().asked().len();
    both.health().unwrap();
    assert_eq!(cloud.vaults().asked().len() - asked, 3, "a look at a vault reads its pages, and no keys");
}

#[test]
fn a_page_that_leads_elsewhere_is_not_followed() {
    let cloud = Cloud::with_key();
    for next in ["https://evil.example/keys?x", "https://other.vault.azure.net/keys?api-version=7.4"] {
        let lead = move |mut answer: keystead_fakes::Answer| {
            answer.body = json!({"value": [], "nextLink": next}).to_string().into_bytes();
            answer
        };
        cloud.vaults().disturb(Disturbance::change("GET /keys?api-version=7.4&maxresults=25", lead));
        let session = cloud.store(Build::Library, json!({"uris": [all(DEMO)]})).open().unwrap();
        let error = session.listing().unwrap_err();
        assert_eq!(error.code, Code::Unavailable);
        assert!(error.message.contains("a page whose next isn't its own"), "{error}");
    }
}

#[test]
fn a_key_that_cannot_be_used_is_an_error_where_it_is_named_and_a_note_where_it_is_not() {
    let cloud = Cloud::start();
    let attributes = |members: Value| json!({"attributes": members});
    for (name, change) in [
        ("disabled", attributes(json!({"enabled": false}))),
        ("expired", attributes(json!({"exp": 1_600_000_000}))),
        ("future", attributes(json!({"nbf": now() + DAY}))),
        ("wraps", json!({"key_ops": ["wrapKey", "unwrapKey"]})),
        ("ending", attributes(json!({"exp": now() + DAY}))),
    ] {
        cloud.make_key(DEMO, name, Type::P256);
        cloud.change_key(DEMO, name, &change);
    }
    let names = ["disabled", "expired", "future", "wraps", "missing"];
    let uris: Vec<_> = names.iter().map(|name| format!("{}/{name}", all(DEMO))).collect();
    let named = cloud.store(Build::Component, json!({"uris": uris})).open().unwrap().listing().unwrap();
    assert!(named.keys.is_empty());
    let lines = findings(&named);
    let expected = [
        "error disabled: it is disabled",
        "error expired: it expired on Sun, 13 Sep 2020 12:26:40 GMT",
        "error future: it isn't valid before ",
        "error wraps: its `key_ops` have no `sign`",
        "error missing: reading the key `missing`: the vault says A key with (name/id) missing was not found",
    ];
    for (line, expected) in lines.iter().zip(expected) {
        assert!(line.starts_with(expected), "{line}");
    }
    assert_eq!(lines.len(), expected.len());
    assert!(named.findings[4].hint.contains("az keyvault key list"), "{}", named.findings[4].hint);

    let listed =
        cloud.store(Build::Component, json!({"uris": [all(DEMO)]})).open().unwrap().listing().unwrap();
    let notes = findings(&listed);
    assert_eq!(notes.iter().filter(|line| line.starts_with("note ")).count(), 4, "{notes:?}");
    let warned = listed.findings.iter().find(|finding| finding.severity == Severity::Warning).unwrap();
    assert!(warned.subject.contains("/keys/ending/") && warned.error.message.starts_with("it expires on "));
    assert_eq!(listed.keys.len(), 1);
}

#[test]
fn a_key_that_two_urls_lead_to_is_one() {
    let cloud = Cloud::with_key();
    let session = cloud.store(Build::Library, json!({"uris": [www(), all(DEMO)]})).open().unwrap();
    only(&session);
}

#[test]
fn a_vault_that_is_down_does_not_hide_the_keys_of_another() {
    let cloud = Cloud::with_key();
    cloud.make_key(HSM, "hsm", Type::P384Hsm);
    let session = cloud.store(Build::Library, json!({"uris": [all(HSM), www()]})).open().unwrap();
    let before = session.health().unwrap();
    cloud.vaults().disturb(Disturbance::answer("GET /keys?", keystead_fakes::Answer::text(503, "")));
    let listing = session.listing().unwrap();
    assert_eq!(names(&listing), ["www"]);
    assert!(
        findings(&listing)[0].contains("listing the keys of https://demo.managedhsm"),
        "{:?}",
        findings(&listing)
    );
    assert_eq!(session.health().unwrap_err().code, Code::Unavailable);
    cloud.vaults().disturb(Disturbance::answer("GET /keys/www", keystead_fakes::Answer::text(503, "")));
    assert_eq!(session.listing().unwrap_err().code, Code::Unavailable, "no vault is left");
    cloud.vaults().calm();
    assert_ne!(session.health().unwrap(), before, "the server lists again");
    assert_eq!(session.listing().unwrap().keys.len(), 2);
    assert_eq!(session.health().unwrap(), before);
}

#[test]
fn a_key_that_could_not_be_asked_for_once_is_not_lost() {
    let cloud = Cloud::with_key();
    cloud.make_key(DEMO, "api", Type::P256);
    let uris = json!({"uris": [www(), format!("{}/api", all(DEMO))]});
    for build in [Build::Library, Build::Component] {
        let session = cloud.store(build, uris.clone()).open().unwrap();
        let before = session.health().unwrap();
        let busy = || Disturbance::answer("GET /keys/api", keystead_fakes::Answer::text(503, "")).times(1);
        cloud.vaults().disturb(busy());
        assert_eq!(names(&session.listing().unwrap()), ["www"], "at first, what there is");
        let after = session.health().unwrap();
        assert_ne!(after, before, "the server lists again");
        assert_eq!(names(&session.listing().unwrap()), ["www", "api"]);
        cloud.vaults().disturb(busy());
        assert_eq!(session.listing().unwrap_err().code, Code::Unavailable, "the server keeps what it has");
        assert_eq!(session.listing().unwrap().keys.len(), 2);
        assert_eq!(session.health().unwrap(), before);
        assert_eq!(session.health().unwrap(), before);
    }
}

#[test]
fn vaults_of_other_clouds_say_themselves_where_tokens_are_made() {
    let cloud = Cloud::start();
    for (vault, login) in [
        (DEMO, "login.microsoftonline.com"),
        (HSM, "login.microsoftonline.com"),
        ("demo.vault.azure.cn", "login.chinacloudapi.cn"),
        ("demo.managedhsm.usgovcloudapi.net", "login.microsoftonline.us"),
    ] {
        cloud.make_key(vault, "www", Type::P256);
        let session = cloud.store(Build::Component, json!({"uris": [all(vault)]})).open().unwrap();
        sign(&session, &only(&session)).unwrap();
        let asked = cloud.logins().asked();
        assert_eq!(asked.last().unwrap().header("host"), Some(login), "{vault}");
    }
}
