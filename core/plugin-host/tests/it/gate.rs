//! A gate that calls inside a plugin wait at: a named pipe, so that who waits is known without sleeping.

use std::{
    fs::{File, OpenOptions},
    os::unix::fs::OpenOptionsExt,
    path::PathBuf,
    sync::mpsc,
    thread,
};

use rustix::fs::{CWD, FileType, Mode, OFlags, mknodat};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::rig::PATIENCE;

/// Shut until it is opened or dropped.
pub(crate) struct Gate {
    pipe: PathBuf,
    writer: Option<File>,
    _directory: TempDir,
}

impl Gate {
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let pipe = directory.path().join("gate");
        mknodat(CWD, &pipe, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        Self { pipe, writer: None, _directory: directory }
    }

    /// The deed of a call that waits here.
    pub(crate) fn deed(&self) -> Value {
        json!({"wait_for": self.pipe})
    }

    /// Returns when a call waits; fails where none comes.
    pub(crate) fn reached(&mut self) {
        let (opened, writer) = mpsc::channel();
        let pipe = self.pipe.clone();
        // Opening ends when the other end is open too. In a thread, for it may never be.
        thread::spawn(move || opened.send(File::options().write(true).open(pipe)));
        self.writer = Some(writer.recv_timeout(PATIENCE).unwrap().unwrap());
    }

    /// Lets those pass who wait.
    pub(crate) fn open(&mut self) {
        self.writer = None;
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        // A call that waits would keep the test's runtime from ending. Without one, this fails at once.
        let nonblock = i32::try_from(OFlags::NONBLOCK.bits()).unwrap();
        drop(OpenOptions::new().write(true).custom_flags(nonblock).open(&self.pipe));
    }
}
