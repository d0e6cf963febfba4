//! The ways in which the server says who it is.

use std::time::Duration;

use keystead_fakes::{Answer, Disturbance};

use super::*;

/// A store with another credential.
fn store(
    cloud: &Cloud,
    build: Build,
    credential: Value,
    secrets: &[(&str, &[u8])],
    exposed: &[&str],
) -> Subject {
    let door = built(build).granting(cloud.grants()).exposing(exposed);
    let config = json!({"uris": [www()], "credential": credential});
    let subject = Subject::behind(door).config(config);
    secrets.iter().fold(subject, |subject, (name, value)| subject.secret(name, value))
}

/// It lists and signs, and shows no secret to anybody but the host.
fn serves(subject: &Subject, secrets: &[&[u8]]) {
    let session = subject.open().unwrap();
    sign(&session, &only(&session)).unwrap();
    session.health().unwrap();
    assert_eq!(session.host().leaks(), [""; 0]);
    for secret in secrets {
        // Its beginning may be what a request says elsewhere; a piece of 20 bytes can't be by chance.
        let piece = &secret[secret.len() / 2..][..20];
        assert!(!testing::guests_hold(piece), "a guest's memory has a secret");
    }
}

#[test]
fn a_client_secret_is_filled_in_by_the_host() {
    let cloud = Cloud::with_key();
    let secret = cloud.client_secret().as_bytes();
    for build in [Build::Library, Build::Component] {
        let credential =
            json!({"type": "client_secret", "client_id": cloud.client_id(), "tenant": cloud.tenant()});
        serves(&store(&cloud, build, credential, &[("client_secret", secret)], &[]), &[secret]);
    }
}

#[test]
fn a_guest_knows_the_application_and_not_its_secret() {
    let cloud = Cloud::with_key();
    let session = cloud.store(Build::Component, json!({"uris": [www()]})).open().unwrap();
    sign(&session, &only(&session)).unwrap();
    assert!(testing::guests_hold(cloud.client_id().as_bytes()), "what is configured is there to be found");
    assert!(!testing::guests_hold(cloud.client_secret().as_bytes()));
}

#[test]
fn a_client_id_and_a_tenant_may_be_where_the_secret_is() {
    let cloud = Cloud::with_key();
    let secrets = [
        ("client_secret", cloud.client_secret().as_bytes()),
        ("client_id", cloud.client_id().as_bytes()),
        ("tenant", cloud.tenant().as_bytes()),
    ];
    let subject = |exposed: &[&str]| {
        store(&cloud, Build::Component, json!({"type": "client_secret"}), &secrets, exposed)
    };
    let session = subject(&["client_id", "tenant"]).open().unwrap();
    sign(&session, &only(&session)).unwrap();
    let error = subject(&[]).open().unwrap().listing().unwrap_err();
    assert!(error.message.contains("expose: true"), "{error}");
    let none = store(&cloud, Build::Component, json!({"type": "client_secret"}), &secrets[..1], &[]);
    let error = none.open().unwrap().listing().unwrap_err();
    assert_eq!(
        (error.code, error.message.as_str()),
        (Code::InvalidInput, "config: `credential.client_id` is missing")
    );
}

#[test]
fn a_client_certificate_signs_by_the_host() {
    let cloud = Cloud::with_key();
    let (certificate, key) = (cloud.certificate(), cloud.certificate_key());
    for (build, send_chain) in [(Build::Library, false), (Build::Component, true)] {
        let credential =
            json!({"type": "client_certificate", "client_id": cloud.client_id(), "send_chain": send_chain});
        let secrets = [("certificate", certificate.as_slice()), ("certificate_key", key.as_slice())];
        serves(&store(&cloud, build, credential, &secrets, &["certificate"]), &[&key]);
        let form = String::from_utf8(cloud.logins().asked().pop().unwrap().body).unwrap();
        let (_, assertion) = form.split_once("client_assertion=").unwrap();
        let header = openssl::base64::decode_block(&padded(assertion.split('.').next().unwrap())).unwrap();
        let header: Value = serde_json::from_slice(&header).unwrap();
        assert_eq!((header["alg"].as_str(), header.get("x5c").is_some()), (Some("PS256"), send_chain));
    }
}

fn padded(base64url: &str) -> String {
    let text = base64url.replace('-', "+").replace('_', "/");
    let pad = "=".repeat((4 - text.len() % 4) % 4);
    text + &pad
}

