//! Why a task stopped, in words for the person at the terminal.

use std::fmt;
use std::io;
use std::path::Path;
use std::process::ExitCode;

/// The result of everything that a task does.
pub(crate) type Result<T> = std::result::Result<T, Failure>;

/// Why a task stopped: what happened, what to do about it, and the exit status.
#[derive(Debug)]
pub(crate) struct Failure {
    message: String,
    hint: Option<String>,
    status: u8,
}

impl Failure {
    /// Something ran and failed: exit status 1.
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), hint: None, status: 1 }
    }

    /// The command line is wrong: exit status 2.
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::new(message).hint("`cargo xtask help` lists what there is").not_started()
    }

    /// A file or folder couldn't be used; `what` is a verb such as `write`.
    pub(crate) fn file(what: &str, path: &Path, error: &io::Error) -> Self {
        Self::new(format!("cannot {what} {}: {error}", path.display()))
    }

    /// Adds what to do next.
    pub(crate) fn hint(self, hint: impl Into<String>) -> Self {
        Self { hint: Some(hint.into()), ..self }
    }

    /// Says that nothing was started, since something is missing: exit status 2.
    pub(crate) fn not_started(self) -> Self {
        Self { status: 2, ..self }
    }

    /// The exit status.
    pub(crate) fn status(&self) -> ExitCode {
        ExitCode::from(self.status)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error: {}", self.message)?;
        self.hint.as_ref().map_or(Ok(()), |hint| write!(f, "\nhint: {hint}"))
    }
}
