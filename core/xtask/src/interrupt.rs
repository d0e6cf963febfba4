//! Ctrl-C, or SIGTERM.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

use crate::failure::{Failure, Result};
use crate::patience;

/// Whether somebody wants this to end: the first time in order, a second time at once.
#[derive(Default)]
pub(crate) struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// Begins to listen for it.
    pub(crate) fn listen() -> Result<Self> {
        let raised = Arc::new(AtomicBool::new(false));
        let register = |signal| -> io::Result<()> {
            flag::register_conditional_shutdown(signal, 130, Arc::clone(&raised))?;
            flag::register(signal, Arc::clone(&raised)).map(drop)
        };
        [SIGINT, SIGTERM]
            .into_iter()
            .try_for_each(register)
            .map_err(|error| Failure::new(format!("cannot listen for signals: {error}")))?;
        Ok(Self(raised))
    }

    /// Fails once it has come.
    pub(crate) fn check(&self) -> Result<()> {
        if self.raised() { Err(Failure::new("interrupted")) } else { Ok(()) }
    }

    /// Waits for it; fails when a server has ended before.
    pub(crate) fn wait_unless(&self, mut ended: impl FnMut() -> bool) -> Result<()> {
        let raised = || match self.raised() {
            false if ended() => Err(Failure::new("a server ended by itself")),
            raised => Ok(raised.then_some(())),
        };
        patience::wait_for(Duration::MAX, raised).map(drop)
    }

    fn raised(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}
