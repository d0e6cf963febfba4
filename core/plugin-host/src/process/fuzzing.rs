//! The claims of the fuzz targets, each a function over arbitrary bytes that panics where a claim doesn't hold: whatever
//! a process says, the host neither fails nor holds more than it may, and what it believes was asked for.
//!
//! An input of [`inbox`] and [`child`] begins with `HEAD` bytes that say how the rest arrives: eight sizes of reads,
//! and how often it all is repeated, which makes long frames of short inputs.

use std::{
    collections::BTreeSet,
    future::Future,
    pin::pin,
    task::{Context, Poll, Waker},
};

use keystead_plugin_api::abi::KEY_ID_MAX;
use std::{sync::Arc, time::Duration};

use tokio::runtime::Handle;
use zeroize::Zeroizing;

use super::{
    calls::{About, Answer, CallError, Calls, Expects, Given},
    desk::{Desk, Next},
    wire::{self, FRAME_MAX, Inbox, Message},
};
use crate::{
    instance::{ALGORITHMS_MAX, RawListing, SPKI_MAX},
    native::ENTRIES_MAX,
    reach::Reach,
    services::{Event, HostSide},
};

/// How many bytes of an input say how the rest arrives.
const HEAD: usize = 9;

/// Bytes of the length that begins a frame.
const LENGTH: usize = 4;

/// What room is made of.
const ZEROS: [u8; 4096] = [0; 4096];

/// The most bytes of the result that is asked for.
const RESULT_MAX: usize = 64;

/// The longest text that is believed, in bytes: cut to 4096, and an ellipsis.
const TEXT_MAX: usize = 4096 + 3;

/// However a stream is cut into reads, its frames are found, and in their order; and what was read stays nowhere.
pub fn inbox(input: &[u8]) {
    let (sizes, stream) = arrival(input);
    let mut found = Vec::new();
    let read = read(&sizes, &stream, |frame| {
        found.push(frame.to_vec());
        Ok(())
    });
    let (frames, violated) = split(&stream);
    assert_eq!((found, read.is_err()), (frames, violated));
}

