//! Who asks, and what becomes of tokens.

use std::{
    collections::BTreeSet,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::Duration,
};

use keystead_fakes::{Answer, Disturbance, gcp::RING};
use keystead_plugin_api::{
    Algorithm, Code, Error, Listing,
    algorithm::Operation,
    conformance::{Request, Session, Subject},
};
use keystead_plugin_host::{Grant, testing};
use serde_json::{Value, json};

use crate::world::{Build, World, after_a_pause, labels, sign, with_file};

const PERSON: [&str; 3] = ["client_id", "client_secret", "refresh_token"];
const HOUR: Duration = Duration::from_secs(3600);

/// A component's store by another credential than the service account's file.
fn store(world: &World, credential: Value) -> Subject {
    Subject::behind(world.door(Build::Component)).config(json!({"uris": [RING], "credential": credential}))
}

fn machine(world: &World) -> Subject {
    store(world, json!({"type": "metadata", "endpoint": world.metadata()}))
}

fn person(world: &World) -> Subject {
    with_file(store(world, json!({"type": "authorized_user"})), &world.authorized_user(), &PERSON)
}

fn workload(world: &World, token: &str, more: Value) -> Subject {
    let mut credential = json!({"type": "workload_identity", "audience": world.audience()});
    credential.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    store(world, credential).secret("subject_token", token.as_bytes())
}

/// Lists, signs, and looks for whatever must not be told, access tokens included.
fn works(world: &World, session: &Session) -> Listing {
    let listing = session.listing().unwrap();
    assert_eq!(labels(&listing), ["tls/www version 1 (HSM)"]);
    sign(session, &listing).unwrap();
    session.health().unwrap();
    assert_eq!(session.host().leaks(), [""; 0]);
    let tokens = world.live_tokens();
    for record in session.host().records() {
        let told =
            tokens.iter().find(|token| record.message.contains(*token) || record.fields.contains(*token));
        assert_eq!(told, None, "{record:?}");
    }
    listing
}

fn refused(subject: &Subject) -> Error {
    let session = subject.open().unwrap();
    let error = session.listing().unwrap_err();
    assert_eq!(session.host().leaks(), [""; 0]);
    error
}

fn issuer_of(world: &World) -> usize {
    world.server().asked().iter().filter(|asked| asked.line().starts_with("POST /token")).count()
}

#[test]
fn a_service_account_signs_its_tokens_itself_and_asks_nobody_for_them() {
    let world = World::with_a_key();
    for build in [Build::Library, Build::Component] {
        works(&world, &world.store(build, json!({})).open().unwrap());
    }
    assert_eq!((world.tokens(), issuer_of(&world)), (0, 0));
    let asked = world.server().asked();
    let bearers: BTreeSet<_> = asked.iter().map(|asked| asked.header("authorization").unwrap()).collect();
    assert!(asked.len() >= 6 && bearers.len() <= 2, "one for each store: {bearers:?}");
}

#[test]
fn an_account_may_stand_in_the_configuration_and_its_key_never_leaves_the_host() {
    let world = World::with_a_key();
    let file = world.service_account();
    let (email, id) = (&file["client_email"], &file["private_key_id"]);
    let credential = json!({"type": "service_account", "client_email": email, "private_key_id": id});
    let door = world.door(Build::Component).exposing(&[]);
    let subject = Subject::behind(door).config(json!({"uris": [RING], "credential": credential}));
    works(&world, &with_file(subject, &file, &["private_key"]).open().unwrap());
}

#[test]
fn an_account_without_its_email_is_told_where_it_belongs() {
    let world = World::with_a_key();
    let missing = refused(&with_file(
        store(&world, json!({"type": "service_account"})),
        &world.service_account(),
        &["private_key"],
    ));
    assert_eq!(missing.code, Code::InvalidInput);
    assert!(
        missing.message.contains("client_email") && missing.message.contains("expose: true"),
        "{missing}"
    );
    let hidden = Subject::behind(world.door(Build::Component).exposing(&[]));
    let hidden = hidden.config(json!({"uris": [RING], "credential": {"type": "service_account"}}));
    let hidden = refused(&with_file(hidden, &world.service_account(), &["private_key", "client_email"]));
    assert!(hidden.message.contains("expose: true"), "{hidden}");
}

