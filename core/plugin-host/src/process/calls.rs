//! The calls to one process that haven't come back, and what may come back: an answer to a call that nobody made, of
//! another kind or longer than asked for, is a violation, in words. No I/O.

use std::{
    collections::HashMap,
    fmt, mem,
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, Instant},
};

use keystead_plugin_api::{Advice, Code, Error, Isolation};
use tokio::sync::oneshot;

use super::{
    gate::Place,
    lock,
    wire::{self, Described, Entry, Fault, PAGE, Remark, Reply},
};
use crate::{
    Description,
    failure::tame,
    instance::{RawListing, Refusal, believed},
    native::{ENTRIES_MAX, SCHEMA_MAX},
};

/// The most that one listing may hold, in bytes: for [`ENTRIES_MAX`] RSA keys of 16,384 bits, with room to spare.
const LISTING_MAX: usize = 256 << 20;

/// The calls that haven't come back.
#[derive(Default)]
pub(super) struct Calls(Mutex<Ledger>);

#[derive(Default)]
struct Ledger {
    next: u64,
    pending: HashMap<u64, Pending>,
    /// None will come back any more.
    closed: bool,
}

/// A call that hasn't come back.
struct Pending {
    answer: oneshot::Sender<Result<Given, CallError>>,
    expects: Expects,
    about: About,
    since: Instant,
    /// What its listing holds so far, in bytes.
    listed: usize,
    /// Given back when the call comes back, or the process is gone.
    place: Option<Place>,
}

impl Calls {
    /// Notes a call that is about to be made; answers its number, and where it comes back.
    ///
    /// # Errors
    ///
    /// Where none comes back any more.
    pub(super) fn begin(
        &self,
        expects: Expects,
        place: Option<Place>,
        about: About,
    ) -> Result<(u64, Answer), CallError> {
        let (answer, given) = oneshot::channel();
        let pending = Pending { answer, expects, about, since: Instant::now(), listed: 0, place };
        let mut ledger = self.ledger();
        if ledger.closed {
            return Err(CallError::Gone);
        }
        let call = ledger.next;
        ledger.next += 1;
        ledger.pending.insert(call, pending);
        Ok((call, Answer(given)))
    }

    /// Forgets a call that was not made after all.
    pub(super) fn withdraw(&self, call: u64) {
        self.ledger().pending.remove(&call);
    }

    /// For how long there have been so many calls to a store's keys that haven't come back. Neither its health nor what
    /// it says counts, which other threads may see to.
    pub(super) fn pending_for(&self, store: &str, calls: u32) -> Duration {
        let ledger = self.ledger();
        let of_store = |call: &&Pending| call.about.key.is_some() && &*call.about.store == store;
        let mut since: Vec<_> = ledger.pending.values().filter(of_store).map(|call| call.since).collect();
        since.sort_unstable();
        let last = since.get((calls as usize).saturating_sub(1));
        last.map(Instant::elapsed).unwrap_or_default()
    }

    /// Adds a page to the listing that a call gives.
    ///
    /// # Errors
    ///
    /// What is wrong with it.
    pub(super) fn page(&self, call: u64, keys: &[Entry<'_>], findings: &[Remark<'_>]) -> Result<(), String> {
        let mut ledger = self.ledger();
        match ledger.pending.get_mut(&call) {
            Some(Pending { expects: Expects::Listing(listing), listed, .. }) => {
                add(listing, listed, keys, findings)
            }
            _ => Err("it sent a page of a listing that nobody asked for".to_owned()),
        }
    }

    /// Hands what came back to whoever waits; answers the number of a store that was opened where nobody does any more.
    ///
    /// # Errors
    ///
    /// What is wrong with it.
    pub(super) fn done(
        &self,
        call: u64,
        outcome: Result<Reply<'_>, Fault<'_>>,
    ) -> Result<Option<u32>, String> {
        let pending = self.ledger().pending.remove(&call);
        let Some(Pending { answer, expects, .. }) = pending else {
            return Err("it answered a call that nobody made, or one twice".to_owned());
        };
        let opened = if let Expects::Opened(store) = expects { Some(store) } else { None };
        let given = match outcome {
            Err(fault) => Err(fault.into_refusal().into()),
            Ok(reply) => Ok(expects.given(reply)?),
        };
        let abandoned = answer.send(given).is_err_and(|given| given.is_ok());
        Ok(opened.filter(|_| abandoned))
    }

    /// Lets go of every call, since none will come back. Answers what the last was about, and how many there were.
    pub(super) fn abandon(&self) -> Option<String> {
        let pending = {
            let mut ledger = self.ledger();
            ledger.closed = true;
            mem::take(&mut ledger.pending)
        };
        let last = pending.iter().max_by_key(|(call, _)| **call);
        let others = pending.len().saturating_sub(1);
        let last = last.map(|(_, last)| match others {
            0 => last.about.to_string(),
            others => format!("{} ({others} other calls in flight)", last.about),
        });
        release(pending);
        last
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        lock(&self.0)
    }
}

