//! What the host and a process for plugins say to each other: frames on a socket, each a length and a message. Both ends
//! are of one build, so there are no versions; but the host believes nothing of what it reads.

use std::{borrow::Cow, collections::VecDeque, mem, path::PathBuf, time::Duration};

use keystead_plugin_api::{CallClass, Code, Error, Finding, Severity, abi::KEY_ID_MAX, algorithm::Operation};
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, Zeroizing};

use super::confine::Confinement;
use crate::{
    failure::tame,
    instance::{ALGORITHMS_MAX, RawKey, RawListing, Refusal, SPKI_MAX},
    reach::{Ask, Reached},
    services::Event,
};

/// The longest frame, in bytes: a page of a listing at its longest, and any configuration.
pub(super) const FRAME_MAX: usize = 4 << 20;

/// How many keys, and how many findings, one page of a listing holds at most.
pub(super) const PAGE: usize = 64;

/// How many frames leave in one system call.
const BATCH: usize = 64;

/// Bytes of the length that begins a frame; little-endian.
const LENGTH: usize = 4;

/// What an [`Inbox`] has room for, unless a longer frame is announced.
const ROOM: usize = 64 << 10;

/// From the host. Each that carries a `call` is answered once.
#[derive(Debug, Deserialize, PartialEq, Serialize)]
pub(super) enum Order<'a> {
    /// The first: what the process is to make of itself.
    Confine { call: u64, confinement: Confinement },
    /// Loads a plugin's file, to be known by a number.
    Load { call: u64, plugin: u32, file: PathBuf, sha256: Option<[u8; 32]> },
    /// Asks for the group of a store by its configuration.
    Group {
        call: u64,
        plugin: u32,
        #[serde(with = "serde_bytes")]
        config: &'a [u8],
    },
    /// Opens a store of a plugin, to be known by a number.
    Open {
        call: u64,
        plugin: u32,
        store: u32,
        level: u32,
        /// As many as are configured.
        lanes: Option<u32>,
        #[serde(with = "serde_bytes")]
        config: &'a [u8],
    },
    /// Lists the keys of a store.
    Keys { call: u64, store: u32, nanos_left: u64 },
    /// Asks a store how it is; and says which level of the log is wanted from now on.
    Health { call: u64, store: u32, nanos_left: u64, level: u32 },
    /// Signs or decrypts.
    Perform {
        call: u64,
        store: u32,
        #[serde(borrow)]
        work: Work<'a>,
    },
    /// Closes a store.
    Close { call: u64, store: u32, grace: Duration },
    /// What the process asked for.
    Told {
        ask: u64,
        #[serde(borrow)]
        told: Told<'a>,
    },
}

/// One call to a key.
#[derive(Debug, Deserialize, PartialEq, Serialize)]
pub(super) struct Work<'a> {
    pub(super) decrypt: bool,
    /// Whether the key is of class inline; others take a lane of the store.
    pub(super) inline: bool,
    pub(super) nanos_left: u64,
    pub(super) algorithm: u32,
    pub(super) capacity: u32,
    #[serde(with = "serde_bytes")]
    pub(super) key: &'a [u8],
    #[serde(with = "serde_bytes")]
    pub(super) input: &'a [u8],
    pub(super) request_id: &'a str,
}

