//! What a call does beside, or instead of, what it should.

use std::hint::black_box;

use serde::Deserialize;

use crate::{
    DENIED, ECDSA_SHA256, INTERNAL,
    bindings::{
        exports::keystead::backend::plugin::Error,
        keystead::backend::{
            cache, credential,
            host::{self, Level},
        },
    },
    sandbox, tell,
    traffic::{self, Errand},
};

/// What a call does: `"spin"`, `{"read": "/etc/passwd"}`, `{"fetch": {"url": "https://kms.example/"}}`. What it learns by
/// that is the message of its failure.
#[derive(Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Deed {
    /// What it should.
    #[default]
    Behave,
    /// Never returns, and uses the processor all the while.
    Spin,
    /// Takes memory without end.
    Bomb,
    /// Calls itself without end.
    Recurse,
    /// Panics.
    Panic,
    /// Logs 10 MB in each text of an event, and writes as much to its streams.
    Shout,
    /// Logs a short line without end.
    Chatter,
    /// Says without end that its keys have changed.
    Nag,
    /// A result of so many bytes. Of `sign`.
    Answer(usize),
    /// A listing of so many keys whose public halves are so many bytes, all of them the same ones. Of `list`.
    Claim(usize, usize),
    /// Reads a file.
    Read(String),
    /// Writes a file.
    Write(String),
    /// Counts variables and arguments, and asks for the working directory.
    Environment,
    /// Connects to an address by TCP.
    Connect(String),
    /// Waits for connections by TCP.
    Listen,
    /// Sends to an address by UDP.
    Send(String),
    /// Asks for the addresses of a name.
    Resolve(String),
    /// Sleeps for so many seconds.
    Sleep(u64),
    /// Asks for so many random bytes at once.
    Random(u32),
    /// Asks for a secret itself.
    Secret(String),
    /// Has a secret sign.
    SignWith(String),
    /// Sends a request.
    Fetch(Errand),
    /// Sends a request, and does what it should once it has been answered.
    Through(Errand),
    /// Sends a request, and another to where the answer leads.
    Follow(Errand),
    /// Sends a request with so many headers of so many bytes, all of them the same ones.
    Swell(Errand, usize, usize),
    /// Sends a request in whose headers and form each value comes so many times, one after the other.
    Multiply(Errand, usize),
    /// Keeps 64 KiB under a new name, without end.
    Hoard,
    /// Asks for a value that it never puts.
    Withhold(String),
}

impl Deed {
    /// Does it; answers what is to be given in place of a signature.
    pub(crate) fn run(&self) -> Result<Option<Vec<u8>>, Error> {
        match self {
            Self::Behave | Self::Claim(..) => Ok(None),
            Self::Spin => spin(),
            Self::Bomb => bomb(),
            Self::Recurse => Ok(Some(vec![recurse(1)])),
            Self::Panic => panic!("as the test wants it\nin two lines"),
            Self::Shout => Ok(shout()),
            Self::Chatter => chatter(),
            Self::Nag => nag(),
            Self::Answer(len) => Ok(Some(vec![0; *len])),
            Self::Read(_) | Self::Write(_) | Self::Environment | Self::Sleep(_) => Err(self.in_sandbox()),
            Self::Connect(_) | Self::Listen | Self::Send(_) | Self::Resolve(_) => Err(self.in_sandbox()),
            Self::Random(len) => Err(learned(host::random(*len))),
            Self::Secret(name) => Err(learned(credential::value(name))),
            Self::SignWith(name) => Err(learned(credential::sign(name, ECDSA_SHA256, b"message"))),
            Self::Fetch(errand) => Err(traffic::fetch(errand)),
            Self::Through(errand) => traffic::through(errand).map(|()| None),
            Self::Follow(errand) => Err(traffic::follow(errand)),
            Self::Swell(errand, count, len) => Err(traffic::swell(errand, *count, *len)),
            Self::Multiply(errand, times) => Err(traffic::multiply(errand, *times)),
            Self::Hoard => Err(hoard()),
            Self::Withhold(name) => cache::get(name, 0).map(|_| None),
        }
    }

    fn in_sandbox(&self) -> Error {
        let told = match self {
            Self::Read(path) => sandbox::read(path),
            Self::Write(path) => sandbox::write(path),
            Self::Connect(address) => sandbox::connect(address),
            Self::Listen => sandbox::listen(),
            Self::Send(address) => sandbox::send(address),
            Self::Resolve(name) => sandbox::resolve(name),
            Self::Sleep(seconds) => sandbox::sleep(*seconds),
            _ => Ok(sandbox::environment()),
        };
        match told {
            Ok(got) => tell(INTERNAL, got),
            Err(error) => tell(DENIED, error.to_string()),
        }
    }
}

/// What came of asking the host.
fn learned(answer: Result<Vec<u8>, Error>) -> Error {
    answer.map_or_else(|refusal| refusal, |bytes| tell(INTERNAL, format!("got {} bytes", bytes.len())))
}

fn spin() -> ! {
    let mut turns = 0_u64;
    loop {
        turns = black_box(turns.wrapping_add(1));
    }
}

fn bomb() -> ! {
    let mut kept = Vec::new();
    loop {
        kept.push(black_box(vec![1_u8; 1 << 20]));
    }
}

#[expect(unconditional_recursion, reason = "that it doesn't end is what it is for")]
fn recurse(depth: u8) -> u8 {
    black_box(recurse(black_box(depth).wrapping_add(1))).wrapping_add(1)
}

fn shout() -> Option<Vec<u8>> {
    let text = "x\n\u{1b}[31m".repeat(10 << 17);
    host::log(Level::Error, &text, &text, &text);
    sandbox::print(&text);
    None
}

fn chatter() -> ! {
    loop {
        host::log(Level::Info, "hostile", "a flood of events", "");
    }
}

fn nag() -> ! {
    loop {
        host::keys_changed();
    }
}

/// Until the host takes no more.
fn hoard() -> Error {
    let value = vec![1; 64 << 10];
    for number in 0..u32::MAX {
        if let Err(refusal) = cache::put(&format!("{number}"), &value, 3_600_000) {
            return tell(DENIED, format!("{number} values, and then: {}", refusal.message));
        }
    }
    tell(INTERNAL, "there is room for everything")
}
