//! What goes wrong at the service, and what comes of it.

use std::{
    thread,
    time::{Duration, Instant},
};

use keystead_fakes::{Answer, Disturbance};
use keystead_plugin_api::{algorithm::Operation, conformance::Request};

use super::*;

/// A signature with so much time.
fn sign_within(session: &Session, key: &Key, time: Duration) -> Result<Vec<u8>, Error> {
    let mut request = Request::new(key, Algorithm::EcdsaSha256, &[0xa5; 32]);
    request.time = Some(time);
    session.perform(Operation::Sign, &request).map_err(|failure| failure.error)
}

/// A vault's answer to a request without a token.
fn challenging(tenant: &str, resource: &str) -> Answer {
    let authority = format!("https://login.microsoftonline.com/{tenant}");
    let challenge = format!(r#"Bearer authorization="{authority}", resource="{resource}""#);
    Answer::text(401, "").header("www-authenticate", &challenge)
}

#[test]
fn a_vault_is_asked_without_a_token_once_and_one_token_serves_for_all() {
    let cloud = Cloud::with_key();
    let session = cloud.store(Build::Component, json!({"uris": [www()]})).open().unwrap();
    let key = only(&session);
    for _ in 0..20 {
        sign(&session, &key).unwrap();
    }
    session.health().unwrap();
    let asked = cloud.vaults().asked();
    let bare: Vec<_> = asked.iter().filter(|asked| asked.header("authorization").is_none()).collect();
    assert_eq!((bare.len(), bare[0].line().as_str()), (1, "GET /keys?api-version=7.4&maxresults=1"));
    assert_eq!(cloud.logins_asked(), 1);
}

#[test]
fn of_many_lanes_one_gets_the_token() {
    let cloud = Cloud::with_key();
    let session = cloud.www();
    let key = only(&session);
    cloud.revoke_tokens();
    cloud.logins().disturb(Disturbance::delay("POST", Duration::from_millis(100)));
    thread::scope(|scope| {
        for lane in 0..16 {
            let (session, key) = (&session, &key);
            scope.spawn(move || {
                let mut request = Request::new(key, Algorithm::EcdsaSha256, &[0xa5; 32]);
                request.lane = lane;
                session.perform(Operation::Sign, &request).unwrap()
            });
        }
    });
    assert_eq!(cloud.logins_asked(), 2, "one at first, and one for all lanes after it was refused");
}

#[test]
fn a_vault_that_wants_a_token_for_another_service_gets_none() {
    let cloud = Cloud::with_key();
    let answer = challenging("t", "https://management.azure.com");
    cloud.vaults().disturb(Disturbance::answer("GET /keys", answer));
    let error = cloud.www().listing().unwrap_err();
    assert_eq!(error.code, Code::Denied);
    let what = "its challenge is for `https://management.azure.com`, whose name the vault's doesn't end in; no token";
    assert!(error.message.contains(what), "{error}");
    assert_eq!(cloud.logins_asked(), 0);
}

#[test]
fn a_vault_without_a_challenge_is_said() {
    let cloud = Cloud::with_key();
    for answer in [Answer::text(401, ""), Answer::json(200, &json!({"value": []}))] {
        cloud.vaults().disturb(Disturbance::answer("GET /keys", answer));
        let error = cloud.www().listing().unwrap_err();
        assert_eq!(error.code, Code::Unavailable);
        assert!(error.message.contains("without a challenge"), "{error}");
    }
    let firewall = json!({"error": {"code": "Forbidden", "message": "Client address is not authorized.",
        "innererror": {"code": "ForbiddenByFirewall"}}});
    cloud.vaults().disturb(Disturbance::answer("GET /keys", Answer::json(403, &firewall)));
    let error = cloud.www().listing().unwrap_err();
    let line = "asking https://demo.vault.azure.net where its tokens are made: the vault says Client address is not \
                authorized. (ForbiddenByFirewall) (HTTP 403)";
    assert_eq!((error.code, error.to_string().as_str()), (Code::Denied, line));
}

#[test]
fn each_status_has_its_class_and_the_services_words() {
    let cloud = Cloud::with_key();
    let session = cloud.www();
    let key = only(&session);
    let said = |code: &str| json!({"error": {"code": code, "message": "as it is"}});
    for (status, code, class) in [
        (400, "BadParameter", Code::Unsupported),
        (405, "MethodNotAllowed", Code::Denied),
        (421, "MisdirectedRequest", Code::Denied),
        (403, "Forbidden", Code::Denied),
        (404, "KeyNotFound", Code::NotFound),
        (429, "Throttled", Code::Throttled),
        (500, "InternalServerError", Code::Unavailable),
        (503, "ServiceUnavailable", Code::Unavailable),
    ] {
        let answer = Answer::json(status, &said(code)).header("retry-after", "3");
        cloud.vaults().disturb(Disturbance::answer("/sign", answer).times(1));
        let error = sign(&session, &key).unwrap_err();
        assert_eq!(error.code, class, "{error}");
        let version = cloud.version(DEMO, "www");
        let line =
            format!("signing with `www` version {version}: the vault says as it is ({code}) (HTTP {status})");
        assert_eq!(error.to_string(), line);
        let comes_back = matches!(class, Code::Throttled | Code::Unavailable);
        assert_eq!(error.retry_after, comes_back.then_some(Duration::from_secs(3)), "{error}");
    }
    for status in [400, 403, 407] {
        cloud.vaults().disturb(Disturbance::answer("/sign", Answer::text(status, "<html>")).times(1));
        assert_eq!(sign(&session, &key).unwrap_err().code, Code::Denied, "{status}");
    }
    sign(&session, &key).unwrap();
}

#[test]
fn what_is_configured_amiss_is_not_the_fault_of_who_wants_a_signature() {
    let cloud = Cloud::with_key();
    let key = only(&cloud.www());
    for member in ["tenant", "client_id"] {
        let mut credential = json!({"type": "client_secret", "client_id": cloud.client_id()});
        match member {
            "tenant" => credential["tenant"] = "11111111-1111-1111-1111-111111111111".into(),
            _ => credential = json!({"type": "client_secret"}),
        }
        let door = built(Build::Library).granting(cloud.grants());
        let config = json!({"uris": [www()], "credential": credential});
        let session = Subject::behind(door).config(config).secret("client_secret", b"x").open().unwrap();
        let error = sign(&session, &key).unwrap_err();
        assert!(error.message.contains(member), "{error}");
        assert_eq!(error.code, Code::Denied, "another store may sign: {error}");
        assert_eq!(session.listing().unwrap_err().code, Code::InvalidInput);
    }
}

#[test]
fn what_bars_the_way_for_a_while_empties_no_store() {
    let cloud = Cloud::with_key();
    cloud.make_key(HSM, "hsm", Type::P384Hsm);
    let session = cloud.www();
    let (key, before) = (only(&session), session.health().unwrap());
    let inner = |code: &str| {
        let body = json!({"error": {"code": "Forbidden", "message": "no", "innererror": {"code": code}}});
        Answer::json(403, &body)
    };
    for (answer, class) in [
        (inner("ForbiddenByFirewall"), Code::Denied),
        (inner("ForbiddenByConnection"), Code::Denied),
        (inner("ForbiddenByPolicy"), Code::Denied),
        (Answer::text(403, "<html>"), Code::Denied),
        (Answer::text(404, "<html>"), Code::Unavailable),
    ] {
        cloud.vaults().disturb(Disturbance::answer("GET /keys/www", answer));
        assert_eq!(session.listing().unwrap_err().code, class, "the server keeps what it has");
        assert_eq!(session.health().unwrap_err().code, class);
        let both = cloud.store(Build::Library, json!({"uris": [www(), all(HSM)]})).open().unwrap();
        let listing = both.listing().unwrap();
        assert_eq!((names(&listing), listing.findings.len()), (vec!["hsm"], 1), "at first, what there is");
        cloud.vaults().calm();
        assert_eq!(session.health().unwrap(), before);
        sign(&session, &key).unwrap();
    }
}

#[test]
fn a_refusal_in_other_words_is_the_same() {
    let cloud = Cloud::with_key();
    let session = cloud.www();
    let before = session.health().unwrap();
    let generation = |status, message: &str| {
        let body = json!({"error": {"code": "Forbidden", "message": message}});
        cloud.vaults().disturb(Disturbance::answer("GET /keys/www", Answer::json(status, &body)));
        let generation = session.health().unwrap();
        cloud.vaults().calm();
        generation
    };
    let first = generation(403, "User is not authorized (Activity ID: 0b1c2d3e-0000-1111-2222-333344445555)");
    assert_ne!(first, before);
    let again = generation(403, "The user may not (Activity ID: ffffffff-0000-1111-2222-333344445555)");
    assert_eq!(again, first, "the server doesn't list again");
    assert_ne!(generation(404, "No such key"), first);
    assert_eq!(session.health().unwrap(), before);
}

#[test]
fn an_answer_that_is_cut_off_or_is_none_is_unavailable() {
    let cloud = Cloud::with_key();
    let session = cloud.www();
    let key = only(&session);
    cloud.vaults().disturb(Disturbance::cut_off("/sign", 40).times(1));
    assert_eq!(sign(&session, &key).unwrap_err().code, Code::Unavailable);
    let other = format!("{}/0123456789abcdef0123456789abcdef", www());
    for body in [
        String::new(),
        "<html>".to_owned(),
        "{}".to_owned(),
        json!({"kid": key.label, "value": "not base64url!"}).to_string(),
        json!({"kid": key.label, "value": "AQID"}).to_string(),
        json!({"kid": key.label, "value": 7}).to_string(),
        json!({"kid": other, "value": "AQID"}).to_string(),
    ] {
        cloud.vaults().disturb(Disturbance::answer("/sign", Answer::text(200, &body)).times(1));
        let error = sign(&session, &key).unwrap_err();
        assert_eq!(error.code, Code::Unavailable, "{body}: {error}");
    }
    let every = cloud.store(Build::Library, json!({"uris": [all(DEMO)]})).open().unwrap();
    for body in ["{}", "[]", "[[]]", "7", r#"{"value": [{"kid": 3}]}"#, r#"{"value": null}"#] {
        cloud.vaults().disturb(Disturbance::answer("GET /keys", Answer::text(200, body)).times(2));
        for session in [&session, &every] {
            assert_eq!(session.listing().unwrap_err().code, Code::Unavailable, "{body}");
        }
    }
    sign(&session, &key).unwrap();
}

#[test]
fn a_key_that_lies_about_its_name_is_not_listed() {
    let cloud = Cloud::with_key();
    cloud.make_key(DEMO, "api", Type::P256);
    let version = cloud.version(DEMO, "api");
    let rename = move |mut answer: Answer| {
        let text = String::from_utf8(answer.body).unwrap();
        answer.body = text.replace("/keys/www/", "/keys/api/").into_bytes();
        answer
    };
    cloud.vaults().disturb(Disturbance::change("GET /keys/www", rename));
    for uri in [www(), format!("{}/{}", www(), cloud.version(DEMO, "www"))] {
        let session = cloud.store(Build::Library, json!({"uris": [uri]})).open().unwrap();
        let error = session.listing().unwrap_err();
        assert!(error.message.contains("another key than was asked for"), "{version}: {error}");
    }
}

#[test]
fn a_service_that_is_slow_or_silent_costs_the_deadline_and_no_more() {
    let cloud = Cloud::with_key();
    for build in [Build::Library, Build::Component] {
        let session = cloud.store(build, json!({"uris": [www()]})).open().unwrap();
        let key = only(&session);
        cloud.vaults().disturb(Disturbance::delay("/sign", Duration::from_millis(300)).times(1));
        let slow = sign_within(&session, &key, Duration::from_secs(20)).unwrap();
        conformance::verify(&key.spki, Algorithm::EcdsaSha256, &[0xa5; 32], &slow).unwrap();
        for what in [Disturbance::hang("/sign"), Disturbance::delay("/sign", Duration::from_secs(60))] {
            cloud.vaults().disturb(what);
            let began = Instant::now();
            let error = sign_within(&session, &key, Duration::from_millis(300)).unwrap_err();
            assert_eq!(error.code, Code::Deadline, "{error}");
            assert!(began.elapsed() < Duration::from_secs(30), "the answer wasn't waited for");
            cloud.vaults().calm();
        }
        sign(&session, &key).unwrap();
    }
}

#[test]
fn a_token_that_ends_before_its_time_is_got_anew_once() {
    let cloud = Cloud::with_key();
    for build in [Build::Library, Build::Component] {
        let session = cloud.store(build, json!({"uris": [www()]})).open().unwrap();
        let key = only(&session);
        let before = cloud.logins_asked();
        cloud.revoke_tokens();
        sign(&session, &key).unwrap();
        assert_eq!(cloud.logins_asked(), before + 1);
        sign(&session, &key).unwrap();
        assert_eq!(cloud.logins_asked(), before + 1);
    }
}

#[test]
fn a_vault_that_refuses_a_fresh_token_is_not_asked_a_third_time() {
    let cloud = Cloud::with_key();
    let session = cloud.www();
    let key = only(&session);
    let body = json!({"error": {"code": "Unauthorized", "message": "AKV10032: Invalid issuer."}});
    cloud.vaults().disturb(Disturbance::answer("/sign", Answer::json(401, &body)));
    let (tokens, requests) = (cloud.logins_asked(), cloud.vaults().asked().len());
    let error = sign(&session, &key).unwrap_err();
    assert_eq!(error.code, Code::Denied);
    assert!(error.to_string().ends_with("AKV10032: Invalid issuer. (Unauthorized) (HTTP 401)"), "{error}");
    assert_eq!(cloud.logins_asked(), tokens + 1);
    assert_eq!(cloud.vaults().asked().len(), requests + 3, "two tries, and a new challenge between them");
    for _ in 0..3 {
        assert_eq!(sign(&session, &key).unwrap_err().code, Code::Denied);
    }
    assert_eq!(cloud.logins_asked(), tokens + 1, "nor is a token got for each request");
    assert_eq!(cloud.vaults().asked().len(), requests + 6);
    cloud.vaults().calm();
    sign(&session, &key).unwrap();
    assert_eq!(cloud.logins_asked(), tokens + 1);
}

#[test]
fn a_vault_that_has_moved_to_another_tenant_is_followed() {
    let cloud = Cloud::with_key();
    let session = cloud.www();
    let answer = challenging("11111111-1111-1111-1111-111111111111", "https://vault.azure.net");
    cloud.vaults().disturb(Disturbance::answer("maxresults=1", answer).times(1));
    let error = session.listing().unwrap_err();
    assert!(error.message.contains("AADSTS90002: Tenant not found"), "{error}");
    assert_eq!(error.code, Code::Denied, "no credential was refused");
    // Tokens of the old tenant's were good, and are no more.
    let session = cloud.www();
    let key = only(&session);
    cloud.revoke_tokens();
    sign(&session, &key).unwrap();
    let bare = cloud.vaults().asked().iter().filter(|asked| asked.header("authorization").is_none()).count();
    assert_eq!(bare, 3, "the challenge is asked for anew with the token");
}

#[test]
fn tokens_are_refreshed_early_and_it_is_no_matter_where_that_fails() {
    let cloud = Cloud::with_key();
    cloud.set_token_life(Duration::from_secs(200));
    let session = cloud.www();
    let key = only(&session);
    session.health().unwrap();
    assert_eq!(cloud.logins_asked(), 2, "one that lives for less than five minutes more is replaced");
    cloud.logins().disturb(Disturbance::answer("POST", Answer::text(503, "")));
    session.health().unwrap();
    let warned = session.host().records();
    assert!(warned.iter().any(|record| record.message.contains("the old one still lives")), "{warned:?}");
    sign(&session, &key).unwrap();

    cloud.revoke_tokens();
    let gone = sign(&session, &key).unwrap_err();
    assert_eq!(gone.code, Code::Unavailable);
    assert!(
        gone.message.starts_with("getting a token for https://vault.azure.net from https://login."),
        "{gone}"
    );
    assert_eq!(session.health().unwrap_err().code, Code::Unavailable);
    cloud.logins().calm();
    after_a_while();
    sign(&session, &key).unwrap();
}

#[test]
fn where_no_token_is_to_be_had_it_is_asked_for_once_in_a_while() {
    let cloud = Cloud::with_key();
    let key = only(&cloud.www());
    for build in [Build::Library, Build::Component] {
        let session = cloud.store(build, json!({"uris": [www()]})).open().unwrap();
        cloud.logins().disturb(Disturbance::answer("POST", Answer::text(503, "")));
        let before = cloud.logins_asked();
        let first = sign(&session, &key).unwrap_err();
        assert_eq!((first.code, first.vendor.as_ref().unwrap().number), (Code::Unavailable, 503));
        for _ in 0..5 {
            assert_eq!(sign(&session, &key).unwrap_err(), first);
        }
        assert_eq!(session.health().unwrap_err(), first);
        assert_eq!(cloud.logins_asked(), before + 1);
        cloud.logins().calm();
        after_a_while();
        sign(&session, &key).unwrap();
        assert_eq!(cloud.logins_asked(), before + 2);
    }
}

#[test]
fn a_store_without_a_token_is_not_well_however_busy_who_makes_them() {
    let cloud = Cloud::with_key();
    let session = cloud.www();
    let key = only(&session);
    session.health().unwrap();
    cloud.revoke_tokens();
    let busy = Answer::json(429, &json!({"error": "temporarily_unavailable"}));
    cloud.logins().disturb(Disturbance::answer("POST", busy));
    assert_eq!(sign(&session, &key).unwrap_err().code, Code::Throttled);
    assert_eq!(session.health().unwrap_err().code, Code::Throttled);
}

#[test]
fn a_vault_that_throttles_whoever_looks_is_no_outage() {
    let cloud = Cloud::with_key();
    let (session, stranger) = (cloud.www(), cloud.www());
    let (key, generation) = (only(&session), session.health().unwrap());
    let body = json!({"error": {"code": "Throttled", "message": "too many requests were received"}});
    let throttled = || Disturbance::answer("GET /keys/www", Answer::json(429, &body));
    cloud.vaults().disturb(throttled());
    cloud.make_key(DEMO, "www", Type::P256);
    assert_eq!(session.health().unwrap(), generation, "nothing is known to have changed");
    sign(&session, &key).unwrap();
    assert_eq!(stranger.health().unwrap_err().code, Code::Throttled, "which has seen nothing yet");
    cloud.vaults().calm();
    let after = session.health().unwrap();
    assert_ne!(after, generation);
    cloud.vaults().disturb(throttled());
    assert_eq!(session.health().unwrap(), after);
}

#[test]
fn a_token_that_lives_too_short_to_be_sent_is_not_kept() {
    let cloud = Cloud::with_key();
    cloud.set_token_life(Duration::from_secs(5));
    let session = cloud.www();
    let key = only(&session);
    let before = cloud.logins_asked();
    sign(&session, &key).unwrap();
    assert_eq!(cloud.logins_asked(), before + 1);
}

#[test]
fn the_last_seconds_of_a_token_are_used_where_there_is_no_other() {
    let cloud = Cloud::with_key();
    cloud.set_token_life(Duration::from_secs(29));
    let session = cloud.www();
    let key = only(&session);
    cloud.logins().disturb(Disturbance::answer("POST", Answer::text(503, "")));
    let before = cloud.logins_asked();
    sign(&session, &key).unwrap();
    assert_eq!(cloud.logins_asked(), before + 1, "another was asked for");
}

#[test]
fn what_the_token_service_answers_has_its_class() {
    let cloud = Cloud::with_key();
    let said =
        json!({"error": "temporarily_unavailable", "error_description": "AADSTS90033: A transient error."});
    for (answer, class) in [
        (Answer::json(429, &said).header("retry-after", "4"), Code::Throttled),
        (Answer::json(503, &said).header("retry-after", "4"), Code::Unavailable),
        (Answer::json(500, &said), Code::Unavailable),
        (Answer::text(200, "<html>"), Code::Unavailable),
        (Answer::json(200, &json!({"access_token": "t"})), Code::Unavailable),
        (Answer::json(302, &json!({})), Code::Unavailable),
        (Answer::text(400, "<html>"), Code::Unavailable),
        (Answer::text(403, "<html>blocked by the proxy"), Code::Unavailable),
        (Answer::json(403, &json!({"message": "blocked"})), Code::Unavailable),
        (Answer::json(403, &json!({"error": "invalid_client"})), Code::Denied),
        (Answer::json(404, &json!({"error": "invalid_request"})), Code::Denied),
    ] {
        let after = answer.headers.iter().any(|(name, _)| name == "retry-after");
        cloud.logins().disturb(Disturbance::answer("POST", answer));
        let error = cloud.www().listing().unwrap_err();
        assert_eq!(error.code, class, "{error}");
        assert_eq!(error.retry_after, after.then_some(Duration::from_secs(4)), "{error}");
    }
    cloud.logins().disturb(Disturbance::cut_off("POST", 20));
    assert_eq!(cloud.www().listing().unwrap_err().code, Code::Unavailable);
    cloud.logins().calm();
    only(&cloud.www());
}

#[test]
fn a_token_that_an_error_repeats_goes_no_further() {
    let cloud = Cloud::with_key();
    let session = cloud.www();
    let key = only(&session);
    let token = cloud.tokens().pop().unwrap();
    let body = json!({"error": {"code": "Unknown", "message": format!("what is {token}?")}});
    cloud.vaults().disturb(Disturbance::answer("/sign", Answer::json(500, &body)));
    let error = sign(&session, &key).unwrap_err();
    assert!(error.message.contains("what is …?"), "{error}");
    session.host().set_secret("token", token.as_bytes());
    assert_eq!(session.host().leaks(), [""; 0]);
}
