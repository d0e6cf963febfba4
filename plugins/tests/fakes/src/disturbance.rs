//! What goes wrong at a service, when a test says so.

use std::{fmt, sync::Arc, time::Duration};

use crate::server::Answer;

/// Something that happens to requests in place of, or beside, what the service would do.
#[derive(Clone)]
pub struct Disturbance {
    /// A piece of the `METHOD /path?query` that it happens to.
    pub(crate) what: String,
    /// How many more times.
    pub(crate) times: usize,
    pub(crate) how: How,
}

#[derive(Clone)]
pub(crate) enum How {
    /// This is answered; the service isn't asked.
    Answer(Answer),
    /// The service's answer is another by then.
    Change(Arc<dyn Fn(Answer) -> Answer + Send + Sync>),
    /// The answer takes so long, from the request's arrival on.
    Delay(Duration),
    /// The body breaks off after so many bytes.
    CutOff(usize),
    /// No answer comes, until the server is calm again.
    Hang,
}

impl Disturbance {
    fn new(what: &str, how: How) -> Self {
        Self { what: what.to_owned(), times: usize::MAX, how }
    }

    /// Something else is answered. `what` is a piece of `METHOD /path?query`, here and in all others.
    #[must_use]
    pub fn answer(what: &str, answer: Answer) -> Self {
        Self::new(what, How::Answer(answer))
    }

    /// The service's answer is changed.
    #[must_use]
    pub fn change(what: &str, change: impl Fn(Answer) -> Answer + Send + Sync + 'static) -> Self {
        Self::new(what, How::Change(Arc::new(change)))
    }

    /// An answer takes at least so long, from the request's arrival on.
    #[must_use]
    pub fn delay(what: &str, delay: Duration) -> Self {
        Self::new(what, How::Delay(delay))
    }

    /// An answer's body breaks off after so many bytes, and the connection with it.
    #[must_use]
    pub fn cut_off(what: &str, after: usize) -> Self {
        Self::new(what, How::CutOff(after))
    }

    /// No answer comes, until [`Server::calm`](crate::Server::calm).
    #[must_use]
    pub fn hang(what: &str) -> Self {
        Self::new(what, How::Hang)
    }

    /// Only so many times.
    #[must_use]
    pub fn times(mut self, times: usize) -> Self {
        self.times = times;
        self
    }
}

impl fmt::Debug for Disturbance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Disturbance").field("what", &self.what).field("times", &self.times).finish()
    }
}
