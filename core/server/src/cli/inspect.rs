//! `check` and `keys`: what the configured stores hold, and what is wrong with them.

use std::{
    fmt::Write,
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant},
};

use keystead::{
    config::{self, Config, Flags, Operation},
    keyring::Holder,
    server,
    store::ManagedStore,
    telemetry, tls,
};
use keystead_plugin_host::{Algorithm, Failure, Finding, Host, Key, Listing, Severity};
use keystead_protocol::Ski;
use serde_json::{Value, json};

use super::{Failed, Output, load, print, runtime};

/// How long one key may take to prove itself.
const PROOF: Duration = Duration::from_secs(30);

/// How long closing a store may take.
const CLOSE: Duration = Duration::from_secs(2);

/// Checks everything that `run` would use.
pub(super) fn check(flags: &Flags, output: Output) -> Result<ExitCode, Failed> {
    let config = load(flags)?;
    quiet();
    let tls = tls::server_config(&config).err().map(|error| error.to_string());
    let reports = survey(&config, true)?;
    let errors = usize::from(tls.is_some()) + reports.iter().map(Report::errors).sum::<usize>();
    match output.json {
        true => print(&format!("{:#}\n", to_json(&config, tls.as_deref(), &reports, errors)))?,
        false => print(&to_text(&config, tls.as_deref(), &reports, errors))?,
    };
    Ok(ExitCode::from(u8::from(errors > 0)))
}

/// Lists the keys.
pub(super) fn keys(flags: &Flags, output: Output) -> Result<ExitCode, Failed> {
    let config = load(flags)?;
    quiet();
    let reports = survey(&config, false)?;
    let keys: Vec<_> =
        reports.iter().flat_map(|report| report.keys.iter().map(move |key| (report, &key.key))).collect();
    if output.json {
        let keys: Vec<Value> = keys.iter().map(|(report, key)| key_json(report, key)).collect();
        print(&format!("{:#}\n", Value::from(keys)))?;
    } else {
        let rows = keys.iter().map(|(report, key)| {
            [
                ski(key),
                key_type(key),
                report.name.clone(),
                key.label().to_owned(),
                operations(report, key).join(","),
            ]
        });
        print(&table(["SKI", "TYPE", "STORE", "LABEL", "OPERATIONS"], rows))?;
    }
    let failed: Vec<String> = reports.iter().filter_map(Report::failure_line).collect();
    match failed.is_empty() {
        true => Ok(ExitCode::SUCCESS),
        false => Err(Failed::new(failed.join("\n"))),
    }
}

/// What one store turned out to hold.
struct Report {
    name: String,
    plugin: String,
    operations: Vec<Operation>,
    keys: Vec<Surveyed>,
    findings: Vec<Finding>,
    failure: Option<Failure>,
}

struct Surveyed {
    key: Arc<Key>,
    proof: Option<Result<(), Failure>>,
}

impl Report {
    fn errors(&self) -> usize {
        usize::from(self.failure.is_some())
            + self.findings.iter().filter(|finding| finding.severity == Severity::Error).count()
            + self.keys.iter().filter(|key| matches!(key.proof, Some(Err(_)))).count()
    }

    fn failure_line(&self) -> Option<String> {
        self.failure.as_ref().map(|failure| format!("store `{}`: {failure}", self.name))
    }
}

/// Plugins' events of an inspection are findings already; only what goes beyond is worth a line.
fn quiet() {
    let mut log = config::Log::default();
    log.level = config::Level::Error;
    telemetry::start(log);
}

fn survey(config: &Config, prove: bool) -> Result<Vec<Report>, Failed> {
    let host = server::plugin_host(&config.plugins);
    let runtime = runtime()?;
    let reports = runtime.block_on(async {
        let mut reports = Vec::new();
        for store in &config.stores {
            reports.push(survey_store(&host, store, prove).await);
        }
        reports
    });
    runtime.shutdown_background();
    Ok(reports)
}

async fn survey_store(host: &Arc<Host>, config: &config::Store, prove: bool) -> Report {
    let store = Arc::new(ManagedStore::new(host, config));
    let mut report = Report {
        name: config.name.clone(),
        plugin: config.plugin.clone(),
        operations: config.operations.iter().copied().collect(),
        keys: Vec::new(),
        findings: Vec::new(),
        failure: None,
    };
    let listed = async {
        store.store().open().await?;
        store.store().keys().await
    };
    match listed.await {
        Ok(Listing { keys, findings, .. }) => {
            report.findings = findings;
            for key in keys {
                let holder = Holder::new(Arc::clone(&store), Arc::clone(&key));
                let proof = match prove {
                    true => Some(holder.prove(Instant::now() + PROOF).await),
                    false => None,
                };
                report.keys.push(Surveyed { key, proof });
            }
        }
        Err(failure) => report.failure = Some(failure),
    }
    store.store().close(CLOSE).await;
    report
}

