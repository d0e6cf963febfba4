//! Fuzz targets of the wire codec. They run over the saved corpus in this crate's tests, and over mutations of it by:
//!
//! ```text
//! cargo run -p keystead-protocol-fuzz -- request --seconds 10
//! ```

#![forbid(unsafe_code)]

use keystead_fuzz::{Suite, Target};
use keystead_protocol::{Digest, Frame, HEADER_LEN, MAX_BODY, Request, Response, Ski};

/// What an opcode item adds to a body that lacks one, in bytes.
const OPCODE_ITEM: usize = 4;

/// Every target.
pub const SUITE: Suite = Suite::new(
    env!("CARGO_PKG_NAME"),
    env!("CARGO_MANIFEST_DIR"),
    &[
        Target::new("frame", frame),
        Target::new("request", request),
        Target::new("response", response),
        Target::new("spki", spki),
    ],
);

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
    #[test]
    fn claims_hold_for_the_corpus_and_a_thousand_mutations() {
        super::SUITE.check();
    }
}
