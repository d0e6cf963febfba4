//! What can be wrong with a message, and where.

use std::error::Error;
use std::fmt;

use crate::{MAX_BODY, Opcode, Tag};

/// Why the body of a frame isn't a message. Offsets count bytes from the start of the body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Malformed {
    /// A tag of the protocol occurs twice.
    Duplicate {
        /// The repeated tag.
        tag: Tag,
        /// Where its second item starts.
        offset: usize,
    },
    /// The value of an item has a length that its tag doesn't allow.
    Length {
        /// The item's tag.
        tag: Tag,
        /// Where the item starts.
        offset: usize,
        /// The length it has, in bytes.
        found: usize,
    },
    /// An answer carries an opcode that isn't one of an answer, or none (opcode 0).
    NotAnAnswer {
        /// The opcode it carries.
        opcode: Opcode,
    },
    /// An item runs past the end of the body.
    Overrun {
        /// The item's tag.
        tag: Tag,
        /// Where the item starts.
        offset: usize,
        /// The length that the item claims for its value, in bytes.
        claimed: usize,
        /// The bytes that are left for it.
        left: usize,
    },
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Duplicate { tag, offset } => write!(f, "second item `{tag}` at byte {offset} of the body"),
            Self::Length { tag, offset, found } => {
                write!(f, "item `{tag}` at byte {offset} of the body has an illegal length of {found} bytes")
            }
            Self::NotAnAnswer { opcode } => write!(f, "`{opcode}` isn't the opcode of an answer"),
            Self::Overrun { tag, offset, claimed, left } => {
                write!(f, "item `{tag}` at byte {offset} of the body claims {claimed} bytes, {left} are left")
            }
        }
    }
}

impl Error for Malformed {}

/// The items of a message don't fit a body of [`MAX_BODY`] bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooLong;

impl fmt::Display for TooLong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "message is too long: its items don't fit a body of {MAX_BODY} bytes")
    }
}

impl Error for TooLong {}