/// An answer of the host.
#[derive(Debug, Deserialize, PartialEq, Serialize)]
pub(super) enum Told<'a> {
    /// The value of a secret.
    Secret(#[serde(with = "serde_bytes")] &'a [u8]),
    /// There is no such secret.
    NoSecret,
    /// The secret can't be read.
    Unreadable,
    /// Whether a token has refused a secret before.
    Refused(bool),
    /// What came of it.
    Reached(#[serde(borrow)] Result<Reached, Fault<'a>>),
}

/// From the process.
#[derive(Debug, Deserialize, PartialEq, Serialize)]
pub(super) enum Message<'a> {
    /// The answer to a call; a listing's pages come before it.
    Done {
        call: u64,
        #[serde(borrow)]
        outcome: Result<Reply<'a>, Fault<'a>>,
    },
    /// A page of a listing.
    Page {
        call: u64,
        #[serde(borrow)]
        keys: Vec<Entry<'a>>,
        #[serde(borrow)]
        findings: Vec<Remark<'a>>,
    },
    /// An event of a store's log.
    Log {
        store: u32,
        #[serde(borrow)]
        event: Event<'a>,
    },
    /// A store's keys have changed.
    KeysChanged { store: u32 },
    /// Asks for a secret of a store.
    Secret { ask: u64, store: u32, name: &'a str },
    /// Asks whether a token has refused a secret before; it is about to be presented.
    Refused {
        ask: u64,
        store: u32,
        #[serde(with = "serde_bytes")]
        token: &'a [u8],
        #[serde(with = "serde_bytes")]
        secret: &'a [u8],
    },
    /// What came of presenting it.
    Presented {
        store: u32,
        #[serde(with = "serde_bytes")]
        token: &'a [u8],
        #[serde(with = "serde_bytes")]
        secret: &'a [u8],
        accepted: bool,
    },
    /// Asks for what the host does for a store.
    Reach { ask: u64, store: u32, nanos_left: u64, what: Ask },
}

/// What a call gave.
#[derive(Debug, Deserialize, PartialEq, Serialize)]
pub(super) enum Reply<'a> {
    /// It is done.
    Done,
    /// What could not be done to confine the process, for the log; empty where all was.
    Confined(&'a str),
    /// What the plugin says it is.
    Loaded(#[serde(borrow)] Described<'a>),
    /// The group of a store.
    Group(Option<&'a str>),
    /// The generation of the listing.
    Health(u64),
    /// A signature or plaintext.
    Result(#[serde(with = "serde_bytes")] &'a [u8]),
    /// A store is open: with so many lanes, and with the plugin's advice on how long these may hang.
    Opened { lanes: u32, stuck_after: Option<Duration> },
}

/// A plugin's description.
#[derive(Debug, Deserialize, PartialEq, Serialize)]
pub(super) struct Described<'a> {
    pub(super) name: &'a str,
    pub(super) version: &'a str,
    pub(super) vendor: &'a str,
    pub(super) process: bool,
    pub(super) lanes_max: Option<u32>,
    pub(super) schema: Cow<'a, str>,
}

/// Why a call failed.
#[derive(Debug, Deserialize, PartialEq, Serialize)]
pub(super) struct Fault<'a> {
    code: u32,
    needed: u64,
    message: Cow<'a, str>,
    vendor: Option<(Cow<'a, str>, u64)>,
    retry_after: Option<Duration>,
}

/// A key of a listing.
#[derive(Debug, Deserialize, PartialEq, Serialize)]
pub(super) struct Entry<'a> {
    #[serde(with = "serde_bytes")]
    id: &'a [u8],
    #[serde(with = "serde_bytes")]
    spki: &'a [u8],
    label: &'a str,
    algorithms: Vec<u32>,
    inline: bool,
}

/// A finding of a listing.
#[derive(Debug, Deserialize, PartialEq, Serialize)]
pub(super) struct Remark<'a> {
    severity: u32,
    code: u32,
    subject: &'a str,
    message: &'a str,
    hint: &'a str,
}

impl Work<'_> {
    pub(super) fn operation(&self) -> Operation {
        if self.decrypt { Operation::Decrypt } else { Operation::Sign }
    }

    /// About as many bytes as it takes on the wire.
    pub(super) fn size(&self) -> usize {
        96 + self.key.len() + self.input.len() + self.request_id.len()
    }
}

