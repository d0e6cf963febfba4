//! Where a library's events go. Which host table that is, is noted per thread for the time of a call; events of a
//! plugin's own threads go to the store that was opened last.

use std::{cell::Cell, sync::RwLock};

use crate::{
    Host,
    abi::{Bytes, LogRecord, struct_size},
};

thread_local! {
    static CURRENT: Cell<Option<Receiver>> = const { Cell::new(None) };
}

static LATEST: RwLock<Option<Host>> = RwLock::new(None);

/// A store's host, and the request that the thread works for.
#[derive(Clone, Copy)]
pub(super) struct Receiver {
    host: Host,
    request_id: Bytes,
}

impl Receiver {
    pub(super) fn current() -> Option<Self> {
        let latest = || LATEST.read().ok().and_then(|latest| *latest);
        CURRENT.get().or_else(|| Some(Self { host: latest()?, request_id: Bytes::EMPTY }))
    }

    pub(super) fn become_latest(host: Host) {
        if let Ok(mut latest) = LATEST.write() {
            *latest = Some(host);
        }
    }

    pub(super) fn wants(self, level: u32) -> bool {
        let table = self.host.way().table();
        // SAFETY: the host's own context is passed back to it.
        unsafe { (table.log_enabled)(table.context, level) != 0 }
    }

    pub(super) fn log(self, level: u32, target: &str, message: &str, fields: &str) {
        let record = LogRecord {
            size: struct_size::<LogRecord>(),
            level,
            target: Bytes::new(target.as_bytes()),
            message: Bytes::new(message.as_bytes()),
            fields: Bytes::new(fields.as_bytes()),
            request_id: self.request_id,
        };
        let table = self.host.way().table();
        // SAFETY: the record and all it points to live through the call.
        unsafe { (table.log)(table.context, &raw const record) };
    }
}

/// Notes for the life of the value which store and request this thread works for.
pub(crate) struct Scope {
    before: Option<Receiver>,
}

impl Scope {
    /// `request_id` must stay valid while the value lives: it is that of the call being served.
    pub(crate) fn enter(host: Host, request_id: Bytes) -> Self {
        Self { before: CURRENT.replace(Some(Receiver { host, request_id })) }
    }
}

impl Drop for Scope {
    fn drop(&mut self) {
        CURRENT.set(self.before);
    }
}
