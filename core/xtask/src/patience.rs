//! Waiting for what isn't there yet.

use std::thread;
use std::time::{Duration, Instant};

use crate::failure::Result;

/// How often is looked whether it is there.
const PAUSE: Duration = Duration::from_millis(20);

/// Waits until `probe` finds something; gives nothing when that takes longer than `at_most`.
pub(crate) fn wait_for<T>(
    at_most: Duration,
    mut probe: impl FnMut() -> Result<Option<T>>,
) -> Result<Option<T>> {
    let start = Instant::now();
    loop {
        let found = probe()?;
        if found.is_some() || start.elapsed() > at_most {
            return Ok(found);
        }
        thread::sleep(PAUSE);
    }
}
