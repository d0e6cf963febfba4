//! The metrics that the README lists, and whether an expression uses only these, with labels that they have.

use std::collections::BTreeMap;

use super::Expression;
use super::promql::{self, Use};

/// The head of the table.
const HEAD: &str = "| metric | type | labels | meaning |";

/// Labels that Prometheus gives to whatever it scrapes.
const OF_TARGETS: [&str; 2] = ["job", "instance"];

/// What Prometheus makes of a histogram.
const OF_HISTOGRAMS: [&str; 3] = ["_bucket", "_count", "_sum"];

/// The metrics there are: the names of series, each with its labels.
pub(super) struct Metrics {
    listed: usize,
    series: BTreeMap<String, Vec<String>>,
}

impl Metrics {
    /// Reads the table.
    pub(super) fn parse(readme: &str) -> Self {
        let (_, table) = readme.split_once(HEAD).unwrap_or_default();
        let rows = table.lines().skip(2).take_while(|line| line.starts_with('|'));
        let mut metrics = Self { listed: 0, series: BTreeMap::new() };
        for row in rows {
            let cells: Vec<_> = row.trim_matches('|').split('|').map(str::trim).collect();
            if let [name, kind, labels, _] = cells.as_slice() {
                metrics.add(name.trim_matches('`'), kind, labels);
            }
        }
        metrics
    }

    /// How many are listed.
    pub(super) fn len(&self) -> usize {
        self.listed
    }

    /// What an expression uses that isn't there.
    pub(super) fn faults(&self, Expression { place, promql }: &Expression) -> Vec<String> {
        let uses = promql::uses(promql);
        let mut faults = Vec::new();
        if !uses.iter().any(|used| matches!(used, Use::Series { .. })) {
            faults.push(format!("{place} uses no metric: `{promql}`"));
        }
        for used in uses {
            match used {
                Use::Series { name, labels } => match self.series.get(name) {
                    None => faults.push(format!("{place}: `{name}` is no metric that README.md lists")),
                    Some(known) => {
                        let unknown =
                            labels.iter().filter(|label| !known.iter().any(|known| known == *label));
                        let fault = |label| format!("{place}: `{name}` has no label `{label}`");
                        faults.extend(unknown.map(fault));
                    }
                },
                Use::Label(label) if !self.series.values().flatten().any(|known| known == label) => {
                    faults.push(format!("{place}: no metric has the label `{label}`"));
                }
                Use::Label(_) => {}
            }
        }
        faults
    }

    fn add(&mut self, name: &str, kind: &str, labels: &str) {
        self.listed += 1;
        let own = labels.split('`').skip(1).step_by(2);
        let labels: Vec<_> = own.chain(OF_TARGETS).map(str::to_owned).collect();
        if kind != "histogram" {
            self.series.insert(name.to_owned(), labels);
            return;
        }
        for ending in OF_HISTOGRAMS {
            let mut labels = labels.clone();
            labels.extend((ending == "_bucket").then(|| "le".to_owned()));
            self.series.insert(format!("{name}{ending}"), labels);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const README: &str = "
| file | what it is |
|---|---|
| `no_metric` | nor is this |

| metric | type | labels | meaning |
|---|---|---|---|
| `up` | gauge | | whether it is |
| `requests_total` | counter | `store`, `op` | requests |
| `request_seconds` | histogram | `store` | their time |

| `late` | gauge | | another table |
";

    fn faults(promql: &str) -> Vec<String> {
        let expression = Expression { place: "here".to_owned(), promql: promql.to_owned() };
        Metrics::parse(README).faults(&expression)
    }

    #[test]
    fn what_is_listed_may_be_used() {
        assert_eq!(Metrics::parse(README).len(), 3);
        for promql in [
            "up{job=\"a\"} == 0",
            "sum by (store, instance) (rate(requests_total{op=\"sign\", store=~\"a|b\"}[5m]))",
            "histogram_quantile(0.99, sum without (store) (request_seconds_bucket{le!=\"\"}))",
        ] {
            assert_eq!(faults(promql), [""; 0], "{promql}");
        }
    }

    #[test]
    fn what_is_not_listed_is_named() {
        for (promql, fault) in [
            ("no_metric", "here: `no_metric` is no metric that README.md lists"),
            ("up + late", "here: `late` is no metric that README.md lists"),
            ("request_seconds", "here: `request_seconds` is no metric that README.md lists"),
            ("up_bucket", "here: `up_bucket` is no metric that README.md lists"),
            ("up{store=\"a\"}", "here: `up` has no label `store`"),
            ("request_seconds_sum{le=\"1\"}", "here: `request_seconds_sum` has no label `le`"),
            ("sum by (stoer) (up)", "here: no metric has the label `stoer`"),
            ("time()", "here uses no metric: `time()`"),
        ] {
            assert_eq!(faults(promql), [fault], "{promql}");
        }
    }
}
