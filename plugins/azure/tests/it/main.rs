//! The plugin with a fake of Azure, which the official client and recordings of the real service stand up for: as a
//! library, and in the sandbox.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "whatever fails, fails the test")]

mod credentials;
mod faults;
mod listing;
mod recordings;
mod sdk;

use std::sync::LazyLock;

use keystead_fakes::azure::{Azure, Type};
use keystead_plugin_api::{
    Algorithm, Code, Error, Key, Listing, Severity,
    conformance::{self, Session, Subject},
};
use keystead_plugin_host::{
    Grant,
    testing::{self, InProcess, InServer},
};
use serde_json::{Value, json};

const PACKAGE: &str = "keystead-plugin-azure";

const DEMO: &str = "demo.vault.azure.net";
const HSM: &str = "demo.managedhsm.azure.net";

/// One key of each type that is served, and one that isn't.
const TYPES: [(&str, Type); 7] = [
    ("rsa-2048", Type::Rsa(2048)),
    ("rsa-3072", Type::RsaHsm(3072)),
    ("rsa-4096", Type::Rsa(4096)),
    ("p256", Type::P256),
    ("p384", Type::P384Hsm),
    ("p521", Type::P521),
    ("p256k", Type::P256k),
];

/// The ways that the plugin is built.
#[derive(Clone, Copy, Debug)]
enum Build {
    Library,
    Component,
}

/// The folder of a test's certificates, and the fake.
struct Cloud {
    _folder: tempfile::TempDir,
    azure: Azure,
}

impl std::ops::Deref for Cloud {
    type Target = Azure;

    fn deref(&self) -> &Azure {
        &self.azure
    }
}

impl Cloud {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let azure = Azure::start(folder.path());
        Self { _folder: folder, azure }
    }

    /// One with a key `www` on P-256.
    fn with_key() -> Self {
        let cloud = Self::start();
        cloud.make_key(DEMO, "www", Type::P256);
        cloud
    }

    /// What a store of these hosts is granted.
    fn grants(&self) -> Vec<Grant> {
        let vaults =
            [DEMO, "other.vault.azure.net", HSM, "demo.vault.azure.cn", "demo.managedhsm.usgovcloudapi.net"];
        let logins = ["login.microsoftonline.com", "login.chinacloudapi.cn", "login.microsoftonline.us"];
        let to = |host: &str, methods: &[&str], secrets: &[&str]| Grant {
            origin: format!("https://{host}").parse().unwrap(),
            methods: methods.iter().map(|&method| method.to_owned()).collect(),
            secrets: secrets.iter().map(|&secret| secret.to_owned()).collect(),
            addresses: Vec::new(),
            ca: Some(self.ca().to_owned()),
            client: None,
            proxy: Some(self.proxy().parse().unwrap()),
        };
        let vaults = vaults.iter().map(|host| to(host, &["GET", "POST"], &[]));
        let logins = logins.iter().map(|host| to(host, &["POST"], &["client_secret", "federated_token"]));
        let metadata = Grant {
            origin: self.imds().parse().unwrap(),
            secrets: ["identity_header".to_owned()].into(),
            ca: None,
            proxy: None,
            ..to("unused.example", &["GET"], &[])
        };
        vaults.chain(logins).chain([metadata]).collect()
    }

    /// A store that shows a client secret.
    fn store(&self, build: Build, config: Value) -> Subject {
        let credential = json!({"type": "client_secret", "client_id": self.client_id()});
        let door = built(build).granting(self.grants());
        let config = with(config, "credential", credential);
        Subject::behind(door).config(config).secret("client_secret", self.client_secret().as_bytes())
    }

    /// A library's store of one key, open: what is wrong with the service is the same for all builds.
    fn www(&self) -> Session {
        self.store(Build::Library, json!({"uris": [www()]})).open().unwrap()
    }

    /// How many tokens were asked for.
    fn logins_asked(&self) -> usize {
        self.logins().asked().len()
    }
}

/// Lets the pause pass in which no token is asked for where none was to be had.
fn after_a_while() {
    std::thread::sleep(std::time::Duration::from_millis(5100));
}

fn www() -> String {
    format!("https://{DEMO}/keys/www")
}

fn all(vault: &str) -> String {
    format!("https://{vault}/keys")
}

fn with(mut config: Value, member: &str, value: Value) -> Value {
    config[member] = value;
    config
}

/// A door to the plugin. The component is compiled once for all tests.
fn built(build: Build) -> InServer {
    static COMPONENT: LazyLock<std::path::PathBuf> = LazyLock::new(|| testing::component(PACKAGE));
    InServer::load(&match build {
        Build::Library => testing::library(PACKAGE),
        Build::Component => COMPONENT.clone(),
    })
}

/// Names and versions of keys, without what is the same for all.
fn names(listing: &Listing) -> Vec<&str> {
    listing.keys.iter().map(|key| key.label.split('/').nth(4).unwrap()).collect()
}

