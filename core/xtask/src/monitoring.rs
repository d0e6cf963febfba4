//! `cargo xtask test monitoring`: the files in `config/monitoring`. promtool judges the alerts, their tests, and each
//! expression of the dashboard; and whatever they use stands in the table of metrics of the README there.

mod alerts;
mod dashboard;
mod metrics;
mod promql;

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;

use crate::failure::{Failure, Result};
use crate::{file, process, workspace};
use dashboard::Dashboard;
use metrics::Metrics;

const ALERTS: &str = "alerts.yaml";
const TESTS: &str = "alerts.test.yaml";
const DASHBOARD: &str = "dashboard.json";
const README: &str = "README.md";

/// A piece of PromQL, and where it stands.
struct Expression {
    place: String,
    promql: String,
}

/// Checks them all, and says how many there are of what.
pub(crate) fn check() -> Result<()> {
    promtool(&["check", "rules"], &place(ALERTS))?;
    promtool(&["test", "rules"], &place(TESTS))?;
    let (rules, tests) = (read(ALERTS)?, read(TESTS)?);
    let (alerts, dashboard) = (alerts::parse(&rules), Dashboard::parse(&read(DASHBOARD)?)?);
    parse_all(&dashboard.expressions)?;

    let asked = dashboard.expressions.len();
    let metrics = Metrics::parse(&read(README)?);
    let mut faults: Vec<String> = alerts.iter().flat_map(|alert| alert.faults(&tests)).collect();
    faults.extend(dashboard.faults);
    let used = alerts.iter().map(alerts::Alert::expression).chain(dashboard.expressions);
    faults.extend(used.flat_map(|expression| metrics.faults(&expression)));
    if !faults.is_empty() {
        return Err(Failure::new(format!("in config/monitoring:\n    {}", faults.join("\n    "))));
    }
    let (alerts, metrics) = (alerts.len(), metrics.len());
    println!("{alerts} alerts, each tested; {asked} expressions of the dashboard; {metrics} metrics");
    Ok(())
}

/// Has promtool parse the expressions, as rules that record them.
fn parse_all(expressions: &[Expression]) -> Result<()> {
    let name = |place: &str| place.replace(|c: char| !c.is_ascii_alphanumeric(), "_");
    let rules: Vec<_> = expressions
        .iter()
        .enumerate()
        .map(|(number, Expression { place, promql })| {
            json!({"record": format!("dashboard:{}:{number}", name(place)), "expr": promql})
        })
        .collect();
    let folder = file::temporary_folder("monitoring")?;
    let file = folder.path().join("dashboard.yaml"); // which JSON is
    file::write(&file, &json!({"groups": [{"name": DASHBOARD, "rules": rules}]}).to_string())?;
    promtool(&["check", "rules"], &file)
}

/// Runs promtool, beside the rules that a file of tests names.
fn promtool(words: &[&str], file: &Path) -> Result<()> {
    let mut command = Command::new("promtool");
    command.args(words).arg(file.file_name().unwrap_or(OsStr::new(".")));
    process::output(command.current_dir(file.parent().unwrap_or(Path::new(".")))).map(drop)
}

fn read(name: &str) -> Result<String> {
    file::read(&place(name))
}

fn place(name: &str) -> PathBuf {
    workspace::root().join("config/monitoring").join(name)
}
