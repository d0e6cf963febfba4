//! What went wrong, by class. The class decides who may try again and what the edge is told.

use std::{fmt, time::Duration};

macro_rules! codes {
    ($($(#[doc = $doc:literal])* $variant:ident = $number:literal, $name:literal;)*) => {
        /// The class of an error.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        #[repr(u32)]
        pub enum Code { $($(#[doc = $doc])* $variant = $number),* }

        impl Code {
            /// Every class, in the order of their numbers.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// The class of a number; unknown numbers count as [`Code::Internal`].
            #[must_use]
            pub const fn from_number(number: u32) -> Self {
                match number { $($number => Self::$variant,)* _ => Self::Internal }
            }

            /// The name used in logs and output.
            #[must_use]
            pub const fn name(self) -> &'static str { match self { $(Self::$variant => $name),* } }

            /// What is documented here, for the C header.
            #[doc(hidden)]
            #[must_use]
            pub const fn documentation(self) -> &'static str {
                match self { $(Self::$variant => concat!($($doc),*)),* }
            }
        }
    };
}

codes! {
    /// No such key. Not retried.
    NotFound = 1, "not found";
    /// The key or backend can't do this. Not retried.
    Unsupported = 2, "unsupported";
    /// An input, or a piece of configuration, that can't be used. Not retried.
    InvalidInput = 3, "invalid input";
    /// The backend refuses: a policy, a permission. Not retried.
    Denied = 4, "denied";
    /// A PIN, password or token was refused. Never retried by anything until the secret or the configuration changes.
    Credentials = 5, "credentials";
    /// Too many requests; [`Error::retry_after`] may say when. Retried within the deadline.
    Throttled = 6, "throttled";
    /// The device or service can't be reached, or failed in a way that may pass. Retried within the deadline.
    Unavailable = 7, "unavailable";
    /// The time given ran out. Not retried.
    Deadline = 8, "deadline";
    /// A defect: a panic, a broken rule. Not retried.
    Internal = 9, "internal";
    /// The host's buffer is too small; its `len` says what is needed. Only at the boundary.
    BufferTooSmall = 10, "buffer too small";
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The vendor's own code: a CKR, an HTTP status.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Vendor {
    /// Its name as the vendor writes it (`CKR_DEVICE_ERROR`, `HTTP`), at most 64 bytes.
    pub name: String,
    /// Its number.
    pub number: u64,
}

impl Vendor {
    /// A vendor code by name and number.
    pub fn new(name: impl Into<String>, number: u64) -> Self {
        Self { name: name.into(), number }
    }
}

impl fmt::Display for Vendor {
    /// The name and the number: PKCS#11's in hexadecimal, as its specification has them, others in decimal.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name.starts_with("CKR_") {
            true => write!(f, "{} {:#x}", self.name, self.number),
            false => write!(f, "{} {}", self.name, self.number),
        }
    }
}

/// What a backend answers when it can't do what was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Error {
    /// The class.
    pub code: Code,
    /// One sentence for the operator: what, where, what to do next. Never a secret. The host cuts it at 1,024 bytes.
    pub message: String,
    /// The vendor's own code.
    pub vendor: Option<Vendor>,
    /// When trying again makes sense.
    pub retry_after: Option<Duration>,
}

impl Error {
    /// An error of a class, with a sentence for the operator.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), vendor: None, retry_after: None }
    }

    /// No such key.
    #[must_use]
    pub fn unknown_key() -> Self {
        Self::new(Code::NotFound, "no such key")
    }

    /// The key can't do this.
    pub fn unsupported(what: impl fmt::Display) -> Self {
        Self::new(Code::Unsupported, format!("{what} is not supported by this key"))
    }

    /// An input or a piece of configuration that can't be used.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(Code::InvalidInput, message)
    }

    /// Adds the vendor's own code.
    #[must_use]
    pub fn with_vendor(mut self, name: impl Into<String>, number: u64) -> Self {
        self.vendor = Some(Vendor::new(name, number));
        self
    }

    /// Adds when trying again makes sense.
    #[must_use]
    pub fn with_retry_after(mut self, after: Duration) -> Self {
        self.retry_after = Some(after);
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.message)?;
        self.vendor.as_ref().map_or(Ok(()), |vendor| write!(f, " ({vendor})"))
    }
}

impl std::error::Error for Error {}
