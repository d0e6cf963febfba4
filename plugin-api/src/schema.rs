//! What the host checks of a store's configuration before the plugin is asked to open it: that part of JSON Schema
//! which says what members there are, of which types and sizes.
//!
//! A plugin thereby needs no code to refuse a misspelt member or a number in place of a text; in C that would be most
//! of its code. The keywords are listed with [`DescriptionTable::schema`](crate::abi::DescriptionTable::schema);
//! others are the plugin's own to enforce. Messages name the member and never a value, which may be a secret.

use serde_json::{Map, Value};

use crate::Error;

/// Checks a store's `config` by the schema of its plugin.
///
/// # Errors
///
/// [`Code::InvalidInput`](crate::Code::InvalidInput) with a sentence about the first member that doesn't fit.
pub fn check(schema: &Value, config: &Value) -> Result<(), Error> {
    fits(schema, config, "").map_err(|message| Error::invalid(format!("config: {message}")))
}

/// One keyword's demand on a value, as the rest of a sentence that begins with its place.
type Rule = fn(&Map<String, Value>, &Value) -> Result<(), String>;

const RULES: &[Rule] = &[has_type, is_in_enum, has_required, has_length, is_in_range, has_unique_items];

fn fits(schema: &Value, value: &Value, path: &str) -> Result<(), String> {
    let Some(schema) = schema.as_object() else { return Ok(()) };
    RULES.iter().try_for_each(|rule| rule(schema, value)).map_err(|message| at(path, &message))?;
    match value {
        Value::Object(members) => members.iter().try_for_each(|(name, value)| {
            let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
            member(schema, name, &path).and_then(|schema| fits(schema, value, &path))
        }),
        Value::Array(elements) => elements.iter().enumerate().try_for_each(|(index, element)| {
            fits(schema.get("items").unwrap_or(&Value::Null), element, &format!("{path}[{index}]"))
        }),
        _ => Ok(()),
    }
}

fn at(path: &str, message: &str) -> String {
    if path.is_empty() { message.to_owned() } else { format!("`{path}`: {message}") }
}

/// The schema of a member.
fn member<'s>(schema: &'s Map<String, Value>, name: &str, path: &str) -> Result<&'s Value, String> {
    let properties = schema.get("properties").and_then(Value::as_object);
    let known = properties.and_then(|properties| properties.get(name));
    let others = schema.get("additionalProperties").unwrap_or(&Value::Null);
    if known.is_none() && *others == Value::Bool(false) && !schema.contains_key("patternProperties") {
        let names: Vec<_> = properties.into_iter().flat_map(Map::keys).map(String::as_str).collect();
        return Err(at(path, &format!("unknown field `{name}`, {}", expected(&names))));
    }
    Ok(known.unwrap_or(others))
}

fn expected(names: &[&str]) -> String {
    match names {
        [] => "there are no fields".to_owned(),
        [name] => format!("expected `{name}`"),
        [one, other] => format!("expected `{one}` or `{other}`"),
        names => format!("expected one of `{}`", names.join("`, `")),
    }
}

fn has_type(schema: &Map<String, Value>, value: &Value) -> Result<(), String> {
    let types = match schema.get("type") {
        Some(Value::Array(types)) => types.as_slice(),
        Some(one) => std::slice::from_ref(one),
        None => return Ok(()),
    };
    let types: Vec<_> = types.iter().filter_map(Value::as_str).collect();
    if types.iter().any(|name| is_a(value, name)) {
        return Ok(());
    }
    let words: Vec<_> = types.into_iter().map(in_words).collect();
    Err(format!("invalid type, expected {}", words.join(" or ")))
}

