//! Typed reading of maps: legal keys, types, ranges; and what is said when something doesn't fit.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use super::notice::{Notice, Position};
use super::units;
use super::yaml::{Entry, Node, Value, duplicate_key};

/// A map of the schema that is being read: keys are taken out, with their values typed.
pub(super) struct Table {
    /// Path of the map, such as `limits`; empty for the file's top.
    path: String,
    /// Where the map starts.
    pub(super) position: Position,
    entries: HashMap<String, Entry>,
}

impl Table {
    /// Opens a map whose keys are among `legal`, in any case as in the reference. Nothing at all is an empty map, and a
    /// key with nothing behind it is as if absent.
    pub(super) fn open(node: Node, path: &str, legal: &[&str]) -> Result<Self, Notice> {
        let position = node.position;
        let mut table = Self { path: path.to_owned(), position, entries: HashMap::new() };
        let entries = match node.value {
            Value::Null => Vec::new(),
            Value::Map(entries) => entries,
            other => return Err(misfit(path, position, &mismatch("a map of keys and values", &other))),
        };
        for entry in entries {
            table.insert(entry, legal)?;
        }
        table.entries.retain(|_, entry| !matches!(entry.node.value, Value::Null));
        Ok(table)
    }

    fn insert(&mut self, entry: Entry, legal: &[&str]) -> Result<(), Notice> {
        let key = entry.key.to_ascii_lowercase();
        if !legal.contains(&key.as_str()) {
            return Err(unknown_key(&self.path, &entry, legal));
        }
        if let Some(first) = self.entries.get(&key) {
            return Err(duplicate_key(&entry.key, entry.position, first.position));
        }
        self.entries.insert(key, entry);
        Ok(())
    }

    /// Whether the key has a value that wasn't taken yet.
    pub(super) fn has(&self, key: &str) -> bool {
        self.entries.contains_key(key)
    }

    /// Where the key stands.
    pub(super) fn position_of(&self, key: &str) -> Option<Position> {
        self.entries.get(key).map(|entry| entry.position)
    }

    /// The full path of a key of this map.
    pub(super) fn path_of(&self, key: &str) -> String {
        join(&self.path, key)
    }

    /// Takes a value as it is.
    pub(super) fn take(&mut self, key: &str) -> Option<Node> {
        self.entries.remove(key).map(|entry| entry.node)
    }

    /// Takes a value and reads it.
    pub(super) fn read<T>(&mut self, key: &str, reader: impl Reader<T>) -> Result<Option<T>, Notice> {
        let Some(node) = self.take(key) else { return Ok(None) };
        reader(&node.value).map(Some).map_err(|problem| misfit(&self.path_of(key), node.position, &problem))
    }

    /// Takes a map of the schema; an absent one is empty.
    pub(super) fn table(&mut self, key: &str, legal: &[&str]) -> Result<Table, Notice> {
        let path = self.path_of(key);
        let absent = Node { position: self.position, value: Value::Null };
        Self::open(self.take(key).unwrap_or(absent), &path, legal)
    }

    /// Refuses two keys that set the same thing.
    pub(super) fn refuse_both(&self, a: &str, b: &str) -> Result<(), Notice> {
        let (Some(first), Some(second)) = (self.position_of(a), self.position_of(b)) else { return Ok(()) };
        Err(both(&self.path_of(a), first, &self.path_of(b), second))
    }
}

/// Says that two keys set the same thing; placed where the later one stands.
pub(super) fn both(a: &str, at: Position, b: &str, bt: Position) -> Notice {
    let notice = Notice::new(format!("`{a}` and `{b}` set the same thing, expected one of them"));
    notice.at(at.max(bt)).about(if at > bt { a } else { b }).hint("remove one of them")
}

/// Says that the value of a key isn't what is expected there.
pub(super) fn misfit(path: &str, position: Position, problem: &str) -> Notice {
    match path {
        "" => Notice::new(problem).at(position),
        _ => Notice::new(format!("`{path}`: {problem}")).at(position).about(path),
    }
}

