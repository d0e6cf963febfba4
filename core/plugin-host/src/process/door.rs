//! The conformance cases' way to a plugin in a process of its own: over the very link that the host uses.

use std::{fmt, path::Path, sync::Arc, time::Duration};

use keystead_plugin_api::{
    Code, Error, Health, Listing,
    abi::LANE_INLINE,
    algorithm::Operation,
    conformance::{Described, Door, Failure, Opened, Request, TestHost},
};

use super::{
    PluginFile, Surroundings, Wish,
    calls::{About, CallError, Expects, Given},
    link::Link,
    registry::Process,
    wire::{Order, Work},
};
use crate::{
    Description, Grant, Settings,
    instance::{RawListing, Refusal},
    testing::{
        self,
        side::{RUNTIME, Reaches, Side, listed},
    },
};

/// A plugin in a process of its own.
pub struct InProcess {
    _process: Arc<Process>,
    link: Arc<Link>,
    plugin: u32,
    description: Description,
    reaches: Reaches,
}

impl InProcess {
    /// Loads a library into a process.
    ///
    /// # Panics
    ///
    /// Where that fails.
    #[must_use]
    pub fn load(library: &Path) -> Self {
        Self::load_with(library, |_| ())
    }

    /// Likewise, with what the process gets.
    ///
    /// # Panics
    ///
    /// Where that fails.
    #[must_use]
    pub fn load_with(library: &Path, change: impl FnOnce(&mut Surroundings)) -> Self {
        let host = crate::Host::new(Settings::default());
        let file = host.examine("conformance", library.to_owned());
        let file = file.unwrap_or_else(|failure| panic!("{}: {failure}", library.display()));
        let mut surroundings = Surroundings::default();
        change(&mut surroundings);
        RUNTIME.block_on(Self::start(&file, &surroundings))
    }

    async fn start(file: &PluginFile, surroundings: &Surroundings) -> Self {
        let launcher = testing::launcher();
        let process = Process::new(&Wish { launcher: &launcher, file, surroundings, isolation: None });
        let link = process.link().await.unwrap_or_else(|error| panic!("no process: {error:?}"));
        let loaded = link.load(file).await;
        let (plugin, description) = loaded.unwrap_or_else(|error| panic!("not loaded: {error:?}"));
        Self { _process: process, link, plugin, description, reaches: Reaches::default() }
    }

    /// Grants its stores these services.
    #[must_use]
    pub fn granting(mut self, grants: Vec<Grant>) -> Self {
        self.reaches.grants = grants;
        self
    }
}

impl fmt::Debug for InProcess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InProcess").field("pid", &self.link.pid).finish_non_exhaustive()
    }
}

impl Door for InProcess {
    fn describe(&self) -> Result<Described, String> {
        let Description { name, version, vendor, lanes_max, schema, .. } = self.description.clone();
        Ok(Described { name, version, vendor, lanes_max, schema: schema.to_string() })
    }

    fn open(&self, host: &'static TestHost) -> Result<Arc<dyn Opened>, Error> {
        let (plugin, store) = (self.plugin, self.link.number());
        self.link.attach(store, Side::leak(host, &self.reaches));
        let config = host.config().to_string().into_bytes();
        let order = |call| Order::Open { call, plugin, store, level: 5, lanes: None, config: &config };
        ask(&self.link, Expects::Opened(store), order).map_err(|refusal| refusal.error)?;
        Ok(Arc::new(Store { link: Arc::clone(&self.link), store }))
    }
}

/// An open store.
struct Store {
    link: Arc<Link>,
    store: u32,
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store").field("number", &self.store).finish_non_exhaustive()
    }
}

impl Opened for Store {
    fn listing(&self) -> Result<Listing, Error> {
        let order = |call| Order::Keys { call, store: self.store, nanos_left: 30_000_000_000 };
        match ask(&self.link, Expects::Listing(RawListing::default()), order) {
            Ok(Given::Listing(listing)) => Ok(listed(listing)),
            other => Err(odd(other)),
        }
    }

    fn perform(&self, operation: Operation, request: &Request<'_>) -> Result<Vec<u8>, Failure> {
        let nanos_left =
            request.time.map_or(u64::MAX, |time| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
        let work = Work {
            decrypt: operation == Operation::Decrypt,
            inline: request.lane == LANE_INLINE,
            nanos_left,
            algorithm: request.algorithm,
            capacity: u32::try_from(request.capacity).unwrap_or(u32::MAX),
            key: request.key,
            input: request.input,
            request_id: request.request_id,
        };
        let order = |call| Order::Perform { call, store: self.store, work };
        match ask(&self.link, Expects::Result(request.capacity), order) {
            Ok(Given::Result(result)) => Ok(result),
            Err(Refusal { error, needed }) => Err(Failure { error, needed }),
            other => Err(Failure { error: odd(other), needed: 0 }),
        }
    }

    fn health(&self) -> Result<Health, Error> {
        let order = |call| Order::Health { call, store: self.store, nanos_left: 30_000_000_000, level: 5 };
        match ask(&self.link, Expects::Health, order) {
            Ok(Given::Health(generation)) => Ok(Health { generation }),
            other => Err(odd(other)),
        }
    }

    fn close(&self) -> Result<(), Error> {
        let order = |call| Order::Close { call, store: self.store, grace: Duration::from_secs(1) };
        ask(&self.link, Expects::Done, order).map(drop).map_err(|refusal| refusal.error)
    }
}

fn ask<'o>(link: &Link, expects: Expects, order: impl FnOnce(u64) -> Order<'o>) -> Result<Given, Refusal> {
    let answer = link.call(expects, None, About::new("a conformance case", ""), 512, order);
    let given = answer.and_then(|answer| RUNTIME.block_on(answer.given()));
    given.map_err(|error| match error {
        CallError::Refused(refusal) => refusal,
        CallError::Gone | CallError::Waited => Refusal::new(Code::Internal, "the process has died"),
    })
}

fn odd(given: Result<Given, Refusal>) -> Error {
    match given {
        Err(refusal) => refusal.error,
        Ok(given) => Error::new(Code::Internal, format!("answered {given:?}")),
    }
}
