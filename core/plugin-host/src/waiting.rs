//! Counting those who wait.

use std::sync::atomic::{AtomicUsize, Ordering};

/// One who waits, counted until dropped: also where its request is given up meanwhile.
pub(crate) struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    /// Counts one in; `None` where `most` wait already.
    pub(crate) fn join(count: &'a AtomicUsize, most: usize) -> Option<Self> {
        let joined = count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |waiting| {
            (waiting < most).then_some(waiting + 1)
        });
        joined.is_ok().then_some(Self(count))
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
