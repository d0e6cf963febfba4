//! What people automate here.
//!
//! ```text
//! cargo xtask demo [--keep] [--backend pkcs11|c|azure|gcp]
//! cargo xtask soak [--minutes N] [--seed N] [--isolation process|inline]
//! cargo xtask test [STEP...]
//! ```
//!
//! Exit status: 0 done; 1 ran and failed; 2 for a wrong command line, or when something must be installed first.

#![forbid(unsafe_code)]
#![expect(clippy::print_stderr, clippy::print_stdout, reason = "a command-line tool")]

mod authority;
mod daemon;
mod demo;
mod failure;
mod file;
mod http;
mod interrupt;
mod key_pair;
mod licences;
mod monitoring;
mod page;
mod patience;
mod ports;
mod process;
mod soak;
mod system;
mod systemd;
mod test;
mod token;
mod workspace;

use std::process::ExitCode;

use failure::{Failure, Result};

const USAGE: &str = "\
usage: cargo xtask COMMAND

commands:
  demo [--keep] [--backend pkcs11|c|azure|gcp]
          a TLS handshake signed inside a throw-away token, from nothing to a page, four times over;
          with `--backend c`, by the example of a plugin in C and a key that follows from a sealed seed;
          with `--backend azure` or `gcp`, by a fake of that cloud's key service, on this machine;
          `--keep` leaves everything running, with commands to try, until Ctrl-C
  soak [--minutes N] [--seed N] [--isolation process|inline]
          a key server under load for 10 minutes, while its PKCS#11 module meets a fault every 5 seconds: how soon each
          is over, what fails, and what grows; a seed that was printed has the same faults come again
  test [STEP...]
          everything that must hold before a change is merged; or only some steps of it, by name
  help    this text

Each installs what it needs with apt when something is missing: as root, or through `sudo -n`.";

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match Task::parse(&words).and_then(Task::run) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("\n{failure}");
            failure.status()
        }
    }
}

enum Task {
    Demo(demo::Options),
    Help,
    Soak(soak::Options),
    Test(test::Selection),
}

impl Task {
    fn parse(words: &[String]) -> Result<Self> {
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        match words.as_slice() {
            ["demo", options @ ..] => demo::Options::parse(options).map(Self::Demo),
            ["soak", options @ ..] => soak::Options::parse(options).map(Self::Soak),
            ["test", steps @ ..] => test::Selection::parse(steps).map(Self::Test),
            ["help" | "--help" | "-h"] => Ok(Self::Help),
            ["help", extra, ..] => Err(Failure::usage(format!("unexpected argument `{extra}`"))),
            [other, ..] => Err(Failure::usage(format!("unknown command `{other}`"))),
            [] => Err(Failure::usage("no command given")),
        }
    }

    fn run(self) -> Result<()> {
        match self {
            Self::Demo(options) => demo::run(&options),
            Self::Help => {
                println!("{USAGE}");
                Ok(())
            }
            Self::Soak(options) => soak::run(&options),
            Self::Test(selection) => test::run(&selection),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Task> {
        Task::parse(&line.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn knows_its_commands() {
        assert!(matches!(parse("demo --keep --backend pkcs11"), Ok(Task::Demo(_))));
        for backend in ["c", "azure", "gcp"] {
            assert!(matches!(parse(&format!("demo --backend {backend}")), Ok(Task::Demo(_))));
        }
        assert!(matches!(parse("soak --minutes 3"), Ok(Task::Soak(_))));
        assert!(matches!(parse("test"), Ok(Task::Test(_))));
        assert!(matches!(parse("test lints format"), Ok(Task::Test(_))));
        assert!(matches!(parse("--help"), Ok(Task::Help)));
    }

    #[test]
    fn refuses_what_it_does_not_know_and_says_what_it_knows() {
        for line in
            ["", "tset", "test all", "demo --backend", "demo --backend tape", "demo --quick", "soak --hours"]
        {
            let failure = parse(line).map(|_| ()).expect_err(line).to_string();
            assert!(failure.contains("hint: "), "{line}: {failure}");
        }
    }
}
