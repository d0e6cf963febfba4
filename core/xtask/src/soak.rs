//! `cargo xtask soak`: a key server under load, while the module that its key is behind meets one fault after the other.
//!
//! What is measured and judged is in `core/server/benches/soak.rs`, which speaks TLS and knows the module; here is what
//! it takes to run it, built as for a release.

use crate::failure::{Failure, Result};
use crate::process::run as run_command;
use crate::system;
use crate::workspace::cargo;

/// How long it may take, in minutes: a day.
const LONGEST: u64 = 24 * 60;

/// How it is done.
#[derive(Debug, PartialEq)]
pub(crate) struct Options {
    minutes: u64,
    /// Which faults come; else others each time.
    seed: Option<u64>,
    isolation: &'static str,
}

impl Default for Options {
    fn default() -> Self {
        Self { minutes: 10, seed: None, isolation: "process" }
    }
}

impl Options {
    /// Reads the words behind `soak`.
    pub(crate) fn parse(words: &[&str]) -> Result<Self> {
        let mut options = Self::default();
        let mut words = words.iter();
        while let Some(word) = words.next() {
            let value = words.next().copied();
            match *word {
                "--minutes" => options.minutes = number(word, value, 1..=LONGEST)?,
                "--seed" => options.seed = Some(number(word, value, 0..=u64::MAX)?),
                "--isolation" => options.isolation = isolation(value)?,
                other => return Err(Failure::usage(format!("unexpected argument `{other}`"))),
            }
        }
        Ok(options)
    }

    /// The arguments of the benchmark.
    fn arguments(&self) -> Vec<String> {
        let seconds = (self.minutes * 60).to_string();
        let mut arguments: Vec<String> =
            ["--seconds", &seconds, "--isolation", self.isolation].map(str::to_owned).into();
        arguments.extend(self.seed.into_iter().flat_map(|seed| ["--seed".to_owned(), seed.to_string()]));
        arguments
    }
}

fn number(word: &str, value: Option<&str>, range: std::ops::RangeInclusive<u64>) -> Result<u64> {
    let number = value.and_then(|value| value.parse().ok()).filter(|number| range.contains(number));
    number.ok_or_else(|| {
        let (least, most) = range.into_inner();
        Failure::usage(format!("{word}: expected a number from {least} to {most}, got {}", quoted(value)))
    })
}

fn isolation(value: Option<&str>) -> Result<&'static str> {
    let known = ["process", "inline"].into_iter().find(|known| value == Some(known));
    known.ok_or_else(|| {
        Failure::usage(format!("--isolation: expected `process` or `inline`, got {}", quoted(value)))
    })
}

fn quoted(value: Option<&str>) -> String {
    value.map_or_else(|| "nothing".to_owned(), |value| format!("`{value}`"))
}

/// Runs it, and fails unless everything about it was as it should be.
pub(crate) fn run(options: &Options) -> Result<()> {
    system::ensure(&[system::FOR_DEMO, system::FOR_C, system::FOR_MODULE].concat())?;
    let bench = ["bench", "--locked", "--package", "keystead", "--bench", "soak", "--"];
    run_command(cargo().args(bench).args(options.arguments()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arguments(line: &str) -> Result<String> {
        let words: Vec<_> = line.split_whitespace().collect();
        Options::parse(&words).map(|options| options.arguments().join(" "))
    }

    #[test]
    fn takes_ten_minutes_in_a_process_unless_told_otherwise() {
        let usual = arguments("").expect("no options");
        assert_eq!(usual, "--seconds 600 --isolation process");
        let told = arguments("--seed 7 --isolation inline --minutes 3").expect("options");
        assert_eq!(told, "--seconds 180 --isolation inline --seed 7");
    }

    #[test]
    fn refuses_what_is_no_length_and_no_place() {
        for line in
            ["--minutes", "--minutes 0", "--minutes 1441", "--seed x", "--isolation tape", "--hours 1"]
        {
            arguments(line).expect_err(line);
        }
    }
}
