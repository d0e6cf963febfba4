//! Programs that run until they are told to stop.

use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::failure::{Failure, Result};
use crate::interrupt::Interrupt;
use crate::process::last_lines;
use crate::{file, patience};

/// How long a program may take to start, on a machine that is busy with other things.
const START: Duration = Duration::from_secs(60);
/// How long a program may take to stop: more than the key server's grace period.
const STOP: Duration = Duration::from_secs(40);

/// A program that writes a log and runs until it is stopped; dropping it ends it at once.
pub(crate) struct Daemon {
    name: &'static str,
    child: Child,
    log: PathBuf,
}

impl Daemon {
    /// Starts a program; both its outputs go into `log`.
    pub(crate) fn start(name: &'static str, mut command: Command, log: &Path) -> Result<Self> {
        let unwritable = |error| Failure::file("write", log, &error);
        let file = File::create(log).map_err(unwritable)?;
        command.stdin(Stdio::null()).stdout(file.try_clone().map_err(unwritable)?).stderr(file);
        // Ctrl-C reaches only this program, which then stops the others in order.
        let child = command.process_group(0).spawn();
        let child = child.map_err(|error| Failure::new(format!("cannot start the {name}: {error}")))?;
        Ok(Self { name, child, log: log.to_owned() })
    }

    /// Waits until `probe` finds what shows that the program is up.
    pub(crate) fn wait_for<T>(
        &mut self,
        interrupt: &Interrupt,
        what: &str,
        mut probe: impl FnMut() -> Option<T>,
    ) -> Result<T> {
        let found = patience::wait_for(START, || {
            let found = probe();
            if found.is_none() {
                interrupt.check()?;
                self.expect_running(&format!("before {what}"))?;
            }
            Ok(found)
        })?;
        found.ok_or_else(|| self.failure(&format!("waited {} s in vain for {what}", START.as_secs())))
    }

    /// Its number in the system.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// What the program wrote so far.
    pub(crate) fn log(&self) -> Result<String> {
        file::read(&self.log)
    }

    /// The arguments it was started with.
    pub(crate) fn arguments(&self) -> Result<String> {
        file::read(Path::new(&format!("/proc/{}/cmdline", self.id())))
    }

    /// Whether it runs no more.
    pub(crate) fn has_ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }

    /// Asks the program to stop, waits until it has, and expects exit status 0.
    pub(crate) fn stop(mut self) -> Result<Duration> {
        let start = Instant::now();
        self.expect_running("before it was asked to")?;
        self.terminate()?;
        match patience::wait_for(STOP, || self.ended())? {
            Some(status) if status.success() => Ok(start.elapsed()),
            Some(status) => Err(self.failure(&format!("expected exit status 0 after SIGTERM, got {status}"))),
            None => Err(self.failure(&format!("still ran {} s after SIGTERM", STOP.as_secs()))),
        }
    }

    /// Asks the program to stop, by SIGTERM.
    pub(crate) fn terminate(&self) -> Result<()> {
        kill_process(Pid::from_child(&self.child), Signal::TERM)
            .map_err(|error| self.failure(&format!("cannot be asked to stop: {error}")))
    }

    /// Ends the program at once, if it still runs.
    pub(crate) fn kill(&mut self) {
        if self.has_ended() {
            return;
        }
        // Nothing is left to be done about a failure: the program is on its way out with another one.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    fn expect_running(&mut self, when: &str) -> Result<()> {
        match self.ended()? {
            Some(status) => Err(self.failure(&format!("ended {when}: {status}"))),
            None => Ok(()),
        }
    }

    fn ended(&mut self) -> Result<Option<ExitStatus>> {
        self.child
            .try_wait()
            .map_err(|error| Failure::new(format!("cannot wait for the {}: {error}", self.name)))
    }

    fn failure(&self, what: &str) -> Failure {
        let log = self.log().unwrap_or_default();
        Failure::new(format!("the {}: {what}; the end of its log:\n{}", self.name, last_lines(&log)))
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.kill();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn daemon(script: &str, folder: &Path) -> Daemon {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        Daemon::start("test", command, &folder.join("log")).expect("sh starts")
    }

    fn wait_until_up(daemon: &mut Daemon, folder: &Path) -> Result<()> {
        let log = folder.join("log");
        let up = || file::read(&log).ok().filter(|log| log.contains("up")).map(drop);
        daemon.wait_for(&Interrupt::default(), "being up", up)
    }

    #[test]
    fn stops_what_stops_cleanly() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut daemon = daemon("trap 'exit 0' TERM; echo up; while :; do sleep 0.05; done", folder.path());
        wait_until_up(&mut daemon, folder.path()).expect("up");
        daemon.stop().expect("a clean end");
    }

    #[test]
    fn an_unclean_end_is_a_failure_that_shows_the_log() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut daemon =
            daemon("trap 'echo broken; exit 3' TERM; echo up; while :; do sleep 0.05; done", folder.path());
        wait_until_up(&mut daemon, folder.path()).expect("up");
        let failure = daemon.stop().expect_err("status 3").to_string();
        assert!(failure.contains("expected exit status 0") && failure.contains("broken"), "{failure}");
    }

    #[test]
    fn a_program_that_dies_at_its_start_is_not_waited_for() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut daemon = daemon("echo no luck; exit 1", folder.path());
        let failure = wait_until_up(&mut daemon, folder.path()).expect_err("dead").to_string();
        assert!(failure.contains("ended before being up") && failure.contains("no luck"), "{failure}");
    }
}