fn is_a(value: &Value, name: &str) -> bool {
    match name {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_i64() || value.is_u64() || value.as_f64().is_some_and(|n| n.fract() == 0.0),
        "number" => value.is_number(),
        "string" => value.is_string(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        _ => false,
    }
}

fn in_words(name: &str) -> &str {
    match name {
        "null" => "nothing",
        "boolean" => "true or false",
        "integer" => "an integer",
        "number" => "a number",
        "string" => "a string",
        "array" => "a list",
        "object" => "a map",
        other => other,
    }
}

fn is_in_enum(schema: &Map<String, Value>, value: &Value) -> Result<(), String> {
    let Some(values) = schema.get("enum").and_then(Value::as_array) else { return Ok(()) };
    if values.contains(value) {
        return Ok(());
    }
    let words: Vec<_> =
        values.iter().map(|value| value.as_str().map_or_else(|| value.to_string(), str::to_owned)).collect();
    let words: Vec<_> = words.iter().map(String::as_str).collect();
    Err(format!("unknown value, {}", expected(&words)))
}

fn has_required(schema: &Map<String, Value>, value: &Value) -> Result<(), String> {
    let (Some(names), Some(members)) = (schema.get("required").and_then(Value::as_array), value.as_object())
    else {
        return Ok(());
    };
    let missing = names.iter().filter_map(Value::as_str).find(|name| !members.contains_key(*name));
    missing.map_or(Ok(()), |name| Err(format!("missing field `{name}`")))
}

fn has_length(schema: &Map<String, Value>, value: &Value) -> Result<(), String> {
    let (len, least, most, unit) = match value {
        Value::String(text) => (text.chars().count(), "minLength", "maxLength", "characters"),
        Value::Array(elements) => (elements.len(), "minItems", "maxItems", "entries"),
        _ => return Ok(()),
    };
    let limit = |name| schema.get(name).and_then(Value::as_u64);
    if let Some(least) = limit(least).filter(|least| (len as u64) < *least) {
        return Err(format!("has {len} {unit}, expected at least {least}"));
    }
    match limit(most).filter(|most| len as u64 > *most) {
        Some(most) => Err(format!("has {len} {unit}, expected at most {most}")),
        None => Ok(()),
    }
}

fn is_in_range(schema: &Map<String, Value>, value: &Value) -> Result<(), String> {
    let Some(number) = value.as_f64() else { return Ok(()) };
    let limit = |name| schema.get(name).filter(|limit| limit.is_number());
    if let Some(least) = limit("minimum").filter(|least| least.as_f64().is_some_and(|least| number < least)) {
        return Err(format!("too small, expected at least {least}"));
    }
    match limit("maximum").filter(|most| most.as_f64().is_some_and(|most| number > most)) {
        Some(most) => Err(format!("too large, expected at most {most}")),
        None => Ok(()),
    }
}

fn has_unique_items(schema: &Map<String, Value>, value: &Value) -> Result<(), String> {
    let (Some(Value::Bool(true)), Some(elements)) = (schema.get("uniqueItems"), value.as_array()) else {
        return Ok(());
    };
    let mut later = elements.iter().enumerate();
    let twice =
        later.find(|(index, element)| elements.iter().take(*index).any(|earlier| earlier == *element));
    twice.map_or(Ok(()), |(index, _)| Err(format!("entry {index} is there twice")))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn schema() -> Value {
        json!({
            "type": "object",
            "additionalProperties": false,
            "required": ["keys"],
            "properties": {
                "keys": {
                    "type": "array", "minItems": 1, "maxItems": 3, "uniqueItems": true,
                    "items": {"type": "string", "minLength": 2, "maxLength": 4}
                },
                "mode": {"enum": ["fast", "slow"]},
                "server": {
                    "type": "object",
                    "additionalProperties": {"type": ["boolean", "null"]},
                    "properties": {"port": {"type": "integer", "minimum": 1, "maximum": 65535}}
                },
                "free": {"additionalProperties": true}
            }
        })
    }

    fn message(config: &Value) -> String {
        check(&schema(), config).unwrap_err().message
    }

    #[test]
    fn what_fits_passes() {
        for config in [
            json!({"keys": ["ab"]}),
            json!({"keys": ["äöüß", "ab", "abc"], "mode": "slow", "server": {"port": 443, "tls": true, "v6": null}}),
            json!({"keys": ["ab"], "server": {"port": 443.0}, "free": {"anything": [1, 2, {"x": "y"}]}}),
        ] {
            assert_eq!(check(&schema(), &config), Ok(()), "{config}");
        }
    }

    #[test]
    fn what_does_not_fit_is_named_with_what_was_expected() {
        let with = |name: &str, value: Value| {
            let mut config = json!({"keys": ["ab"]});
            config.as_object_mut().unwrap().insert(name.to_owned(), value);
            message(&config)
        };
        assert_eq!(message(&json!([])), "config: invalid type, expected a map");
        assert_eq!(message(&json!({})), "config: missing field `keys`");
        assert_eq!(
            with("kyes", json!([])),
            "config: `kyes`: unknown field `kyes`, expected one of `free`, `keys`, `mode`, `server`"
        );
        assert_eq!(with("keys", json!("ab")), "config: `keys`: invalid type, expected a list");
        assert_eq!(with("keys", json!(["ab", 7])), "config: `keys[1]`: invalid type, expected a string");
        assert_eq!(with("keys", json!([])), "config: `keys`: has 0 entries, expected at least 1");
        assert_eq!(with("keys", json!(["a"])), "config: `keys[0]`: has 1 characters, expected at least 2");
        assert_eq!(with("keys", json!(["abcde"])), "config: `keys[0]`: has 5 characters, expected at most 4");
        assert_eq!(with("keys", json!(["ab", "cd", "ab"])), "config: `keys`: entry 2 is there twice");
        assert_eq!(with("mode", json!("fsat")), "config: `mode`: unknown value, expected `fast` or `slow`");
        assert_eq!(
            with("server", json!({"port": 0})),
            "config: `server.port`: too small, expected at least 1"
        );
        assert_eq!(
            with("server", json!({"port": 70000})),
            "config: `server.port`: too large, expected at most 65535"
        );
        assert_eq!(
            with("server", json!({"port": 1.5})),
            "config: `server.port`: invalid type, expected an integer"
        );
        assert_eq!(
            with("server", json!({"tls": "yes"})),
            "config: `server.tls`: invalid type, expected true or false or nothing"
        );
    }

    #[test]
    fn a_value_is_never_quoted() {
        let config = json!({"keys": ["hunter2", "hunter2"], "mode": "hunter2", "server": "hunter2"});
        assert!(!message(&config).contains("hunter2"));
        for name in ["mode", "server"] {
            let mut config = json!({"keys": ["ab"]});
            config.as_object_mut().unwrap().insert(name.to_owned(), json!("hunter2"));
            assert!(!message(&config).contains("hunter2"), "{name}");
        }
    }

    #[test]
    fn a_schema_that_asks_for_nothing_takes_everything() {
        for schema in [json!({}), json!(true), json!({"type": "object", "oneOf": [{"required": ["a"]}]})] {
            assert_eq!(check(&schema, &json!({"b": 1})), Ok(()));
        }
        let patterns = json!({"additionalProperties": false, "patternProperties": {"^x-": {}}});
        assert_eq!(check(&patterns, &json!({"x-y": 1})), Ok(()), "patterns are the plugin's to enforce");
    }
}
