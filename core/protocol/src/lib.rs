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
//! ```
//! use keystead_protocol::{Frame, Opcode, Request, Response};
//!
//! let mut sent = Vec::new();
//! Request { opcode: Opcode::PING, payload: b"hello", ..Request::default() }.encode(7, &mut sent)?;
//!
//! let (frame, rest) = Frame::split(&sent).ok_or("incomplete")?;
//! let request = Request::decode(frame.body)?;
//! assert_eq!((request.opcode, request.payload, rest.len()), (Opcode::PING, &b"hello"[..], 0));
//!
//! let mut answered = Vec::new();
//! Response::Pong(request.payload).encode(frame.header.id, &mut answered)?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
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
