//! What a process says, and what follows from it: answers go to whoever waits, events to the log, and of what it asks
//! for it gets only what is offered to a store that is in it. No I/O.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError, RwLock},
    time::Duration,
};

use super::{
    calls::Calls,
    lock,
    wire::{Message, Told},
};
use crate::{
    quota::Quota,
    reach::{Ask, PATIENCE},
    services::HostSide,
};

/// The longest name of a secret that is looked for, in bytes.
const NAME_MAX: usize = 256;

/// Where everything arrives that a process says.
pub(super) struct Desk {
    pid: u32,
    sides: RwLock<HashMap<u32, &'static dyn HostSide>>,
    quota: Mutex<Quota>,
}

/// What follows from a message.
pub(super) enum Next {
    Nothing,
    /// A store is open that nobody has any more: it is to be closed.
    Close(u32),
    /// The process is to be told this.
    Tell(u64, Told<'static>),
    /// A secret is to be read, and told.
    LookUp {
        ask: u64,
        side: &'static dyn HostSide,
        name: String,
    },
    /// Something is to be done for a store, and told.
    Reach {
        ask: u64,
        side: &'static dyn HostSide,
        what: Ask,
        time: Duration,
    },
}

impl Desk {
    pub(super) fn new(pid: u32) -> Self {
        Self { pid, sides: RwLock::default(), quota: Mutex::default() }
    }

    /// From now on, the process may ask for what this side offers to a store.
    pub(super) fn attach(&self, store: u32, side: &'static dyn HostSide) {
        self.sides.write().unwrap_or_else(PoisonError::into_inner).insert(store, side);
    }

    /// Takes a message.
    ///
    /// # Errors
    ///
    /// What is wrong with it.
    pub(super) fn take(&self, calls: &Calls, message: Message<'_>) -> Result<Next, String> {
        match message {
            Message::Done { call, outcome } => {
                return Ok(calls.done(call, outcome)?.map_or(Next::Nothing, Next::Close));
            }
            Message::Page { call, keys, findings } => calls.page(call, &keys, &findings)?,
            Message::Log { store, event } => {
                let side = self.side(store)?;
                if lock(&self.quota).allows(format_args!("the plugin process {}", self.pid)) {
                    side.log(&event);
                }
            }
            Message::KeysChanged { store } => self.side(store)?.keys_changed(),
            Message::Secret { ask, store, name } => {
                let side = self.side(store)?;
                return Ok(match name.len() > NAME_MAX {
                    true => Next::Tell(ask, Told::NoSecret),
                    false => Next::LookUp { ask, side, name: name.to_owned() },
                });
            }
            Message::Refused { ask, store, token, secret } => {
                return Ok(Next::Tell(ask, Told::Refused(self.side(store)?.was_refused(token, secret))));
            }
            Message::Reach { ask, store, nanos_left, what } => {
                let time = Duration::from_nanos(nanos_left).min(PATIENCE);
                return Ok(Next::Reach { ask, side: self.side(store)?, what, time });
            }
            Message::Presented { store, token, secret, accepted } => {
                self.side(store)?.presented(token, secret, accepted);
            }
        }
        Ok(Next::Nothing)
    }

    fn side(&self, store: u32) -> Result<&'static dyn HostSide, String> {
        let sides = self.sides.read().unwrap_or_else(PoisonError::into_inner);
        let side = sides.get(&store).copied();
        side.ok_or_else(|| format!("it speaks of store number {store}, which there isn't"))
    }
}

#[cfg(test)]
mod tests;
