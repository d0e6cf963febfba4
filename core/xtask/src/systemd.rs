//! `cargo xtask test systemd`: the units of `config/` at work, under a systemd that was booted for it.

mod files;
mod groups;
mod installation;
mod machine;

use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, ScopedJoinHandle};
use std::time::{Duration, Instant};

use crate::failure::{Failure, Result};
use crate::interrupt::Interrupt;
use crate::process;
use crate::token::Token;
use crate::workspace::{self, Programs};
use files::Files;
use installation::{CLIENT, FILE_KEY, NEW_KEY, SERVICE, TOKEN_KEY};
use machine::Machine;

/// The most that `systemd-analyze security` may say of the service, in tenths: 0 is a service that can do nothing.
const EXPOSURE: &str = "15";
/// What clients do while the server restarts, each over and over, and with which key: sign once on a fresh connection, or
/// hundreds of times over several. How often it restarts; and how many operations each client must have done between.
const LOAD: [(&[&str], &str); 4] =
    [(ONCE, FILE_KEY), (ONCE, TOKEN_KEY), (OFTEN, FILE_KEY), (OFTEN, TOKEN_KEY)];
const ONCE: &[&str] = &["sign"];
const OFTEN: &[&str] = &["bench", "--connections", "5", "--rate", "300", "--seconds", "1"];
const RESTARTS: usize = 3;
const BETWEEN: usize = 2;

/// How soon the service is missed in the check of that, and what it does then.
const WATCHDOG: Duration = Duration::from_secs(2);
const IMPATIENT: &str = "WatchdogSec=2s\nRestartSec=100ms\n";

/// What is checked, in this order, since each begins with what the one before it left.
const CHECKS: &[(&str, Check)] = &[
    ("hardening", hardening),
    ("alone", alone),
    ("activated", activated),
    ("reload", reload),
    ("refusal", refusal),
    ("restart", restart),
    ("watchdog", watchdog),
    ("stop", stop),
    ("secrets", secrets),
];

/// A check, which tells what it found.
type Check = fn(&Scene) -> Result<String>;

/// A machine with Keystead in it.
struct Scene {
    machine: Machine,
    token: Token,
}

/// Boots a machine and checks everything in it. It needs root, and gets it by `sudo -n` where it must.
pub(crate) fn check() -> Result<()> {
    let programs = Programs::build(&["keystead", "keystead-plugin-file", "keystead-plugin-pkcs11"])?;
    if !rustix::process::geteuid().is_root() {
        return as_root(&programs);
    }
    let interrupt = Interrupt::listen()?;
    let start = Instant::now();
    let files = Files::create()?;
    let token = installation::put_into(&files, &programs)?;
    let scene = Scene { machine: Machine::boot(files, interrupt)?, token };
    tell("boot", "systemd runs", start);
    for (name, check) in CHECKS {
        let start = Instant::now();
        let found = check(&scene).inspect_err(|_| scene.show_journal())?;
        tell(name, &found, start);
    }
    scene.machine.end()
}

/// Does the same again, but as root.
fn as_root(programs: &Programs) -> Result<()> {
    let mut command = Command::new("sudo");
    command.args(["-n", "env", &programs.variable()]);
    command.arg(workspace::own_program()?).args(["test", "systemd"]);
    if process::succeeds("sudo", &["-n", "true"]) {
        return process::run(&mut command);
    }
    let by_hand = process::line(&command).replacen("-n ", "", 1);
    Err(Failure::new("only root boots a machine, and `sudo -n` is refused here")
        .hint(format!("run `{by_hand}`"))
        .not_started())
}

fn tell(name: &str, found: &str, start: Instant) {
    println!("{name:<10} {found} ({:.1} s)", start.elapsed().as_secs_f64());
}

/// The service is as confined as it should be, and systemd finds nothing wrong with the units.
fn hardening(scene: &Scene) -> Result<String> {
    let threshold = format!("--threshold={EXPOSURE}");
    let text =
        scene.run(&["systemd-analyze", "security", "--offline=true", "--no-pager", &threshold, SERVICE])?;
    let exposure = text.lines().find_map(|line| line.split_once("exposure level for keystead.service: "));
    let exposure = exposure.and_then(|(_, said)| said.split_whitespace().next()).unwrap_or("unknown");
    // Without that word, whatever systemd doesn't understand is no failure.
    let verify = ["systemd-analyze", "verify", "--recursive-errors=no"];
    scene.run(&[&verify[..], &["keystead.service", "keystead.socket"]].concat())?;
    Ok(format!("exposure {exposure} of 10, and nothing wrong with the units"))
}

