//! `cargo xtask test`: everything that must hold before a change is merged, step by step, stopping at the first that
//! fails.

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::failure::{Failure, Result};
use crate::process::run as run_command;
use crate::workspace::{cargo, root, tools};
use crate::{demo, licences, monitoring, page, system, systemd};

/// Time that all fuzz targets share.
const FUZZING: Duration = Duration::from_secs(40);

/// The packages of fuzz targets, and their folders.
const SUITES: [(&str, &str); 2] = [
    ("keystead-protocol-fuzz", "core/protocol/fuzz"),
    ("keystead-plugin-host-fuzz", "core/plugin-host/fuzz"),
];

/// The packages that are built as components, and what they are made with.
const COMPONENTS: [&str; 5] = [
    "keystead-plugin-api",
    "keystead-plugin-azure",
    "keystead-plugin-gcp",
    "keystead-plugin-openbao-transit",
    "keystead-plugin-hostile-wasm",
];

/// The steps, cheapest refusal first.
const STEPS: &[Step] = &[
    Step::new("format", "cargo fmt --check", format),
    Step::new("licences", "cargo deny check bans licenses sources", licences::check),
    Step::new("lints", "cargo clippy, warnings denied", clippy),
    Step::new("documents", "cargo doc, warnings denied", documents),
    Step::new("monitoring", "promtool: rules, their tests, dashboard", monitoring::check),
    Step::new("tests", "cargo test", tests),
    Step::new("fuzzing", "each fuzz target, for seconds", fuzzing),
    Step::new("benchmarks", "each benchmark, once", benchmarks),
    Step::new("page", "the status page in a browser", page::check),
    Step::new("demo", "handshakes, with each backend", demonstration),
    Step::new("systemd", "the units, under a systemd of their own", systemd::check),
];

#[derive(Clone, Copy)]
struct Step {
    name: &'static str,
    what: &'static str,
    run: fn() -> Result<()>,
}

/// Which steps are run, in the order of [`STEPS`].
pub(crate) struct Selection(Vec<Step>);

/// How a step went: nothing for one that wasn't reached.
type Outcome = Option<(Duration, bool)>;

/// Runs the steps, and prints how long each took.
pub(crate) fn run(selection: &Selection) -> Result<()> {
    system::ensure(&[system::FOR_DEMO, system::FOR_C, system::FOR_MODULE, system::FOR_TEST].concat())?;
    system::ensure_wasm_target()?;
    let steps = &selection.0;
    let mut outcomes: Vec<Outcome> = Vec::new();
    let mut result = Ok(());
    for step in steps {
        println!("\n=== {}: {}", step.name, step.what);
        let start = Instant::now();
        result = (step.run)();
        outcomes.push(Some((start.elapsed(), result.is_ok())));
        if result.is_err() {
            break;
        }
    }
    outcomes.resize(steps.len(), None);
    println!("\n{}", table(steps, &outcomes));
    result
}

impl Selection {
    /// Reads the names of steps; none at all means every step.
    pub(crate) fn parse(names: &[&str]) -> Result<Self> {
        let known = |name: &str| STEPS.iter().any(|step| step.name == name);
        if let Some(unknown) = names.iter().find(|name| !known(name)) {
            let all: Vec<_> = STEPS.iter().map(|step| step.name).collect();
            return Err(Failure::usage(format!("unknown step `{unknown}`"))
                .hint(format!("the steps are {}", all.join(", "))));
        }
        let chosen = |step: &&Step| names.is_empty() || names.contains(&step.name);
        Ok(Self(STEPS.iter().filter(chosen).copied().collect()))
    }
}

impl Step {
    const fn new(name: &'static str, what: &'static str, run: fn() -> Result<()>) -> Self {
        Self { name, what, run }
    }
}

fn table(steps: &[Step], outcomes: &[Outcome]) -> String {
    let mut lines = vec![format!("{:<11} {:<41} {:>8}  result", "step", "what", "time")];
    for (step, outcome) in steps.iter().zip(outcomes) {
        let (time, result) = match outcome {
            Some((time, true)) => (seconds(*time), "ok"),
            Some((time, false)) => (seconds(*time), "FAILED"),
            None => (String::from("-"), "not run"),
        };
        lines.push(format!("{:<11} {:<41} {time:>8}  {result}", step.name, step.what));
    }
    let total = outcomes.iter().flatten().map(|(time, _)| *time).sum();
    lines.push(format!("{:<11} {:<41} {:>8}", "all", "", seconds(total)));
    lines.join("\n")
}

fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}

fn format() -> Result<()> {
    run_command(cargo().args(["fmt", "--all", "--check"]))
        .map_err(|failure| failure.hint("`cargo fmt --all` puts it right"))
}

/// The whole workspace; and what only components are made of.
fn clippy() -> Result<()> {
    run_command(of_workspace("clippy").args(["--all-targets", "--", "--deny", "warnings"]))?;
    let mut components = cargo();
    components.args(["clippy", "--locked", "--target", system::WASM_TARGET]);
    components.args(COMPONENTS.iter().flat_map(|package| ["--package", package]));
    run_command(components.args(["--", "--deny", "warnings"]))
}

fn documents() -> Result<()> {
    run_command(of_workspace("doc").arg("--no-deps").env("RUSTDOCFLAGS", "--deny warnings"))
}

fn tests() -> Result<()> {
    kryoptic()?;
    run_command(&mut of_workspace("test"))
}

/// Builds the one token of these tests that is in no package. Cargo knows whether there is anything to build.
fn kryoptic() -> Result<()> {
    let mut build = cargo();
    build.args(["build", "--locked", "--package", "kryoptic", "--manifest-path"]);
    build.arg("plugins/pkcs11/tests/kryoptic/Cargo.toml").arg("--target-dir");
    run_command(build.arg(tools()?.join("kryoptic")))
}

/// Runs them as tests do, once and in the same profile, which needs no second build of the dependencies.
fn benchmarks() -> Result<()> {
    run_command(of_workspace("test").args(["--bench", "*"]))
}

fn demonstration() -> Result<()> {
    demo::Options::all().try_for_each(|options| demo::run(&options))
}

fn fuzzing() -> Result<()> {
    let targets = fuzz_targets()?;
    let each = FUZZING.as_secs() / targets.len().max(1) as u64;
    for (package, target) in &targets {
        let mut command = cargo();
        command.args(["run", "--quiet", "--locked", "--package", package, "--", target]);
        run_command(command.args(["--seconds", &each.to_string()]))?;
    }
    Ok(())
}

/// The fuzz targets, by package and name: each has a folder of saved inputs.
fn fuzz_targets() -> Result<Vec<(&'static str, String)>> {
    let mut targets = Vec::new();
    for (package, folder) in SUITES {
        let corpus = root().join(folder).join("corpus");
        let entries = fs::read_dir(&corpus).map_err(|error| Failure::file("list", &corpus, &error))?;
        let known = targets.len();
        targets.extend(
            entries.flatten().map(|entry| (package, entry.file_name().to_string_lossy().into_owned())),
        );
        if targets.len() == known {
            return Err(Failure::new(format!("no fuzz target has a folder in {}", corpus.display())));
        }
    }
    targets.sort();
    Ok(targets)
}

/// A subcommand over everything, with the features that make all steps share what is built.
fn of_workspace(subcommand: &str) -> Command {
    let mut command = cargo();
    command.args([subcommand, "--locked", "--workspace", "--all-features"]);
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_tells_done_from_failed_from_not_run() {
        let steps =
            [Step::new("a", "one", format), Step::new("b", "two", format), Step::new("c", "three", format)];
        let outcomes =
            [Some((Duration::from_millis(1_500), true)), Some((Duration::from_secs(2), false)), None];
        let table = table(&steps, &outcomes);
        let results: Vec<_> = table.lines().filter_map(|line| line.split("  ").last()).collect();
        assert_eq!(results.get(1..4), Some(&["ok", "FAILED", "not run"][..]), "{table}");
        assert!(table.ends_with("3.5 s"), "{table}");
    }

    #[test]
    fn finds_the_fuzz_targets() {
        let targets = fuzz_targets().expect("a corpus");
        for target in [("keystead-protocol-fuzz", "request"), ("keystead-plugin-host-fuzz", "child")] {
            assert!(targets.iter().any(|(package, name)| (*package, name.as_str()) == target), "{targets:?}");
        }
    }
}
