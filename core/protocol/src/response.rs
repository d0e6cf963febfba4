//! Responses: what became of a request.

use std::fmt;

use crate::item::{Items, append_frame};
use crate::{ErrorCode, Malformed, Opcode, Tag, TooLong};

/// An answer, borrowing its payload.
///
/// Its `Debug` shows how long a payload is, never the payload: that of a decryption is a secret.
#[derive(Clone, Copy, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "the protocol has three kinds of answer")]
pub enum Response<'a> {
    /// The operation failed.
    Failure(ErrorCode),
    /// The payload of a ping, sent back.
    Pong(&'a [u8]),
    /// The result of the operation: a signature or a plaintext.
    Success(&'a [u8]),
}

impl<'a> Response<'a> {
    /// Reads the body of a frame.
    ///
    /// # Errors
    ///
    /// [`Malformed`] if an item runs past the end, a known tag occurs twice, the opcode isn't one byte or isn't that of
    /// an answer, or a failure doesn't have exactly one byte of payload. Other items are ignored.
    pub fn decode(body: &'a [u8]) -> Result<Self, Malformed> {
        let (mut opcode, mut payload, mut failure) = (Opcode::default(), &[][..], None);
        let mut items = Items::new(body);
        while let Some(item) = items.take()? {
            match item.tag {
                Tag::OPCODE => opcode = Opcode(item.byte()?),
                Tag::PAYLOAD => (payload, failure) = (item.value, Some(item.byte().map(ErrorCode))),
                _ => {}
            }
        }
        let no_code = Malformed::Length { tag: Tag::PAYLOAD, offset: body.len(), found: 0 };
        match opcode {
            Opcode::ERROR => Ok(Self::Failure(failure.ok_or(no_code)??)),
            Opcode::PONG => Ok(Self::Pong(payload)),
            Opcode::RESPONSE => Ok(Self::Success(payload)),
            opcode => Err(Malformed::NotAnAnswer { opcode }),
        }
    }

    /// Appends the answer to `out` as a frame with the id of its request, padded as the reference pads.
    ///
    /// # Errors
    ///
    /// [`TooLong`] if the payload exceeds 65,528 bytes; `out` is left as it was.
    pub fn encode(&self, id: u32, out: &mut Vec<u8>) -> Result<(), TooLong> {
        append_frame(id, out, |body| {
            body.item(Tag::OPCODE, &[self.opcode().0])?;
            match self {
                Self::Failure(code) => body.item(Tag::PAYLOAD, &[code.0]),
                Self::Pong(payload) | Self::Success(payload) => body.non_empty(Tag::PAYLOAD, payload),
            }
        })
    }

    /// The opcode it is sent with.
    #[must_use]
    pub const fn opcode(&self) -> Opcode {
        match self {
            Self::Failure(_) => Opcode::ERROR,
            Self::Pong(_) => Opcode::PONG,
            Self::Success(_) => Opcode::RESPONSE,
        }
    }
}

impl fmt::Debug for Response<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Failure(code) => write!(f, "Failure({code:?})"),
            Self::Pong(payload) => write!(f, "Pong({} bytes)", payload.len()),
            Self::Success(payload) => write!(f, "Success({} bytes)", payload.len()),
        }
    }
}