fn to_text(config: &Config, tls: Option<&str>, reports: &[Report], errors: usize) -> String {
    let mut text = String::new();
    for warning in &config.warnings {
        line(&mut text, "warning", &warning.to_string().replace("\nhint: ", "\n         hint: "));
    }
    for warning in tls::expiries(config).iter().filter_map(server::expires_soon) {
        line(&mut text, "warning", &warning);
    }
    match tls {
        Some(error) => line(&mut text, "error", &format!("TLS: {error}")),
        None => line(
            &mut text,
            "ok",
            &format!("TLS: {}, for clients of {}", config.auth_cert.display(), config.client_ca.display()),
        ),
    }
    for report in reports {
        let _ = writeln!(text, "\nstore {} (plugin {})", report.name, report.plugin);
        store_text(&mut text, report);
    }
    let warnings = config.warnings.len()
        + reports
            .iter()
            .flat_map(|report| &report.findings)
            .filter(|f| f.severity == Severity::Warning)
            .count();
    let _ = writeln!(text, "\n{}, {}", count(errors, "error"), count(warnings, "warning"));
    text
}

fn store_text(text: &mut String, report: &Report) {
    if let Some(failure) = &report.failure {
        line(text, "error", &failure.to_string());
    }
    for Surveyed { key, proof } in &report.keys {
        let what = format!(
            "{}  {}  {}  {}",
            ski(key),
            key_type(key),
            key.label(),
            operations(report, key).join(",")
        );
        match proof {
            Some(Err(failure)) => line(text, "error", &format!("{what}: {failure}")),
            _ => line(text, "ok", &what),
        }
    }
    for finding in &report.findings {
        let level = if finding.severity == Severity::Error { "error" } else { "warning" };
        line(text, level, &format!("{}: {}", finding.subject, finding.failure));
        if !finding.hint.is_empty() {
            let _ = writeln!(text, "           hint: {}", finding.hint);
        }
    }
}

fn line(text: &mut String, level: &str, what: &str) {
    let _ = writeln!(text, "  {level:7}  {what}");
}

fn count(number: usize, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

fn to_json(config: &Config, tls: Option<&str>, reports: &[Report], errors: usize) -> Value {
    json!({
        "errors": errors,
        "warnings": config.warnings.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "tls": { "ok": tls.is_none(), "error": tls },
        "stores": reports.iter().map(store_json).collect::<Vec<_>>(),
    })
}

fn store_json(report: &Report) -> Value {
    json!({
        "name": report.name,
        "plugin": report.plugin,
        "error": report.failure.as_ref().map(failure_json),
        "keys": report.keys.iter().map(|surveyed| json!({
            "key": key_json(report, &surveyed.key),
            "proven": matches!(surveyed.proof, Some(Ok(()))),
            "error": match &surveyed.proof {
                Some(Err(failure)) => failure_json(failure),
                _ => Value::Null,
            },
        })).collect::<Vec<_>>(),
        "findings": report.findings.iter().map(|finding| json!({
            "severity": if finding.severity == Severity::Error { "error" } else { "warning" },
            "subject": finding.subject,
            "error": failure_json(&finding.failure),
            "hint": finding.hint,
        })).collect::<Vec<_>>(),
    })
}

fn failure_json(failure: &Failure) -> Value {
    json!({
        "class": failure.class.name(),
        "message": failure.message,
        "vendor": failure.vendor.as_ref().map(|vendor| json!({ "name": vendor.name, "code": vendor.number })),
    })
}

fn key_json(report: &Report, key: &Key) -> Value {
    json!({
        "ski": ski(key),
        "type": key_type(key),
        "store": report.name,
        "label": key.label(),
        "operations": operations(report, key),
        "algorithms": key.algorithms().iter().map(|algorithm| algorithm.name()).collect::<Vec<_>>(),
    })
}

fn ski(key: &Key) -> String {
    Ski::from_spki(key.spki()).map(|ski| ski.to_string()).unwrap_or_default()
}

fn key_type(key: &Key) -> String {
    use keystead_plugin_host::Family;
    match key.family() {
        Family::Rsa => format!("RSA-{}", key.bits()),
        Family::Ecdsa => format!("P-{}", key.bits()),
        _ => "Ed25519".to_owned(),
    }
}

/// What the key can do, of what its store is allowed.
fn operations(report: &Report, key: &Key) -> Vec<&'static str> {
    let decrypts = key.algorithms().contains(&Algorithm::RsaRaw);
    let signs = key.algorithms().iter().any(|algorithm| *algorithm != Algorithm::RsaRaw);
    let may = |operation| report.operations.contains(&operation);
    [("sign", signs && may(Operation::Sign)), ("decrypt", decrypts && may(Operation::Decrypt))]
        .into_iter()
        .filter_map(|(name, can)| can.then_some(name))
        .collect()
}

/// Columns as wide as they need to be.
pub(super) fn table<const N: usize>(head: [&str; N], rows: impl Iterator<Item = [String; N]>) -> String {
    let rows: Vec<[String; N]> = std::iter::once(head.map(ToOwned::to_owned)).chain(rows).collect();
    let widths: [usize; N] = std::array::from_fn(|column| {
        rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
    });
    let mut text = String::new();
    for row in rows {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}"));
        text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
    }
    text
}
