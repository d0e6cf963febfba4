//! A gate that calls inside a plugin wait at: a named pipe, so that who waits is known without sleeping.

use std::{
    fs::{File, OpenOptions},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use rustix::fs::{CWD, FileType, Mode, OFlags, mknodat};
use serde_json::{Value, json};
use tempfile::TempDir;

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
        json!({"wait_for": self.path()})
    }

    pub(crate) fn path(&self) -> &Path {
        &self.pipe
    }

    /// Returns when a call waits.
    pub(crate) fn reached(&mut self) {
        self.writer.get_or_insert_with(|| File::options().write(true).open(&self.pipe).unwrap());
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
