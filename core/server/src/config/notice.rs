//! What the operator is told: errors and warnings with their place and their cure.

use std::fmt;
use std::path::PathBuf;

/// Why a configuration is refused. Its `Display` form is one line, and a `hint:` line where there is a cure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error(pub Notice);

/// Something to tell the operator: where, what, and what to do about it. Never holds a secret.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Notice {
    /// The configuration file it is about; `None` for flags, variables and everything at large.
    pub file: Option<PathBuf>,
    /// Where in that file.
    pub position: Option<Position>,
    /// Path of the key it is about, such as `private_key_stores[2].plugin`.
    pub key: Option<String>,
    /// What is the matter; lower case, no final full stop.
    pub message: String,
    /// What to do next.
    pub hint: Option<String>,
}

/// A place in the configuration file. Lines and columns count from 1, columns in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub struct Position {
    /// Line, from 1.
    pub line: usize,
    /// Column, from 1.
    pub column: usize,
}

impl std::error::Error for Error {}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl From<Notice> for Error {
    fn from(notice: Notice) -> Self {
        Self(notice)
    }
}

impl Notice {
    pub(super) fn new(message: impl Into<String>) -> Self {
        Self { file: None, position: None, key: None, message: message.into(), hint: None }
    }

    pub(super) fn at(self, position: Position) -> Self {
        Self { position: Some(position), ..self }
    }

    pub(super) fn about(self, key: impl Into<String>) -> Self {
        Self { key: Some(key.into()), ..self }
    }

    pub(super) fn hint(self, hint: impl Into<String>) -> Self {
        Self { hint: Some(hint.into()), ..self }
    }
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(file) = &self.file {
            write!(f, "{}:", file.display())?;
        }
        if let Some(position) = self.position {
            write!(f, "{position}:")?;
        }
        if self.file.is_some() || self.position.is_some() {
            f.write_str(" ")?;
        }
        f.write_str(&self.message)?;
        self.hint.as_ref().map_or(Ok(()), |hint| write!(f, "\nhint: {hint}"))
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.line, self.column)
    }
}
