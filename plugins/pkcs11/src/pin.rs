//! Where a token's PIN comes from. It is read for each login, so that a new one counts from the next login on.

use std::{
    env, fs,
    io::Read,
    path::PathBuf,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use keystead_plugin_api::{Code, Error, Host};
use zeroize::Zeroizing;

use crate::{problem::Problem, uri::PinSource};

/// A PIN.
pub(crate) type Pin = Zeroizing<Vec<u8>>;

/// How long a command may take to tell a PIN.
const COMMAND: Duration = Duration::from_secs(10);

/// The longest PIN, in bytes; tokens take 255 at most.
const PIN_MAX: usize = 4096;

/// Where the PIN of one token comes from.
pub(crate) struct PinOrigin {
    source: Option<PinSource>,
    commands: bool,
    given: bool,
    host: Host,
}

impl PinOrigin {
    /// What a token's URIs say or, without that, the store's secret `pin`. `commands` says whether any may be run.
    pub(crate) fn new(source: Option<PinSource>, commands: bool, host: Host) -> Self {
        let none = |secret: Result<_, Error>| secret.is_err_and(|error| error.code == Code::NotFound);
        let given = source.is_some() || !none(host.secret("pin"));
        Self { source, commands, given, host }
    }

    /// Whether there is one at all.
    pub(crate) fn is_given(&self) -> bool {
        self.given
    }

    /// The PIN as it is now; `None` where there is none, and so no login.
    ///
    /// # Errors
    ///
    /// Where its source can't be read. Nothing of the source is repeated: a PIN may stand there by mistake.
    pub(crate) fn read(&self) -> Result<Option<Pin>, Problem> {
        match &self.source {
            None => secret(self.host),
            Some(PinSource::Value(pin)) => Ok(Some(pin.clone())),
            Some(PinSource::File(path)) => file(path, "the file").map(Some),
            Some(PinSource::Credential(name)) => credential(name).map(Some),
            Some(PinSource::Variable(name)) => variable(name).map(Some),
            Some(PinSource::Command(command)) if self.commands => run(command).map(Some),
            Some(PinSource::Command(_)) => {
                let error = Error::new(Code::Denied, "the pin-source is a command, and none is run");
                Err(Problem::new(error).hint("name a file instead, or allow it: `pin_commands: true`"))
            }
        }
    }
}

fn file(path: &PathBuf, what: &str) -> Result<Pin, Problem> {
    let content = fs::read(path).map(Zeroizing::new).map_err(|error| {
        let error = Error::invalid(format!("{what} of pin-source can't be read: {}", error.kind()));
        Problem::new(error)
            .hint("check that it exists and that the user of the server, or of its process, may read it")
    })?;
    Ok(without_newline(&content))
}

fn credential(name: &str) -> Result<Pin, Problem> {
    let folder = env::var_os("CREDENTIALS_DIRECTORY").ok_or_else(|| {
        let error = Error::invalid("the pin-source is a credential, and the service has none");
        Problem::new(error).hint("give the unit a line LoadCredential= with its name")
    })?;
    file(&PathBuf::from(folder).join(name), "the credential")
}

fn variable(name: &str) -> Result<Pin, Problem> {
    let value = env::var(name).map(|value| Zeroizing::new(value.into_bytes())).map_err(|_| {
        let error = Error::invalid("the variable of pin-source isn't in the environment of the plugin");
        Problem::new(error).hint("a plugin in a process of its own has what the store's `env` says")
    })?;
    Ok(without_newline(&value))
}

fn run(command: &str) -> Result<Pin, Problem> {
    let failed = |what: &str| {
        let error = Error::new(Code::Unavailable, format!("the command of pin-source {what}"));
        Problem::new(error).hint("a plugin in a process of its own may run none: say `isolation: inline`")
    };
    let mut shell = Command::new("/bin/sh");
    shell.args(["-c", command]).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = shell.spawn().map_err(|error| failed(&format!("can't be run: {}", error.kind())))?;
    if !ends_well(&mut child) {
        return Err(failed(&format!("failed, or took longer than {} s", COMMAND.as_secs())));
    }
    let mut told = Zeroizing::new(Vec::with_capacity(PIN_MAX));
    let output = child.stdout.take().map(|output| output.take(PIN_MAX as u64).read_to_end(&mut told));
    match output {
        Some(Ok(_)) => Ok(without_newline(&told)),
        _ => Err(failed("told nothing")),
    }
}

/// Waits for a command, and ends it where it takes too long. What it writes meanwhile has room in the pipe.
fn ends_well(child: &mut Child) -> bool {
    let until = Instant::now() + COMMAND;
    while Instant::now() < until {
        match child.try_wait() {
            Ok(Some(status)) => return status.success(),
            Ok(None) => thread::sleep(Duration::from_millis(5)),
            Err(_) => break,
        }
    }
    let _ = child.kill();
    let _ = child.wait();
    false
}

/// Files and commands end their text with a newline, which belongs to no PIN.
fn without_newline(content: &[u8]) -> Pin {
    let content = content.strip_suffix(b"\n").unwrap_or(content);
    Zeroizing::new(content.strip_suffix(b"\r").unwrap_or(content).to_vec())
}

/// The store's secret `pin`; `None` where it has none.
fn secret(host: Host) -> Result<Option<Pin>, Problem> {
    match host.secret("pin") {
        Ok(secret) => Ok(Some(Zeroizing::new(secret.expose().to_vec()))),
        Err(error) if error.code == Code::NotFound => Ok(None),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_newline_at_the_end_is_no_part_of_a_pin() {
        for (content, pin) in
            [("1234", "1234"), ("1234\n", "1234"), ("1234\r\n", "1234"), ("1234\n\n", "1234\n"), ("", "")]
        {
            assert_eq!(*without_newline(content.as_bytes()), pin.as_bytes());
        }
    }

    #[test]
    fn a_command_tells_a_pin_or_why_it_does_not() {
        assert_eq!(**run("echo 1234").unwrap(), *b"1234");
        let failed = run("echo s3cr3t; exit 3").unwrap_err();
        assert!(failed.error.message.contains("failed, or took longer than 10 s"), "{failed:?}");
        assert!(!failed.error.message.contains("s3cr3t"));
    }
}