/// Path of a key within the map at `path`.
pub(super) fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

fn unknown_key(path: &str, entry: &Entry, legal: &[&str]) -> Notice {
    let path = join(path, &entry.key.escape_debug().to_string());
    let notice = Notice::new(format!("unknown key `{path}`")).at(entry.position).about(path);
    notice.hint(match nearest(&entry.key, legal) {
        Some(name) => format!("did you mean `{name}`?"),
        None => format!("the keys here are {}", list(legal, "and")),
    })
}

/// The legal name that was probably meant: at most a third of it is wrong.
fn nearest<'n>(key: &str, legal: &[&'n str]) -> Option<&'n str> {
    // A name is a few words; comparing takes time in the product of both lengths.
    let key = key.chars().take(64).collect::<String>().to_ascii_lowercase().replace('-', "_");
    let ranked = legal.iter().map(|name| (strsim::damerau_levenshtein(&key, name), *name));
    let (distance, name) = ranked.min_by_key(|(distance, _)| *distance)?;
    (distance <= name.len().div_ceil(3)).then_some(name)
}

/// Names in back-ticks, with a word before the last: `a`, `b` and `c`.
pub(super) fn list(names: &[&str], conjunction: &str) -> String {
    let quoted: Vec<_> = names.iter().map(|name| format!("`{name}`")).collect();
    match quoted.split_last() {
        Some((last, [])) => last.clone(),
        Some((last, rest)) => format!("{} {conjunction} {last}", rest.join(", ")),
        None => String::new(),
    }
}

/// Reads a value, or says what was expected and what is there.
pub(super) trait Reader<T>: Fn(&Value) -> Result<T, String> {}
impl<T, F: Fn(&Value) -> Result<T, String>> Reader<T> for F {}

/// `expected …, got a list`.
pub(super) fn mismatch(expected: &str, value: &Value) -> String {
    format!("expected {expected}, got {}", value.kind())
}

/// A string; a number isn't one, so that a PIN or a name such as `0042` is never mangled.
pub(super) fn text(value: &Value) -> Result<String, String> {
    match value {
        Value::String(text) => Ok(text.to_string()),
        Value::Number(_) | Value::Bool(_) => Err(mismatch("a string", value) + "; put it in quotes"),
        _ => Err(mismatch("a string", value)),
    }
}

/// A path; the empty one isn't.
pub(super) fn path(value: &Value) -> Result<PathBuf, String> {
    match value {
        Value::String(text) if text.is_empty() => Err("expected a path, got an empty string".into()),
        Value::String(text) => Ok(PathBuf::from(text.as_str())),
        _ => Err(mismatch("a path", value)),
    }
}

/// A boolean; also its name, since variables hold only text.
pub(super) fn boolean(value: &Value) -> Result<bool, String> {
    match value {
        Value::Bool(bool) => Ok(*bool),
        Value::String(text) if text.eq_ignore_ascii_case("true") => Ok(true),
        Value::String(text) if text.eq_ignore_ascii_case("false") => Ok(false),
        _ => Err(mismatch("`true` or `false`", value)),
    }
}

/// A whole number within a range; also in quotes, as the reference allows.
pub(super) fn whole<T: TryFrom<u64>>(range: RangeInclusive<u64>) -> impl Reader<T> {
    move |value| {
        let expected = format!("a whole number from {} to {}", range.start(), range.end());
        let number = match value {
            Value::Number(number) => {
                number.as_u64().ok_or_else(|| format!("expected {expected}, got {number}"))?
            }
            Value::String(text) => text.parse().map_err(|_| mismatch(&expected, value))?,
            _ => return Err(mismatch(&expected, value)),
        };
        let fits =
            Some(number).filter(|number| range.contains(number)).and_then(|number| T::try_from(number).ok());
        fits.ok_or_else(|| format!("expected {expected}, got {number}"))
    }
}

