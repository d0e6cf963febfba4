//! The outline of a YAML text: where everything stands, without the values; and the limits.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};

use saphyr_parser::{Event, Marker, Parser, ScalarStyle, ScanError, Span, StrInput, Tag};

use crate::config::notice::{Notice, Position};
use crate::config::yaml;

/// Collections within collections. The schema needs 6; a plugin's own configuration may add some.
const MAX_DEPTH: usize = 32;
/// Values altogether, lists and maps included: a few thousand stores, and a fraction of a second even for a debug build.
const MAX_VALUES: usize = 65_536;
/// Uses of an anchor. Each may only stand for a scalar, so that nothing grows exponentially.
const MAX_ALIASES: usize = 64;

/// A value's place and shape.
pub(super) struct Outline {
    pub(super) position: Position,
    pub(super) shape: Shape,
}

pub(super) enum Shape {
    Scalar,
    List(Vec<Outline>),
    Map(Vec<Key>),
}

pub(super) struct Key {
    pub(super) name: String,
    pub(super) position: Position,
    pub(super) outline: Outline,
}

/// Draws the outline of a text's only document; `None` when there is none.
pub(super) fn draw(text: &str) -> Result<Option<Outline>, Notice> {
    refuse_line_separators(text)?;
    let mut pen =
        Pen { parser: Parser::new_from_str(text), scalar_anchors: HashSet::new(), aliases: 0, values: 0 };
    let mut drawn = None;
    loop {
        match pen.next()? {
            (Event::StreamEnd, _) => return Ok(drawn),
            (Event::StreamStart | Event::DocumentEnd | Event::Nothing, _) => {}
            (Event::DocumentStart(_), span) if drawn.is_some() => return Err(second_document(span)),
            (Event::DocumentStart(_), _) => {
                let (event, span) = pen.next()?;
                drawn = Some(pen.node(event, span, 0)?);
            }
            (_, span) => return Err(Notice::new("not valid YAML").at(place(span.start))),
        }
    }
}

/// What a key that isn't text is answered. The key isn't repeated: a stray value may have become one.
pub(super) fn not_a_string(position: Position) -> Notice {
    Notice::new("expected a key that is a string").at(position).hint("put the key in quotes")
}

struct Pen<'t> {
    parser: Parser<'t, StrInput<'t>>,
    scalar_anchors: HashSet<usize>,
    aliases: usize,
    values: usize,
}

impl<'t> Pen<'t> {
    fn next(&mut self) -> Result<(Event<'t>, Span), Notice> {
        match self.parser.next_event() {
            Some(event) => event.map_err(|error| unreadable(&error)),
            None => Ok((Event::StreamEnd, Span::default())),
        }
    }

    /// Draws the node that `event` begins, `depth` collections deep.
    fn node(&mut self, event: Event<'t>, span: Span, depth: usize) -> Result<Outline, Notice> {
        let position = place(span.start);
        self.count(position)?;
        let shape = match event {
            Event::Scalar(_, _, anchor, tag) => {
                refuse_tag(tag.as_ref(), position)?;
                self.scalar_anchors.insert(anchor);
                Shape::Scalar
            }
            Event::Alias(anchor) => self.alias(anchor, position)?,
            Event::SequenceStart(_, tag) => {
                refuse_tag(tag.as_ref(), position)?;
                self.list(deeper(depth, position)?)?
            }
            Event::MappingStart(_, tag) => {
                refuse_tag(tag.as_ref(), position)?;
                self.map(deeper(depth, position)?)?
            }
            _ => return Err(Notice::new("not valid YAML").at(position)),
        };
        Ok(Outline { position, shape })
    }

    fn count(&mut self, position: Position) -> Result<(), Notice> {
        self.values += 1;
        if self.values <= MAX_VALUES {
            return Ok(());
        }
        Err(Notice::new("more than 65536 values").at(position).hint(yaml::TOO_MUCH))
    }

    fn list(&mut self, depth: usize) -> Result<Shape, Notice> {
        let mut items = Vec::new();
        loop {
            match self.next()? {
                (Event::SequenceEnd, _) => return Ok(Shape::List(items)),
                (event, span) => items.push(self.node(event, span, depth)?),
            }
        }
    }

