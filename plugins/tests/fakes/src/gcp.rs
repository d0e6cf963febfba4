//! Google Cloud: Cloud KMS (`asymmetricSign`, public keys, listings), the token endpoints that lead to it, and a metadata
//! server. Keys and signatures are OpenSSL's; every token is looked at as the real ones are.
//!
//! ```text
//! identity: who may have a token, and who a token is of -> api: REST of Cloud KMS -> keys: versions, signatures
//! ```

#![expect(
    clippy::indexing_slicing,
    reason = "a member that JSON hasn't is read as null, and set in an object of ours"
)]

mod api;
mod identity;
mod keys;

use std::{
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use serde_json::{Value, json};

use crate::{Answer, Asked, Authority, Proxy, Server};
use identity::Identity;
use keys::Keys;

/// The project, location and key ring in which keys are made.
pub const RING: &str = "projects/keystead-demo/locations/europe-west3/keyRings/tls";

/// The services' names: one server is all of them.
const NAMES: [&str; 4] = [
    "cloudkms.googleapis.com",
    "oauth2.googleapis.com",
    "sts.googleapis.com",
    "iamcredentials.googleapis.com",
];

/// A cloud with one key ring, one service account, one person and one federated workload.
#[derive(Debug)]
pub struct Gcp {
    authority: Authority,
    server: Server,
    metadata: Server,
    proxy: Proxy,
    cloud: Arc<Mutex<Cloud>>,
}

/// All that it knows.
#[derive(Debug)]
struct Cloud {
    keys: Keys,
    identity: Identity,
    /// How far the cloud's clock is ahead of this machine's, in seconds.
    ahead: i64,
    /// Permissions that nobody has.
    forbidden: Vec<String>,
    /// The most entries of a page, whatever is asked for.
    page: usize,
    signatures: u64,
}

impl Cloud {
    /// Seconds since 1970, by the cloud's clock.
    fn now(&self) -> u64 {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        now.as_secs().saturating_add_signed(self.ahead)
    }
}

impl Gcp {
    /// Starts it; `ca.pem` in the folder vouches for it.
    ///
    /// # Panics
    ///
    /// Without a free port, or where the folder can't be written.
    #[must_use]
    pub fn start(folder: &Path) -> Self {
        let (keys, identity) = (Keys::default(), Identity::new());
        let cloud = Cloud { keys, identity, ahead: 0, forbidden: Vec::new(), page: 1000, signatures: 0 };
        let cloud = Arc::new(Mutex::new(cloud));
        let authority = Authority::create(folder);
        let here = Arc::clone(&cloud);
        let server = Server::https(&authority, &NAMES, move |asked| answer(&here, asked));
        let here = Arc::clone(&cloud);
        let metadata = Server::http(move |asked| lock(&here).metadata(asked));
        let proxy = Proxy::start(NAMES.map(|name| (format!("{name}:443"), server.address())));
        Self { authority, server, metadata, proxy, cloud }
    }

    /// The PEM file of the authority that vouches for it.
    #[must_use]
    pub fn ca(&self) -> &Path {
        self.authority.ca()
    }

    /// The proxy that leads to it: `http://127.0.0.1:PORT`.
    #[must_use]
    pub fn proxy(&self) -> String {
        self.proxy.url()
    }

    /// The metadata server of a machine in it: `http://127.0.0.1:PORT`.
    #[must_use]
    pub fn metadata(&self) -> String {
        format!("http://{}", self.metadata.address())
    }

    /// Cloud KMS and the token endpoints, to be disturbed and asked what was asked.
    #[must_use]
    pub fn server(&self) -> &Server {
        &self.server
    }

    /// The metadata server, likewise.
    #[must_use]
    pub fn metadata_server(&self) -> &Server {
        &self.metadata
    }

    /// Makes a version of a key in [`RING`], by the algorithm's name in Cloud KMS: the first one, or one more. Answers the
    /// public half as DER SubjectPublicKeyInfo.
    ///
    /// # Panics
    ///
    /// For an algorithm that the fake doesn't know.
    pub fn make_key(&self, name: &str, algorithm: &str) -> Vec<u8> {
        let pair = keys::pair(algorithm);
        self.cloud().keys.add(name, algorithm, pair)
    }

    /// Imports a private key, DER PKCS#8, likewise.
    ///
    /// # Panics
    ///
    /// Where it is none.
    pub fn import_key(&self, name: &str, algorithm: &str, pkcs8: &[u8]) -> Vec<u8> {
        self.cloud().keys.add(name, algorithm, keys::read(pkcs8))
    }

    /// Makes a key for another purpose than signing, such as `ENCRYPT_DECRYPT`.
    pub fn make_other_key(&self, name: &str, purpose: &str) {
        self.cloud().keys.add_other(name, purpose);
    }

    /// Gives a key a label.
    pub fn label(&self, name: &str, label: &str, value: &str) {
        self.cloud().keys.label(name, label, value);
    }

    /// Brings a version into another state: `ENABLED`, `DISABLED`, `DESTROYED`.
    pub fn set_state(&self, name: &str, version: u64, state: &str) {
        self.cloud().keys.set_state(name, version, state);
    }

    /// Takes a permission, such as `cloudkms.cryptoKeyVersions.useToSign`, away from everybody.
    pub fn forbid(&self, permission: &str) {
        self.cloud().forbidden.push(permission.to_owned());
    }

    /// Gives all permissions back.
    pub fn allow_all(&self) {
        self.cloud().forbidden.clear();
    }

    /// Has lists come in pages of so many.
    pub fn page(&self, entries: usize) {
        self.cloud().page = entries;
    }

    /// Sets the cloud's clock ahead of this machine's, or behind it, in seconds.
    pub fn set_clock(&self, ahead: i64) {
        self.cloud().ahead = ahead;
    }

    /// The JSON file of the service account's key, as `gcloud iam service-accounts keys create` writes it.
    #[must_use]
    pub fn service_account(&self) -> Value {
        self.cloud().identity.account.file()
    }

    /// The JSON file of the person, as `gcloud auth application-default login` writes it.
    #[must_use]
    pub fn authorized_user(&self) -> Value {
        identity::person()
    }

    /// A token of the identity provider that the workload pool trusts, which lives for so long.
    #[must_use]
    pub fn subject_token(&self, lives: Duration) -> String {
        let cloud = self.cloud();
        cloud.identity.provider.token(cloud.now(), lives)
    }

    /// The provider of the workload pool: the `audience` of an exchange.
    #[must_use]
    pub fn audience(&self) -> &'static str {
        identity::AUDIENCE
    }

    /// Makes another key for the service account; from now on the former isn't known any more.
    pub fn replace_account_key(&self) {
        self.cloud().identity.replace_account_key();
    }

    /// How long access tokens live that are handed out from now on.
    pub fn set_token_life(&self, lives: Duration) {
        self.cloud().identity.lives = lives;
    }

    /// Makes all access tokens invalid that were handed out.
    pub fn revoke_tokens(&self) {
        self.cloud().identity.revoke();
    }

    /// How many access tokens were handed out.
    #[must_use]
    pub fn tokens(&self) -> u64 {
        self.cloud().identity.issued
    }

    /// The access tokens that were handed out and live: what must be in no log.
    #[must_use]
    pub fn live_tokens(&self) -> Vec<String> {
        self.cloud().identity.live()
    }

    /// How many signatures were made.
    #[must_use]
    pub fn signatures(&self) -> u64 {
        self.cloud().signatures
    }

    fn cloud(&self) -> MutexGuard<'_, Cloud> {
        lock(&self.cloud)
    }
}

fn lock(cloud: &Mutex<Cloud>) -> MutexGuard<'_, Cloud> {
    cloud.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the service of the request's name answers.
fn answer(cloud: &Mutex<Cloud>, asked: &Asked) -> Answer {
    let host = asked.header("host").unwrap_or_default();
    let answer = match host.trim_end_matches(":443") {
        "cloudkms.googleapis.com" => api::answer(cloud, asked),
        "oauth2.googleapis.com" => lock(cloud).refresh(asked),
        "sts.googleapis.com" => lock(cloud).exchange(asked),
        "iamcredentials.googleapis.com" => lock(cloud).impersonate(asked),
        _ => error(404, "NOT_FOUND", "there is no such service"),
    };
    answer.header(
        "date",
        &httpdate::fmt_http_date(SystemTime::UNIX_EPOCH + Duration::from_secs(lock(cloud).now())),
    )
}

/// An error as all APIs of Google's have it.
fn error(code: u16, status: &str, message: &str) -> Answer {
    Answer::json(code, &json!({"error": {"code": code, "message": message, "status": status}}))
}
