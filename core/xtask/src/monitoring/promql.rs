//! Which series and labels an expression of PromQL uses. It must be one that promtool has parsed; a series is known by
//! its name, so one selected by `__name__` isn't seen.

/// Words that labels in parentheses follow.
const BEFORE_LABELS: [&str; 6] = ["by", "without", "on", "ignoring", "group_left", "group_right"];

/// Those of them that an aggregation may stand before.
const GROUPING: [&str; 2] = ["by", "without"];

/// Other words that are no series.
const RESERVED: [&str; 8] = ["and", "or", "unless", "atan2", "bool", "offset", "inf", "nan"];

/// What an expression uses.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Use<'a> {
    /// A series, and the labels that choose among those of this name.
    Series { name: &'a str, labels: Vec<&'a str> },
    /// A label to group or match by.
    Label(&'a str),
}

/// What matters here of a token: text in quotes and numbers don't.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Token<'a> {
    Word(&'a str),
    Sign(char),
}

/// What an expression uses, in its order.
pub(super) fn uses(promql: &str) -> Vec<Use<'_>> {
    let tokens = tokens(promql);
    let (mut uses, mut rest) = (Vec::new(), tokens.as_slice());
    while let [token, after @ ..] = rest {
        rest = after;
        let Token::Word(word) = *token else { continue };
        let is = |known: &&str| known.eq_ignore_ascii_case(word);
        match after {
            [Token::Sign('('), inside @ ..] if BEFORE_LABELS.iter().any(is) => {
                let (labels, after) = words_until(')', inside);
                uses.extend(labels.into_iter().map(Use::Label));
                rest = after;
            }
            [Token::Sign('('), ..] => {} // a function
            _ if RESERVED.iter().chain(&BEFORE_LABELS).any(is) => {}
            [Token::Word(next), ..] if GROUPING.iter().any(|known| known.eq_ignore_ascii_case(next)) => {} // so is this
            [Token::Sign('{'), inside @ ..] => {
                let (labels, after) = words_until('}', inside);
                uses.push(Use::Series { name: word, labels });
                rest = after;
            }
            _ => uses.push(Use::Series { name: word, labels: Vec::new() }),
        }
    }
    uses
}

/// The words before a sign, and what follows it.
fn words_until<'t, 'a>(end: char, tokens: &'t [Token<'a>]) -> (Vec<&'a str>, &'t [Token<'a>]) {
    let mut parts = tokens.splitn(2, |token| *token == Token::Sign(end));
    let words = parts.next().unwrap_or_default().iter().filter_map(|token| match token {
        Token::Word(word) => Some(*word),
        Token::Sign(_) => None,
    });
    (words.collect(), parts.next().unwrap_or_default())
}

fn tokens(promql: &str) -> Vec<Token<'_>> {
    let (mut tokens, mut rest) = (Vec::new(), promql);
    while let Some(first) = rest.chars().next() {
        let part_of_word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | ':');
        let length = match first {
            '"' | '\'' | '`' => length_of_quoted(rest, first),
            c if part_of_word(c) => rest.find(|c| !part_of_word(c)).unwrap_or(rest.len()),
            c => c.len_utf8(),
        };
        let (token, after) = rest.split_at(length);
        rest = after;
        match first {
            '0'..='9' | '"' | '\'' | '`' => {}
            c if part_of_word(c) => tokens.push(Token::Word(token)),
            c if c.is_whitespace() => {}
            c => tokens.push(Token::Sign(c)),
        }
    }
    tokens
}

fn length_of_quoted(text: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if c == quote && !escaped => return at + c.len_utf8(),
            _ => escaped = c == '\\' && quote != '`' && !escaped,
        }
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series<'a>(name: &'a str, labels: &[&'a str]) -> Use<'a> {
        Use::Series { name, labels: labels.to_vec() }
    }

    #[test]
    fn series_are_told_from_functions_keywords_numbers_and_text() {
        for (promql, expected) in [
            ("a", vec![series("a", &[])]),
            ("absent(up{job=\"k\"})", vec![series("up", &["job"])]),
            ("rate(a:b_c[5m] offset 1h) > 1e3 and on() b", vec![series("a:b_c", &[]), series("b", &[])]),
            ("a{x=~\"b|{c}\\\"d\", y!='e', } / 0x1f", vec![series("a", &["x", "y"])]),
            ("a{x=`\\`} unless b", vec![series("a", &["x"]), series("b", &[])]),
            ("vector(1) or time() - Inf", vec![]),
        ] {
            assert_eq!(uses(promql), expected, "{promql}");
        }
    }

    #[test]
    fn labels_to_group_and_match_by_are_found_on_either_side() {
        assert_eq!(uses("sum by (x, y) (a)"), [Use::Label("x"), Use::Label("y"), series("a", &[])]);
        assert_eq!(uses("sum(a) WITHOUT (x)"), [series("a", &[]), Use::Label("x")]);
        let matched = uses("a * ignoring (x) group_left (y) b");
        assert_eq!(matched, [series("a", &[]), Use::Label("x"), Use::Label("y"), series("b", &[])]);
        assert_eq!(uses("a * on (x) group_left b"), [series("a", &[]), Use::Label("x"), series("b", &[])]);
    }
}
