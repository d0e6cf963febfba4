//! What outlives a call, and the instance with it: the host keeps it for all that serve the store.

use std::time::Duration;

use keystead_plugin_api::{Call, Code, Error, Host, Secret};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// The name of the access token among the values that the host keeps.
const TOKEN: &str = "access-token";

/// Those of a service that has just refused a fresh one, and of the last listing.
const REFUSED: &str = "token-refused";
const LISTED: &str = "listed";

/// For how long a listing counts: nothing is kept longer.
const KEPT: Duration = Duration::from_secs(24 * 3600);

/// How long no other token is got where that has just failed, or helped nothing. To ask once more for each request that
/// comes helps nobody, and whoever makes the tokens would throttle.
const LATELY: Duration = Duration::from_secs(5);

/// A call's view of what is kept.
#[derive(Clone, Copy)]
pub(crate) struct Memory<'a> {
    pub(crate) host: Host,
    pub(crate) call: &'a Call<'a>,
}

/// What the last listing was, and what is answered of changes: a number that differs from the one before.
#[derive(Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Listed {
    /// How much couldn't be asked: before any listing, anything.
    pub(crate) lacks: usize,
    /// What was answered last; before any listing, this is.
    pub(crate) last: u64,
    /// What makes the last answer of what was looked at in the last listing.
    base: u64,
}

impl Default for Listed {
    fn default() -> Self {
        Self { lacks: usize::MAX, last: 0, base: 0 }
    }
}

impl Listed {
    /// The same after another listing. What comes next is answered as the last time, as long as it looks the same; what
    /// lacked something is another listing than the next.
    pub(crate) fn again(self, lacks: usize, looked: u64) -> Self {
        let same = looked ^ self.last;
        Self { lacks, base: if lacks == 0 { same } else { !same }, ..self }
    }

    /// The same with an answer of what is looked at now.
    pub(crate) fn answered(self, looks: u64) -> Self {
        Self { last: looks ^ self.base, ..self }
    }
}

impl Memory<'_> {
    /// An access token that lives for so long, a new one where there is none. What keeps from having one is answered
    /// for a while without asking again; but not that one call had too little time.
    pub(crate) fn token(
        self,
        at_least: Duration,
        get: impl FnOnce() -> Result<(Secret, Duration), Error>,
    ) -> Result<Secret, Error> {
        self.host.cached_or_failed(self.call, TOKEN, at_least, LATELY, get)
    }

    pub(crate) fn forget_token(self, token: &Secret) {
        self.host.forget(TOKEN, token);
    }

    /// Whether the service has just refused a fresh token.
    pub(crate) fn was_refused(self) -> bool {
        self.kept::<bool>(REFUSED).is_some()
    }

    pub(crate) fn note_refused(self) {
        let _ = self.keep(REFUSED, &true, LATELY); // likewise
    }

    /// The last listing, if there was one.
    pub(crate) fn listed(self) -> Option<Listed> {
        self.kept(LISTED)
    }

    pub(crate) fn note_listed(self, listed: Listed) -> Result<(), Error> {
        self.keep(LISTED, &listed, KEPT)
    }

    fn kept<T: DeserializeOwned>(self, name: &str) -> Option<T> {
        serde_json::from_slice(self.host.kept(self.call, name)?.expose()).ok()
    }

    fn keep(self, name: &str, value: &impl Serialize, lives: Duration) -> Result<(), Error> {
        let value =
            serde_json::to_vec(value).map_err(|error| Error::new(Code::Internal, error.to_string()))?;
        self.host.keep(self.call, name, Secret::new(value), lives)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_changes_with_what_is_looked_at_and_after_a_listing_that_lacked_something() {
        let first = Listed::default().again(0, 7);
        assert_eq!(first.answered(7).last, 0, "as before any listing");
        let changed = first.answered(8);
        assert_ne!(changed.last, 0);
        assert_eq!(changed.again(0, 8).answered(8).last, changed.last, "which is listed by then");
        assert_eq!(changed.again(0, 9).answered(9).last, changed.last, "so is what came in between");
        let lacking = Listed::default().again(1, 7);
        let next = lacking.answered(7);
        assert_ne!(next.last, 0);
        assert_ne!(next.again(1, 7).answered(7).last, next.last);
        assert_eq!(next.again(0, 7).answered(7).last, next.last);
    }
}