/// Without the socket unit.
fn alone(scene: &Scene) -> Result<String> {
    scene.run(&["systemctl", "start", "keystead.service"])?;
    scene.expect("Type", "notify")?;
    let process = scene.run(&["cat", &format!("/proc/{}/status", scene.show("MainPID")?)])?;
    for confined in ["NoNewPrivs:\t1", "Seccomp:\t2", "CapBnd:\t0000000000000000"] {
        if !process.contains(confined) {
            return Err(Failure::new(format!("the server runs without `{confined}`:\n{process}")));
        }
    }
    scene.sign_with_all(&[FILE_KEY, TOKEN_KEY])?;
    scene.run(&["systemctl", "stop", "keystead.service"])?;
    Ok(String::from("confined, it says when it serves, and signs with a key in a file and one in a token"))
}

/// With the socket unit, and as the comment in the service unit says.
fn activated(scene: &Scene) -> Result<String> {
    scene.run(&["systemctl", "enable", "--now", "keystead.socket", "keystead.service"])?;
    scene.sign_with_all(&[FILE_KEY, TOKEN_KEY])?;
    Ok(String::from("on systemd's socket, the same"))
}

/// A key file that is new is served when `systemctl reload` has returned.
fn reload(scene: &Scene) -> Result<String> {
    installation::add_key(scene.machine.files())?;
    if scene.sign(NEW_KEY).is_ok() {
        return Err(Failure::new("a key was served before the reload that should bring it"));
    }
    let before = scene.show("MainPID")?;
    scene.run(&["systemctl", "reload", "keystead.service"])?;
    scene.expect("MainPID", &before)?;
    scene.sign_with_all(&[NEW_KEY, FILE_KEY, TOKEN_KEY])?;
    Ok(String::from("a new key file is served"))
}

/// A configuration that is wrong fails the reload, says why, and changes nothing.
fn refusal(scene: &Scene) -> Result<String> {
    const WRONG: &str = "listne";
    installation::break_configuration(scene.machine.files(), WRONG)?;
    if scene.run(&["systemctl", "reload", "keystead.service"]).is_ok() {
        return Err(Failure::new("`systemctl reload` succeeds with a configuration that is wrong"));
    }
    let status = scene.run(&["systemctl", "status", "--no-pager", "--full", "keystead.service"])?;
    if !status.contains(WRONG) {
        let said = process::last_lines(&status);
        return Err(Failure::new(format!("`systemctl status` doesn't say what is wrong:\n{said}")));
    }
    scene.sign_with_all(&[FILE_KEY, TOKEN_KEY, NEW_KEY])?;
    installation::mend_configuration(scene.machine.files())?;
    scene.run(&["systemctl", "reload", "keystead.service"])?;
    Ok(String::from("a wrong configuration fails the reload, with the reason; all keys still sign"))
}

/// Restarts under load: nobody is refused, and nothing fails.
fn restart(scene: &Scene) -> Result<String> {
    let load = Load::default();
    let (restarted, loops) = thread::scope(|scope| {
        let loops: Vec<_> = load
            .done
            .iter()
            .zip(LOAD)
            .map(|(done, (command, key))| scope.spawn(|| load.repeat(scene, &operation(command, key), done)))
            .collect();
        let restarted = (0..RESTARTS).try_for_each(|_| {
            load.wait_for_more(scene)?;
            scene.run(&["systemctl", "restart", "keystead.service"]).map(drop)
        });
        let restarted = restarted.and_then(|()| load.wait_for_more(scene));
        load.ended.store(true, Ordering::Relaxed);
        (restarted, loops.into_iter().map(ScopedJoinHandle::join).collect::<Vec<_>>())
    });
    let mut longest = Duration::ZERO;
    for took in loops {
        longest = longest.max(took.unwrap_or_else(|_| Err(Failure::new("a loop of the load panicked")))?);
    }
    restarted?;
    let operations: usize = load.done.iter().map(|done| done.load(Ordering::Relaxed)).sum();
    Ok(format!(
        "{RESTARTS} restarts under load; {operations} times one signature or 300, each from connecting on, and none \
         failed; the longest took {:.1} s",
        longest.as_secs_f64()
    ))
}

