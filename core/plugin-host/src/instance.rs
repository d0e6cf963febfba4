//! The host's own view of an open plugin, whatever door it came in by.

use std::time::{Duration, Instant};

use keystead_plugin_api::{
    Advice, CallClass, Code, Error, Isolation, Severity, abi::DRAFT, algorithm::Operation,
};

use crate::Failure;

/// The longest SubjectPublicKeyInfo: an RSA key of 16,384 bits has some 2 kB.
pub(crate) const SPKI_MAX: usize = 16 << 10;

/// How many algorithms of a key are looked at.
pub(crate) const ALGORITHMS_MAX: usize = 1024;

/// The longest name, version and vendor of a plugin, in bytes.
pub(crate) const NAME_MAX: usize = 64;

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

impl Description {
    /// Believes what a plugin says of itself only where it is short and printable.
    pub(crate) fn checked(name: &[u8], version: &[u8], vendor: &[u8], schema: &[u8]) -> Result<Self, String> {
        let schema: serde_json::Value = serde_json::from_slice(schema).unwrap_or_default();
        if !schema.is_object() {
            return Err("the schema of its configuration is not a JSON object".to_owned());
        }
        Ok(Self {
            name: short(name, "name")?,
            version: short(version, "version")?,
            vendor: short(vendor, "vendor")?,
            contract: DRAFT,
            isolation: Isolation::Inline,
            lanes_max: None,
            schema,
        })
    }
}

fn short(text: &[u8], what: &str) -> Result<String, String> {
    let text = std::str::from_utf8(text).unwrap_or_default();
    if text.is_empty() || text.len() > NAME_MAX || text.contains(char::is_control) {
        return Err(format!("its {what} is not 1 to {NAME_MAX} bytes of text"));
    }
    Ok(text.to_owned())
}

/// Something that could not be opened, or that the operator should know.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// What it is about.
    pub subject: String,
    /// What is wrong. Of a note only the message counts: what is so.
    pub failure: Failure,
    /// What to do next; may be empty.
    pub hint: String,
}

impl Finding {
    /// Something that works, but that the operator should know, and what to do about it.
    #[must_use]
    pub fn warning(subject: &str, failure: Failure, hint: &str) -> Self {
        Self { severity: Severity::Warning, subject: subject.to_owned(), failure, hint: hint.to_owned() }
    }
}

impl From<keystead_plugin_api::Finding> for Finding {
    fn from(finding: keystead_plugin_api::Finding) -> Self {
        let keystead_plugin_api::Finding { severity, subject, error, hint } = finding;
        Self { severity, subject, failure: error.into(), hint }
    }
}

/// One open store of a plugin. Every method may block.
pub(crate) trait Instance: Send + Sync {
    /// Lists the keys, page by page.
    fn keys(&self, call: &Call<'_>) -> Result<RawListing, Refusal>;

    /// Signs or decrypts; answers how many bytes of `out` are the result.
    fn perform(
        &self,
        call: &Call<'_>,
        operation: Operation,
        key: &[u8],
        algorithm: u32,
        input: &[u8],
        out: &mut [u8],
    ) -> Result<usize, Refusal>;

    /// Asks how it is; answers the generation of the listing.
    fn health(&self, call: &Call<'_>) -> Result<u64, Refusal>;

    /// How it is best used.
    fn advice(&self) -> Advice;

    /// Lets no further call start.
    fn stop(&self);

    /// Stops it, waits for calls and ends it, in `grace` all in all. Nothing is called after this.
    fn close(&self, grace: Duration);
}

/// What is believed of a plugin's advice: whatever makes no sense is no opinion.
pub(crate) fn believed(advice: Advice) -> Advice {
    let hour = Duration::from_secs(3_600);
    Advice {
        lanes: advice.lanes.filter(|lanes| (1..=1024).contains(lanes)),
        stuck_after: advice.stuck_after.filter(|time| (Duration::from_secs(1)..=hour).contains(time)),
    }
}

/// What goes with a call.
pub(crate) struct Call<'a> {
    pub(crate) lane: u32,
    pub(crate) deadline: Option<Instant>,
    pub(crate) request_id: &'a str,
}

/// Why a call failed, in the contract's own terms. Its text has been cut and escaped.
#[derive(Clone, Debug)]
pub(crate) struct Refusal {
    pub(crate) error: Error,
    /// With [`Code::BufferTooSmall`]: how many bytes are needed.
    pub(crate) needed: usize,
}

impl Refusal {
    pub(crate) fn new(code: Code, message: impl Into<String>) -> Self {
        Error::new(code, message).into()
    }
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        Self { error, needed: 0 }
    }
}

/// A listing as the plugin gave it.
#[derive(Debug, Default)]
pub(crate) struct RawListing {
    pub(crate) keys: Vec<RawKey>,
    pub(crate) findings: Vec<keystead_plugin_api::Finding>,
}

/// A key as the plugin gave it.
#[derive(Debug)]
pub(crate) struct RawKey {
    pub(crate) id: Vec<u8>,
    pub(crate) spki: Vec<u8>,
    pub(crate) label: String,
    pub(crate) algorithms: Vec<u32>,
    pub(crate) class: CallClass,
}