/// The findings, each in one line.
fn findings(listing: &Listing) -> Vec<String> {
    let line = |finding: &keystead_plugin_api::Finding| {
        let name = finding.subject.rsplit('/').next().unwrap();
        format!("{} {name}: {}", finding.severity.name(), finding.error)
    };
    listing.findings.iter().map(line).collect()
}

/// Signs with the only key of a listing, and verifies that.
fn sign(session: &Session, key: &Key) -> Result<(), Error> {
    let signature = session.sign(key, Algorithm::EcdsaSha256, &[0xa5; 32])?;
    conformance::verify(&key.spki, Algorithm::EcdsaSha256, &[0xa5; 32], &signature).unwrap();
    Ok(())
}

fn only(session: &Session) -> Key {
    let listing = session.listing().unwrap();
    assert_eq!((listing.keys.len(), findings(&listing).len()), (1, 0), "{:?}", findings(&listing));
    listing.keys[0].clone()
}

/// Keys of all types, in a vault and in a managed HSM.
fn stocked() -> (Cloud, Value) {
    let cloud = Cloud::start();
    TYPES.iter().for_each(|(name, key_type)| drop(cloud.make_key(DEMO, name, *key_type)));
    cloud.make_key(HSM, "rsa", Type::RsaHsm(2048));
    (cloud, json!({"uris": [all(DEMO), all(HSM)]}))
}

#[test]
fn passes_the_conformance_cases_as_a_library_and_as_a_component() {
    let (cloud, config) = stocked();
    for build in [Build::Library, Build::Component] {
        let subject = cloud.store(build, config.clone());
        conformance::run(&subject);
        let listing = subject.open().unwrap().listing().unwrap();
        assert_eq!(listing.keys.len(), TYPES.len(), "{build:?}: all but secp256k1, and one in the HSM");
        assert_eq!(
            findings(&listing),
            ["note p256k: passed over: TLS has no signatures on P-256K"],
            "{build:?}"
        );
    }
}

#[test]
fn passes_the_conformance_cases_as_a_library_in_a_process_of_its_own() {
    let (cloud, config) = stocked();
    let door = InProcess::load(&testing::library(PACKAGE)).granting(cloud.grants());
    let credential = json!({"type": "client_secret", "client_id": cloud.client_id()});
    let subject = Subject::behind(door).config(with(config, "credential", credential));
    conformance::run(&subject.secret("client_secret", cloud.client_secret().as_bytes()));
}

#[test]
fn rsa_keys_sign_what_old_clients_want_in_vaults_and_in_hsms_where_that_is_asked_for() {
    let cloud = Cloud::start();
    cloud.make_key(DEMO, "rsa", Type::Rsa(2048));
    cloud.make_key(HSM, "rsa", Type::RsaHsm(2048));
    let old = [Algorithm::RsaPkcs1Md5Sha1, Algorithm::RsaPkcs1Sha1, Algorithm::RsaPkcs1Sha224];
    for (vault, option, expected) in
        [(DEMO, None, true), (DEMO, Some(false), false), (HSM, None, false), (HSM, Some(true), true)]
    {
        let mut config = json!({"uris": [all(vault)]});
        option.iter().for_each(|option| config["rsnull"] = Value::Bool(*option));
        let session = cloud.store(Build::Library, config).open().unwrap();
        let key = only(&session);
        for algorithm in old {
            assert_eq!(key.algorithms.contains(&algorithm), expected, "{vault} {option:?} {algorithm}");
            let keystead_plugin_api::Input::Digest(len) = algorithm.input() else { panic!("{algorithm}") };
            let signature = session.sign(&key, algorithm, &vec![0x5a; len]);
            match expected {
                true => {
                    conformance::verify(&key.spki, algorithm, &vec![0x5a; len], &signature.unwrap()).unwrap()
                }
                false => assert_eq!(signature.unwrap_err().code, Code::Unsupported),
            }
        }
    }
}

#[test]
fn what_is_no_url_of_a_key_is_refused_with_what_is_expected() {
    let cloud = Cloud::start();
    for url in ["http://demo.vault.azure.net/keys/www", "https://demo.vault.azure.net/secrets/www", "www"] {
        let error = cloud.store(Build::Library, json!({"uris": [url]})).open().unwrap_err();
        assert_eq!(error.code, Code::InvalidInput);
        assert!(error.message.contains("/keys/NAME/VERSION") && error.message.contains(url), "{error}");
    }
    let many: Vec<_> = (0..25).map(|number| format!("https://v{number}.vault.azure.net/keys")).collect();
    let error = cloud.store(Build::Library, json!({"uris": many})).open().unwrap_err();
    assert!(error.message.contains("25 vaults, of which a store has at most 24"), "{error}");
}
