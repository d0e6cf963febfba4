//! What an author implements, and all that a plugin gives to and gets from the host.

use std::{
    fmt,
    time::{Duration, Instant},
};

use zeroize::Zeroizing;

use crate::{Algorithm, Code, Error, Host, algorithm::Operation};

/// A backend for private keys.
///
/// One value is one open store. Calls come from many threads; see [`Lane`] for what never overlaps. A panic is caught
/// and answered as [`Code::Internal`].
pub trait Backend: Send + Sync + Sized + 'static {
    /// What the plugin is.
    const DESCRIPTION: Description;

    /// Names the group of a store by its configuration, before any is open: stores of one group share a process, where
    /// the plugin runs in processes of its own. A PKCS#11 module is such a group, since vendors count sessions by
    /// process. `None` is the plugin's common group. Opens nothing, and takes any configuration.
    fn isolation_group(config: &serde_json::Value) -> Option<String> {
        let _ = config;
        None
    }

    /// Opens a store with the configuration and secrets that `host` holds.
    ///
    /// What concerns the whole store is an error here; what concerns one key among many is a [`Finding`] of
    /// [`keys`](Self::keys), so that one bad entry doesn't hide the others.
    ///
    /// # Errors
    ///
    /// The host retries [`Code::Unavailable`] and [`Code::Throttled`] with back-off; anything else waits for a new
    /// configuration.
    fn open(host: Host) -> Result<Self, Error>;

    /// Lists every key, with what could not be opened and why.
    ///
    /// # Errors
    ///
    /// Where no listing can be had at all; the host keeps the former one and tries again.
    fn keys(&self, call: &Call<'_>) -> Result<Listing, Error>;

    /// Signs `input` with the key of an id from the listing and writes the signature to `out`: PKCS#1 and PSS as long
    /// as the modulus, ECDSA as DER, Ed25519 64 bytes. The length of a digest has been checked.
    ///
    /// # Errors
    ///
    /// Any [`Code`].
    fn sign(
        &self,
        call: &Call<'_>,
        key: &[u8],
        algorithm: Algorithm,
        input: &[u8],
        out: &mut Output<'_>,
    ) -> Result<(), Error>;

    /// Decrypts `input` likewise; see [`Algorithm::RsaRaw`].
    ///
    /// # Errors
    ///
    /// Any [`Code`].
    fn decrypt(
        &self,
        call: &Call<'_>,
        key: &[u8],
        algorithm: Algorithm,
        input: &[u8],
        out: &mut Output<'_>,
    ) -> Result<(), Error>;

    /// How this store is best used, where its configuration doesn't say. Asked once, after `open`.
    fn advice(&self) -> Advice {
        Advice::default()
    }

    /// Called every 30 s; the place for keep-alives.
    ///
    /// # Errors
    ///
    /// Where the store can't serve at the moment.
    fn health(&self, call: &Call<'_>) -> Result<Health, Error>;

    /// Ends the store within `grace`. No call starts after it, but some may still hang.
    fn close(&self, grace: Duration);
}

/// What a plugin is.
#[derive(Clone, Copy, Debug)]
#[expect(clippy::exhaustive_structs, reason = "a plugin writes it as a literal")]
pub struct Description {
    /// Short name, the `NAME` of `libkeystead_plugin_NAME.so`.
    pub name: &'static str,
    /// The plugin's own version.
    pub version: &'static str,
    /// Who made it.
    pub vendor: &'static str,
    /// Where it would rather run.
    pub isolation: Isolation,
    /// The most lanes one store can use; `None` where there is no limit.
    pub lanes_max: Option<u32>,
    /// JSON Schema of its configuration, by which the host checks it first ([`schema`](crate::schema)); secrets are
    /// marked `"writeOnly": true`.
    pub schema: &'static str,
}

/// Where a plugin runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "there are no more places to run")]
pub enum Isolation {
    /// In the server's own process.
    Inline,
    /// In a child process; preferred by plugins that run a vendor's C code.
    Process,
}

/// What the host says with each call.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Call<'a> {
    /// When nobody waits for the answer any more; `None` where there is no deadline.
    pub deadline: Option<Instant>,
    /// The lane.
    pub lane: Lane,
    /// The request's id, for logs; may be empty. Events logged within the call carry it already.
    pub request_id: &'a str,
}

/// What may overlap: calls on one numbered lane never do, so a plugin can keep a session for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "a plugin matches all of them")]
pub enum Lane {
    /// For keys of class [`CallClass::Inline`]: may overlap with anything.
    Inline,
    /// A lane of the store, from 0 to the number of lanes less one.
    Number(u32),
    /// The lane of `keys` and `health`.
    Housekeeping,
}

/// How long a call to a key takes, and what it waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "the contract has two")]
pub enum CallClass {
    /// Short and pure CPU, at most about 1 ms: called on the thread that read the request.
    Inline,
    /// Waits for a device or the network, or computes for long: called on the store's lanes.
    Blocking,
}

