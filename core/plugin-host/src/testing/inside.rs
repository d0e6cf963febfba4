//! The conformance cases' way to a plugin in the server's own process: a library, or a component in the very sandbox that
//! the host uses.

use std::{
    collections::BTreeSet,
    fmt,
    path::Path,
    sync::{Arc, LazyLock},
    time::{Duration, Instant},
};

use keystead_plugin_api::{
    Error, Health, Listing,
    abi::LANE_HOUSEKEEPING,
    algorithm::Operation,
    conformance::{Described, Door, Failure, Opened, Request, TestHost},
};

use super::side::{Reaches, Side, listed};
use crate::{
    Description, Grant, Host, Settings,
    instance::{Call, Instance, Refusal},
    load,
};

/// One host for all tests, and so one sandbox.
static HOST: LazyLock<Arc<Host>> = LazyLock::new(|| Host::new(Settings::default()));

/// How long a call to a store may take.
const TIME: Duration = Duration::from_secs(30);

/// A plugin in the server's own process.
pub struct InServer {
    plugin: Arc<load::Plugin>,
    reaches: Reaches,
    memory: usize,
}

impl InServer {
    /// Loads a library, or a component by the `.wasm` at the end of its name.
    ///
    /// # Panics
    ///
    /// Where it is refused, with the reason.
    #[must_use]
    pub fn load(file: &Path) -> Self {
        let plugin = HOST.examine("conformance", file.to_owned()).and_then(|file| HOST.load(&file));
        let plugin = plugin.unwrap_or_else(|failure| panic!("{failure}"));
        Self { plugin, reaches: Reaches::default(), memory: 64 << 20 }
    }

    /// Grants its stores these services.
    #[must_use]
    pub fn granting(mut self, grants: Vec<Grant>) -> Self {
        self.reaches.grants = grants;
        self
    }

    /// Lets its stores see these secrets.
    #[must_use]
    pub fn exposing(mut self, secrets: &[&str]) -> Self {
        self.reaches.exposed = secrets.iter().copied().map(str::to_owned).collect::<BTreeSet<_>>();
        self
    }

    /// Gives each instance of a component so many bytes of memory.
    #[must_use]
    pub fn with_memory(mut self, memory: usize) -> Self {
        self.memory = memory;
        self
    }
}

impl fmt::Debug for InServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InServer").field("plugin", &self.plugin.description.name).finish_non_exhaustive()
    }
}

impl Door for InServer {
    fn describe(&self) -> Result<Described, String> {
        let Description { name, version, vendor, lanes_max, schema, .. } = self.plugin.description.clone();
        Ok(Described { name, version, vendor, lanes_max, schema: schema.to_string() })
    }

    fn open(&self, host: &'static TestHost) -> Result<Arc<dyn Opened>, Error> {
        let instance = self.plugin.open(Side::leak(host, &self.reaches), self.memory)?;
        Ok(Arc::new(Store(instance)))
    }
}

/// An open store.
struct Store(Arc<dyn Instance>);

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store").finish_non_exhaustive()
    }
}

fn housekeeping() -> Call<'static> {
    Call { lane: LANE_HOUSEKEEPING, deadline: Some(Instant::now() + TIME), request_id: "" }
}

impl Opened for Store {
    fn listing(&self) -> Result<Listing, Error> {
        self.0.keys(&housekeeping()).map(listed).map_err(|refusal| refusal.error)
    }

    fn perform(&self, operation: Operation, request: &Request<'_>) -> Result<Vec<u8>, Failure> {
        let deadline = request.time.map(|time| Instant::now() + time);
        let call = Call { lane: request.lane, deadline, request_id: request.request_id };
        let mut out = vec![0; request.capacity];
        let made = self.0.perform(&call, operation, request.key, request.algorithm, request.input, &mut out);
        let len = made.map_err(|Refusal { error, needed }| Failure { error, needed })?;
        out.truncate(len);
        Ok(out)
    }

    fn health(&self) -> Result<Health, Error> {
        let generation = self.0.health(&housekeeping()).map_err(|refusal| refusal.error)?;
        Ok(Health { generation })
    }

    fn close(&self) -> Result<(), Error> {
        self.0.close(Duration::from_secs(1));
        Ok(())
    }
}