/// Lets go of calls. Those of one gate take its lanes in the order they were made, so that of many only the first can
/// have had a part in what happened.
fn release(pending: HashMap<u64, Pending>) {
    let mut pending: Vec<_> = pending.into_iter().collect();
    pending.sort_unstable_by_key(|(call, _)| *call);
    let mut begun: HashMap<_, u32> = HashMap::new();
    for (_, Pending { answer, place, .. }) in pending {
        let before = place.as_ref().map(|place| begun.entry(place.gate()).or_default());
        let waited = before.zip(place.as_ref()).is_some_and(|(before, place)| {
            *before += 1;
            *before > place.lanes()
        });
        // Whoever has given up needs no answer.
        let _ = answer.send(Err(if waited { CallError::Waited } else { CallError::Gone }));
    }
}

/// What a call may be answered with.
pub(super) enum Expects {
    Done,
    /// That a store of this number is open; it is closed where nobody waits for it any more.
    Opened(u32),
    Confined,
    Loaded,
    Group,
    Health,
    Listing(RawListing),
    /// As many bytes at most.
    Result(usize),
}

/// What a call gave.
#[derive(Debug)]
pub(super) enum Given {
    Done,
    Opened(Advice),
    Text(Option<String>),
    Loaded(Description),
    Health(u64),
    Listing(RawListing),
    Result(Vec<u8>),
}

/// What a call is about, for the line that tells a death.
#[derive(Clone)]
pub(super) struct About {
    pub(super) doing: &'static str,
    pub(super) key: Option<Arc<crate::Key>>,
    pub(super) store: Arc<str>,
}

impl fmt::Display for About {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.doing)?;
        if let Some(key) = &self.key {
            write!(f, " with key `{}`", key.label())?;
        }
        if self.store.is_empty() { Ok(()) } else { write!(f, " of store `{}`", self.store) }
    }
}

/// What comes of a call.
pub(super) struct Answer(oneshot::Receiver<Result<Given, CallError>>);

/// Why a call gave nothing.
#[derive(Debug)]
pub(super) enum CallError {
    /// The process is gone, maybe for this call.
    Gone,
    /// The process is gone, and the call had not begun.
    Waited,
    /// What the plugin answered.
    Refused(Refusal),
}

impl From<Refusal> for CallError {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl Answer {
    pub(super) async fn given(self) -> Result<Given, CallError> {
        self.0.await.unwrap_or(Err(CallError::Gone))
    }
}

impl About {
    pub(super) fn new(doing: &'static str, store: &str) -> Self {
        Self { doing, key: None, store: store.into() }
    }
}

impl Expects {
    /// What a reply gives; an error where it is none to this call.
    fn given(self, reply: Reply<'_>) -> Result<Given, String> {
        Ok(match (self, reply) {
            (Self::Done, Reply::Done) => Given::Done,
            (Self::Opened(_), Reply::Opened { lanes, stuck_after }) => {
                Given::Opened(believed(Advice { lanes: Some(lanes), stuck_after }))
            }
            (Self::Listing(listing), Reply::Done) => Given::Listing(listing),
            (Self::Confined, Reply::Confined(text)) => Given::Text(Some(tame(text.as_bytes(), 1024))),
            (Self::Group, Reply::Group(name)) => Given::Text(name.map(|name| tame(name.as_bytes(), 4096))),
            (Self::Health, Reply::Health(generation)) => Given::Health(generation),
            (Self::Loaded, Reply::Loaded(said)) => Given::Loaded(described(&said)?),
            (Self::Result(most), Reply::Result(result)) if result.len() <= most => {
                Given::Result(result.to_vec())
            }
            (Self::Result(_), Reply::Result(_)) => {
                return Err("its result is longer than asked for".to_owned());
            }
            _ => return Err("it answered a call with something else".to_owned()),
        })
    }
}

/// Adds a page to a listing, as long as that doesn't get too long.
fn add(
    listing: &mut RawListing,
    listed: &mut usize,
    keys: &[Entry<'_>],
    findings: &[Remark<'_>],
) -> Result<(), String> {
    if keys.len().max(findings.len()) > PAGE {
        return Err(format!("a page of its listing holds more than {PAGE} keys or findings"));
    }
    *listed += wire::collect(listing, keys, findings);
    if listing.keys.len().max(listing.findings.len()) > ENTRIES_MAX {
        return Err(format!("it lists more than {ENTRIES_MAX} keys or findings"));
    }
    match *listed > LISTING_MAX {
        true => Err(format!("its listing is longer than {LISTING_MAX} bytes")),
        false => Ok(()),
    }
}

fn described(said: &Described<'_>) -> Result<Description, String> {
    let [name, version, vendor] = [said.name, said.version, said.vendor].map(str::as_bytes);
    let schema = said.schema.as_bytes();
    let schema = schema.get(..SCHEMA_MAX).unwrap_or(schema); // what is cut is no JSON any more
    let mut description = Description::checked(name, version, vendor, schema)?;
    description.isolation = if said.process { Isolation::Process } else { Isolation::Inline };
    description.lanes_max = said.lanes_max.filter(|lanes| *lanes > 0);
    Ok(description)
}

impl From<CallError> for crate::Failure {
    fn from(error: CallError) -> Self {
        match error {
            CallError::Gone | CallError::Waited => {
                Error::new(Code::Unavailable, "the plugin's process died during the call").into()
            }
            CallError::Refused(refusal) => refusal.into(),
        }
    }
}

#[cfg(test)]
mod tests;