/// A share, 0 to 1.
pub(super) fn share(value: &Value) -> Result<f64, String> {
    let number = match value {
        Value::Number(number) => number.as_f64(),
        Value::String(text) => text.parse().ok(),
        _ => None,
    };
    let share = number.filter(|number| (0.0..=1.0).contains(number));
    share.ok_or_else(|| mismatch("a number from 0 to 1", value))
}

/// A duration within a range, in Go's syntax.
pub(super) fn duration(range: RangeInclusive<Duration>) -> impl Reader<Duration> {
    move |value| {
        let expected = "a duration with its unit, such as `500ms` or `1m30s`";
        let Value::String(text) = value else { return Err(mismatch(expected, value)) };
        let duration =
            units::duration(text).ok_or_else(|| format!("expected {expected}, got another string"))?;
        if range.contains(&duration) {
            return Ok(duration);
        }
        Err(format!("expected {:?} to {:?}, got {duration:?}", range.start(), range.end()))
    }
}

/// A size in bytes.
pub(super) fn size(value: &Value) -> Result<u64, String> {
    let size = match value {
        Value::Number(number) => number.as_u64(),
        Value::String(text) => units::size(text),
        _ => None,
    };
    size.ok_or_else(|| mismatch("a size such as `64MiB`", value))
}

/// One of a few words.
pub(super) fn word<T: Copy>(words: &[(&'static str, T)]) -> impl Reader<T> {
    move |value| {
        let found = match value {
            Value::String(text) => words.iter().find(|(word, _)| word.eq_ignore_ascii_case(text)),
            _ => None,
        };
        found.map(|(_, meaning)| *meaning).ok_or_else(|| {
            let legal: Vec<_> = words.iter().map(|(word, _)| *word).collect();
            let got = if matches!(value, Value::String(_)) { "another string" } else { value.kind() };
            format!("expected {}, got {got}", list(&legal, "or"))
        })
    }
}

/// A thing, or `off`.
pub(super) fn or_off<T>(reader: impl Reader<T>) -> impl Reader<Option<T>> {
    move |value| match value {
        Value::Bool(false) => Ok(None),
        Value::String(text) if text.eq_ignore_ascii_case("off") => Ok(None),
        _ => reader(value).map(Some),
    }
}

/// A list of things, at least one, or a single thing.
pub(super) fn some<T>(reader: impl Reader<T>) -> impl Reader<Vec<T>> {
    move |value| match value {
        Value::List(items) if items.is_empty() => Err("expected at least one item, got an empty list".into()),
        Value::List(items) => items.iter().map(|item| reader(&item.value)).collect(),
        _ => Ok(vec![reader(value)?]),
    }
}

/// An IP address with a port.
pub(super) fn address(value: &Value) -> Result<SocketAddr, String> {
    let expected = "an IP address with a port, such as `192.0.2.7:2407` or `[::]:2407`";
    let Value::String(text) = value else { return Err(mismatch(expected, value)) };
    text.parse().map_err(|_| match text.parse::<IpAddr>() {
        Ok(_) => format!("expected {expected}, got an address without a port"),
        Err(_) => format!("expected {expected}, got another string"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suggests_the_nearest_name_but_no_far_one() {
        let legal = ["listen", "limits", "loglevel", "private_key_stores"];
        let claims = [
            ("listne", Some("listen")),
            ("LISTEN_", Some("listen")),
            ("limit", Some("limits")),
            ("private-key-stores", Some("private_key_stores")),
            ("private_key_store", Some("private_key_stores")),
            ("banana", None),
            ("", None),
        ];
        for (key, nearest_name) in claims {
            assert_eq!(nearest(key, &legal), nearest_name, "{key}");
        }
        assert_eq!(nearest(&"ä".repeat(100_000), &legal), None);
    }
}