impl<'a> From<&'a Refusal> for Fault<'a> {
    fn from(refusal: &'a Refusal) -> Self {
        let error = &refusal.error;
        Self {
            code: error.code as u32,
            needed: refusal.needed as u64,
            message: error.message.as_str().into(),
            vendor: error.vendor.as_ref().map(|vendor| (vendor.name.as_str().into(), vendor.number)),
            retry_after: error.retry_after,
        }
    }
}

impl Fault<'_> {
    /// The refusal, its text cut and escaped anew.
    pub(super) fn into_refusal(self) -> Refusal {
        let mut error = Error::new(Code::from_number(self.code), tame(self.message.as_bytes(), 1024));
        if let Some((name, number)) = self.vendor {
            error = error.with_vendor(tame(name.as_bytes(), 64), number);
        }
        if let Some(after) = self.retry_after {
            error = error.with_retry_after(after.min(crate::native::RETRY_AFTER_MAX));
        }
        Refusal { error, needed: usize::try_from(self.needed).unwrap_or(usize::MAX) }
    }
}

impl<'a> From<&'a RawKey> for Entry<'a> {
    fn from(key: &'a RawKey) -> Self {
        Self {
            id: &key.id,
            spki: &key.spki,
            label: &key.label,
            algorithms: key.algorithms.clone(),
            inline: key.class == CallClass::Inline,
        }
    }
}

impl Entry<'_> {
    /// The key. Of what is too long, one byte more is kept than will be accepted.
    fn to_key(&self) -> RawKey {
        RawKey {
            id: first(self.id, KEY_ID_MAX + 1).to_vec(),
            spki: first(self.spki, SPKI_MAX + 1).to_vec(),
            label: tame(self.label.as_bytes(), 256),
            algorithms: first(&self.algorithms, ALGORITHMS_MAX).to_vec(),
            class: if self.inline { CallClass::Inline } else { CallClass::Blocking },
        }
    }
}

impl<'a> From<&'a Finding> for Remark<'a> {
    fn from(finding: &'a Finding) -> Self {
        Self {
            severity: finding.severity as u32,
            code: finding.error.code as u32,
            subject: &finding.subject,
            message: &finding.error.message,
            hint: &finding.hint,
        }
    }
}

impl Remark<'_> {
    fn to_finding(&self) -> Finding {
        Finding {
            severity: Severity::from_number(self.severity).unwrap_or(Severity::Error),
            subject: tame(self.subject.as_bytes(), 1024),
            error: Error::new(Code::from_number(self.code), tame(self.message.as_bytes(), 1024)),
            hint: tame(self.hint.as_bytes(), 1024),
        }
    }
}

fn first<T>(all: &[T], most: usize) -> &[T] {
    all.get(..most).unwrap_or(all)
}

/// Adds a page to a listing; answers how many bytes more that takes.
pub(super) fn collect(listing: &mut RawListing, keys: &[Entry<'_>], findings: &[Remark<'_>]) -> usize {
    let mut size = 0;
    for key in keys.iter().map(Entry::to_key) {
        size += size_of_val(&key) + key.id.len() + key.spki.len() + key.label.len();
        size += size_of_val(key.algorithms.as_slice());
        listing.keys.push(key);
    }
    for finding in findings.iter().map(Remark::to_finding) {
        size += size_of_val(&finding) + finding.subject.len() + finding.error.message.len();
        size += finding.hint.len();
        listing.findings.push(finding);
    }
    size
}

/// The pages of a listing.
pub(super) fn pages(call: u64, listing: &RawListing) -> impl Iterator<Item = Message<'_>> {
    let pages = listing.keys.len().max(listing.findings.len()).div_ceil(PAGE);
    (0..pages).map(move |page| Message::Page {
        call,
        keys: listing.keys.iter().skip(page * PAGE).take(PAGE).map(Entry::from).collect(),
        findings: listing.findings.iter().skip(page * PAGE).take(PAGE).map(Remark::from).collect(),
    })
}

/// A message on its way. May hold secrets, so it is zeroed when dropped.
pub(super) type Frame = Zeroizing<Vec<u8>>;