/// What is believed to be a message is written again, and is then read as the same; with a byte behind it, it is none.
pub fn message(input: &[u8]) {
    let Ok(message) = wire::message::<Message<'_>>(input) else { return };
    assert!(wire::message::<Message<'_>>(&[input, &[0]].concat()).is_err(), "a byte is left over");
    let frame = match wire::frame(&message, input.len()) {
        Ok(frame) => frame,
        Err(error) => return assert!(input.len() > FRAME_MAX, "{error}"),
    };
    let Some((length, body)) = frame.split_first_chunk::<LENGTH>() else { panic!("no length") };
    assert_eq!(u32::from_le_bytes(*length) as usize, body.len());
    assert!(body.len() <= input.len(), "a message is written as short as may be");
    assert_eq!(wire::message::<Message<'_>>(body).as_ref(), Ok(&message));
}

/// A process that says anything, with calls of every kind pending. An answer is taken for a pending call and no other,
/// what is given is no more than was asked for, and every call comes to something.
pub fn child(input: &[u8]) {
    let (calls, desk) = (Calls::default(), Desk::new(0));
    desk.attach(0, &Anybody);
    let (mut pending, waiting) = begin(&calls);
    let (sizes, stream) = arrival(input);
    let _ = read(&sizes, &stream, |frame| {
        let message = wire::message(frame)?;
        let done = if let Message::Done { call, .. } = &message { Some(*call) } else { None };
        let expected = done.is_none_or(|call| pending.remove(&call));
        let next = desk.take(&calls, message)?;
        assert!(expected, "an answer to no call is a violation");
        sound(&next, done);
        Ok(())
    });
    assert_eq!(calls.abandon().is_some(), !pending.is_empty());
    for (call, answer) in waiting {
        let given = given(answer);
        assert!(!pending.contains(&call) || matches!(given, Err(CallError::Gone)), "nobody has answered it");
        modest(given);
    }
}

/// Makes calls of every kind, each twice: for one of both, nobody waits any more. Answers the numbers of all.
fn begin(calls: &Calls) -> (BTreeSet<u64>, Vec<(u64, Answer)>) {
    let kinds = || {
        [
            Expects::Done,
            Expects::Opened(3),
            Expects::Confined,
            Expects::Loaded,
            Expects::Group,
            Expects::Health,
            Expects::Listing(RawListing::default()),
            Expects::Result(RESULT_MAX),
        ]
    };
    let call = |expects| calls.begin(expects, None, About::new("fuzzing", "store"));
    let waiting: Vec<_> = kinds().into_iter().flat_map(call).collect();
    let left: Vec<_> = kinds().into_iter().flat_map(call).map(|(call, _)| call).collect();
    (waiting.iter().map(|(call, _)| *call).chain(left).collect(), waiting)
}

/// What follows from a message: a store is closed that was opened in vain, a question is answered by its number.
fn sound(next: &Next, done: Option<u64>) {
    match next {
        Next::Nothing => {}
        Next::Close(store) => assert!(*store == 3 && done == Some(9), "the one that nobody waits for"),
        Next::Tell(..) => assert_eq!(done, None),
        Next::LookUp { name, .. } => assert!(done.is_none() && name.len() <= 256),
        Next::Reach { time, what, .. } => {
            assert!(done.is_none() && *time <= Duration::from_secs(60) && what.size() <= FRAME_MAX + 4096);
        }
    }
}

fn given(answer: Answer) -> Result<Given, CallError> {
    let mut context = Context::from_waker(Waker::noop());
    match pin!(answer.given()).poll(&mut context) {
        Poll::Ready(given) => given,
        Poll::Pending => panic!("a call comes to nothing"),
    }
}

/// What was given holds no more than it may.
fn modest(given: Result<Given, CallError>) {
    match given {
        Ok(Given::Result(result)) => assert!(result.len() <= RESULT_MAX),
        Ok(Given::Text(text)) => assert!(text.unwrap_or_default().len() <= TEXT_MAX),
        Ok(Given::Listing(listing)) => {
            assert!(listing.keys.len().max(listing.findings.len()) <= ENTRIES_MAX);
            assert!(listing.keys.iter().all(|key| key.id.len() <= KEY_ID_MAX + 1
                && key.spki.len() <= SPKI_MAX + 1
                && key.algorithms.len() <= ALGORITHMS_MAX
                && key.label.len() <= TEXT_MAX));
        }
        Ok(Given::Loaded(said)) => assert!(said.name.len().max(said.vendor.len()) <= TEXT_MAX),
        Err(CallError::Refused(refusal)) => assert!(refusal.error.message.len() <= TEXT_MAX),
        Ok(Given::Opened(advice)) => assert!(advice.lanes.is_none_or(|lanes| lanes <= 1024)),
        Ok(Given::Done | Given::Health(_)) | Err(CallError::Gone | CallError::Waited) => {}
    }
}

/// How an input arrives: the sizes of the reads, and all of it.
fn arrival(input: &[u8]) -> ([u8; 8], Vec<u8>) {
    match input.split_first_chunk::<HEAD>() {
        Some(([sizes @ .., times], stream)) => (*sizes, stream.repeat(1 + usize::from(times % 64))),
        None => ([0; 8], input.to_vec()),
    }
}

/// Reads a stream as a link does, in reads of these sizes.
fn read(
    sizes: &[u8; 8],
    mut stream: &[u8],
    mut take: impl FnMut(&[u8]) -> Result<(), String>,
) -> Result<(), String> {
    let mut inbox = Inbox::new();
    for size in sizes.iter().cycle() {
        let room = inbox.room();
        assert!(!room.is_empty() && room.len() <= LENGTH + FRAME_MAX);
        let most = read_size(*size).min(room.len()).min(stream.len());
        let (Some(room), Some((arrived, rest))) = (room.get_mut(..most), stream.split_at_checked(most))
        else {
            break;
        };
        if arrived.is_empty() {
            break;
        }
        room.copy_from_slice(arrived);
        stream = rest;
        inbox.filled(arrived.len());
        while let Some(frame) = inbox.next()? {
            take(frame)?;
        }
    }
    assert!(inbox.room().chunks(ZEROS.len()).all(|room| ZEROS.starts_with(room)), "what was used is zeroed");
    Ok(())
}

/// What a byte says of a read: a few bytes, some of a page, or all there is.
fn read_size(size: u8) -> usize {
    match usize::from(size) {
        0 => usize::MAX,
        few @ 1..128 => few,
        more => (more - 127) * 512,
    }
}

/// The frames of a stream, and whether one is announced that is too long.
fn split(mut stream: &[u8]) -> (Vec<Vec<u8>>, bool) {
    let mut frames = Vec::new();
    while let Some((length, rest)) = stream.split_first_chunk::<LENGTH>() {
        let length = u32::from_le_bytes(*length) as usize;
        if length > FRAME_MAX {
            return (frames, true);
        }
        let Some((frame, behind)) = rest.split_at_checked(length) else { break };
        frames.push(frame.to_vec());
        stream = behind;
    }
    (frames, false)
}

/// A store's side that keeps nothing, so that an input does the same whatever came before it.
struct Anybody;

impl HostSide for Anybody {
    fn wants(&self, _level: u32) -> bool {
        true
    }

    fn log(&self, event: &Event<'_>) {
        let text = crate::failure::tame(event.message, 1024);
        assert!(text.len() <= TEXT_MAX && !text.contains(char::is_control));
    }

    fn config(&self) -> Option<Zeroizing<Vec<u8>>> {
        None
    }

    fn secret(&self, _name: &str) -> Option<Result<Zeroizing<Vec<u8>>, String>> {
        panic!("a secret is read elsewhere")
    }

    fn keys_changed(&self) {}

    fn was_refused(&self, token: &[u8], secret: &[u8]) -> bool {
        token == secret
    }

    fn presented(&self, _token: &[u8], _secret: &[u8], _accepted: bool) {}

    fn reaching(&self) -> Option<(Arc<Reach>, Handle)> {
        None
    }
}

#[cfg(test)]
mod tests;
