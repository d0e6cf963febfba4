//! Programs that run to their end.

use std::ffi::OsStr;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::failure::{Failure, Result};

/// How many lines of a failed program's output are shown.
const LINES_SHOWN: usize = 20;

/// Runs a program that talks to the terminal itself, but is asked nothing.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let status = command.stdin(Stdio::null()).status().map_err(|error| unstartable(command, &error))?;
    if status.success() {
        return Ok(());
    }
    Err(Failure::new(format!("`{}` failed: {status}", line(command))))
}

/// What a program wrote.
pub(crate) struct Output {
    /// To standard output.
    pub(crate) stdout: String,
    /// To standard error.
    pub(crate) stderr: String,
}

/// Runs a program quietly.
///
/// A failure shows the end of what it wrote, so only for programs that write no secrets.
pub(crate) fn output(command: &mut Command) -> Result<Output> {
    output_for(command, "")
}

/// Runs a program quietly, with `input` on its standard input.
pub(crate) fn output_for(command: &mut Command, input: &str) -> Result<Output> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|error| unstartable(command, &error))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A program that doesn't want its input is free to close it; its exit status tells the rest.
        let _ = stdin.write_all(input.as_bytes());
    }
    let done = child.wait_with_output().map_err(|error| unstartable(command, &error))?;
    let [stdout, stderr] =
        [done.stdout, done.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    if done.status.success() {
        return Ok(Output { stdout, stderr });
    }
    let said = last_lines(&format!("{stdout}\n{stderr}"));
    Err(Failure::new(format!("`{}` failed: {}; it said:\n{said}", line(command), done.status)))
}

/// Whether a program can be run at all, and succeeds.
pub(crate) fn succeeds(program: &str, arguments: &[&str]) -> bool {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

/// The end of a text, indented.
pub(crate) fn last_lines(text: &str) -> String {
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    let skipped = lines.len().saturating_sub(LINES_SHOWN);
    lines.iter().skip(skipped).map(|line| format!("    {line}")).collect::<Vec<_>>().join("\n")
}

/// The command as one would type it.
pub(crate) fn line(command: &Command) -> String {
    let program = Path::new(command.get_program()).file_name().unwrap_or(command.get_program());
    let words = std::iter::once(program).chain(command.get_args());
    words.map(OsStr::to_string_lossy).collect::<Vec<_>>().join(" ")
}

fn unstartable(command: &Command, error: &std::io::Error) -> Failure {
    Failure::new(format!("cannot run `{}`: {error}", line(command)))
}