#[test]
fn a_key_of_an_account_that_is_refused_is_tried_again_after_a_pause_and_serves_once_it_is_taken() {
    let world = World::with_a_key();
    let subject = world.store(Build::Component, json!({}));
    let session = subject.open().unwrap();
    let listing = works(&world, &session);
    world.replace_account_key();
    let before = world.server().asked().len();
    let error = sign(&session, &listing).unwrap_err();
    assert_eq!(
        error.code,
        Code::Denied,
        "it locks nothing: the account may be enabled again, a new key needs a minute"
    );
    assert!(
        error.message.contains("UNAUTHENTICATED: Request had invalid authentication credentials"),
        "{error}"
    );
    assert_eq!(world.server().asked().len() - before, 2, "another token was tried, once");
    assert_eq!(sign(&session, &listing).unwrap_err(), error);
    assert_eq!(world.server().asked().len() - before, 3, "and no third one at once");
    for name in ["private_key", "private_key_id"] {
        session.host().set_secret(name, world.service_account()[name].as_str().unwrap().as_bytes());
    }
    after_a_pause(|| sign(&session, &listing));
    works(&world, &session);
}

#[test]
fn what_signs_no_token_is_said_and_not_shown() {
    let world = World::with_a_key();
    let session = world.open(json!({}));
    session.host().set_secret("private_key", b"-----BEGIN no key at all");
    let error = session.listing().unwrap_err();
    assert_eq!(error.code, Code::InvalidInput);
    assert!(error.message.contains("the secret `private_key` is not a private key"), "{error}");
    assert_eq!(session.host().leaks(), [""; 0]);
}

#[test]
fn a_configuration_that_is_wrong_is_no_fault_of_the_input_that_another_store_may_sign() {
    let world = World::with_a_key();
    let session = world.open(json!({}));
    let listing = session.listing().unwrap();
    world.replace_account_key();
    session.host().set_secret("private_key", b"-----BEGIN no key at all");
    let error = sign(&session, &listing).unwrap_err();
    assert!(error.message.contains("the secret `private_key` is not a private key"), "{error}");
    assert_eq!(error.code, Code::Denied);
}

#[test]
fn a_clock_that_is_wrong_is_said() {
    let world = World::with_a_key();
    for (ahead, said) in
        [(7200, "s behind the service's: set it right"), (-7200, "s ahead of the service's: set it right")]
    {
        world.set_clock(ahead);
        let error = refused(&world.store(Build::Component, json!({})));
        assert_eq!(error.code, Code::Denied, "it passes once the clock is set");
        assert!(
            error.message.contains("this machine's clock is 7") && error.message.ends_with(said),
            "{error}"
        );
    }
    for ahead in [20, -20] {
        world.set_clock(ahead);
        works(&world, &world.open(json!({})));
    }
}

#[test]
fn a_machine_has_the_token_of_its_metadata_server() {
    let world = World::with_a_key();
    works(&world, &machine(&world).open().unwrap());
    assert_eq!(world.tokens(), 1, "one for all requests");
    let email = world.service_account()["client_email"].clone();
    let by_name = json!({"type": "metadata", "endpoint": world.metadata(), "account": email});
    works(&world, &store(&world, by_name).open().unwrap());
}

#[test]
fn a_machine_without_an_account_and_a_server_that_is_none_are_told_apart() {
    let world = World::with_a_key();
    let account = "other@p.iam.gserviceaccount.com";
    let other = json!({"type": "metadata", "endpoint": world.metadata(), "account": account});
    let none = refused(&store(&world, other));
    assert_eq!(none.code, Code::Denied, "and not that there is no such key");
    assert!(
        none.message.contains("the machine has no service account `other@p.iam.gserviceaccount.com`"),
        "{none}"
    );
    let metadata = world.metadata_server();
    metadata.disturb(Disturbance::answer(
        "token",
        Answer::json(200, &json!({"access_token": "t", "expires_in": 3600})),
    ));
    let odd = refused(&machine(&world));
    assert_eq!(odd.code, Code::Unavailable);
    assert!(odd.message.contains("isn't a metadata server's"), "{odd}");
    metadata.calm();
    metadata.disturb(Disturbance::answer("token", Answer::text(503, "").header("metadata-flavor", "Google")));
    assert_eq!(refused(&machine(&world)).code, Code::Unavailable);
}

