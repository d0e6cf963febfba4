//! Why a request came to nothing.

use std::error::Error as StdError;
use std::sync::Arc;
use std::time::Duration;
use std::{fmt, io};

use keystead_protocol::{ErrorCode, Malformed, TooLong};

/// Why a request came to nothing.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Error {
    /// The client has been closed.
    Closed,
    /// No answer came within this time.
    Deadline(Duration),
    /// The key server refused or failed.
    Failure(ErrorCode),
    /// The client was given no address.
    NoAddress,
    /// The answer isn't one, or not one to this request.
    Protocol(ProtocolError),
    /// The client's I/O thread couldn't be started.
    Start(Arc<io::Error>),
    /// The request doesn't fit a frame.
    TooLong(TooLong),
    /// No connection, or it broke: before and after one retry on a fresh one.
    Transport {
        /// The address it was, or would have been, to.
        address: Arc<str>,
        /// What happened.
        source: Arc<io::Error>,
    },
}

/// What is wrong with an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ProtocolError {
    /// An operation succeeded without a result.
    Empty,
    /// The body can't be read.
    Malformed(Malformed),
    /// A pong to something else than a ping, or a result of a ping.
    Mismatch,
}

impl Error {
    pub(crate) fn transport(address: &Arc<str>, source: impl Into<Arc<io::Error>>) -> Self {
        Self::Transport { address: Arc::clone(address), source: source.into() }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closed => f.write_str("client is closed"),
            Self::Deadline(time) => write!(f, "key server didn't answer within {time:?}"),
            Self::Failure(code) => write!(f, "key server answered: {code}"),
            Self::NoAddress => f.write_str("no address of a key server is given"),
            Self::Protocol(error) => write!(f, "key server gave an unusable answer: {error}"),
            Self::Start(_) => f.write_str("client's I/O thread can't be started"),
            Self::TooLong(error) => error.fmt(f),
            Self::Transport { address, source } => write!(f, "key server `{address}`: {source}"),
        }
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        match self {
            Self::Protocol(error) => Some(error),
            Self::Start(source) => Some(source),
            _ => None, // those that have a cause print it
        }
    }
}

impl fmt::Display for ProtocolError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("success without a result"),
            Self::Malformed(error) => error.fmt(f),
            Self::Mismatch => f.write_str("it belongs to another kind of request"),
        }
    }
}

impl StdError for ProtocolError {}

impl From<Malformed> for Error {
    fn from(error: Malformed) -> Self {
        Self::Protocol(ProtocolError::Malformed(error))
    }
}

impl From<ProtocolError> for Error {
    fn from(error: ProtocolError) -> Self {
        Self::Protocol(error)
    }
}

impl From<TooLong> for Error {
    fn from(error: TooLong) -> Self {
        Self::TooLong(error)
    }
}
