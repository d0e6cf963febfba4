//! The Keyless SSL wire protocol: bytes to requests and back, and answers likewise.
//!
//! A connection carries frames in both directions. A [`Frame`] is a header of eight bytes and a body of items (tag,
//! length, value; all integers big-endian). A [`Request`] or a [`Response`] is what the items of one body say; the
//! frame's id ties the two together.
//!
//! ```text
//! bytes -> Frame::split -> Request::decode -> ... -> Response::encode -> bytes
//! ```
//!
//! This crate does no I/O and allocates nothing while decoding: what it returns borrows from the input. It knows the
//! numbers of the protocol ([`Tag`], [`Opcode`], [`ErrorCode`]) and keeps those it doesn't know; what to do about a
//! version, an unknown opcode or a missing key is for its callers to decide.

#![forbid(unsafe_code)]

mod error;
mod frame;
mod item;
mod key_id;
mod registry;
mod request;
mod response;

pub use error::{Malformed, TooLong};
pub use frame::{Frame, HEADER_LEN, Header, MAX_BODY, MAX_FRAME, VERSION_MAJOR, VERSION_MINOR};
pub use key_id::{Digest, InvalidKeyId, InvalidSpki, Ski};
pub use registry::{ComplianceRegion, ErrorCode, Opcode, OpcodeKind, Tag};
pub use request::Request;
pub use response::Response;