#[test]
fn a_person_refreshes_a_token_with_what_the_plugin_never_sees() {
    let world = World::with_a_key();
    works(&world, &person(&world).open().unwrap());
    let with_id = json!({"type": "authorized_user", "client_id": world.authorized_user()["client_id"]});
    works(&world, &with_file(store(&world, with_id), &world.authorized_user(), &PERSON[1..]).open().unwrap());
    let revoked = refused(&person(&world).secret("refresh_token", b"1//0e-revoked"));
    assert_eq!(revoked.code, Code::Credentials);
    let said = "refreshing the access token: the service says invalid_grant: Bad Request (HTTP 400)";
    assert_eq!(revoked.to_string(), said);
    let other = refused(&person(&world).secret("client_secret", b"another secret"));
    assert!(other.code == Code::Credentials && other.message.contains("invalid_client"), "{other}");
}

#[test]
fn a_workload_trades_its_own_token_and_acts_as_an_account_where_it_is_told_to() {
    let world = World::with_a_key();
    let token = world.subject_token(HOUR);
    works(&world, &workload(&world, &token, json!({})).open().unwrap());
    assert_eq!(world.tokens(), 1);
    let email = world.service_account()["client_email"].clone();
    works(&world, &workload(&world, &token, json!({"impersonate": email})).open().unwrap());
    assert_eq!(world.tokens(), 3, "a federated one, and the account's");
    let other = workload(&world, &token, json!({"impersonate": "other@p.iam.gserviceaccount.com"}));
    let other = refused(&other);
    assert_eq!(other.code, Code::Denied);
    assert!(
        other
            .message
            .contains("impersonating `other@p.iam.gserviceaccount.com`: the service says PERMISSION_DENIED"),
        "{other}"
    );
}

#[test]
fn a_workloads_token_is_read_again_whenever_one_is_needed() {
    let world = World::with_a_key();
    let session = workload(&world, &world.subject_token(Duration::from_secs(0)), json!({})).open().unwrap();
    let stale = session.listing().unwrap_err();
    assert_eq!(stale.code, Code::Denied, "the next may be good: it is tried again");
    assert!(stale.message.contains("invalid_grant: ID Token issued is stale"), "{stale}");
    session.host().set_secret("subject_token", world.subject_token(HOUR).as_bytes());
    after_a_pause(|| session.listing());
    works(&world, &session);
    let forged = world.subject_token(HOUR).replace(".ey", ".eY");
    let forged = refused(&workload(&world, &forged, json!({})));
    assert!(forged.message.contains("signature of the ID Token is invalid"), "{forged}");
    let elsewhere = refused(&workload(
        &world,
        &world.subject_token(HOUR),
        json!({"audience": "//iam.googleapis.com/other"}),
    ));
    assert_eq!(elsewhere.code, Code::InvalidInput);
    assert!(elsewhere.message.contains("invalid_target"), "{elsewhere}");
}

#[test]
fn a_token_is_replaced_before_it_ends_and_when_it_ended_all_the_same() {
    let world = World::with_a_key();
    world.set_token_life(Duration::from_secs(200));
    let session = machine(&world).open().unwrap();
    let listing = session.listing().unwrap();
    sign(&session, &listing).unwrap();
    assert_eq!(world.tokens(), 1);
    world.set_token_life(HOUR);
    session.health().unwrap();
    assert_eq!(world.tokens(), 2, "within four minutes of its end, health replaces it");
    session.health().unwrap();
    sign(&session, &listing).unwrap();
    assert_eq!(world.tokens(), 2, "an hour is long");

    world.set_clock(3700);
    sign(&session, &listing).unwrap();
    assert_eq!(world.tokens(), 3, "it had ended by the service's clock: another was got at once");
    world.revoke_tokens();
    sign(&session, &listing).unwrap();
    assert_eq!(world.tokens(), 4);
}

#[test]
fn of_many_who_need_a_token_at_once_one_gets_it_for_all() {
    let world = World::with_a_key();
    let session = machine(&world).open().unwrap();
    let listing = session.listing().unwrap();
    let (session, key) = (&session, &listing.keys[0]);
    let sign = |lane| {
        let mut request = Request::new(key, Algorithm::EcdsaSha256, &[1; 32]);
        request.lane = lane;
        session.perform(Operation::Sign, &request).unwrap();
    };
    for tokens in 1..4 {
        thread::scope(|scope| (0..16).for_each(|lane| drop(scope.spawn(move || sign(lane)))));
        assert_eq!(world.tokens(), tokens);
        world.revoke_tokens();
    }
}

