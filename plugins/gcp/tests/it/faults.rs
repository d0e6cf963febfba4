//! What goes wrong at the service, or on the way.

use std::time::Duration;

use keystead_fakes::{Answer, Disturbance, gcp::RING};
use keystead_plugin_api::{
    Algorithm, Code, Error, Listing,
    algorithm::Operation,
    conformance::{Request, Session},
};
use serde_json::{Value, json};

use crate::world::{World, findings, labels, sign, version};

const SIGN: &str = ":asymmetricSign";
const PUBLIC_KEY: &str = "/publicKey";

/// What becomes of an answer.
type Change = fn(&mut Value);

fn opened(world: &World) -> (Session, Listing) {
    let session = world.open(json!({"uris": [version("www", 1)]}));
    let listing = session.listing().unwrap();
    sign(&session, &listing).unwrap();
    (session, listing)
}

/// Changes what the service answers, while it is answered as JSON.
fn changed(what: &str, change: impl Fn(&mut Value) + Send + Sync + 'static) -> Disturbance {
    Disturbance::change(what, move |answer| {
        let mut body: Value = serde_json::from_slice(&answer.body).unwrap();
        change(&mut body);
        Answer { body: body.to_string().into_bytes(), ..answer }
    })
}

/// What a fault comes to, which is gone with it.
fn fault(world: &World, fault: Disturbance) -> Error {
    let (session, listing) = opened(world);
    world.server().disturb(fault);
    let error = sign(&session, &listing).unwrap_err();
    world.server().calm();
    sign(&session, &listing).unwrap();
    assert_eq!(session.host().leaks(), [""; 0]);
    error
}

#[test]
fn a_signature_that_did_not_arrive_whole_or_is_of_something_else_is_not_given_away() {
    let world = World::with_a_key();
    let other = version("www", 2);
    let faults: [(Change, &str); 6] = [
        (|body| body["signatureCrc32c"] = "1".into(), "with a CRC32C that is not the one of the signature"),
        (|body| body["signature"] = "AAAA".into(), "with a CRC32C that is not the one of the signature"),
        (
            |body| drop(body.as_object_mut().unwrap().remove("signatureCrc32c")),
            "without the CRC32C of the signature",
        ),
        (
            |body| body["verifiedDigestCrc32c"] = false.into(),
            "that it did not check the CRC32C of what it signed",
        ),
        (
            |body| drop(body.as_object_mut().unwrap().remove("verifiedDigestCrc32c")),
            "that it did not check the CRC32C",
        ),
        (|body| drop(body.as_object_mut().unwrap().remove("name")), "for another version of a key"),
    ];
    for (change, said) in faults {
        let error = fault(&world, changed(SIGN, change));
        assert_eq!(error.code, Code::Unavailable, "it may be right the next time");
        let prefix = "signing with `tls/www version 1`: the service answered ";
        assert!(error.message.starts_with(&format!("{prefix}{said}")), "{error}");
    }
    let error = fault(&world, changed(SIGN, move |body| body["name"] = other.clone().into()));
    assert!(error.message.contains("for another version of a key"), "{error}");
}

#[test]
fn data_that_is_signed_as_it_is_has_its_own_flag() {
    let world = World::start();
    world.make_key("raw", "RSA_SIGN_RAW_PKCS1_2048");
    let session = world.open(json!({}));
    let listing = session.listing().unwrap();
    let swapped = |body: &mut Value| {
        let members = body.as_object_mut().unwrap();
        members.remove("verifiedDataCrc32c");
        members.insert("verifiedDigestCrc32c".to_owned(), true.into());
    };
    world.server().disturb(changed(SIGN, swapped));
    let error = session.sign(&listing.keys[0], Algorithm::RsaPkcs1Sha1, &[1; 20]).unwrap_err();
    assert!(error.message.contains("did not check the CRC32C"), "{error}");
}

#[test]
fn a_public_key_that_did_not_arrive_whole_or_is_another_is_not_listed() {
    let world = World::with_a_key();
    let (session, _) = opened(&world);
    let faults: [(Change, &str); 4] = [
        (|body| body["pemCrc32c"] = "1".into(), "with a CRC32C that is not the one of the public key"),
        (
            |body| drop(body.as_object_mut().unwrap().remove("pemCrc32c")),
            "without the CRC32C of the public key",
        ),
        (|body| body["pem"] = "-----BEGIN".into(), "with a CRC32C that is not the one of the public key"),
        (|body| body["name"] = version("api", 1).into(), "for another version of a key"),
    ];
    for (change, said) in faults {
        world.server().disturb(changed(PUBLIC_KEY, change));
        let error = session.listing().unwrap_err();
        assert_eq!(error.code, Code::Unavailable, "the host keeps the former listing, and tries again");
        assert!(error.message.contains(said), "{error}");
        world.server().calm();
    }
    assert_eq!(session.listing().unwrap().keys.len(), 1);
}

