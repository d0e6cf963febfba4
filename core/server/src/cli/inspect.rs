//! `check`: what the configured stores hold, and what is wrong with them.

use std::{
    fmt::Write,
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant},
};

use keystead::{
    config::{self, Config, Flags, Operation},
    keyring::Holder,
    metrics::Metrics,
    server,
    status::{self, KeyStatus, VendorCode},
    store::ManagedStore,
    telemetry,
    tls::Identity,
};
use keystead_plugin_host::{Failure, Finding, Host, Isolation, Key, Listing, Severity};
use serde_json::{Value, json};

use super::{
    Failed, Output, load,
    measure::{Measurement, Terms, measure},
    print, runtime,
};

/// How long one key may take to prove itself.
const PROOF: Duration = Duration::from_secs(30);

/// How long closing a store may take.
const CLOSE: Duration = Duration::from_secs(2);

/// Checks everything that `run` would use.
///
/// With `measure`, the stores sign for that long a step.
pub(super) fn check(flags: &Flags, measure: Option<Duration>, output: Output) -> Result<ExitCode, Failed> {
    let config = load(flags)?;
    quiet();
    let identity = Identity::load(&config).map_err(|error| error.to_string());
    let terms = measure.map(|step| Terms { step, deadline: config.limits.deadline });
    let reports = survey(&config, terms)?;
    let errors = usize::from(identity.is_err()) + reports.iter().map(Report::errors).sum::<usize>();
    match output.json {
        true => print(&format!("{:#}\n", to_json(&config, identity.as_ref().err(), &reports, errors)))?,
        false => print(&to_text(&config, identity.as_ref(), &reports, errors))?,
    };
    Ok(ExitCode::from(u8::from(errors > 0)))
}

/// What one store turned out to hold.
struct Report {
    name: String,
    plugin: String,
    /// Where its plugin ran; `None` where it didn't get that far.
    isolation: Option<Isolation>,
    operations: Vec<Operation>,
    keys: Vec<Surveyed>,
    findings: Vec<Finding>,
    measurement: Option<Measurement>,
    failure: Option<Failure>,
}

struct Surveyed {
    key: Arc<Key>,
    proof: Result<(), Failure>,
}

impl Report {
    fn errors(&self) -> usize {
        usize::from(self.failure.is_some())
            + self.findings.iter().filter(|finding| finding.severity == Severity::Error).count()
            + self.keys.iter().filter(|key| key.proof.is_err()).count()
            + self.measurement.as_ref().map_or(0, Measurement::errors)
    }

    fn warnings(&self) -> usize {
        self.findings.iter().filter(|finding| finding.severity == Severity::Warning).count()
            + self.measurement.as_ref().map_or(0, Measurement::warnings)
    }
}

/// Plugins' events of an inspection are findings already; only what goes beyond is worth a line.
fn quiet() {
    let mut log = config::Log::default();
    log.level = config::Level::Error;
    telemetry::start(log);
}

fn survey(config: &Config, measure: Option<Terms>) -> Result<Vec<Report>, Failed> {
    let host = server::plugin_host(&config.plugins);
    let metrics = Metrics::new().map_err(Failed::new)?;
    let runtime = runtime()?;
    let reports = runtime.block_on(async {
        let mut reports = Vec::new();
        for store in &config.stores {
            reports.push(survey_store(&host, store, &metrics, measure).await);
        }
        reports
    });
    runtime.shutdown_background();
    Ok(reports)
}

async fn survey_store(
    host: &Arc<Host>,
    config: &config::Store,
    metrics: &Metrics,
    terms: Option<Terms>,
) -> Report {
    let store = Arc::new(ManagedStore::new(host, config, metrics));
    let mut report = Report {
        name: config.name.clone(),
        plugin: config.plugin.clone(),
        isolation: None,
        operations: config.operations.iter().copied().collect(),
        keys: Vec::new(),
        findings: Vec::new(),
        measurement: None,
        failure: None,
    };
    let listed = async {
        store.store().open().await?;
        store.store().keys().await.map(|listing| store.reviewed(listing))
    };
    match listed.await {
        Ok(Listing { keys, findings, .. }) => {
            report.findings = findings;
            for key in keys {
                let holder = Holder::new(Arc::clone(&store), Arc::clone(&key));
                let proof = holder.prove(Instant::now() + PROOF).await;
                report.keys.push(Surveyed { key, proof });
            }
            if let Some(terms) = terms {
                let proven = report.keys.iter().filter(|key| key.proof.is_ok()).map(|key| &key.key);
                report.measurement = Some(measure(&store, proven, &report.operations, terms).await);
            }
        }
        Err(failure) => report.failure = Some(failure),
    }
    report.isolation = store.store().isolation();
    store.store().close(CLOSE).await;
    report
}