/// One key of a listing.
#[derive(Clone, Debug)]
#[expect(clippy::exhaustive_structs, reason = "a plugin writes it as a literal")]
pub struct Key {
    /// Opaque id, 1 to 255 bytes; the same after re-opening and restarting.
    pub id: Vec<u8>,
    /// DER SubjectPublicKeyInfo (RFC 5280 section 4.1).
    pub spki: Vec<u8>,
    /// What the operator calls it: a path, a CKA_LABEL. Never a secret.
    pub label: String,
    /// What this key can really do.
    pub algorithms: Vec<Algorithm>,
    /// How it is called.
    pub call_class: CallClass,
}

/// Every key of a store, with what could not be opened.
#[derive(Clone, Debug, Default)]
#[expect(clippy::exhaustive_structs, reason = "a plugin writes it as a literal")]
pub struct Listing {
    /// The keys.
    pub keys: Vec<Key>,
    /// What the operator should know.
    pub findings: Vec<Finding>,
}

/// Something that could not be opened, or that the operator should know.
#[derive(Clone, Debug)]
#[expect(clippy::exhaustive_structs, reason = "a plugin writes it as a literal")]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// What it is about: a path, an entry of the configuration. Never a secret. Notes with the same subject that follow
    /// each other are shown as one block.
    pub subject: String,
    /// What is wrong, with its class. Of a note only the message counts: what is so.
    pub error: Error,
    /// What to do next; may be empty.
    pub hint: String,
}

impl Finding {
    /// A note: what there is, or why something was passed over. Nothing is wrong, so it has no class that counts.
    pub fn note(subject: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            severity: Severity::Note,
            subject: subject.into(),
            error: Error::new(Code::from_number(0), message),
            hint: String::new(),
        }
    }
}

/// How bad a [`Finding`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "the contract has three")]
#[repr(u32)]
pub enum Severity {
    /// It works, but the operator should know.
    Warning = 0,
    /// This entry isn't served.
    Error = 1,
    /// Good to know, and nothing is wrong: what there is, and why something was passed over. Told by `keystead check`,
    /// logged at debug only.
    Note = 2,
}

impl Severity {
    /// The severity of a number; `None` for one that the contract doesn't have.
    #[must_use]
    pub const fn from_number(number: u32) -> Option<Self> {
        match number {
            0 => Some(Self::Warning),
            1 => Some(Self::Error),
            2 => Some(Self::Note),
            _ => None,
        }
    }

    /// The name used in output.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Warning => "warning",
            Self::Error => "error",
            Self::Note => "note",
        }
    }
}

/// How a store is best used, where its configuration doesn't say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(clippy::exhaustive_structs, reason = "a plugin writes it as a literal")]
pub struct Advice {
    /// How many lanes get the most out of it; `None` for no opinion.
    pub lanes: Option<u32>,
    /// How long all its lanes may hang in calls before none will come back, to the millisecond; `None` for no opinion.
    pub stuck_after: Option<Duration>,
}

/// What [`Backend::health`] answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(clippy::exhaustive_structs, reason = "a plugin writes it as a literal")]
pub struct Health {
    /// Changes whenever the listing of keys has changed: the host then lists again.
    pub generation: u64,
}

/// The host's buffer for a result.
#[derive(Debug)]
pub struct Output<'a> {
    buffer: &'a mut [u8],
    len: usize,
}

impl<'a> Output<'a> {
    /// An empty result over a buffer.
    pub fn new(buffer: &'a mut [u8]) -> Self {
        Self { buffer, len: 0 }
    }

    /// Makes `bytes` the result.
    ///
    /// # Errors
    ///
    /// [`Code::BufferTooSmall`] where they don't fit.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.reserve(bytes.len())?.copy_from_slice(bytes);
        Ok(())
    }

    /// Makes the result `len` bytes long and gives them to be written in place.
    ///
    /// # Errors
    ///
    /// [`Code::BufferTooSmall`] where they don't fit.
    pub fn reserve(&mut self, len: usize) -> Result<&mut [u8], Error> {
        self.len = len;
        self.buffer
            .get_mut(..len)
            .ok_or_else(|| Error::new(Code::BufferTooSmall, format!("the result needs {len} bytes")))
    }

    /// How long the result is, or would have to be.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing was written.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

/// The value of a secret; zeroed when dropped, never printed.
#[derive(Clone)]
pub struct Secret(Zeroizing<Vec<u8>>);

impl Secret {
    /// Takes a value over.
    #[must_use]
    pub fn new(value: Vec<u8>) -> Self {
        Self(Zeroizing::new(value))
    }

    /// The bytes.
    #[must_use]
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

impl Call<'_> {
    /// How long somebody still waits for the answer; `None` where there is no deadline.
    #[must_use]
    pub fn time_left(&self) -> Option<Duration> {
        self.deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()))
    }
}

/// The algorithm of a call that comes over the boundary, if it is known, and takes such an input.
pub(crate) fn acceptable(operation: Operation, algorithm: u32, input: &[u8]) -> Result<Algorithm, Error> {
    let known = Algorithm::from_number(algorithm)
        .filter(|known| known.operation() == operation)
        .ok_or_else(|| Error::new(Code::Unsupported, format!("algorithm {algorithm:#x} is not supported")))?;
    if !known.takes(input) {
        return Err(Error::invalid(format!("{known} does not take an input of {} bytes", input.len())));
    }
    Ok(known)
}
