//! The plugin with what the real service said, in 2019, to Microsoft's own tests; and the fake beside it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, LazyLock, Mutex},
};

use keystead_fakes::{Answer, Asked, Authority, Disturbance, Proxy, Server};
use serde::Deserialize;

use super::{
    sdk::{algorithm, pins, python},
    *,
};

/// One recorded request with its answer.
#[derive(Clone, Deserialize)]
struct Exchange {
    method: String,
    url: String,
    sent: Option<String>,
    status: u16,
    headers: BTreeMap<String, String>,
    answer: String,
}

impl Exchange {
    /// `/keys/…`, without the query.
    fn path(&self) -> &str {
        let path = &self.url[self.url.find(".net").unwrap() + 4..];
        path.split('?').next().unwrap().trim_end_matches('/')
    }

    fn host(&self) -> &str {
        self.url.trim_start_matches("https://").split('/').next().unwrap()
    }

    fn json(&self) -> Value {
        serde_json::from_str(&self.answer).unwrap_or_default()
    }

    fn sent(&self) -> Value {
        serde_json::from_str(self.sent.as_deref().unwrap_or_default()).unwrap_or_default()
    }

    fn answer(&self) -> Answer {
        let challenge = self.headers.get("www-authenticate");
        let answer = Answer::text(self.status, &self.answer);
        challenge.iter().fold(answer, |answer, value| answer.header("www-authenticate", value))
    }
}

/// All of them: got once, by the hash of the archive.
static RECORDED: LazyLock<Vec<Exchange>> = LazyLock::new(|| {
    let archive =
        testing::archives_from_pypi(&pins("azure-recordings.txt")).join("azure-keyvault-keys-4.0.0.zip");
    let yaml = testing::from_pypi(&pins("yaml.txt"));
    let exchanges = python("recordings.py", &yaml, |command| {
        command.arg(archive);
    });
    serde_json::from_value(exchanges).unwrap()
});

/// A vault that says what was recorded, and a store of its keys.
struct Replay {
    cloud: Cloud,
    _folder: tempfile::TempDir,
    authority: Authority,
    server: Server,
    proxy: Proxy,
}

impl Replay {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::create(folder.path());
        let server = Server::https(&authority, &["*.vault.azure.net"], replay);
        let hosts: BTreeSet<_> = RECORDED.iter().map(Exchange::host).collect();
        let proxy = Proxy::start(hosts.iter().map(|host| (format!("{host}:443"), server.address())));
        Self { cloud: Cloud::start(), _folder: folder, authority, server, proxy }
    }

    fn store(&self, host: &str, uris: &[&str]) -> Session {
        let mut grants = self.cloud.grants();
        grants.push(Grant {
            origin: format!("https://{host}").parse().unwrap(),
            ca: Some(self.authority.ca().to_owned()),
            proxy: Some(self.proxy.url().parse().unwrap()),
            ..grants[0].clone()
        });
        let credential = json!({"type": "client_secret", "client_id": self.cloud.client_id()});
        let subject = Subject::behind(built(Build::Library).granting(grants))
            .config(json!({"uris": uris, "credential": credential}));
        subject.secret("client_secret", self.cloud.client_secret().as_bytes()).open().unwrap()
    }
}

/// What was answered to such a request; to the service, the case of names makes no difference.
fn replay(asked: &Asked) -> Answer {
    let host = asked.header("host").unwrap();
    let here = || RECORDED.iter().filter(|one| one.host() == host);
    if asked.header("authorization").is_none() {
        return here()
            .find(|one| one.status == 401)
            .or_else(|| RECORDED.iter().find(|one| one.status == 401))
            .unwrap()
            .answer();
    }
    let sent: Value = serde_json::from_slice(&asked.body).unwrap_or_default();
    let same = |one: &&Exchange| {
        one.method == asked.method && one.path().eq_ignore_ascii_case(&asked.path) && one.sent() == sent
    };
    let made = |one: &&Exchange| {
        one.status == 200
            && kid(&one.json()).is_some_and(|kid| kid.to_ascii_lowercase().ends_with(&asked.path))
    };
    let found = here().filter(|_| asked.method == "POST").find(same);
    let found = found.or_else(|| here().filter(|_| asked.method == "GET").find(made));
    let no_key = || RECORDED.iter().find(|one| one.status == 404 && one.method == "GET").unwrap();
    found.unwrap_or_else(no_key).answer()
}

fn kid(bundle: &Value) -> Option<&str> {
    bundle.pointer("/key/kid")?.as_str()
}

fn decoded(base64url: &str) -> Vec<u8> {
    let text = base64url.replace('-', "+").replace('_', "/");
    let pad = "=".repeat((4 - text.len() % 4) % 4);
    openssl::base64::decode_block(&(text + &pad)).unwrap()
}

#[test]
fn what_the_real_service_signed_verifies_with_the_keys_that_it_showed() {
    let replay = Replay::start();
    let signed: Vec<_> = RECORDED.iter().filter(|one| one.path().ends_with("/sign")).collect();
    let mut verified = BTreeMap::new();
    for one in &signed {
        let sent = one.sent();
        let Some(algorithm) = algorithm(sent["alg"].as_str().unwrap()) else { continue };
        let uri = one.url.split("/sign").next().unwrap();
        let session = replay.store(one.host(), &[uri]);
        let key = only(&session);
        let digest = decoded(sent["value"].as_str().unwrap());
        // The vault here answers what was sent then, to the byte, and nothing else.
        let signature = session.sign(&key, algorithm, &digest).unwrap();
        conformance::verify(&key.spki, algorithm, &digest, &signature).unwrap();
        *verified.entry(algorithm).or_insert(0) += 1;
    }
    assert_eq!(verified.len(), 9, "{verified:?}");
    let other = "two are on secp256k1";
    assert_eq!((signed.len(), verified.values().sum::<i32>()), (48, 46), "{other}: {verified:?}");
    let asked = replay.cloud.logins().asked();
    assert_eq!(asked[0].header("host"), Some("login.microsoftonline.com"), "once login.windows.net");
}

