//! The conformance cases' host, as the doors of this crate know one; and what is alike in how they see a store.

use std::{
    collections::BTreeSet,
    sync::{Arc, LazyLock},
};

use keystead_plugin_api::{
    Algorithm, Key, Listing,
    conformance::{Record, TestHost},
};
use tokio::runtime::{Handle, Runtime};
use zeroize::Zeroizing;

use crate::{
    instance::RawListing,
    outbound::{Grant, by_the_system},
    reach::Reach,
    services::{Event, HostSide, Secrets},
};

/// Where all that doors wait for is done.
pub(crate) static RUNTIME: LazyLock<Runtime> =
    LazyLock::new(|| Runtime::new().unwrap_or_else(|error| panic!("no runtime: {error}")));

/// What a door gives its stores.
#[derive(Clone, Debug, Default)]
pub(crate) struct Reaches {
    pub(crate) grants: Vec<Grant>,
    pub(crate) exposed: BTreeSet<String>,
}

/// The test's host, and what its store reaches.
pub(crate) struct Side {
    host: &'static TestHost,
    reach: Arc<Reach>,
}

impl Side {
    pub(crate) fn leak(host: &'static TestHost, reaches: &Reaches) -> &'static Self {
        let Reaches { grants, exposed } = reaches.clone();
        let secrets = Arc::new(TestSecrets { host, exposed });
        let reach = RUNTIME.block_on(async { Reach::new("conformance", grants, secrets, &by_the_system()) });
        Box::leak(Box::new(Self { host, reach: Arc::new(reach) }))
    }
}

struct TestSecrets {
    host: &'static TestHost,
    exposed: BTreeSet<String>,
}

impl Secrets for TestSecrets {
    fn read(&self, name: &str) -> Option<Result<Zeroizing<Vec<u8>>, String>> {
        Some(Ok(Zeroizing::new(self.host.secret(name)?)))
    }

    fn exposed(&self, name: &str) -> bool {
        self.exposed.contains(name)
    }
}

impl HostSide for Side {
    fn wants(&self, _level: u32) -> bool {
        true
    }

    fn log(&self, event: &Event<'_>) {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        self.host.log(Record {
            level: event.level,
            target: text(event.target),
            message: text(event.message),
            fields: text(event.fields),
            request_id: text(event.request),
        });
    }

    fn config(&self) -> Option<Zeroizing<Vec<u8>>> {
        Some(Zeroizing::new(self.host.config().to_string().into_bytes()))
    }

    fn secret(&self, name: &str) -> Option<Result<Zeroizing<Vec<u8>>, String>> {
        Some(Ok(Zeroizing::new(self.host.secret(name)?)))
    }

    fn keys_changed(&self) {
        self.host.note_keys_changed();
    }

    fn was_refused(&self, token: &[u8], secret: &[u8]) -> bool {
        self.host.was_refused(&String::from_utf8_lossy(token), secret)
    }

    fn presented(&self, token: &[u8], secret: &[u8], accepted: bool) {
        let token = String::from_utf8_lossy(token);
        match accepted {
            true => self.host.note_acceptance(&token, secret),
            false => self.host.note_refusal(&token, secret),
        }
    }

    fn reaching(&self) -> Option<(Arc<Reach>, Handle)> {
        Some((Arc::clone(&self.reach), RUNTIME.handle().clone()))
    }
}

/// A listing as the cases know one.
pub(crate) fn listed(listing: RawListing) -> Listing {
    let keys = listing.keys.into_iter().map(|key| Key {
        id: key.id,
        spki: key.spki,
        label: key.label,
        algorithms: key.algorithms.iter().filter_map(|number| Algorithm::from_number(*number)).collect(),
        call_class: key.class,
    });
    Listing { keys: keys.collect(), findings: listing.findings }
}
