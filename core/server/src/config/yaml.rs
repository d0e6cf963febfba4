//! YAML text to a tree of values with positions. The only place that knows which parsers do it.
//!
//! Two parsers share the work. The outline is drawn first, by a maintained and safe one: it gives positions and
//! duplicate keys, and refuses what would be costly. `serde_yaml` then decodes what has passed; by itself it names no
//! place for a duplicate key and takes quadratic time on deep nesting.

mod outline;

use zeroize::Zeroizing;

use super::notice::{Notice, Position};
pub(super) use outline::duplicate_key;
use outline::{Outline, Shape};

/// A file may not be larger; the longest honest one is a list of a few thousand stores.
pub(super) const MAX_BYTES: usize = 1024 * 1024;

/// The cure for a text that is too large in one way or another.
const TOO_MUCH: &str = "use a `dir` entry in place of many `file` entries";

/// A value and where it starts.
pub(super) struct Node {
    pub(super) position: Position,
    pub(super) value: Value,
}

/// A value of JSON's kinds, which are all that a configuration may use.
pub(super) enum Value {
    Null,
    Bool(bool),
    Number(serde_json::Number),
    String(Zeroizing<String>),
    List(Vec<Node>),
    Map(Vec<Entry>),
}

/// One key of a map with its value, in the order of the file. Keys are unique.
pub(super) struct Entry {
    pub(super) key: String,
    pub(super) position: Position,
    pub(super) node: Node,
}

/// Decodes a text of one document. An empty text is an empty document.
pub(super) fn parse(text: &str) -> Result<Node, Notice> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    if text.len() > MAX_BYTES {
        return Err(too_large());
    }
    let Some(outline) = outline::draw(text)? else {
        return Ok(Node { position: Position { line: 1, column: 1 }, value: Value::Null });
    };
    merge(outline, serde_yaml::from_str(text).map_err(|error| undecodable(&error))?)
}

/// What a text over [`MAX_BYTES`] is answered, also by who reads it from a file.
pub(super) fn too_large() -> Notice {
    Notice::new("the configuration is larger than 1 MiB").hint(TOO_MUCH)
}

impl Value {
    /// What kind of value it is, for an error; never the value, which may be a secret.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Null => "nothing",
            Self::Bool(_) => "a boolean",
            Self::Number(_) => "a number",
            Self::String(_) => "a string",
            Self::List(_) => "a list",
            Self::Map(_) => "a map",
        }
    }

    /// The same value without positions.
    pub(super) fn into_json(self) -> serde_json::Value {
        match self {
            Self::Null => serde_json::Value::Null,
            Self::Bool(bool) => bool.into(),
            Self::Number(number) => number.into(),
            Self::String(mut text) => std::mem::take(&mut *text).into(),
            Self::List(items) => items.into_iter().map(|item| item.value.into_json()).collect(),
            Self::Map(entries) => {
                entries.into_iter().map(|entry| (entry.key, entry.node.value.into_json())).collect()
            }
        }
    }
}

/// Puts positions and values together. Both parsers saw the same text; where they disagree on its shape, a reader
/// would as well.
fn merge(outline: Outline, decoded: serde_yaml::Value) -> Result<Node, Notice> {
    use serde_yaml::Value as Decoded;
    let position = outline.position;
    let value = match (outline.shape, decoded) {
        (Shape::Scalar, Decoded::Null) => Value::Null,
        (Shape::Scalar, Decoded::Bool(bool)) => Value::Bool(bool),
        (Shape::Scalar, Decoded::Number(number)) => Value::Number(finite(&number).ok_or_else(|| {
            Notice::new("expected a finite number")
                .at(position)
                .hint("put it in quotes if it is meant as text")
        })?),
        (Shape::Scalar, Decoded::String(text)) => Value::String(Zeroizing::new(text)),
        (Shape::List(outlines), Decoded::Sequence(items)) if outlines.len() == items.len() => {
            let pairs = outlines.into_iter().zip(items);
            Value::List(pairs.map(|(outline, item)| merge(outline, item)).collect::<Result<_, _>>()?)
        }
        (Shape::Map(keys), Decoded::Mapping(entries)) if keys.len() == entries.len() => {
            let pairs = keys.into_iter().zip(entries);
            Value::Map(
                pairs.map(|(key, (name, item))| merge_entry(key, &name, item)).collect::<Result<_, _>>()?,
            )
        }
        _ => return Err(ambiguous(position)),
    };
    Ok(Node { position, value })
}

fn merge_entry(
    key: outline::Key,
    name: &serde_yaml::Value,
    item: serde_yaml::Value,
) -> Result<Entry, Notice> {
    match name {
        serde_yaml::Value::String(name) if *name == key.name => {
            Ok(Entry { key: key.name, position: key.position, node: merge(key.outline, item)? })
        }
        serde_yaml::Value::String(_) => Err(ambiguous(key.position)),
        _ => Err(outline::not_a_string(key.position)),
    }
}

fn finite(number: &serde_yaml::Number) -> Option<serde_json::Number> {
    let whole = number.as_u64().map(Into::into).or_else(|| number.as_i64().map(Into::into));
    whole.or_else(|| number.as_f64().and_then(serde_json::Number::from_f64))
}

fn ambiguous(position: Position) -> Notice {
    Notice::new("this can be read in two ways")
        .at(position)
        .hint("put text with special characters in quotes")
}

/// The decoder's own words are left out, since they may quote a secret. Where it names no place, the text as a whole is
/// meant.
fn undecodable(error: &serde_yaml::Error) -> Notice {
    let place =
        error.location().map(|location| Position { line: location.line(), column: location.column() });
    let notice = Notice::new("not valid YAML").at(place.unwrap_or(Position { line: 1, column: 1 }));
    notice.hint("indent with spaces, and put special characters in quotes")
}
