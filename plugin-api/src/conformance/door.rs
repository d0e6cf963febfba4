//! The ways to a backend, and an open store behind any of them.

use std::{fmt, sync::Arc, time::Duration};

use super::TestHost;
use crate::{
    Algorithm, CallClass, Error, Finding, Health, Key, Listing, abi::LANE_INLINE, algorithm::Operation,
};

/// Room for every result of the registry: RSA of 16,384 bits.
const CAPACITY: usize = 2048;

/// A way to a backend: its C table, a process that it runs in, a sandbox.
///
/// The plugin behind it gets from the [`TestHost`] what any plugin gets, whatever it takes to carry that there.
pub trait Door: fmt::Debug + Send + Sync {
    /// What the plugin says it is.
    ///
    /// # Errors
    ///
    /// What keeps it from being understood at all, and what breaks the rules of this way alone.
    fn describe(&self) -> Result<Described, String>;

    /// Opens a store with a host.
    ///
    /// # Errors
    ///
    /// What the backend answers.
    fn open(&self, host: &'static TestHost) -> Result<Arc<dyn Opened>, Error>;
}

/// A store that is open behind a [`Door`].
pub trait Opened: fmt::Debug + Send + Sync {
    /// The whole listing. Algorithms with unknown numbers are left aside.
    ///
    /// # Errors
    ///
    /// What the backend answers; [`Code::Internal`](crate::Code::Internal) where the listing breaks the contract.
    fn listing(&self) -> Result<Listing, Error>;

    /// Has an operation done just as the request says, however wrong that is.
    ///
    /// # Errors
    ///
    /// What the backend answers; [`Code::Internal`](crate::Code::Internal) where it writes or claims more than its
    /// buffer has.
    fn perform(&self, operation: Operation, request: &Request<'_>) -> Result<Vec<u8>, Failure>;

    /// Asks for the store's health.
    ///
    /// # Errors
    ///
    /// What the backend answers.
    fn health(&self) -> Result<Health, Error>;

    /// Closes the store. Nothing is called after it.
    ///
    /// # Errors
    ///
    /// What the backend answers.
    fn close(&self) -> Result<(), Error>;
}

/// What a plugin says it is; see [`Description`](crate::Description).
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_structs, reason = "a door writes it as a literal")]
pub struct Described {
    /// Short name.
    pub name: String,
    /// The plugin's own version.
    pub version: String,
    /// Who made it.
    pub vendor: String,
    /// The most lanes one store can use; `None` where there is no limit.
    pub lanes_max: Option<u32>,
    /// JSON Schema of its configuration.
    pub schema: String,
}

/// One call to a key. Adjust what a test is about; the rest is what an ordinary call has.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Request<'a> {
    /// The key's id.
    pub key: &'a [u8],
    /// The algorithm's number, known or not.
    pub algorithm: u32,
    /// The input.
    pub input: &'a [u8],
    /// The lane; by default [`LANE_INLINE`] or 0, by the key's call class.
    pub lane: u32,
    /// The time left; `None` is no deadline.
    pub time: Option<Duration>,
    /// How many bytes the output buffer has.
    pub capacity: usize,
    /// The request's id.
    pub request_id: &'a str,
}

impl<'a> Request<'a> {
    /// An ordinary call to a key of a listing.
    #[must_use]
    pub fn new(key: &'a Key, algorithm: Algorithm, input: &'a [u8]) -> Self {
        Self {
            key: &key.id,
            algorithm: algorithm.number(),
            input,
            lane: match key.call_class {
                CallClass::Inline => LANE_INLINE,
                CallClass::Blocking => 0,
            },
            time: Some(Duration::from_secs(30)),
            capacity: CAPACITY,
            request_id: "conformance",
        }
    }
}

/// An open store. Closing is up to the test: [`Session::close`].
#[derive(Clone, Debug)]
pub struct Session {
    host: &'static TestHost,
    store: Arc<dyn Opened>,
}

impl Session {
    pub(super) fn open(door: &dyn Door, host: &'static TestHost) -> Result<Self, Error> {
        let store = heard(host, door.open(host))?;
        Ok(Self { host, store })
    }

    /// The store's host.
    #[must_use]
    pub fn host(&self) -> &'static TestHost {
        self.host
    }

    /// The whole listing. Algorithms with unknown numbers are left aside.
    ///
    /// # Errors
    ///
    /// What the backend answers; [`Code::Internal`](crate::Code::Internal) where the listing breaks the contract.
    pub fn listing(&self) -> Result<Listing, Error> {
        let listing = heard(self.host, self.store.listing())?;
        listing.keys.iter().for_each(|key| self.host.hear(key.label.clone()));
        for Finding { subject, error, hint, .. } in &listing.findings {
            self.host.hear(format!("{subject}: {error}: {hint}"));
        }
        Ok(listing)
    }

    /// Signs with a key of the listing.
    ///
    /// # Errors
    ///
    /// What the backend answers.
    pub fn sign(&self, key: &Key, algorithm: Algorithm, input: &[u8]) -> Result<Vec<u8>, Error> {
        self.perform(Operation::Sign, &Request::new(key, algorithm, input)).map_err(|failure| failure.error)
    }

    /// Decrypts with a key of the listing.
    ///
    /// # Errors
    ///
    /// What the backend answers.
    pub fn decrypt(&self, key: &Key, algorithm: Algorithm, input: &[u8]) -> Result<Vec<u8>, Error> {
        self.perform(Operation::Decrypt, &Request::new(key, algorithm, input))
            .map_err(|failure| failure.error)
    }

    /// Has an operation done as a request says.
    ///
    /// # Errors
    ///
    /// What the backend answers; [`Code::Internal`](crate::Code::Internal) where it writes or claims more than its
    /// buffer has.
    pub fn perform(&self, operation: Operation, request: &Request<'_>) -> Result<Vec<u8>, Failure> {
        let result = self.store.perform(operation, request);
        result.inspect_err(|failure| self.host.hear(failure.error.to_string()))
    }

    /// Asks for the store's health.
    ///
    /// # Errors
    ///
    /// What the backend answers.
    pub fn health(&self) -> Result<Health, Error> {
        heard(self.host, self.store.health())
    }

    /// Closes the store. Call nothing after it.
    ///
    /// # Errors
    ///
    /// What the backend answers.
    pub fn close(&self) -> Result<(), Error> {
        heard(self.host, self.store.close())
    }
}

/// Keeps the text of an error, to be searched for secrets.
fn heard<T>(host: &TestHost, result: Result<T, Error>) -> Result<T, Error> {
    result.inspect_err(|error| host.hear(error.to_string()))
}

/// Why a call failed.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_structs, reason = "a door writes it as a literal")]
pub struct Failure {
    /// What the backend answered.
    pub error: Error,
    /// The `len` of the output buffer: with [`Code::BufferTooSmall`](crate::Code::BufferTooSmall), what is needed.
    pub needed: usize,
}
