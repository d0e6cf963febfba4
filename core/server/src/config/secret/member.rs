//! One text out of a JSON document that is secret. None of its values is copied into memory that isn't zeroed: those that
//! are passed over stay where they are, and the text is unescaped here.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde_json::value::RawValue;
use zeroize::Zeroizing;

/// The text at a JSON Pointer (RFC 6901), in UTF-8; what is there instead, otherwise.
pub(super) fn text(document: &[u8], pointer: &str) -> Result<Zeroizing<Vec<u8>>, &'static str> {
    let document: &RawValue = serde_json::from_slice(document).map_err(|_| "no JSON")?;
    let mut value = document.get();
    for token in pointer.split('/').skip(1) {
        value = member(value, &token.replace("~1", "/").replace("~0", "~")).ok_or("nothing")?;
    }
    let quoted = value.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).ok_or("no text")?;
    unescaped(quoted).ok_or("no text")
}

/// A member of an object, or an element of an array.
fn member<'a>(value: &'a str, name: &str) -> Option<&'a str> {
    if value.starts_with('[') {
        let elements: Vec<&RawValue> = serde_json::from_str(value).ok()?;
        return elements.get(name.parse::<usize>().ok()?).map(|element| element.get());
    }
    let members: BTreeMap<Cow<'_, str>, &RawValue> = serde_json::from_str(value).ok()?;
    members.get(name).map(|member| member.get())
}

/// A text as it stood between its quotes, where its escapes (RFC 8259 section 7) are known to be well-formed.
fn unescaped(quoted: &str) -> Option<Zeroizing<Vec<u8>>> {
    let mut text = Zeroizing::new(Vec::with_capacity(quoted.len())); // never grows: escapes are longer than what they mean
    let mut rest = quoted;
    while let Some((plain, escape)) = rest.split_once('\\') {
        text.extend_from_slice(plain.as_bytes());
        let (meant, behind) = unescape(escape)?;
        text.extend_from_slice(meant.encode_utf8(&mut [0; 4]).as_bytes());
        rest = behind;
    }
    text.extend_from_slice(rest.as_bytes());
    Some(text)
}

/// What an escape means, from behind its backslash on, and what follows it.
fn unescape(escape: &str) -> Option<(char, &str)> {
    let mut rest = escape.chars();
    let meant = match rest.next()? {
        'b' => '\u{8}',
        'f' => '\u{c}',
        'n' => '\n',
        'r' => '\r',
        't' => '\t',
        'u' => return unicode(rest.as_str()),
        other => other,
    };
    Some((meant, rest.as_str()))
}

/// A character by its four digits, or by those of its two surrogates.
fn unicode(digits: &str) -> Option<(char, &str)> {
    let unit = |digits: &str| u16::from_str_radix(digits.get(..4)?, 16).ok();
    let (first, behind) = (unit(digits)?, digits.get(4..)?);
    if let Some(meant) = char::from_u32(first.into()) {
        return Some((meant, behind));
    }
    let second = behind.strip_prefix("\\u")?;
    let meant = char::decode_utf16([first, unit(second)?]).next()?.ok()?;
    Some((meant, second.get(4..)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_found_by_its_pointer_and_unescaped() {
        let document = br#" {"type": "x", "a/b~": [1, {"key": "-----\nline \"1\" \u00e4 \ud83d\ude00 \\ \/ end\n"}], "": ""} "#;
        let at =
            |pointer: &str| text(document, pointer).map(|text| String::from_utf8(text.to_vec()).unwrap());
        assert_eq!(at("/type").unwrap(), "x");
        assert_eq!(at("/a~1b~0/1/key").unwrap(), "-----\nline \"1\" ä 😀 \\ / end\n");
        assert_eq!(at("/").unwrap(), "");
        assert_eq!(at("/nothing"), Err("nothing"));
        assert_eq!(at("/a~1b~0/2"), Err("nothing"));
        assert_eq!(at("/type/x"), Err("nothing"));
        assert_eq!(at("/a~1b~0/0"), Err("no text"));
        assert_eq!(at(""), Err("no text"));
        assert_eq!(text(b"sesame", "/type"), Err("no JSON"));
        assert_eq!(text(br#"{"a": "\ud83d"}"#, "/a"), Err("no text"), "half a character");
    }

    #[test]
    fn every_text_comes_back_as_it_went_in() {
        let all: String = ('\0'..='\u{ff}').chain("\u{2028}\u{ffff}\u{10ffff}".chars()).collect();
        let document = serde_json::json!({"all": all}).to_string();
        assert_eq!(text(document.as_bytes(), "/all").unwrap().as_slice(), all.as_bytes());
    }
}
