//! What a call does beside, or instead of, what it should.

use std::{fs, panic, path::PathBuf, process, thread, time::Duration};

use keystead_plugin_api::{Code, Error};
use serde::Deserialize;

/// Text that would make two lines of one, and colour them. Ten kilobytes; repeated, ten megabytes.
pub(crate) const LONG_TEXT: &str = const {
    const LINE: [u8; 10_000] = {
        let mut line = [b'x'; 10_000];
        line[1] = b'\n';
        line[2] = 0x1b;
        line
    };
    match std::str::from_utf8(&LINE) {
        Ok(line) => line,
        Err(_) => panic!("ASCII is UTF-8"),
    }
};

/// What a call does. `"panic"`, `{"fail": 7}`, `{"wait_for": "/tmp/gate"}`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Deed {
    /// What it should.
    #[default]
    Behave,
    /// Panics.
    Panic,
    /// Panics with a payload that panics again when it is dropped.
    PanicTwice,
    /// Never returns.
    Hang,
    /// Ends its process.
    Die,
    /// Ends its process for as long as there is this file, which it removes.
    DieOnce(PathBuf),
    /// Waits until somebody has opened this named pipe for writing, and closed it again.
    WaitFor(PathBuf),
    /// Returns late, by so many milliseconds.
    Slow(u64),
    /// Fails with the class of this number.
    Fail(u32),
    /// Fails as a broken device does, for as long as there is a file.
    BrokenWhile(PathBuf),
    /// Fails with 10 MB of text, and logs as much.
    Shout,
    /// Says that the keys have changed. Of `health` and of `sign`, which does what it should beside.
    ChangeKeys,
    /// A result that is no signature. Of `sign`.
    Garbage,
    /// A result without a byte. Of `sign`.
    Empty,
    /// Claims a result longer than the host's buffer. Of `sign`.
    TooLong,
    /// A signature by another key. Of `sign`.
    ByAnotherKey,
}

impl Deed {
    /// Does what can be done in any call; the rest is up to the caller.
    pub(crate) fn run(&self) -> Result<(), Error> {
        match self {
            Self::Panic => panic!("as the test wants it\nin two lines"),
            Self::PanicTwice => panic::panic_any(Bomb),
            Self::Hang => hang(),
            Self::Die => process::abort(),
            Self::DieOnce(file) if fs::remove_file(file).is_ok() => process::abort(),
            Self::WaitFor(pipe) => {
                fs::read(pipe).map(drop).map_err(|error| Error::invalid(error.to_string()))
            }
            Self::Slow(millis) => {
                thread::sleep(Duration::from_millis(*millis));
                Ok(())
            }
            Self::Fail(code) => Err(Error::new(Code::from_number(*code), "as the test wants it")),
            Self::BrokenWhile(file) if file.exists() => {
                Err(Error::new(Code::Unavailable, "signing with `key`: C_Sign failed")
                    .with_vendor("CKR_DEVICE_ERROR", 0x30))
            }
            Self::Shout => {
                tracing::error!(field = LONG_TEXT.repeat(1000), "{}", LONG_TEXT.repeat(1000));
                Err(Error::new(Code::Unavailable, LONG_TEXT.repeat(1000)).with_vendor(LONG_TEXT, 1))
            }
            _ => Ok(()),
        }
    }
}

fn hang() -> ! {
    loop {
        thread::park();
    }
}

struct Bomb;

impl Drop for Bomb {
    fn drop(&mut self) {
        panic!("again, while being dropped");
    }
}