    fn map(&mut self, depth: usize) -> Result<Shape, Notice> {
        let mut keys = Vec::new();
        let mut seen = HashMap::new();
        loop {
            let (name, position) = match self.next()? {
                (Event::MappingEnd, _) => return Ok(Shape::Map(keys)),
                (Event::Scalar(name, style, _, tag), span) => {
                    key_name(name, style, tag.as_ref(), place(span.start))?
                }
                (_, span) => return Err(not_a_string(place(span.start))),
            };
            if let Some(first) = seen.insert(name.clone(), position) {
                return Err(duplicate_key(&name, position, first));
            }
            let (event, span) = self.next()?;
            keys.push(Key { name, position, outline: self.node(event, span, depth)? });
        }
    }

    fn alias(&mut self, anchor: usize, position: Position) -> Result<Shape, Notice> {
        self.aliases += 1;
        if self.aliases > MAX_ALIASES {
            return Err(Notice::new("more than 64 aliases").at(position).hint("write the values out"));
        }
        if !self.scalar_anchors.contains(&anchor) {
            let notice = Notice::new("expected an alias of a scalar, got one of a list or map").at(position);
            return Err(notice.hint("write the value out"));
        }
        Ok(Shape::Scalar)
    }
}

/// What a key that stands twice in a map is answered, also by who compares keys less strictly.
pub(in crate::config) fn duplicate_key(name: &str, second: Position, first: Position) -> Notice {
    let notice = Notice::new(format!("duplicate key `{}`, first at {first}", name.escape_debug())).at(second);
    notice.hint("remove one of them")
}

fn key_name(
    name: Cow<'_, str>,
    style: ScalarStyle,
    tag: Option<&Cow<'_, Tag>>,
    position: Position,
) -> Result<(String, Position), Notice> {
    refuse_tag(tag, position)?;
    if name == "<<" && style == ScalarStyle::Plain {
        return Err(Notice::new("merge keys are not supported").at(position).hint("write the keys out"));
    }
    Ok((name.into_owned(), position))
}

fn deeper(depth: usize, position: Position) -> Result<usize, Notice> {
    if depth == MAX_DEPTH { Err(too_deep(position)) } else { Ok(depth + 1) }
}

fn too_deep(position: Position) -> Notice {
    let notice = Notice::new("nested deeper than 32 levels").at(position);
    notice.hint("look for an unclosed bracket or brace before this place")
}

fn refuse_tag(tag: Option<&Cow<'_, Tag>>, position: Position) -> Result<(), Notice> {
    match tag {
        None => Ok(()),
        Some(_) => {
            Err(Notice::new("tags are not supported").at(position).hint("remove the word with the `!`"))
        }
    }
}

/// YAML 1.1 ends a line, and so a comment, at these; YAML 1.2 doesn't. The two parsers would read different texts.
fn refuse_line_separators(text: &str) -> Result<(), Notice> {
    let separator = |c| matches!(c, '\u{85}' | '\u{2028}' | '\u{2029}');
    let Some((before, after)) = text.find(separator).map(|at| text.split_at(at)) else {
        return Ok(());
    };
    let line = before.split('\n').count();
    let column = before.chars().rev().take_while(|c| *c != '\n').count() + 1;
    let code = after.chars().next().map_or(0, u32::from);
    let notice = Notice::new(format!("the invisible character U+{code:04X} is not allowed"));
    Err(notice
        .at(Position { line, column })
        .hint("delete it; in a quoted string it can be written as an escape"))
}

fn second_document(span: Span) -> Notice {
    Notice::new("expected one document, got a second")
        .at(place(span.start))
        .hint("remove the `---` and what follows")
}

fn unreadable(error: &ScanError) -> Notice {
    // The scanner is ahead of us, and has a limit of its own on brackets (255) that it may reach first.
    if error.info() == "recursion limit exceeded" {
        return too_deep(place(*error.marker()));
    }
    Notice::new(format!("not valid YAML: {}", error.info())).at(place(*error.marker()))
}

fn place(marker: Marker) -> Position {
    Position { line: marker.line(), column: marker.col() + 1 }
}
