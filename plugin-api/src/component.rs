//! The exports of a component, made of the author's [`Backend`].
//!
//! A panic ends the instance, and the host starts another: what is told of it before is its message, as an event.

use std::{
    any::Any,
    sync::OnceLock,
    time::{Duration, Instant},
};

use crate::{
    Algorithm, Backend, Call, Code, Error, Finding, Host, Key, Lane, Listing, Output, Severity, Vendor,
    algorithm::Operation, forward, host::Way,
};

#[doc(hidden)]
#[allow(
    missing_docs,
    clippy::all,
    clippy::pedantic,
    clippy::restriction,
    reason = "made by wit-bindgen of the WIT package"
)]
pub mod bindings {
    wit_bindgen::generate!({
        path: "wit",
        world: "backend",
        pub_export_macro: true,
        default_bindings_module: "keystead_plugin_api::component::bindings",
    });
}

use bindings::{exports::keystead::backend::plugin::Guest, keystead::backend::types as wit};

/// Exports a [`Backend`] as a component. Once per crate, which is a `cdylib`.
#[macro_export]
macro_rules! export_backend {
    ($backend:ty) => {
        const _: () = {
            type Exported = $crate::component::Exported<$backend>;
            $crate::component::bindings::export!(
                Exported with_types_in $crate::component::bindings
            );
        };
    };
}

/// Room for every result of the registry: RSA of 16,384 bits.
const RESULT_MAX: usize = 2048;

/// The instance's store: of the type that the crate exports, which is one.
static BACKEND: OnceLock<Box<dyn Any + Send + Sync>> = OnceLock::new();

/// The exports of a backend.
#[doc(hidden)]
pub struct Exported<B>(std::marker::PhantomData<B>);

impl<B: Backend> Exported<B> {
    fn backend() -> Result<&'static B, wit::Error> {
        let backend = BACKEND.get().and_then(|backend| backend.downcast_ref());
        backend.ok_or_else(|| Error::new(Code::Internal, "the store is not open").into())
    }

    fn perform(
        operation: Operation,
        call: &wit::Call,
        key: &[u8],
        algorithm: u32,
        input: &[u8],
    ) -> Result<Vec<u8>, wit::Error> {
        let algorithm = crate::backend::acceptable(operation, algorithm, input)?;
        let mut memory = vec![0; RESULT_MAX];
        let mut output = Output::new(&mut memory);
        let (backend, call) = (Self::backend()?, Call::from(call));
        match operation {
            Operation::Sign => backend.sign(&call, key, algorithm, input, &mut output)?,
            Operation::Decrypt => backend.decrypt(&call, key, algorithm, input, &mut output)?,
        }
        let len = output.len();
        memory.truncate(len);
        Ok(memory)
    }
}

impl<B: Backend> Guest for Exported<B> {
    fn describe() -> wit::Description {
        let crate::Description { name, version, vendor, lanes_max, schema, .. } = B::DESCRIPTION;
        wit::Description {
            name: name.to_owned(),
            version: version.to_owned(),
            vendor: vendor.to_owned(),
            lanes_max,
            schema: schema.to_owned(),
        }
    }

    fn open() -> Result<(), wit::Error> {
        forward::install(Host::by(Way));
        let backend = B::open(Host::by(Way))?;
        let fresh = BACKEND.set(Box::new(backend)).is_ok();
        if fresh { Ok(()) } else { Err(Error::new(Code::Internal, "the store is open already").into()) }
    }

    fn advise() -> wit::Advice {
        let lanes = Self::backend().ok().and_then(|backend| backend.advice().lanes);
        wit::Advice { lanes }
    }

    fn keys(call: wit::Call) -> Result<wit::Listing, wit::Error> {
        Ok(Self::backend()?.keys(&Call::from(&call))?.into())
    }

    fn sign(call: wit::Call, key: Vec<u8>, algorithm: u32, input: Vec<u8>) -> Result<Vec<u8>, wit::Error> {
        Self::perform(Operation::Sign, &call, &key, algorithm, &input)
    }

    fn decrypt(call: wit::Call, key: Vec<u8>, algorithm: u32, input: Vec<u8>) -> Result<Vec<u8>, wit::Error> {
        Self::perform(Operation::Decrypt, &call, &key, algorithm, &input)
    }

    fn health(call: wit::Call) -> Result<u64, wit::Error> {
        Ok(Self::backend()?.health(&Call::from(&call))?.generation)
    }
}

impl<'a> From<&'a wit::Call> for Call<'a> {
    fn from(call: &'a wit::Call) -> Self {
        Self {
            deadline: call.nanos_left.and_then(|left| Instant::now().checked_add(Duration::from_nanos(left))),
            lane: call.lane.map_or(Lane::Housekeeping, Lane::Number),
            request_id: &call.request_id,
        }
    }
}

impl From<Error> for wit::Error {
    fn from(error: Error) -> Self {
        let Error { code, message, vendor, retry_after } = error;
        Self {
            code: code as u32,
            message,
            vendor: vendor.map(|Vendor { name, number }| wit::VendorCode { name, number }),
            retry_after_ms: retry_after.map(|after| u64::try_from(after.as_millis()).unwrap_or(u64::MAX)),
        }
    }
}

impl From<wit::Error> for Error {
    fn from(error: wit::Error) -> Self {
        let wit::Error { code, message, vendor, retry_after_ms } = error;
        Self {
            code: Code::from_number(code),
            message,
            vendor: vendor.map(|wit::VendorCode { name, number }| Vendor { name, number }),
            retry_after: retry_after_ms.map(Duration::from_millis),
        }
    }
}

impl From<Listing> for wit::Listing {
    fn from(listing: Listing) -> Self {
        let Listing { keys, findings } = listing;
        Self {
            keys: keys.into_iter().map(wit::Key::from).collect(),
            findings: findings.into_iter().map(wit::Finding::from).collect(),
        }
    }
}

/// How a key is called is the host's to say: a component's are called on lanes.
impl From<Key> for wit::Key {
    fn from(key: Key) -> Self {
        let Key { id, spki, label, algorithms, call_class: _ } = key;
        Self { id, spki, label, algorithms: algorithms.into_iter().map(Algorithm::number).collect() }
    }
}

impl From<Finding> for wit::Finding {
    fn from(finding: Finding) -> Self {
        let Finding { severity, subject, error, hint } = finding;
        Self {
            severity: match severity {
                Severity::Warning => wit::Severity::Warning,
                Severity::Error => wit::Severity::Error,
                Severity::Note => wit::Severity::Note,
            },
            subject,
            error: error.into(),
            hint,
        }
    }
}
