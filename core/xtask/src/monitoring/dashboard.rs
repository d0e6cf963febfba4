//! The dashboard: what Grafana will ask Prometheus, and whether each panel explains itself.

use serde_json::Value;

use super::Expression;
use crate::failure::{Failure, Result};

/// What Grafana puts in place of its own variables; those of the dashboard become `.*`.
const BUILT_IN: [(&str, &str); 4] =
    [("__rate_interval", "5m"), ("__interval", "1m"), ("__range", "6h"), ("__from", "0")];

/// What matters here of a dashboard.
pub(super) struct Dashboard {
    /// What it asks, its variables replaced.
    pub(super) expressions: Vec<Expression>,
    /// What its panels lack.
    pub(super) faults: Vec<String>,
}

impl Dashboard {
    /// Reads it.
    pub(super) fn parse(text: &str) -> Result<Self> {
        let root: Value = serde_json::from_str(text)
            .map_err(|error| Failure::new(format!("config/monitoring/dashboard.json: {error}")))?;
        let mut panels = Vec::new();
        collect(&root, &mut panels);
        let variables: Vec<_> = array(&root, "/templating/list").collect();
        let replacements = replacements(&variables);
        let asked = panels.iter().flat_map(|panel| of_panel(panel));
        let asked = asked.chain(array(&root, "/annotations/list").filter_map(of_annotation));
        let asked = asked.chain(variables.iter().filter_map(|variable| of_variable(variable)));
        let expressions = asked.map(|asked| Expression {
            promql: replacements.iter().fold(asked.promql, |text, (name, value)| text.replace(name, value)),
            ..asked
        });
        Ok(Self { expressions: expressions.collect(), faults: faults(&panels) })
    }
}

/// The panels, those inside rows too.
fn collect<'v>(parent: &'v Value, panels: &mut Vec<&'v Value>) {
    for panel in array(parent, "/panels") {
        if text(panel, "/type") == "row" {
            collect(panel, panels);
        } else {
            panels.push(panel);
        }
    }
}

fn faults(panels: &[&Value]) -> Vec<String> {
    let mut faults = Vec::new();
    for (position, panel) in panels.iter().enumerate() {
        let name = name_of(panel);
        if text(panel, "/description").is_empty() {
            faults.push(format!("{name} has no description"));
        }
        if of_panel(panel).next().is_none() {
            faults.push(format!("{name} asks nothing"));
        }
        let id = panel.get("id");
        if panels.iter().skip(position + 1).any(|other| other.get("id") == id || name_of(other) == name) {
            faults.push(format!("{name} shares its id or title with another panel"));
        }
    }
    if panels.is_empty() {
        faults.push("the dashboard has no panel".to_owned());
    }
    faults
}

fn of_panel(panel: &Value) -> impl Iterator<Item = Expression> {
    let place = name_of(panel);
    array(panel, "/targets")
        .map(move |target| Expression { place: place.clone(), promql: text(target, "/expr").to_owned() })
}

fn of_annotation(annotation: &Value) -> Option<Expression> {
    let promql = annotation.get("expr")?.as_str()?.to_owned();
    Some(Expression { place: format!("annotation {}", text(annotation, "/name")), promql })
}

/// A variable that is filled by `label_values(SELECTOR, LABEL)`, as the PromQL that it amounts to.
fn of_variable(variable: &Value) -> Option<Expression> {
    let query = variable.pointer("/query/query")?.as_str()?;
    let arguments = query.strip_prefix("label_values(").and_then(|rest| rest.strip_suffix(')'));
    let promql = match arguments.and_then(|arguments| arguments.rsplit_once(',')) {
        Some((selector, label)) => format!("count by ({}) ({selector})", label.trim()),
        None => query.to_owned(),
    };
    Some(Expression { place: format!("variable {}", text(variable, "/name")), promql })
}

/// What each variable is replaced by; the longer name first, since it may begin with the shorter.
fn replacements(variables: &[&Value]) -> Vec<(String, &'static str)> {
    let own = variables.iter().map(|variable| (text(variable, "/name"), ".*"));
    let mut names: Vec<_> = own.chain(BUILT_IN).collect();
    names.sort_by_key(|(name, _)| std::cmp::Reverse(name.len()));
    let spellings = |(name, value)| [(format!("${{{name}}}"), value), (format!("${name}"), value)];
    names.into_iter().flat_map(spellings).collect()
}

fn name_of(panel: &Value) -> String {
    format!("panel {}", text(panel, "/title"))
}

fn array<'v>(value: &'v Value, pointer: &str) -> impl Iterator<Item = &'v Value> {
    value.pointer(pointer).and_then(Value::as_array).into_iter().flatten()
}

fn text<'v>(value: &'v Value, pointer: &str) -> &'v str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_that_is_asked_is_found_and_has_no_variables_left() {
        let text = r#"{
            "templating": {"list": [
                {"name": "datasource", "query": "prometheus"},
                {"name": "store", "query": {"query": "label_values(a{b=~\"$storey\"}, store)"}},
                {"name": "storey", "query": {"query": "label_values(a, b)"}}]},
            "annotations": {"list": [{"name": "built in"}, {"name": "reloads", "expr": "changes(a[$__interval])"}]},
            "panels": [
                {"id": 1, "type": "row", "panels": [
                    {"id": 2, "title": "Deep", "description": "D",
                     "targets": [{"expr": "rate(a[$__rate_interval])"}]}]},
                {"id": 3, "title": "Flat", "description": "D",
                 "targets": [{"expr": "a{c=\"${store}\"}"}, {"expr": "b"}]}]
        }"#;
        let dashboard = Dashboard::parse(text).expect("a dashboard");
        let asked: Vec<_> = dashboard.expressions.iter().map(|asked| asked.promql.as_str()).collect();
        let expected = [
            "rate(a[5m])",
            "a{c=\".*\"}",
            "b",
            "changes(a[1m])",
            "count by (store) (a{b=~\".*\"})",
            "count by (b) (a)",
        ];
        assert_eq!(asked, expected);
        assert_eq!(dashboard.faults, [""; 0]);
    }

    #[test]
    fn panels_that_say_or_ask_nothing_are_named() {
        let text = r#"{"panels": [
            {"id": 1, "title": "A", "targets": [{"expr": "a"}]},
            {"id": 1, "title": "B", "description": "D"}]}"#;
        let faults = Dashboard::parse(text).expect("a dashboard").faults;
        let expected = [
            "panel A has no description",
            "panel A shares its id or title with another panel",
            "panel B asks nothing",
        ];
        assert_eq!(faults, expected);
    }
}
