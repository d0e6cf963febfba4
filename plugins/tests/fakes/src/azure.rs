//! Azure Key Vault and Managed HSM, with whoever makes tokens for them, under the names of three clouds.
//!
//! What is asked for must be right, as with the real ones: tokens are for a vault's own kind and expire, secrets and
//! assertions are verified, digests have the length of their algorithm, and disabled keys don't sign. Keys are
//! OpenSSL's. What the services answer, and in which words, is taken from their documentation and from recordings.

mod keys;
mod login;
mod vaults;

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use base64ct::{Base64UrlUnpadded, Encoding};
use openssl::rand::rand_bytes;
use serde_json::Value;

use crate::{Authority, Proxy, Server};

pub use keys::Type;
use keys::Version;
use login::Accounts;

/// The vaults and managed HSMs that there are.
const VAULTS: [&str; 7] = [
    "demo.vault.azure.net",
    "other.vault.azure.net",
    "demo.managedhsm.azure.net",
    "demo.vault.azure.cn",
    "demo.managedhsm.azure.cn",
    "demo.vault.usgovcloudapi.net",
    "demo.managedhsm.usgovcloudapi.net",
];

/// Where tokens are made, by the domain of the cloud.
const LOGINS: [(&str, &str); 3] = [
    ("azure.net", "login.microsoftonline.com"),
    ("azure.cn", "login.chinacloudapi.cn"),
    ("usgovcloudapi.net", "login.microsoftonline.us"),
];

/// The tenant that all vaults belong to.
const TENANT: &str = "72f988bf-86f1-41af-91ab-2d7cd011db47";

/// How long a token lives where nothing else is said.
const TOKEN: Duration = Duration::from_secs(3599);

/// Vaults, managed HSMs, and who makes tokens: on ports of this machine, until it is dropped.
#[derive(Debug)]
pub struct Azure {
    authority: Authority,
    vaults: Server,
    logins: Server,
    metadata: Server,
    proxy: Proxy,
    state: Arc<State>,
}

/// What all of them know.
#[derive(Debug)]
struct State {
    accounts: Accounts,
    changing: Mutex<Changing>,
}

#[derive(Debug)]
struct Changing {
    /// By vault and name, oldest version first.
    keys: BTreeMap<(String, String), Vec<Version>>,
    tokens: Vec<Token>,
    token_life: Duration,
    /// How many seconds the services' clocks are ahead of this machine's.
    shift: i64,
    /// Numbers of assertions, each good once.
    assertions: Vec<String>,
}

#[derive(Clone, Debug)]
struct Token {
    text: String,
    resource: String,
    until: Instant,
}

impl Azure {
    /// Starts all of it; `folder` gets the certificate of the authority.
    ///
    /// # Panics
    ///
    /// Where the folder can't be written, or without a free port.
    #[must_use]
    pub fn start(folder: &Path) -> Self {
        let authority = Authority::create(folder);
        let changing = Changing {
            keys: BTreeMap::new(),
            tokens: Vec::new(),
            token_life: TOKEN,
            shift: 0,
            assertions: Vec::new(),
        };
        let state = Arc::new(State { accounts: Accounts::create(), changing: Mutex::new(changing) });
        let [for_vaults, for_logins, for_metadata] = [(); 3].map(|()| Arc::clone(&state));
        let logins = LOGINS.map(|(_, host)| host);
        let vaults = Server::https(&authority, &VAULTS, move |asked| vaults::answer(&for_vaults, asked));
        let logins_server =
            Server::https(&authority, &logins, move |asked| login::answer(&for_logins, asked));
        let metadata = Server::http(move |asked| login::identity(&for_metadata, asked));
        let to_vaults = VAULTS.map(|host| (format!("{host}:443"), vaults.address()));
        let to_logins = logins.map(|host| (format!("{host}:443"), logins_server.address()));
        let proxy = Proxy::start(to_vaults.into_iter().chain(to_logins));
        Self { authority, vaults, logins: logins_server, metadata, proxy, state }
    }

    /// The PEM file of the authority that vouches for all of it.
    #[must_use]
    pub fn ca(&self) -> &Path {
        self.authority.ca()
    }

    /// The proxy that leads there under the real names: `http://127.0.0.1:PORT`.
    #[must_use]
    pub fn proxy(&self) -> String {
        self.proxy.url()
    }

    /// The vaults and managed HSMs.
    #[must_use]
    pub fn vaults(&self) -> &Server {
        &self.vaults
    }

    /// Those who make tokens.
    #[must_use]
    pub fn logins(&self) -> &Server {
        &self.logins
    }

    /// The metadata services of a virtual machine, and of an app.
    #[must_use]
    pub fn metadata(&self) -> &Server {
        &self.metadata
    }

    /// Where the metadata service of a virtual machine is.
    #[must_use]
    pub fn imds(&self) -> String {
        url(self.metadata.address())
    }

    /// The `IDENTITY_ENDPOINT` of an app.
    #[must_use]
    pub fn identity_endpoint(&self) -> String {
        format!("{}/msi/token", url(self.metadata.address()))
    }

