//! Runs a fuzz target for a bounded time on stable Rust.
//!
//! ```text
//! keystead-protocol-fuzz TARGET [--seconds N] [--seed N] [--failures FOLDER]
//! ```
//!
//! Exit status: 0 if every claim held, 1 with the offending input saved, 2 for a wrong command line.

#![forbid(unsafe_code)]
#![expect(clippy::print_stderr, clippy::print_stdout, reason = "a command-line tool")]

use std::error::Error;
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};
use std::{env, fs};

use keystead_protocol_fuzz::{Mutator, Target};

fn main() -> ExitCode {
    let options = match Options::parse(env::args().skip(1)) {
        Ok(options) => options,
        Err(error) => {
            eprintln!("keystead-protocol-fuzz: error: {error}");
            return ExitCode::from(2);
        }
    };
    match fuzz(&options) {
        Ok(report) => {
            println!("{report}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("keystead-protocol-fuzz: error: {error}");
            ExitCode::FAILURE
        }
    }
}

struct Options {
    target: Target,
    time: Duration,
    seed: u64,
    failures: PathBuf,
}

impl Options {
    fn parse(mut words: impl Iterator<Item = String>) -> Result<Self, Box<dyn Error>> {
        let name = words.next().unwrap_or_default();
        let target = Target::named(&name).ok_or_else(|| unknown_target(&name))?;
        let failures = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("failures");
        let mut options = Self { target, time: Duration::from_secs(10), seed: 1, failures };
        while let Some(flag) = words.next() {
            let value = words.next().ok_or_else(|| format!("`{flag}` needs a value"))?;
            match flag.as_str() {
                "--failures" => options.failures = value.into(),
                "--seconds" => options.time = Duration::from_secs(value.parse()?),
                "--seed" => options.seed = value.parse()?,
                _ => return Err(format!("unknown option `{flag}`").into()),
            }
        }
        Ok(options)
    }
}

fn unknown_target(name: &str) -> String {
    let names: Vec<_> = Target::ALL.iter().map(|target| target.name).collect();
    format!("target `{name}` is unknown; must be one of [{}]", names.join(", "))
}

fn fuzz(options: &Options) -> Result<String, Box<dyn Error>> {
    let (target, start) = (options.target, Instant::now());
    let corpus = target.corpus()?;
    for input in &corpus {
        judge(target, input, &options.failures)?;
    }
    let mut mutator = Mutator::new(corpus, options.seed);
    let mut count = 0_u64;
    while start.elapsed() < options.time {
        judge(target, &mutator.next_input(), &options.failures)?;
        count += 1;
    }
    Ok(format!("{}: {count} mutations, every claim held (seed {})", target.name, options.seed))
}

/// Runs the target on an input, which is saved if a claim doesn't hold.
fn judge(target: Target, input: &[u8], failures: &Path) -> Result<(), Box<dyn Error>> {
    if catch_unwind(|| target.run(input)).is_ok() {
        return Ok(());
    }
    fs::create_dir_all(failures)?;
    let path = failures.join(format!("{}-{:016x}", target.name, fingerprint(input)));
    fs::write(&path, input)?;
    Err(format!("{}: a claim doesn't hold for `{}`", target.name, path.display()).into())
}

/// FNV-1a, which is stable between compilers: the same failure keeps its file name.
fn fingerprint(input: &[u8]) -> u64 {
    input.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn saves_the_input_that_a_claim_fails_for() {
        let target = Target::new("picky", |input| assert_ne!(input, b"bad"));
        let folder = tempfile::tempdir().unwrap();
        judge(target, b"good", folder.path()).unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        let error = judge(target, b"bad", folder.path()).unwrap_err().to_string();
        let saved = fs::read_dir(folder.path()).unwrap().next().unwrap().unwrap().path();
        assert!(error.contains(saved.to_str().unwrap()), "{error}");
        assert_eq!(fs::read(saved).unwrap(), b"bad");
    }

    #[test]
    fn refuses_unknown_targets_and_options() {
        let error = |words: &[&str]| match Options::parse(words.iter().map(ToString::to_string)) {
            Ok(_) => panic!("{words:?} is accepted"),
            Err(error) => error.to_string(),
        };
        let unknown = "target `x` is unknown; must be one of [frame, request, response, spki]";
        assert_eq!(error(&["x"]), unknown);
        assert_eq!(error(&["frame", "--second", "1"]), "unknown option `--second`");
        assert_eq!(error(&["frame", "--seconds"]), "`--seconds` needs a value");
    }
}
