//! Runs a target of a suite for a bounded time, as its command line says.

#![expect(clippy::print_stderr, clippy::print_stdout, reason = "a command-line tool")]

use std::error::Error;
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};
use std::{env, fs};

use crate::{Mutator, Suite, Target};

impl Suite {
    /// What a suite's program does.
    #[must_use]
    pub fn main(self) -> ExitCode {
        let fail = |error: Box<dyn Error>, status| {
            eprintln!("{}: error: {error}", self.package);
            ExitCode::from(status)
        };
        match Options::parse(self, env::args().skip(1)).map(|options| self.fuzz(&options)) {
            Ok(Ok(report)) => {
                println!("{report}");
                ExitCode::SUCCESS
            }
            Ok(Err(error)) => fail(error, 1),
            Err(error) => fail(error, 2),
        }
    }

    fn fuzz(self, options: &Options) -> Result<String, Box<dyn Error>> {
        let (target, start) = (options.target, Instant::now());
        let corpus = self.corpus(target)?;
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

    fn unknown_target(self, name: &str) -> String {
        let names: Vec<_> = self.targets.iter().map(|target| target.name).collect();
        format!("target `{name}` is unknown; must be one of [{}]", names.join(", "))
    }
}

struct Options {
    target: Target,
    time: Duration,
    seed: u64,
    failures: PathBuf,
}

impl Options {
    fn parse(suite: Suite, mut words: impl Iterator<Item = String>) -> Result<Self, Box<dyn Error>> {
        let name = words.next().unwrap_or_default();
        let target = suite.named(&name).ok_or_else(|| suite.unknown_target(&name))?;
        let failures = PathBuf::from(suite.folder).join("failures");
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
        const TARGETS: &[Target] = &[Target::new("frame", |_| ()), Target::new("request", |_| ())];
        let suite = Suite::new("fuzz", "folder", TARGETS);
        let error = |words: &[&str]| match Options::parse(suite, words.iter().map(ToString::to_string)) {
            Ok(_) => panic!("{words:?} is accepted"),
            Err(error) => error.to_string(),
        };
        let unknown = "target `x` is unknown; must be one of [frame, request]";
        assert_eq!(error(&["x"]), unknown);
        assert_eq!(error(&["frame", "--second", "1"]), "unknown option `--second`");
        assert_eq!(error(&["frame", "--seconds"]), "`--seconds` needs a value");
    }
}