#[test]
fn a_certificate_that_is_not_the_applications_or_is_none_is_said() {
    let (cloud, other) = (Cloud::with_key(), Cloud::start());
    let credential = json!({"type": "client_certificate", "client_id": cloud.client_id()});
    let error = |certificate: &[u8], key: &[u8]| {
        let secrets = [("certificate", certificate), ("certificate_key", key)];
        let subject = store(&cloud, Build::Library, credential.clone(), &secrets, &["certificate"]);
        subject.open().unwrap().listing().unwrap_err()
    };
    let unknown = error(&other.certificate(), &other.certificate_key());
    assert_eq!(unknown.code, Code::Credentials);
    assert!(unknown.message.contains("AADSTS700027"), "{unknown}");
    let mixed = error(&cloud.certificate(), &other.certificate_key());
    assert!(mixed.message.contains("failed signature validation"), "{mixed}");
    let none = error(&cloud.certificate_key(), &cloud.certificate_key());
    assert_eq!(
        (none.code, none.message.contains("expected a certificate in PEM")),
        (Code::InvalidInput, true)
    );
    let no_key = error(&cloud.certificate(), &cloud.certificate());
    assert_eq!(no_key.code, Code::InvalidInput, "{no_key}");
}

#[test]
fn a_clock_that_is_wrong_is_said_and_is_over_when_it_is_right() {
    let cloud = Cloud::with_key();
    let (certificate, key) = (cloud.certificate(), cloud.certificate_key());
    let secrets = [("certificate", certificate.as_slice()), ("certificate_key", key.as_slice())];
    let credential = json!({"type": "client_certificate", "client_id": cloud.client_id()});
    let subject = store(&cloud, Build::Component, credential, &secrets, &["certificate"]);
    let session = subject.open().unwrap();
    for (shift, how, session) in [(-7200, "ahead of", &subject.open().unwrap()), (7200, "behind", &session)] {
        cloud.shift_clock(shift);
        let error = session.listing().unwrap_err();
        assert_eq!(error.code, Code::Denied, "{error}");
        assert!(error.message.contains("AADSTS700024"), "{error}");
        assert!(error.message.contains(&format!("s {how} the service's: set it right")), "{error}");
    }
    cloud.shift_clock(0);
    after_a_while();
    sign(&session, &only(&session)).unwrap();
}

#[test]
fn a_workloads_token_is_filled_in_by_the_host_and_read_afresh() {
    let cloud = Cloud::with_key();
    let token = cloud.federated_token(Duration::from_secs(3600));
    let credential =
        json!({"type": "workload_identity", "client_id": cloud.client_id(), "tenant": cloud.tenant()});
    for build in [Build::Library, Build::Component] {
        let secrets = [("federated_token", token.as_bytes())];
        serves(&store(&cloud, build, credential.clone(), &secrets, &[]), &[token.as_bytes()]);
    }
    let expired = cloud.federated_token(Duration::ZERO);
    let secrets = [("federated_token", expired.as_bytes())];
    let session = store(&cloud, Build::Component, credential, &secrets, &[]).open().unwrap();
    for (token, number) in [(expired.as_bytes(), "AADSTS700024"), (b"not.a.token", "AADSTS50027")] {
        session.host().set_secret("federated_token", token);
        let error = session.listing().unwrap_err();
        assert!(error.message.contains(number) && !error.message.contains("clock"), "{error}");
        assert_eq!(error.code, Code::Denied, "it is tried again: another writes the next");
        after_a_while();
    }
    session.host().set_secret("federated_token", token.as_bytes());
    sign(&session, &only(&session)).unwrap();
    assert_eq!(session.host().leaks(), [""; 0]);
}

#[test]
fn a_machines_identity_is_asked_for_at_its_metadata_service() {
    let cloud = Cloud::with_key();
    for build in [Build::Library, Build::Component] {
        for which in [
            json!({}),
            json!({"client_id": cloud.client_id()}),
            json!({"object_id": cloud.client_id()}),
            json!({"resource_id": "/subscriptions/x/resourceGroups/y/providers/z/keystead"}),
        ] {
            let mut credential = json!({"type": "managed_identity", "endpoint": cloud.imds()});
            credential.as_object_mut().unwrap().extend(which.as_object().unwrap().clone());
            serves(&store(&cloud, build, credential, &[], &[]), &[]);
        }
    }
    let asked = cloud.metadata().asked();
    let line =
        "GET /metadata/identity/oauth2/token?api-version=2018-02-01&resource=https%3A%2F%2Fvault.azure.net";
    assert_eq!(asked[0].line(), line);
    assert_eq!(cloud.logins_asked(), 0);
}

#[test]
fn a_machine_without_an_identity_is_said_and_a_service_that_is_being_updated_is_tried_again() {
    let cloud = Cloud::with_key();
    let session = |client: &str| {
        let credential = json!({"type": "managed_identity", "endpoint": cloud.imds(), "client_id": client});
        store(&cloud, Build::Library, credential, &[], &[]).open().unwrap()
    };
    let error = session("another").listing().unwrap_err();
    assert_eq!(error.code, Code::Denied, "it is tried again: an identity may be assigned any time");
    let line = "getting a token for https://vault.azure.net by the machine's identity: it says Identity not found \
                (invalid_request) (HTTP 400)";
    assert_eq!(error.to_string(), line);
    for (status, class) in
        [(404, Code::Unavailable), (410, Code::Unavailable), (429, Code::Throttled), (500, Code::Unavailable)]
    {
        cloud.metadata().disturb(Disturbance::answer("GET", Answer::text(status, "")).times(1));
        assert_eq!(session(cloud.client_id()).listing().unwrap_err().code, class, "{status}");
    }
    only(&session(cloud.client_id()));
}

