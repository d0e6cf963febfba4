//! An error with its cure, and the findings that are made of it.

use keystead_plugin_api::{Error, Finding, Severity};

/// An error with its cure.
#[derive(Clone, Debug)]
pub(crate) struct Problem {
    pub(crate) error: Error,
    /// What to do next; may be empty.
    pub(crate) hint: String,
}

impl Problem {
    pub(crate) fn new(error: Error) -> Self {
        Self { error, hint: String::new() }
    }

    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = hint.into();
        self
    }

    /// An entry that isn't served. A finding crosses the contract without the module's own code, so that code becomes
    /// part of the text.
    pub(crate) fn finding(self, subject: &str) -> Finding {
        let error = Error::new(self.error.code, self.error.to_string());
        Finding { severity: Severity::Error, subject: subject.to_owned(), error, hint: self.hint }
    }

    /// Why one of many was passed over.
    pub(crate) fn passed_over(self, subject: &str) -> Finding {
        Finding { hint: self.hint, ..Finding::note(subject, format!("passed over: {}", self.error)) }
    }

    /// Something to know about an entry that is.
    pub(crate) fn warning(self, subject: &str) -> Finding {
        Finding { severity: Severity::Warning, ..self.finding(subject) }
    }
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        Self::new(error)
    }
}

impl From<Problem> for Error {
    fn from(problem: Problem) -> Self {
        problem.error
    }
}