/// The frames that leave next, in one system call.
pub(super) fn batch(waiting: &mut VecDeque<Frame>) -> Vec<Frame> {
    let batch = waiting.len().min(BATCH);
    waiting.drain(..batch).collect()
}

/// A message as a frame; `size` is about what the message takes, so that
/// it needn't be moved while it is written.
///
/// # Errors
///
/// Where it would be longer than [`FRAME_MAX`].
pub(super) fn frame(message: &impl Serialize, size: usize) -> Result<Frame, String> {
    let mut frame = Vec::with_capacity(LENGTH + size);
    frame.extend_from_slice(&[0; LENGTH]);
    let mut frame = Zeroizing::new(postcard::to_extend(message, frame).map_err(|error| error.to_string())?);
    let body = frame.len() - LENGTH;
    let length = u32::try_from(body).ok().filter(|_| body <= FRAME_MAX);
    let length = length.ok_or_else(|| format!("a message of {body} bytes is longer than {FRAME_MAX}"))?;
    for (place, byte) in frame.iter_mut().zip(length.to_le_bytes()) {
        *place = byte;
    }
    Ok(frame)
}

/// A frame's message. Nothing may be left over.
///
/// # Errors
///
/// What is wrong with it.
pub(super) fn message<'a, T: Deserialize<'a>>(frame: &'a [u8]) -> Result<T, String> {
    match postcard::take_from_bytes(frame) {
        Ok((message, [])) => Ok(message),
        Ok((_, rest)) => Err(format!("{} bytes are left over behind a message", rest.len())),
        Err(error) => Err(format!("a message can't be read: {error}")),
    }
}

/// Bytes that were read, until they make whole frames. What has been used is zeroed.
pub(super) struct Inbox {
    buffer: Vec<u8>,
    start: usize,
    end: usize,
}

impl Inbox {
    pub(super) fn new() -> Self {
        Self { buffer: vec![0; ROOM], start: 0, end: 0 }
    }

    /// Where to read to; never empty, as long as [`Self::next`] is asked until it has no more.
    pub(super) fn room(&mut self) -> &mut [u8] {
        if self.start > 0 {
            self.buffer.copy_within(self.start..self.end, 0);
            let rest = self.end - self.start;
            if let Some(used) = self.buffer.get_mut(rest..self.end) {
                used.zeroize();
            }
            (self.start, self.end) = (0, rest);
        }
        if self.end == self.buffer.len() {
            let mut longer = vec![0; (self.buffer.len() * 2).min(LENGTH + FRAME_MAX)];
            longer.iter_mut().zip(&self.buffer).for_each(|(to, from)| *to = *from);
            mem::replace(&mut self.buffer, longer).zeroize();
        }
        self.buffer.get_mut(self.end..).unwrap_or_default()
    }

    /// Notes that so many bytes were read.
    pub(super) fn filled(&mut self, bytes: usize) {
        self.end = (self.end + bytes).min(self.buffer.len());
    }

    /// The next whole frame.
    ///
    /// # Errors
    ///
    /// Where a frame is announced that is longer than [`FRAME_MAX`].
    pub(super) fn next(&mut self) -> Result<Option<&[u8]>, String> {
        let read = self.buffer.get(self.start..self.end).unwrap_or_default();
        let Some((length, rest)) = read.split_first_chunk::<LENGTH>() else { return Ok(None) };
        let length = u32::from_le_bytes(*length) as usize;
        if length > FRAME_MAX {
            return Err(format!("a message of {length} bytes is longer than {FRAME_MAX}"));
        }
        let Some(frame) = rest.get(..length) else { return Ok(None) };
        self.start += LENGTH + length;
        Ok(Some(frame))
    }
}

impl Drop for Inbox {
    fn drop(&mut self) {
        self.buffer.zeroize();
    }
}

#[cfg(test)]
pub(super) mod tests;