#[test]
fn who_is_refused_altogether_loses_the_store_and_not_its_keys_one_by_one() {
    let world = World::with_a_key();
    let session = machine(&world).open().unwrap();
    let listing = session.listing().unwrap();
    let body = json!({"error": {"code": 401, "status": "UNAUTHENTICATED", "message": "no"}});
    world.server().disturb(Disturbance::answer("/v1/", Answer::json(401, &body)));
    let refused = [
        session.listing().unwrap_err(),
        session.health().unwrap_err(),
        sign(&session, &listing).unwrap_err(),
    ];
    for refused in refused {
        assert_eq!((refused.code, refused.vendor.as_ref().unwrap().number), (Code::Denied, 401), "{refused}");
    }
    world.server().calm();
    works(&world, &session);
}

#[test]
fn no_credential_is_ever_in_the_memory_of_a_component() {
    let world = World::with_a_key();
    let subject = world.subject_token(HOUR);
    let acting = json!({"impersonate": world.service_account()["client_email"]});
    let sessions = [
        world.open(json!({})),
        person(&world).open().unwrap(),
        workload(&world, &subject, acting).open().unwrap(),
    ];
    sessions.iter().for_each(|session| drop(works(&world, session)));
    let holds = |text: &str| testing::guests_hold(text.as_bytes());
    assert!(holds("roles/cloudkms.signerVerifier"), "what a component itself is made of is found");
    let (account, person) = (world.service_account(), world.authorized_user());
    let key = account["private_key"].as_str().unwrap();
    assert!(!holds(&key[100..160]) && !holds(&key[1000..1060]));
    for name in ["client_secret", "refresh_token"] {
        assert!(!holds(person[name].as_str().unwrap()), "{name}");
    }
    assert!(!holds(&subject[subject.len() - 60..]));
}

#[test]
fn as_long_as_a_token_lives_it_is_no_matter_that_there_is_no_other() {
    let world = World::with_a_key();
    world.set_token_life(Duration::from_secs(200));
    let session = machine(&world).open().unwrap();
    let listing = session.listing().unwrap();
    world.metadata_server().disturb(Disturbance::answer("token", Answer::text(503, "")));
    session.health().unwrap();
    session.listing().unwrap();
    sign(&session, &listing).unwrap();
    let told = "no new access token, while the old one still lives: asking the metadata server";
    assert!(
        session.host().records().iter().any(|record| record.level == 2 && record.message.starts_with(told))
    );
    world.revoke_tokens();
    assert_eq!(session.health().unwrap_err().code, Code::Unavailable);
}

#[test]
fn a_token_that_is_refused_for_good_while_listing_is_not_laid_to_a_key() {
    let world = World::with_a_key();
    let session = person(&world).open().unwrap();
    session.listing().unwrap();
    let denied = Answer::json(403, &json!({"error": "access_denied"}));
    world.server().disturb(Disturbance::answer("POST /token", denied));
    world.revoke_tokens();
    let error = session.listing().unwrap_err();
    assert_eq!(error.code, Code::Denied);
    assert!(error.message.contains("refreshing the access token: the service says access_denied"), "{error}");
}

#[test]
fn a_token_that_the_service_repeats_goes_no_further() {
    let world = World::with_a_key();
    let session = machine(&world).open().unwrap();
    let listing = session.listing().unwrap();
    let token = world.live_tokens().remove(0);
    for before in [0, 270, 400] {
        let message = format!("{}{token} may not", "x".repeat(before));
        let body = json!({"error": {"status": "PERMISSION_DENIED", "message": message}});
        world.server().disturb(Disturbance::answer(":asymmetricSign", Answer::json(403, &body)));
        let denied = sign(&session, &listing).unwrap_err();
        assert!(denied.message.contains("the service says PERMISSION_DENIED: "), "{denied}");
        assert!(!denied.message.contains(&token[..10]), "not a piece of it: {denied}");
    }
}

