//! What the host says when a call, an opening or a loading failed.

use std::{fmt, time::Duration};

use keystead_plugin_api::{Code, Error, Vendor};

use crate::instance::Refusal;

/// The class of a failure: it decides who may try again and what the edge is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Class {
    /// A PIN, password or token was refused. Nothing tries again until the secret or the configuration changes.
    Credentials,
    /// The time given ran out.
    Deadline,
    /// Refused by a policy or a permission.
    Denied,
    /// A defect, of the plugin or of the host.
    Internal,
    /// An input, or a piece of configuration, that can't be used.
    InvalidInput,
    /// No such key, plugin or file.
    NotFound,
    /// Turned away because the store's queue is full.
    Shed,
    /// Too many requests for the backend; may be tried again.
    Throttled,
    /// The device or service can't be reached; may be tried again.
    Unavailable,
    /// The key or backend can't do this.
    Unsupported,
}

impl Class {
    /// Every class, in the order of their names.
    pub const ALL: [Self; 10] = [
        Self::Credentials,
        Self::Deadline,
        Self::Denied,
        Self::Internal,
        Self::InvalidInput,
        Self::NotFound,
        Self::Shed,
        Self::Throttled,
        Self::Unavailable,
        Self::Unsupported,
    ];

    /// Whether it says that the backend, rather than the request, is in trouble.
    #[must_use]
    pub const fn blames_the_backend(self) -> bool {
        matches!(
            self,
            Self::Credentials | Self::Deadline | Self::Internal | Self::Throttled | Self::Unavailable
        )
    }

    /// Whether trying again may help.
    #[must_use]
    pub const fn is_transient(self) -> bool {
        matches!(self, Self::Throttled | Self::Unavailable)
    }

    /// The name used in logs, metrics and output.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Credentials => "credentials",
            Self::Deadline => "deadline",
            Self::Denied => "denied",
            Self::Internal => "internal",
            Self::InvalidInput => "invalid input",
            Self::NotFound => "not found",
            Self::Shed => "shed",
            Self::Throttled => "throttled",
            Self::Unavailable => "unavailable",
            Self::Unsupported => "unsupported",
        }
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl From<Code> for Class {
    fn from(code: Code) -> Self {
        match code {
            Code::NotFound => Self::NotFound,
            Code::Unsupported => Self::Unsupported,
            Code::InvalidInput => Self::InvalidInput,
            Code::Denied => Self::Denied,
            Code::Credentials => Self::Credentials,
            Code::Throttled => Self::Throttled,
            Code::Unavailable => Self::Unavailable,
            Code::Deadline => Self::Deadline,
            _ => Self::Internal,
        }
    }
}

/// What went wrong, in one sentence for the operator. Text that came from a plugin has been cut and escaped.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Failure {
    /// The class.
    pub class: Class,
    /// What, where, what to do next.
    pub message: String,
    /// The vendor's own code.
    pub vendor: Option<Vendor>,
    /// When trying again makes sense.
    pub retry_after: Option<Duration>,
}

impl Failure {
    /// A failure of a class, with a sentence for the operator.
    pub fn new(class: Class, message: impl Into<String>) -> Self {
        Self { class, message: message.into(), vendor: None, retry_after: None }
    }

    pub(crate) fn internal(message: impl Into<String>) -> Self {
        Self::new(Class::Internal, message)
    }

    pub(crate) fn denied(message: impl Into<String>) -> Self {
        Self::new(Class::Denied, message)
    }

    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self::new(Class::InvalidInput, message)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let Error { code, message, vendor, retry_after, .. } = error;
        Self { class: code.into(), message, vendor, retry_after }
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        refusal.error.into()
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        self.vendor.as_ref().map_or(Ok(()), |vendor| write!(f, " ({vendor})"))
    }
}

impl std::error::Error for Failure {}

/// Makes text of a stranger fit for a log: one line of at most `max` bytes and an ellipsis, with nothing that steers a
/// terminal or the order of the text.
#[must_use]
pub fn tame(text: &[u8], max: usize) -> String {
    let part = text.get(..max).unwrap_or(text);
    let mut tamed = String::with_capacity(part.len());
    for character in String::from_utf8_lossy(part).chars() {
        let before = tamed.len();
        if is_unruly(character) {
            tamed.extend(character.escape_default());
        } else {
            tamed.push(character);
        }
        if tamed.len() > max {
            tamed.truncate(before);
            tamed.push('…');
            return tamed;
        }
    }
    if part.len() < text.len() {
        tamed.push('…');
    }
    tamed
}

/// Control characters, and those that are invisible or turn the direction of what follows (Unicode UAX #9).
fn is_unruly(character: char) -> bool {
    character.is_control()
        || matches!(character, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_of_plugins_is_cut_and_escaped() {
        assert_eq!(tame(b"two\nlines\x1b[31m", 100), "two\\nlines\\u{1b}[31m");
        assert_eq!(tame(&[b'x'; 2000], 10), format!("{}…", "x".repeat(10)));
        assert_eq!(tame(b"\xff", 10), "\u{fffd}");
        assert_eq!(tame("\u{202e}drowssap".as_bytes(), 100), "\\u{202e}drowssap");
        assert_eq!(tame(&[0x1b; 10], 10), "\\u{1b}…", "escaping doesn't make it longer than asked for");
    }
}