fn to_text(
    config: &Config,
    identity: Result<&Identity, &String>,
    reports: &[Report],
    errors: usize,
) -> String {
    let mut text = String::new();
    for warning in &config.warnings {
        line(&mut text, "warning", &warning.to_string().replace("\nhint: ", "\n         hint: "));
    }
    match identity {
        Err(error) => line(&mut text, "error", &format!("TLS: {error}")),
        Ok(identity) => {
            for warning in identity.certificates().iter().filter_map(server::expires_soon) {
                line(&mut text, "warning", &warning);
            }
            let (certificate, authorities) = (config.auth_cert.display(), config.client_ca.display());
            line(&mut text, "ok", &format!("TLS: {certificate}, for clients of {authorities}"));
        }
    }
    for report in reports {
        let isolation = report
            .isolation
            .map(|isolation| format!(", {}", status::isolation(isolation)))
            .unwrap_or_default();
        let _ = writeln!(text, "\nstore {} (plugin {}{isolation})", report.name, report.plugin);
        store_text(&mut text, report);
    }
    let warnings = config.warnings.len() + reports.iter().map(Report::warnings).sum::<usize>();
    let _ = writeln!(text, "\n{}, {}", count(errors, "error"), count(warnings, "warning"));
    text
}

fn store_text(text: &mut String, report: &Report) {
    if let Some(failure) = &report.failure {
        line(text, "error", &failure.to_string());
    }
    for Surveyed { key, proof } in &report.keys {
        let KeyStatus { ski, kind, label, operations, .. } =
            KeyStatus::new(&report.name, key, &report.operations);
        let what = format!("{ski}  {kind}  {label}  {}", operations.join(","));
        match proof {
            Err(failure) => line(text, "error", &format!("{what}: {failure}")),
            Ok(()) => line(text, "ok", &what),
        }
    }
    let (notes, problems): (Vec<_>, Vec<_>) =
        report.findings.iter().partition(|finding| finding.severity == Severity::Note);
    for finding in problems {
        finding_text(text, finding);
    }
    for about_one in notes.chunk_by(|one, next| one.subject == next.subject) {
        notes_text(text, about_one);
    }
    if let Some(measurement) = &report.measurement {
        measurement.write(text);
    }
}

/// A finding in a line of its own.
pub(super) fn finding_text(text: &mut String, finding: &Finding) {
    line(text, finding.severity.name(), &format!("{}: {}", finding.subject, finding.failure));
    if !finding.hint.is_empty() {
        let _ = writeln!(text, "{:11}hint: {}", "", finding.hint);
    }
}

/// Notes about one thing: a single one like any finding, more as a block under what they are about.
fn notes_text(text: &mut String, notes: &[&Finding]) {
    let [first, _, ..] = notes else {
        return notes.iter().for_each(|note| finding_text(text, note));
    };
    line(text, first.severity.name(), &first.subject);
    for note in notes {
        let _ = writeln!(text, "{:13}{}", "", note.failure);
        if !note.hint.is_empty() {
            let _ = writeln!(text, "{:13}hint: {}", "", note.hint);
        }
    }
}

pub(super) fn line(text: &mut String, level: &str, what: &str) {
    let _ = writeln!(text, "  {level:7}  {what}");
}

fn count(number: usize, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

fn to_json(config: &Config, tls: Option<&String>, reports: &[Report], errors: usize) -> Value {
    json!({
        "errors": errors,
        "warnings": config.warnings.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "tls": { "ok": tls.is_none(), "error": tls },
        "stores": reports.iter().map(store_json).collect::<Vec<_>>(),
    })
}

fn store_json(report: &Report) -> Value {
    let mut store = json!({
        "name": report.name,
        "plugin": report.plugin,
        "isolation": report.isolation.map(status::isolation),
        "error": report.failure.as_ref().map(failure_json),
        "keys": report.keys.iter().map(|surveyed| json!({
            "key": KeyStatus::new(&report.name, &surveyed.key, &report.operations),
            "proven": surveyed.proof.is_ok(),
            "error": surveyed.proof.as_ref().err().map(failure_json),
        })).collect::<Vec<_>>(),
        "findings": report.findings.iter().map(finding_json).collect::<Vec<_>>(),
    });
    if let (Some(measurement), Some(store)) = (&report.measurement, store.as_object_mut()) {
        store.insert("measurement".to_owned(), measurement.to_json());
    }
    store
}

fn finding_json(finding: &Finding) -> Value {
    let Finding { severity, subject, failure, hint, .. } = finding;
    match severity {
        Severity::Note => json!({
            "severity": severity.name(), "subject": subject, "message": failure.message, "hint": hint,
        }),
        _ => json!({
            "severity": severity.name(), "subject": subject, "error": failure_json(failure), "hint": hint,
        }),
    }
}

fn failure_json(failure: &Failure) -> Value {
    json!({
        "class": failure.class.name(),
        "message": failure.message,
        "vendor": VendorCode::of(failure),
    })
}
