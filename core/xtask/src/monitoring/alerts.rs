//! The alerts and their tests, as far as promtool doesn't judge them. Read by lines: a reader of YAML would be one more
//! dependency, and promtool has found both files to be what they should.

use super::Expression;

/// What each alert must have, for whoever it wakes.
const NEEDED: [&str; 3] = ["severity:", "summary:", "description:"];

/// An alert, as it is written.
pub(super) struct Alert<'a> {
    name: &'a str,
    body: &'a str,
}

/// The alerts of a file of rules.
pub(super) fn parse(rules: &str) -> Vec<Alert<'_>> {
    let parts = rules.split("- alert: ").skip(1).filter_map(|part| part.split_once('\n'));
    parts.map(|(name, body)| Alert { name: name.trim(), body }).collect()
}

impl Alert<'_> {
    /// What it waits for; nothing where that isn't found, which is no use of a metric.
    pub(super) fn expression(&self) -> Expression {
        let mut lines = self.body.lines().skip_while(|line| !line.trim_start().starts_with("expr:"));
        let first = lines.next().unwrap_or_default();
        let promql = match first.trim_start().trim_start_matches("expr:").trim() {
            "|" | "|-" | ">" | ">-" => {
                let deeper = |line: &&str| line.trim().is_empty() || indent(line) > indent(first);
                lines.take_while(deeper).collect::<Vec<_>>().join("\n")
            }
            inline => inline.to_owned(),
        };
        Expression { place: format!("alert {}", self.name), promql }
    }

    /// What it, or its tests, lack.
    pub(super) fn faults(&self, tests: &str) -> Vec<String> {
        let Self { name, body } = self;
        let lacks = NEEDED.iter().filter(|needed| !body.contains(**needed));
        let mut faults: Vec<_> = lacks.map(|needed| format!("alert {name} has no `{needed}`")).collect();
        let expected: Vec<_> = expectations(tests).filter(|(alert, _)| alert == name).collect();
        for (fires, outcome) in [(true, "fires"), (false, "doesn't fire")] {
            if !expected.iter().any(|(_, expected)| *expected == fires) {
                faults.push(format!("no test shows when alert {name} {outcome}"));
            }
        }
        faults
    }
}

/// The alerts that tests name, and whether these expect them to fire.
fn expectations(tests: &str) -> impl Iterator<Item = (&str, bool)> {
    tests.split("alertname: ").skip(1).filter_map(|part| {
        let (name, _) = part.split_once(|c: char| !c.is_alphanumeric())?;
        let (_, expected) = part.split_once("exp_alerts:")?;
        Some((name, !expected.trim_start().starts_with("[]")))
    })
}

fn indent(line: &str) -> usize {
    line.len() - line.trim_start().len()
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULES: &str = "
      - alert: Short
        expr: up == 0
        labels: {severity: critical}
      - alert: Long
        # Why.
        expr: |
          a
            > b

        for: 5m
        annotations: {summary: S, description: D}
";

    #[test]
    fn expressions_are_found_however_they_are_written() {
        let expressions: Vec<_> = parse(RULES).iter().map(Alert::expression).collect();
        assert_eq!(expressions[0].promql, "up == 0");
        assert_eq!(expressions[1].promql.split_whitespace().collect::<Vec<_>>(), ["a", ">", "b"]);
        assert_eq!(expressions[1].place, "alert Long");
    }

    #[test]
    fn an_alert_needs_words_and_tests_of_both_outcomes() {
        let tests = "
            - {eval_time: 1m, alertname: Short, exp_alerts: []}
            - eval_time: 2m
              alertname: Short
              exp_alerts:
                - exp_labels: {}
            - {alertname: Long, exp_alerts: []}";
        let faults: Vec<_> = parse(RULES).iter().flat_map(|alert| alert.faults(tests)).collect();
        assert_eq!(
            faults,
            [
                "alert Short has no `summary:`",
                "alert Short has no `description:`",
                "alert Long has no `severity:`",
                "no test shows when alert Long fires",
            ]
        );
    }
}