#[test]
fn an_apps_identity_header_is_filled_in_by_the_host() {
    let cloud = Cloud::with_key();
    let header = cloud.identity_header().as_bytes();
    let credential = json!({"type": "app_service", "endpoint": cloud.identity_endpoint()});
    for build in [Build::Library, Build::Component] {
        serves(&store(&cloud, build, credential.clone(), &[("identity_header", header)], &[]), &[header]);
    }
    let endpoint = cloud.identity_endpoint();
    let secrets = [("identity_header", header), ("endpoint", endpoint.as_bytes())];
    let elsewhere = store(&cloud, Build::Component, json!({"type": "app_service"}), &secrets, &["endpoint"]);
    let session = elsewhere.open().unwrap();
    sign(&session, &only(&session)).unwrap();
}

#[test]
fn a_secret_that_is_refused_is_the_credentials_fault_and_another_works() {
    let cloud = Cloud::with_key();
    let credential = json!({"type": "client_secret", "client_id": cloud.client_id()});
    let secrets = [("client_secret", b"not the secret".as_slice())];
    let session = store(&cloud, Build::Component, credential, &secrets, &[]).open().unwrap();
    let error = session.listing().unwrap_err();
    assert_eq!((error.code, error.vendor.as_ref().unwrap().number), (Code::Credentials, 401));
    let start = format!(
        "getting a token for https://vault.azure.net from https://login.microsoftonline.com/{}: it says \
         AADSTS7000215: Invalid client secret provided.",
        cloud.tenant()
    );
    assert!(error.message.starts_with(&start) && error.message.ends_with("(invalid_client)"), "{error}");
    assert_eq!(session.host().leaks(), [""; 0]);
    session.host().set_secret("client_secret", cloud.client_secret().as_bytes());
    after_a_while();
    sign(&session, &only(&session)).unwrap();
}

#[test]
fn an_application_or_a_tenant_that_is_not_the_vaults_is_said() {
    let cloud = Cloud::with_key();
    let error = |credential: Value| {
        let secrets = [("client_secret", cloud.client_secret().as_bytes())];
        store(&cloud, Build::Library, credential, &secrets, &[]).open().unwrap().listing().unwrap_err()
    };
    let unknown = error(json!({"type": "client_secret", "client_id": "another"}));
    assert_eq!(unknown.code, Code::Credentials);
    assert!(unknown.message.contains("AADSTS700016"), "{unknown}");
    let tenant = "11111111-1111-1111-1111-111111111111";
    let other = error(json!({"type": "client_secret", "client_id": cloud.client_id(), "tenant": tenant}));
    assert_eq!(other.code, Code::InvalidInput);
    assert!(
        other.message.contains(&format!("the vault belongs to the tenant `{}`", cloud.tenant())),
        "{other}"
    );
}

#[test]
fn what_a_store_is_not_granted_is_denied_with_what_would_grant_it() {
    let cloud = Cloud::with_key();
    let credential = json!({"type": "client_secret", "client_id": cloud.client_id()});
    let config = json!({"uris": [www()], "credential": credential});
    let vault_alone = cloud.grants().into_iter().take(1).collect();
    let subject = Subject::behind(built(Build::Component).granting(vault_alone)).config(config);
    let error = subject.secret("client_secret", b"sesame").open().unwrap().listing().unwrap_err();
    assert_eq!(error.code, Code::Denied);
    assert!(error.message.contains("https://login.microsoftonline.com"), "{error}");
}

#[test]
fn a_member_that_a_credential_does_not_have_is_refused_by_name() {
    let cloud = Cloud::with_key();
    for (credential, member) in [
        (json!({"type": "client_secret", "client": "x"}), "client"),
        (json!({"type": "managed_identity", "tenant": "x"}), "tenant"),
        (json!({"type": "client_secret", "send_chain": true}), "send_chain"),
        (json!({"type": "managed_identity", "client_id": "x", "object_id": "y"}), "got several"),
        (json!({"type": "client_secret", "authority": "http://x"}), "credential.authority"),
        (json!({"type": "managed_identity", "endpoint": "http://169.254.169.254/x"}), "credential.endpoint"),
    ] {
        let error = store(&cloud, Build::Library, credential, &[], &[]).open().unwrap_err();
        assert_eq!(error.code, Code::InvalidInput, "{error}");
        assert!(error.message.contains(member), "{error}");
    }
}