/// A server that hangs is missed, ended and started anew; one that doesn't hang isn't.
fn watchdog(scene: &Scene) -> Result<String> {
    installation::override_unit(scene.machine.files(), "watchdog", IMPATIENT)?;
    scene.run(&["systemctl", "daemon-reload"])?;
    scene.run(&["systemctl", "restart", "keystead.service"])?;
    let before = scene.show("MainPID")?;
    thread::sleep(WATCHDOG * 3 / 2);
    scene.expect("MainPID", &before)?;
    let hung = Instant::now();
    scene.run(&["systemctl", "kill", "--signal=STOP", "--kill-whom=main", "keystead.service"])?;
    scene.machine.wait_for("a server in place of the one that hangs", || {
        let is_new = scene.show("NRestarts").is_ok_and(|restarts| restarts == "1");
        (is_new && scene.show("ActiveState").is_ok_and(|state| state == "active")).then_some(())
    })?;
    let after = hung.elapsed().as_secs_f64();
    scene.sign_with_all(&[FILE_KEY, TOKEN_KEY])?;
    Ok(format!(
        "a server that hangs is replaced: after {after:.1} s, where WatchdogSec is {} s",
        WATCHDOG.as_secs()
    ))
}

/// The service stops when it is told to, with success, and so does its port.
fn stop(scene: &Scene) -> Result<String> {
    scene.run(&["systemctl", "stop", "keystead.socket", "keystead.service"])?;
    for (property, value) in [("ActiveState", "inactive"), ("Result", "success"), ("ExecMainStatus", "0")] {
        scene.expect(property, value)?;
    }
    if scene.sign(FILE_KEY).is_ok() {
        return Err(Failure::new("something still signs when all has been stopped"));
    }
    Ok(String::from("with success"))
}

/// The PIN is nowhere in the journal, and in nothing that systemd tells of the service.
fn secrets(scene: &Scene) -> Result<String> {
    let journal = scene.run(&["journalctl", "--output=export", "--no-pager"])?;
    let properties = scene.run(&["systemctl", "show", "keystead.service"])?;
    if !journal.contains("_SYSTEMD_UNIT=keystead.service") {
        return Err(Failure::new(
            "the journal has nothing of the service, so that nothing can be looked for in it",
        ));
    }
    if [&journal, &properties].iter().any(|text| scene.token.is_given_away_by(text)) {
        return Err(Failure::new(
            "the PIN of the token is in the journal, or among the service's properties",
        ));
    }
    Ok(format!("the PIN is nowhere in {} lines of the journal", journal.lines().count()))
}

impl Scene {
    fn run(&self, words: &[&str]) -> Result<String> {
        self.machine.run(words)
    }

    /// Has the server sign with the key whose public half this is, and checks the signature.
    fn sign(&self, key: &str) -> Result<()> {
        self.run(&operation(ONCE, key)).map(drop)
    }

    fn sign_with_all(&self, keys: &[&str]) -> Result<()> {
        keys.iter().try_for_each(|key| self.sign(key))
    }

    fn show(&self, property: &str) -> Result<String> {
        self.run(&["systemctl", "show", "--property", property, "--value", "keystead.service"])
    }

    fn expect(&self, property: &str, expected: &str) -> Result<()> {
        let got = self.show(property)?;
        if got == expected {
            return Ok(());
        }
        Err(Failure::new(format!("the service's {property}: expected `{expected}`, got `{got}`")))
    }

    fn show_journal(&self) {
        let journal = self.run(&["journalctl", "--no-pager", "--lines=40", "--output=short-precise"]);
        println!(
            "the end of the machine's journal:\n{}",
            journal.unwrap_or_else(|failure| failure.to_string())
        );
    }
}

/// A program that connects, has something signed, and fails where anything did.
fn operation<'a>(command: &[&'a str], key: &'a str) -> Vec<&'a str> {
    [&["keystead"], command, &["--for", key], &CLIENT[..]].concat()
}

/// Clients that connect and sign, over and over, until one fails or all are told to end.
#[derive(Default)]
struct Load {
    ended: AtomicBool,
    /// Operations of each client.
    done: [AtomicUsize; LOAD.len()],
}

impl Load {
    /// Gives the time that the longest operation took.
    fn repeat(&self, scene: &Scene, operation: &[&str], done: &AtomicUsize) -> Result<Duration> {
        let mut longest = Duration::ZERO;
        while !self.ended.load(Ordering::Relaxed) {
            let start = Instant::now();
            scene.run(operation).inspect_err(|_| self.ended.store(true, Ordering::Relaxed))?;
            longest = longest.max(start.elapsed());
            done.fetch_add(1, Ordering::Relaxed);
        }
        Ok(longest)
    }

    /// Waits until each client has done some more, or one has failed.
    fn wait_for_more(&self, scene: &Scene) -> Result<()> {
        let count = || self.done.each_ref().map(|done| done.load(Ordering::Relaxed));
        let before = count();
        scene.machine.wait_for("operations under load", || {
            let enough = count().iter().zip(before).all(|(now, before)| *now >= before + BETWEEN);
            (enough || self.ended.load(Ordering::Relaxed)).then_some(())
        })
    }
}
