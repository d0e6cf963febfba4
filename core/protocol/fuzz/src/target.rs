//! The targets, and the claims each makes.

use std::path::PathBuf;
use std::{fs, io};

use keystead_protocol::{Digest, Frame, HEADER_LEN, MAX_BODY, Request, Response, Ski};

/// What an opcode item adds to a body that lacks one, in bytes.
const OPCODE_ITEM: usize = 4;

/// A function over arbitrary bytes, and its corpus.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// The name on the command line, and of its folder below `corpus/`.
    pub name: &'static str,
    run: fn(&[u8]),
}

impl Target {
    /// Every target.
    pub const ALL: &[Self] = &[
        Self::new("frame", frame),
        Self::new("request", request),
        Self::new("response", response),
        Self::new("spki", spki),
    ];

    /// A target that runs `run`.
    #[must_use]
    pub const fn new(name: &'static str, run: fn(&[u8])) -> Self {
        Self { name, run }
    }

    /// The target of a name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|target| target.name == name)
    }

    /// Runs the target on one input.
    ///
    /// # Panics
    ///
    /// If one of its claims doesn't hold for the input.
    pub fn run(self, input: &[u8]) {
        (self.run)(input);
    }

    /// The saved inputs, in the order of their file names.
    ///
    /// # Errors
    ///
    /// What reading the folder or a file in it reports.
    pub fn corpus(self) -> io::Result<Vec<Vec<u8>>> {
        let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("corpus").join(self.name);
        let mut paths =
            fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>()?;
        paths.sort();
        paths.iter().map(fs::read).collect()
    }
}

/// Frames tile the stream: they lose, invent and reorder nothing, and agree with their headers.
fn frame(input: &[u8]) {
    let mut rest = input;
    while let Some((frame, behind)) = Frame::split(rest) {
        assert_eq!(frame.body.len(), usize::from(frame.header.length));
        let whole = [&frame.header.encode(), frame.body, behind].concat();
        assert_eq!((whole.as_slice(), frame.len()), (rest, HEADER_LEN + frame.body.len()));
        rest = behind;
    }
}

/// What is read can be sent, and is then read as the same.
fn request(input: &[u8]) {
    let Ok(request) = Request::decode(input) else { return };
    let mut bytes = Vec::new();
    if request.encode(7, &mut bytes).is_err() {
        return assert!(bytes.is_empty() && input.len() > MAX_BODY - OPCODE_ITEM);
    }
    assert_eq!(Request::decode(body(&bytes)), Ok(request));
}

/// As for requests.
fn response(input: &[u8]) {
    let Ok(response) = Response::decode(input) else { return };
    let mut bytes = Vec::new();
    if response.encode(7, &mut bytes).is_err() {
        return assert!(bytes.is_empty() && input.len() > MAX_BODY - OPCODE_ITEM);
    }
    assert_eq!(Response::decode(body(&bytes)), Ok(response));
}

/// A key that has a digest has a SKI, and names survive printing.
fn spki(input: &[u8]) {
    let (ski, digest) = (Ski::from_spki(input), Digest::from_spki(input));
    if let Ok(ski) = &ski {
        assert_eq!(ski.to_string().parse(), Ok(*ski));
    }
    if let Ok(Some(digest)) = digest {
        assert!(ski.is_ok());
        assert_eq!(digest.to_string().parse(), Ok(digest));
    }
}

/// The body of the one frame that `bytes` has to be.
fn body(bytes: &[u8]) -> &[u8] {
    match Frame::split(bytes) {
        Some((frame, [])) => frame.body,
        other => panic!("an encoded message isn't one frame: {other:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Mutator;

    #[test]
    fn claims_hold_for_the_corpus_and_a_thousand_mutations() {
        for target in Target::ALL {
            let corpus = target.corpus().unwrap();
            assert!(corpus.len() >= 3, "corpus of {}", target.name);
            corpus.iter().for_each(|input| target.run(input));
            let mut mutator = Mutator::new(corpus, 1);
            (0..1000).for_each(|_| target.run(&mutator.next_input()));
        }
    }
}