#[test]
fn a_list_with_names_of_others_is_not_believed() {
    let world = World::with_a_key();
    let session = world.open(json!({}));
    for list in ["/cryptoKeys?", "/cryptoKeyVersions?"] {
        world.server().disturb(Disturbance::change(list, |answer| {
            let body =
                String::from_utf8(answer.body.clone()).unwrap().replace("keyRings/tls", "keyRings/other");
            Answer { body: body.into_bytes(), ..answer }
        }));
        let error = session.listing().unwrap_err();
        assert!(error.message.contains("a name that isn't one of those asked for"), "{error}");
        world.server().calm();
    }
}

#[test]
fn a_list_that_is_none_is_not_taken_for_an_empty_one() {
    let world = World::with_a_key();
    let session = world.open(json!({}));
    for (list, member) in [("/cryptoKeys?", "cryptoKeys"), ("/cryptoKeyVersions?", "cryptoKeyVersions")] {
        let odd = [r#"{"#.to_owned(), "[]".to_owned(), "<html>".to_owned(), String::new()];
        let odd =
            odd.into_iter().chain(["7", "[7]", "[{}]"].map(|value| format!(r#"{{"{member}": {value}}}"#)));
        for body in odd {
            world.server().disturb(Disturbance::answer(list, Answer::text(200, &body)));
            let error = session.listing().unwrap_err();
            assert_eq!(error.code, Code::Unavailable, "{body}");
            assert!(
                error.message.contains("the answer is not the JSON that was expected"),
                "{body}: {error}"
            );
            world.server().calm();
        }
    }
}

#[test]
fn each_refusal_has_its_class_and_says_what_the_service_says() {
    let world = World::with_a_key();
    let refused = |status: u16, name: &str, message: &str| {
        let body = json!({"error": {"code": status, "status": name, "message": message}});
        fault(&world, Disturbance::answer(SIGN, Answer::json(status, &body)))
    };
    let cases = [
        (403, "PERMISSION_DENIED", Code::Denied),
        (404, "NOT_FOUND", Code::NotFound),
        (400, "INVALID_ARGUMENT", Code::Denied), // another store may take it
        (409, "ABORTED", Code::Unavailable),
        (429, "RESOURCE_EXHAUSTED", Code::Throttled),
        (500, "INTERNAL", Code::Unavailable),
        (503, "UNAVAILABLE", Code::Unavailable),
        (504, "DEADLINE_EXCEEDED", Code::Unavailable),
    ];
    for (status, name, code) in cases {
        let error = refused(status, name, "no\nbecause");
        assert_eq!(error.code, code, "{error}");
        let said =
            format!("signing with `tls/www version 1`: the service says {name}: no because (HTTP {status})");
        assert_eq!(error.to_string(), said);
    }
}

#[test]
fn a_digest_that_was_changed_on_the_way_is_refused_by_the_service_and_may_be_sent_again() {
    let world = World::with_a_key();
    let message = "The checksum in field digest_crc32c did not match the data in field digest.";
    let body = json!({"error": {"code": 400, "status": "INVALID_ARGUMENT", "message": message}});
    assert_eq!(fault(&world, Disturbance::answer(SIGN, Answer::json(400, &body))).code, Code::Unavailable);
}

#[test]
fn a_quota_that_is_used_up_says_when_to_come_back_and_recovers() {
    let world = World::with_a_key();
    let retry = json!({"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "0.25s"});
    let message =
        "Quota exceeded for quota metric 'HSM asymmetric requests' of service 'cloudkms.googleapis.com'.";
    let error = json!({"code": 429, "status": "RESOURCE_EXHAUSTED", "message": message, "details": [retry]});
    let body = json!({"error": error});
    let error = fault(&world, Disturbance::answer(SIGN, Answer::json(429, &body)));
    assert_eq!((error.code, error.retry_after), (Code::Throttled, Some(Duration::from_millis(250))));
    let answer = Answer::json(429, &body).header("retry-after", "2");
    let error = fault(&world, Disturbance::answer(SIGN, answer));
    assert_eq!(error.retry_after, Some(Duration::from_secs(2)));
    let answer = Answer::text(503, "").header("retry-after", "3");
    let error = fault(&world, Disturbance::answer(SIGN, answer));
    assert_eq!((error.code, error.retry_after), (Code::Unavailable, Some(Duration::from_secs(3))));
}

#[test]
fn a_quota_that_is_used_up_while_listing_fails_the_listing_and_not_a_key() {
    let world = World::with_a_key();
    world.make_key("api", "EC_SIGN_P256_SHA256");
    let session = world.open(json!({}));
    let body = json!({"error": {"code": 429, "status": "RESOURCE_EXHAUSTED", "message": "Quota exceeded"}});
    world
        .server()
        .disturb(Disturbance::answer("/api/cryptoKeyVersions/1/publicKey", Answer::json(429, &body)));
    assert_eq!(session.listing().unwrap_err().code, Code::Throttled);
    world.server().calm();
    assert_eq!(session.listing().unwrap().keys.len(), 2);
}

#[test]
fn a_quota_that_is_used_up_keeps_from_looking_and_is_no_outage() {
    let world = World::with_a_key();
    let session = world.open(json!({}));
    let (listing, generation) = (session.listing().unwrap(), session.health().unwrap());
    let body = json!({"error": {"code": 429, "status": "RESOURCE_EXHAUSTED", "message": "Quota exceeded"}});
    world.server().disturb(Disturbance::answer("GET ", Answer::json(429, &body)));
    world.make_key("api", "EC_SIGN_P256_SHA256");
    assert_eq!(session.health().unwrap(), generation, "nothing is known to have changed");
    sign(&session, &listing).unwrap();
    world.server().calm();
    let after = session.health().unwrap();
    assert_ne!(after, generation);
    world.server().disturb(Disturbance::answer("GET ", Answer::json(429, &body)));
    assert_eq!(session.health().unwrap(), after);
}

#[test]
fn a_body_that_is_cut_off_or_is_not_what_was_expected_is_unavailable() {
    let world = World::with_a_key();
    let error = fault(&world, Disturbance::cut_off(SIGN, 20));
    assert_eq!((error.code, error.vendor), (Code::Unavailable, None), "{}", error.message);
    for body in ["", "<html>proxy</html>", "[]", r#"{"signature": 7}"#, r#"{"signature": "AAA"#, "{}"] {
        let error = fault(&world, Disturbance::answer(SIGN, Answer::text(200, body)));
        assert_eq!(error.code, Code::Unavailable, "{body}");
        assert!(error.message.starts_with("signing with `tls/www version 1`: "), "{error}");
        let (session, _) = opened(&world);
        world.server().disturb(Disturbance::answer(PUBLIC_KEY, Answer::text(200, body)));
        assert_eq!(session.listing().unwrap_err().code, Code::Unavailable, "{body}");
        world.server().calm();
    }
    let html = "<!DOCTYPE html>".repeat(10_000);
    let error = fault(&world, Disturbance::answer(SIGN, Answer::text(502, &html)));
    assert_eq!(
        error.to_string(),
        "signing with `tls/www version 1`: the service says nothing more (HTTP 502)"
    );
}

#[test]
fn a_service_that_hangs_costs_a_call_its_time_and_no_more() {
    let world = World::with_a_key();
    let (session, listing) = opened(&world);
    world.server().disturb(Disturbance::hang(SIGN));
    let mut request = Request::new(&listing.keys[0], Algorithm::EcdsaSha256, &[1; 32]);
    request.time = Some(Duration::from_millis(300));
    let late = session.perform(Operation::Sign, &request).unwrap_err();
    assert_eq!(late.error.code, Code::Deadline, "{}", late.error);
    world.server().calm();
    world.server().disturb(Disturbance::delay(SIGN, Duration::from_millis(200)).times(1));
    sign(&session, &listing).unwrap();
}

#[test]
fn a_permission_that_lacks_is_said_with_the_role_that_has_it() {
    let world = World::with_a_key();
    world.make_key("api", "EC_SIGN_P256_SHA256");
    let session = world.open(json!({"uris": [version("www", 1)]}));
    let listing = session.listing().unwrap();
    world.forbid("cloudkms.cryptoKeyVersions.useToSign");
    let denied = sign(&session, &listing).unwrap_err();
    assert_eq!(denied.code, Code::Denied);
    assert!(denied.message.contains("Permission 'cloudkms.cryptoKeyVersions.useToSign' denied"), "{denied}");
    world.allow_all();
    world.forbid("cloudkms.cryptoKeys.list");
    let both = world.open(json!({"uris": [RING, version("www", 1)]}));
    let first = both.listing().unwrap();
    assert_eq!(labels(&first), ["tls/www version 1 (HSM)"], "a version needs no list");
    let [said] = findings(&first).try_into().unwrap();
    assert!(said.contains("Permission 'cloudkms.cryptoKeys.list' denied"), "{said}");
    assert!(first.findings[0].hint.contains("roles/cloudkms.viewer"), "{:?}", first.findings);
    let nothing = world.open(json!({})).listing().unwrap_err();
    assert_eq!(nothing.code, Code::Denied, "{nothing}");
    world.allow_all();
    both.health().unwrap();
    assert_eq!(both.listing().unwrap().keys.len(), 2);
}

#[test]
fn whatever_goes_wrong_with_a_look_keeps_what_was_listed() {
    let world = World::with_a_key();
    world.make_key("api", "EC_SIGN_P256_SHA256");
    let session = world.open(json!({"uris": [RING, version("www", 1)]}));
    let (listing, generation) = (session.listing().unwrap(), session.health().unwrap());
    let json = |status: u16, name: &str| {
        let body = json!({"error": {"code": status, "status": name, "message": "no"}});
        Answer::json(status, &body)
    };
    let html = "<!DOCTYPE html><title>Blocked</title>";
    let answers = [
        json(403, "PERMISSION_DENIED"),
        json(503, "UNAVAILABLE"),
        Answer::text(403, html),
        Answer::text(404, html),
        Answer::text(400, html),
    ];
    for what in ["/cryptoKeys?", "/api/cryptoKeyVersions?", "/www/cryptoKeyVersions/1/publicKey"] {
        for answer in &answers {
            world.server().disturb(Disturbance::answer(what, answer.clone()));
            let errors =
                [session.health().map(|_| ()), session.listing().map(|_| ())].map(Result::unwrap_err);
            assert_eq!(errors[0], errors[1], "{what}");
            let denied = answer.status == 403 && answer.body.starts_with(b"{");
            let code = if denied { Code::Denied } else { Code::Unavailable };
            assert_eq!(errors[0].code, code, "{what}: {}", errors[0]);
            sign(&session, &listing).unwrap();
            world.server().calm();
        }
    }
    assert_eq!(session.health().unwrap(), generation);
    assert_eq!(labels(&session.listing().unwrap()), labels(&listing));
}

#[test]
fn what_can_not_be_asked_at_first_hides_no_other_key_and_is_served_once_it_can() {
    let world = World::with_a_key();
    world.make_key("api", "EC_SIGN_P256_SHA256");
    for (what, answer) in [
        ("/api/cryptoKeyVersions?", Answer::text(503, "")),
        ("/api/cryptoKeyVersions?", Answer::text(404, "<!DOCTYPE html>")),
        ("/api/cryptoKeyVersions/1/publicKey", Answer::text(503, "")),
        ("/api/cryptoKeyVersions/1/publicKey", Answer::text(200, "{}")),
    ] {
        let session = world.open(json!({}));
        world.server().disturb(Disturbance::answer(what, answer));
        let mut generation = session.health().unwrap();
        for _ in 0..2 {
            let listing = session.listing().unwrap();
            assert_eq!(labels(&listing), ["tls/www version 1 (HSM)"], "{what}");
            let [said] = findings(&listing).try_into().unwrap();
            assert!(said.starts_with("error api"), "{said}");
            let next = session.health().unwrap();
            assert_ne!(next, generation, "the server lists again");
            generation = next;
        }
        world.server().calm();
        assert_eq!(session.listing().unwrap().keys.len(), 2);
        assert_eq!(session.health().unwrap(), generation, "and then no more");
        world.server().disturb(Disturbance::answer("GET ", Answer::text(503, "")));
        assert_eq!(session.listing().unwrap_err().code, Code::Unavailable);
        world.server().calm();
    }
    world.server().disturb(Disturbance::answer("/publicKey", Answer::text(503, "")));
    let nothing = world.open(json!({})).listing().unwrap_err();
    assert_eq!(nothing.code, Code::Unavailable, "{nothing}");
}

#[test]
fn what_never_could_be_asked_is_no_reason_to_lose_what_could() {
    let world = World::with_a_key();
    world.make_key("api", "EC_SIGN_P256_SHA256");
    world.make_key("web", "EC_SIGN_P256_SHA256");
    let session = world.open(json!({}));
    world.server().disturb(Disturbance::answer("/web/cryptoKeyVersions?", Answer::text(503, "")));
    assert_eq!(session.listing().unwrap().keys.len(), 2);
    session.health().unwrap();
    let passing = Disturbance::answer("/api/cryptoKeyVersions?", Answer::text(503, "")).times(2);
    world.server().disturb(passing);
    assert_eq!(session.health().unwrap_err().code, Code::Unavailable);
    assert_eq!(session.listing().unwrap_err().code, Code::Unavailable);
    assert_eq!(session.listing().unwrap().keys.len(), 2);
}

#[test]
fn a_start_reads_each_ring_and_key_once() {
    let world = World::with_a_key();
    world.make_key("api", "EC_SIGN_P256_SHA256");
    let session = world.open(json!({}));
    let before = session.health().unwrap();
    assert_eq!(world.server().asked().len(), 0);
    session.listing().unwrap();
    assert_eq!(world.server().asked().len(), 5, "the ring, and of both keys the versions and a public key");
    assert_eq!(session.health().unwrap(), before, "so that nothing is listed a second time");
    world.make_key("new", "EC_SIGN_P256_SHA256");
    assert_ne!(session.health().unwrap(), before);
}
