//! How much a plugin may say: one that floods the log must not fill disks, nor keep the server busy.

use std::{
    fmt,
    time::{Duration, Instant},
};

/// How many lines, or events, it may write within [`WINDOW`].
const MOST: u32 = 1000;

/// The time for which those are counted.
const WINDOW: Duration = Duration::from_secs(10);

/// What one process, or one sandboxed store, has said lately.
#[derive(Debug)]
pub(crate) struct Quota {
    since: Instant,
    said: u32,
}

impl Default for Quota {
    fn default() -> Self {
        Self { since: Instant::now(), said: 0 }
    }
}

impl Quota {
    /// Whether one more is told; what was left out is told as a number, once it is over.
    pub(crate) fn allows(&mut self, who: impl fmt::Display) -> bool {
        if self.since.elapsed() >= WINDOW {
            let left_out = self.said.saturating_sub(MOST);
            *self = Self::default();
            if left_out > 0 {
                tracing::warn!("{left_out} lines of {who} were left out of the log");
            }
        }
        self.said = self.said.saturating_add(1);
        self.said <= MOST
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_floods_the_log_is_left_out() {
        let mut quota = Quota::default();
        assert_eq!((0..5000).filter(|_| quota.allows("a test")).count(), MOST as usize);
        quota.since = Instant::now().checked_sub(WINDOW).unwrap();
        assert!(quota.allows("a test"), "in the next window it is heard again");
    }
}