#[test]
fn a_token_endpoint_that_fails_fails_no_longer_than_it_does() {
    let world = World::with_a_key();
    let trouble = [
        (
            Disturbance::answer("POST /token", Answer::text(503, "").header("retry-after", "1")),
            Code::Unavailable,
        ),
        (
            Disturbance::answer("POST /token", Answer::json(429, &json!({"error": "rate_limit_exceeded"}))),
            Code::Throttled,
        ),
        (
            Disturbance::answer("POST /token", Answer::json(200, &json!({"access_token": ""}))),
            Code::Unavailable,
        ),
        (
            Disturbance::answer(
                "POST /token",
                Answer::json(200, &json!({"access_token": "a b", "expires_in": 9})),
            ),
            Code::Unavailable,
        ),
        (Disturbance::cut_off("POST /token", 10), Code::Unavailable),
        (
            Disturbance::answer("POST /token", Answer::text(403, "<!DOCTYPE html><h1>Blocked</h1>")),
            Code::Unavailable,
        ),
    ];
    let sessions = trouble.map(|(disturbance, code)| {
        let session = person(&world).open().unwrap();
        let listing = session.listing().unwrap();
        world.revoke_tokens();
        world.server().disturb(disturbance.clone());
        let error = sign(&session, &listing).unwrap_err();
        assert_eq!(error.code, code, "{disturbance:?}: {error}");
        assert!(error.message.contains("refreshing the access token"), "{error}");
        world.server().calm();
        (session, listing)
    });
    for (session, listing) in &sessions {
        after_a_pause(|| sign(session, listing));
        assert_eq!(session.host().leaks(), [""; 0]);
    }
}

#[test]
fn a_token_that_can_not_be_had_is_not_asked_for_again_by_each_request() {
    let world = World::with_a_key();
    let session = person(&world).open().unwrap();
    let listing = session.listing().unwrap();
    world.revoke_tokens();
    let later = Answer::json(429, &json!({"error": "slow_down"})).header("retry-after", "3");
    world.server().disturb(Disturbance::answer("POST /token", later));
    let before = issuer_of(&world);
    let error = sign(&session, &listing).unwrap_err();
    assert_eq!((error.code, error.retry_after), (Code::Throttled, Some(Duration::from_secs(3))));
    for _ in 0..3 {
        assert_eq!(sign(&session, &listing).unwrap_err(), error, "the same is said");
    }
    assert_eq!(issuer_of(&world) - before, 1);
    world.server().calm();
    after_a_pause(|| sign(&session, &listing));
}

#[test]
fn a_token_that_ends_while_listing_and_has_no_other_is_not_laid_to_a_key() {
    let world = World::with_a_key();
    world.set_token_life(Duration::from_secs(5)); // shorter than a request may take: each wants another
    let session = person(&world).open().unwrap();
    session.listing().unwrap();
    let refused = AtomicUsize::new(0);
    world.server().disturb(Disturbance::change("POST /token", move |answer| {
        match refused.fetch_add(1, Ordering::Relaxed) {
            0 => answer,
            _ => Answer::json(404, &json!({"error": "not_found"})),
        }
    }));
    let error = session.listing().unwrap_err();
    assert_eq!(error.code, Code::Denied);
    assert!(error.message.contains("the service says not_found"), "{error}");
}

#[test]
fn without_a_grant_nothing_is_asked_and_the_line_that_would_allow_it_is_said() {
    let world = World::with_a_key();
    let only_kms: Vec<Grant> = world.grants().into_iter().take(1).collect();
    let door = world.door(Build::Component).granting(only_kms);
    let subject =
        Subject::behind(door).config(json!({"uris": [RING], "credential": {"type": "authorized_user"}}));
    let denied = refused(&with_file(subject, &world.authorized_user(), &PERSON));
    assert_eq!(denied.code, Code::Denied);
    let line = format!(
        "{{url: \"https://oauth2.googleapis.com:443\", methods: [POST], secrets: [client_id, client_secret, refresh_token], \
         ca: {}, proxy: \"{}\"}}",
        world.ca().display(),
        world.proxy()
    );
    assert!(denied.message.contains(&line), "as the service itself is reached: {denied}");
}

#[test]
fn a_quota_project_is_named_where_one_is_configured() {
    let world = World::with_a_key();
    works(&world, &world.open(json!({"quota_project": "billing"})));
    let named = |asked: &keystead_fakes::Asked| asked.header("x-goog-user-project") == Some("billing");
    assert!(world.server().asked().iter().all(named));
}