    /// The tenant of all vaults.
    #[must_use]
    pub fn tenant(&self) -> &'static str {
        TENANT
    }

    /// The application that may use all keys; also the id of the machine's user-assigned identity.
    #[must_use]
    pub fn client_id(&self) -> &'static str {
        login::CLIENT
    }

    /// The application's secret.
    #[must_use]
    pub fn client_secret(&self) -> &str {
        &self.state.accounts.secret
    }

    /// The application's certificate, in PEM.
    #[must_use]
    pub fn certificate(&self) -> Vec<u8> {
        self.state.accounts.certificate.to_pem().expect("PEM")
    }

    /// Its private key, in PEM.
    #[must_use]
    pub fn certificate_key(&self) -> Vec<u8> {
        self.state.accounts.certificate_key.private_key_to_pem_pkcs8().expect("PEM")
    }

    /// A token of the cluster's that the application trusts, good for so long.
    #[must_use]
    pub fn federated_token(&self, life: Duration) -> String {
        self.state.accounts.federated(self.state.now() + life.as_secs())
    }

    /// The `IDENTITY_HEADER` of an app.
    #[must_use]
    pub fn identity_header(&self) -> &str {
        &self.state.accounts.identity_header
    }

    /// Makes a key, or a new version of one; answers its public half, as DER SubjectPublicKeyInfo.
    pub fn make_key(&self, vault: &str, name: &str, key_type: Type) -> Vec<u8> {
        self.keep(vault, name, Version::make(key_type, self.state.now()))
    }

    /// Imports a key in PEM. As with the real service, the modulus of an RSA key then begins with a zero.
    ///
    /// # Panics
    ///
    /// Where it is none, or on another curve.
    pub fn import_key(&self, vault: &str, name: &str, pem: &[u8]) -> Vec<u8> {
        self.keep(vault, name, Version::import(pem, self.state.now()))
    }

    /// Changes members of the newest version of a key: `attributes`, `tags`, `key_ops`.
    ///
    /// # Panics
    ///
    /// Where there is no such key.
    pub fn change_key(&self, vault: &str, name: &str, members: &Value) {
        let now = self.state.now();
        let mut changing = self.state.lock();
        let versions = changing.keys.get_mut(&(vault.to_owned(), name.to_owned()));
        versions.and_then(|versions| versions.last_mut()).expect("a key").change(members, now);
    }

    /// Removes a key.
    pub fn delete_key(&self, vault: &str, name: &str) {
        self.state.lock().keys.remove(&(vault.to_owned(), name.to_owned()));
    }

    /// The newest version of a key, as its `kid` has it.
    ///
    /// # Panics
    ///
    /// Where there is no such key.
    #[must_use]
    pub fn version(&self, vault: &str, name: &str) -> String {
        let changing = self.state.lock();
        let versions = changing.keys.get(&(vault.to_owned(), name.to_owned()));
        versions.and_then(|versions| versions.last()).expect("a key").id.clone()
    }

    /// Every token that was made, the latest last.
    #[must_use]
    pub fn tokens(&self) -> Vec<String> {
        self.state.lock().tokens.iter().map(|token| token.text.clone()).collect()
    }

    /// How long tokens live that are made from now on.
    pub fn set_token_life(&self, life: Duration) {
        self.state.lock().token_life = life;
    }

    /// Ends all tokens, as when access is revoked.
    pub fn revoke_tokens(&self) {
        self.state.lock().tokens.iter_mut().for_each(|token| token.until = Instant::now());
    }

    /// Sets the services' clocks so many seconds ahead of this machine's.
    pub fn shift_clock(&self, seconds: i64) {
        self.state.lock().shift = seconds;
    }

    fn keep(&self, vault: &str, name: &str, version: Version) -> Vec<u8> {
        assert!(VAULTS.contains(&vault), "no vault {vault}");
        let public = version.public_key();
        let mut changing = self.state.lock();
        changing.keys.entry((vault.to_owned(), name.to_owned())).or_default().push(version);
        public
    }
}

impl State {
    fn lock(&self) -> MutexGuard<'_, Changing> {
        self.changing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The services' time, in seconds since 1970.
    fn now(&self) -> u64 {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("a year after 1970").as_secs();
        now.saturating_add_signed(self.lock().shift)
    }

    /// The services' time as the header `date` has it.
    fn date(&self) -> String {
        httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(self.now()))
    }

    /// Makes a token, as long as the real ones, and says how long it lives.
    fn issue(&self, resource: &str) -> (String, Duration) {
        let mut changing = self.lock();
        let (text, life) = (format!("ey{}", random(1125)), changing.token_life);
        let until = Instant::now() + life;
        changing.tokens.push(Token { text: text.clone(), resource: resource.to_owned(), until });
        (text, life)
    }
}

fn url(address: SocketAddr) -> String {
    format!("http://{address}")
}

/// So many random bytes as text.
fn random(bytes: usize) -> String {
    let mut random = vec![0; bytes];
    rand_bytes(&mut random).expect("random bytes");
    Base64UrlUnpadded::encode_string(&random)
}
