//! A machine that boots a real systemd in less than a second, by systemd-nspawn: with files of its own, and without any
//! network but loopback.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{self, Command, Stdio};
use std::time::Duration;

use super::files::Files;
use super::groups::{ControlGroups, is_run_by_systemd};
use crate::daemon::Daemon;
use crate::failure::{Failure, Result};
use crate::interrupt::Interrupt;
use crate::patience;
use crate::process::last_lines;

/// How long a command in the machine, or what is waited for, may take where much else is going on.
const PATIENCE: Duration = Duration::from_secs(20);
/// The exit status of timeout(1) when the time is over.
const TIMED_OUT: i32 = 124;
/// What a program in the machine finds in its environment.
const ENVIRONMENT: [&str; 2] = ["PATH=/usr/sbin:/usr/bin", "LC_ALL=C"];

/// A machine that runs. Dropping it ends it, and leaves nothing behind.
pub(super) struct Machine {
    name: String,
    nspawn: Daemon,
    /// Its first process, by the number that it has here.
    init: String,
    interrupt: Interrupt,
    groups: ControlGroups,
    files: Files,
}

impl Machine {
    /// Boots, and waits until everything has been started.
    pub(super) fn boot(files: Files, interrupt: Interrupt) -> Result<Self> {
        let name = format!("keystead-test-{}", process::id());
        let groups = ControlGroups::create(&name)?;
        let nspawn = Daemon::start("machine", nspawn(&name, &groups, &files), &files.console())?;
        let pid = nspawn.id();
        let mut machine = Self { name, nspawn, init: String::new(), interrupt, groups, files };
        machine.init = machine.nspawn.wait_for(&machine.interrupt, "systemd ran", || first_process(pid))?;
        machine.wait_for("the end of booting", || {
            // Degraded is fine: something that this system has installed doesn't like it in there.
            let state = machine.run(&["systemctl", "show", "--property=SystemState", "--value"]).ok()?;
            ["running", "degraded"].contains(&state.as_str()).then_some(())
        })?;
        Ok(machine)
    }

    /// Its files.
    pub(super) fn files(&self) -> &Files {
        &self.files
    }

    /// Runs a program in the machine as root, and gives what it printed.
    pub(super) fn run(&self, words: &[&str]) -> Result<String> {
        self.interrupt.check()?;
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.init, "--mount", "--uts", "--ipc", "--net", "--pid"]);
        command.args(["env", "--ignore-environment"]).args(ENVIRONMENT);
        command.args(["timeout", "--foreground", "--kill-after=1", &PATIENCE.as_secs().to_string()]);
        let line = words.join(" ");
        let done = command.args(words).stdin(Stdio::null()).output();
        let done = done.map_err(|error| Failure::new(format!("cannot run `{line}`: {error}")))?;
        let [stdout, stderr] = [&done.stdout, &done.stderr].map(|bytes| String::from_utf8_lossy(bytes));
        if done.status.success() {
            return Ok(stdout.trim_end().to_owned());
        }
        let said = last_lines(&format!("{stdout}\n{stderr}"));
        let how = match done.status.code() {
            Some(TIMED_OUT) => format!("took longer than {} s", PATIENCE.as_secs()),
            _ => format!("failed: {}", done.status),
        };
        Err(Failure::new(format!("in the machine, `{line}` {how}; it said:\n{said}")))
    }

    /// Waits until `probe` finds something.
    pub(super) fn wait_for<T>(&self, what: &str, mut probe: impl FnMut() -> Option<T>) -> Result<T> {
        let found = patience::wait_for(PATIENCE, || self.interrupt.check().map(|()| probe()))?;
        found.ok_or_else(|| Failure::new(format!("waited {} s in vain for {what}", PATIENCE.as_secs())))
    }

    /// Ends the machine, and looks whether anything is left of it.
    pub(super) fn end(self) -> Result<()> {
        let mut traces = self.groups.folders().to_vec();
        traces.extend([self.files.root(), self.propagated(), PathBuf::from(format!("/proc/{}", self.init))]);
        drop(self);
        match traces.iter().find(|path| path.exists()) {
            Some(path) => Err(Failure::new(format!("the machine has ended, but {} is left", path.display()))),
            None => Ok(()),
        }
    }

    /// What systemd-nspawn makes outside the machine, and doesn't remove where `/run` is on a disk.
    fn propagated(&self) -> PathBuf {
        Path::new("/run/systemd/nspawn/propagate").join(&self.name)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // To systemd-nspawn, once means to shut down, and twice to end now, and tidy up all the same. Nothing is left
        // to be done about a failure.
        let ended = || match self.nspawn.has_ended() {
            true => Ok(Some(())),
            false => self.nspawn.terminate().map(|()| None),
        };
        let _ = patience::wait_for(PATIENCE, ended);
        self.nspawn.kill();
        let _ = fs::remove_dir(self.propagated());
    }
}

/// The first process of the machine that systemd-nspawn runs, once it is systemd. Until then the only child of
/// systemd-nspawn is still on its way into the machine, and what follows it would run here.
fn first_process(nspawn: u32) -> Option<String> {
    let children = fs::read_to_string(format!("/proc/{nspawn}/task/{nspawn}/children")).ok()?;
    let processes = |process: &str| fs::read_link(format!("/proc/{process}/ns/pid")).ok();
    let here = processes("self");
    let is_systemd = |child: &&str| {
        processes(child).is_some_and(|there| Some(there) != here)
            && Path::new(&format!("/proc/{child}/root/run/systemd/private")).exists()
    };
    children.split_whitespace().find(is_systemd).map(str::to_owned)
}

fn nspawn(name: &str, groups: &ControlGroups, files: &Files) -> Command {
    let mut command = Command::new("sh");
    // It begins in the machine's groups, and doesn't outlive this program, however that may end.
    let enter = r#"for group in $MACHINE_GROUPS; do echo $$ >"$group/cgroup.procs" || exit; done; exec "$@""#;
    let folders: Vec<_> = groups.folders().iter().map(|folder| folder.to_string_lossy()).collect();
    command.args(["-c", enter, "sh"]).env("MACHINE_GROUPS", folders.join(" "));
    // As on systems of today, also where this one still has control groups of version 1.
    command.env("SYSTEMD_NSPAWN_UNIFIED_HIERARCHY", "1");
    command.args(["setpriv", "--pdeathsig", "TERM", "systemd-nspawn", "--quiet", "--register=no"]);
    if !is_run_by_systemd() {
        command.arg("--keep-unit");
    }
    command.args(["--machine", name, "--private-network", "--console=pipe"]);
    command.arg("--directory").arg(files.root());
    command.arg(format!("--overlay-ro=/usr:{}:/usr", files.over_usr().display())).arg("--boot");
    command
}
