//! The host's own view of an open plugin, whatever door it came in by.

use std::time::{Duration, Instant};

use keystead_plugin_api::{CallClass, Isolation, Severity, algorithm::Operation};

use crate::Failure;

/// The longest SubjectPublicKeyInfo: an RSA key of 16,384 bits has some 2 kB.
pub(crate) const SPKI_MAX: usize = 16 << 10;

/// What a plugin says it is, checked: text is short and printable, the schema is a JSON object.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Description {
    /// What it calls itself.
    pub name: String,
    /// Its own version.
    pub version: String,
    /// Who made it.
    pub vendor: String,
    /// The draft of the contract it was built for.
    pub contract: u32,
    /// Where it would rather run.
    pub isolation: Isolation,
    /// The most lanes one store can use.
    pub lanes_max: Option<u32>,
    /// JSON Schema of its configuration.
    pub schema: serde_json::Value,
}

/// Something that could not be opened, or that the operator should know.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// What it is about.
    pub subject: String,
    /// What is wrong.
    pub failure: Failure,
    /// What to do next; may be empty.
    pub hint: String,
}

/// One open store of a plugin. Every method may block.
pub(crate) trait Instance: Send + Sync {
    /// Lists the keys, page by page.
    fn keys(&self, call: &Call<'_>) -> Result<RawListing, Failure>;

    /// Signs or decrypts; answers how many bytes of `out` are the result.
    fn perform(
        &self,
        call: &Call<'_>,
        operation: Operation,
        key: &[u8],
        algorithm: u32,
        input: &[u8],
        out: &mut [u8],
    ) -> Result<usize, Failure>;

    /// Asks how it is; answers the generation of the listing.
    fn health(&self, call: &Call<'_>) -> Result<u64, Failure>;

    /// Lets no further call start.
    fn stop(&self);

    /// Stops it, waits for calls and ends it, in `grace` all in all. Nothing is called after this.
    fn close(&self, grace: Duration);
}

/// What goes with a call.
pub(crate) struct Call<'a> {
    pub(crate) lane: u32,
    pub(crate) deadline: Option<Instant>,
    pub(crate) request_id: &'a str,
}

/// A listing as the plugin gave it.
#[derive(Default)]
pub(crate) struct RawListing {
    pub(crate) keys: Vec<RawKey>,
    pub(crate) findings: Vec<Finding>,
}

/// A key as the plugin gave it.
pub(crate) struct RawKey {
    pub(crate) id: Vec<u8>,
    pub(crate) spki: Vec<u8>,
    pub(crate) label: String,
    pub(crate) algorithms: Vec<u32>,
    pub(crate) class: CallClass,
}