#[test]
fn every_recorded_key_is_read_or_passed_over_with_a_word() {
    let replay = Replay::start();
    let mut kinds = BTreeMap::new();
    let (mut zeros, mut passed) = (0, 0);
    let bundles: BTreeMap<String, Exchange> = RECORDED
        .iter()
        .filter(|one| one.status == 200 && one.method != "DELETE" && one.path().starts_with("/keys/"))
        .filter_map(|one| Some((kid(&one.json())?.to_owned(), one.clone())))
        .collect();
    let hosts: BTreeSet<_> = bundles.values().map(Exchange::host).collect();
    for host in hosts {
        let own = bundles.iter().filter(|(kid, _)| kid.contains(host));
        for (kid, one) in own {
            let listing = replay.store(host, &[kid]).listing().unwrap();
            let kty = one.json()["key"]["kty"].as_str().unwrap().to_owned();
            match listing.keys.first() {
                Some(key) => {
                    assert_eq!(key.label, kid.to_ascii_lowercase());
                    openssl::pkey::PKey::public_key_from_der(&key.spki).unwrap();
                    *kinds.entry(kty).or_insert(0) += 1;
                }
                None => {
                    let said = findings(&listing);
                    let known = [
                        "it is disabled",
                        "it expired on ",
                        "no signatures on P-256K",
                        "`key_ops` have no `sign`",
                    ];
                    assert!(known.iter().any(|known| said[0].contains(known)), "{said:?}");
                    passed += 1;
                }
            }
            let modulus = one.json()["key"]["n"].as_str().map(decoded).unwrap_or_default();
            zeros += usize::from(modulus.first() == Some(&0));
        }
    }
    assert!(["RSA", "RSA-HSM", "EC", "EC-HSM"].iter().all(|kty| kinds.contains_key(*kty)), "{kinds:?}");
    assert!(zeros > 0 && passed > 0, "{zeros} with a zero, {passed} passed over");
}

#[test]
fn what_the_real_service_refused_is_said_in_its_words() {
    let replay = Replay::start();
    for (status, code, start) in [
        (403, Code::Denied, "the vault says Operation is not allowed"),
        (404, Code::NotFound, "the vault says "),
        (401, Code::Denied, "the vault says Request is missing a Bearer or PoP token. (Unauthorized)"),
    ] {
        let one = RECORDED.iter().find(|one| one.status == status && !one.answer.is_empty()).unwrap();
        let host = RECORDED[0].host();
        replay.server.disturb(Disturbance::answer("GET /keys/www", one.answer()));
        let session = replay.store(host, &[&format!("https://{host}/keys/www")]);
        let error = match session.listing() {
            Ok(listing) => listing.findings[0].error.clone(),
            Err(error) => error,
        };
        assert_eq!(error.code, code, "{error}");
        assert!(error.message.contains(start), "{error}");
        replay.server.calm();
    }
}

/// The members of JSON, however deep; what is text under them doesn't matter.
fn members(json: &Value) -> BTreeSet<String> {
    let below = |name: &str, value: &Value| {
        let own = BTreeSet::from([name.to_owned()]);
        members(value).into_iter().map(|member| format!("{name}/{member}")).chain(own).collect::<Vec<_>>()
    };
    match json {
        Value::Object(map) => map.iter().flat_map(|(name, value)| below(name, value)).collect(),
        Value::Array(values) => values.iter().flat_map(members).collect(),
        _ => BTreeSet::new(),
    }
}

#[test]
fn the_fake_answers_with_the_members_that_the_real_service_answers_with() {
    let cloud = Cloud::start();
    cloud.make_key(DEMO, "rsa", Type::Rsa(2048));
    cloud.make_key(DEMO, "p256", Type::P256);
    let answers = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&answers);
    cloud.vaults().disturb(Disturbance::change("", move |answer| {
        log.lock().unwrap().push(answer.clone());
        answer
    }));
    let uris = [all(DEMO), format!("{}/missing", all(DEMO))];
    let session = cloud.store(Build::Library, json!({"uris": uris})).open().unwrap();
    let listing = session.listing().unwrap();
    let p256 = listing.keys.iter().find(|key| key.label.contains("/p256/")).unwrap();
    sign(&session, p256).unwrap();

    let recorded: BTreeSet<_> = RECORDED
        .iter()
        .filter(|one| one.path().starts_with("/keys") && one.method != "DELETE")
        .map(|one| (one.status, members(&one.json())))
        .collect();
    let answers = answers.lock().unwrap();
    let statuses: BTreeSet<_> = answers.iter().map(|answer| answer.status).collect();
    assert_eq!(statuses, [200, 401, 404].into());
    for answer in answers.iter() {
        let own = (answer.status, members(&serde_json::from_slice(&answer.body).unwrap()));
        assert!(recorded.contains(&own), "the real service never answers with {own:?}");
    }
}
