//! Quantities with units, as text: durations and sizes.

use std::time::Duration;

/// Units of a duration in nanoseconds. Both spellings of micro are Go's: U+00B5 and U+03BC.
const TIMES: [(&str, u64); 8] = [
    ("ns", 1),
    ("us", 1_000),
    ("\u{b5}s", 1_000),
    ("\u{3bc}s", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60_000_000_000),
    ("h", 3_600_000_000_000),
];

const SIZES: [(&str, u64); 5] = [("", 1), ("B", 1), ("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30)];

/// Reads a duration as Go's `time.ParseDuration` does, but not a negative one: `500ms`, `1m30s`, `1.5h`, `0`.
///
/// Every number needs its unit, except a lone zero. What is finer than a nanosecond is dropped.
#[must_use]
pub fn duration(text: &str) -> Option<Duration> {
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    if rest == "0" {
        return Some(Duration::ZERO);
    }
    let mut total: Option<u64> = None;
    while !rest.is_empty() {
        let (number, unit, after) = term(rest)?;
        total = Some(total.unwrap_or(0).checked_add(nanoseconds(number, unit)?)?);
        rest = after;
    }
    // Go's durations are signed.
    total.filter(|total| i64::try_from(*total).is_ok()).map(Duration::from_nanos)
}

/// Reads a size in bytes: a whole number, then `B`, `KiB`, `MiB`, `GiB` or nothing.
pub(super) fn size(text: &str) -> Option<u64> {
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let (_, scale) = SIZES.iter().find(|(name, _)| *name == unit.trim_start())?;
    number.parse::<u64>().ok()?.checked_mul(*scale)
}

/// Writes a size in the largest unit that leaves a whole number.
pub(super) fn size_text(bytes: u64) -> String {
    let fits = |(_, scale): &&(&str, u64)| bytes >= *scale && bytes.is_multiple_of(*scale);
    let (name, scale) = SIZES.iter().rev().find(fits).unwrap_or(&("B", 1));
    format!("{}{name}", bytes / scale)
}

/// Splits `1.5h30m` into `1.5`, `h` and `30m`.
fn term(text: &str) -> Option<(&str, &str, &str)> {
    let in_number = |c: char| c.is_ascii_digit() || c == '.';
    let (number, rest) = text.split_at(text.find(|c| !in_number(c))?);
    let (unit, after) = rest.split_at(rest.find(in_number).unwrap_or(rest.len()));
    Some((number, unit, after))
}

fn nanoseconds(number: &str, unit: &str) -> Option<u64> {
    let (_, scale) = TIMES.iter().find(|(name, _)| *name == unit)?;
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() || fraction.contains('.') {
        return None;
    }
    let whole = if whole.is_empty() { 0 } else { whole.parse::<u64>().ok()? };
    whole.checked_mul(*scale)?.checked_add(part(fraction, *scale))
}

/// The fraction `0.digits` of `scale`, exactly, rounded down.
fn part(digits: &str, scale: u64) -> u64 {
    // The largest unit has 13 digits: later ones cannot reach a nanosecond but by rounding, which goes down.
    let (value, power) = digits
        .bytes()
        .take(18)
        .fold((0_u128, 1_u128), |(value, power), digit| (value * 10 + u128::from(digit - b'0'), power * 10));
    u64::try_from(value * u128::from(scale) / power).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_durations_as_go_does() {
        let claims: [(&str, u64); 16] = [
            ("0", 0),
            ("0s", 0),
            ("500ms", 500_000_000),
            ("1m30s", 90_000_000_000),
            ("1.5h", 5_400_000_000_000),
            (".5s", 500_000_000),
            ("1.s", 1_000_000_000),
            ("+5s", 5_000_000_000),
            ("1h0.5s", 3_600_500_000_000),
            ("3us", 3_000),
            ("3\u{b5}s", 3_000),
            ("3\u{3bc}s", 3_000),
            ("1ns", 1),
            ("1.9ns", 1),
            ("30s1s", 31_000_000_000),
            ("0.000000000000000000000000001h", 0),
        ];
        for (text, nanoseconds) in claims {
            assert_eq!(duration(text), Some(Duration::from_nanos(nanoseconds)), "{text}");
        }
    }

    #[test]
    fn refuses_what_go_refuses_and_negative_durations() {
        for text in
            ["", "+", "5", "-5s", "s", ".s", "1..5s", "1.2.3s", "5 s", "5S", "5d", "1s2", "9999999999h", "٣s"]
        {
            assert_eq!(duration(text), None, "{text}");
        }
    }

    #[test]
    fn reads_sizes() {
        let claims = [
            ("0", Some(0)),
            ("64MiB", Some(64 << 20)),
            ("1 GiB", Some(1 << 30)),
            ("7B", Some(7)),
            ("3KiB", Some(3072)),
        ];
        for (text, bytes) in claims {
            assert_eq!(size(text), bytes, "{text}");
        }
        for (bytes, text) in
            [(0, "0B"), (1000, "1000B"), (64 << 20, "64MiB"), (1536 << 20, "1536MiB"), (1 << 40, "1024GiB")]
        {
            assert_eq!(size_text(bytes), text);
            assert_eq!(size(text), Some(bytes));
        }
        for text in ["", "MiB", "1MB", "-1", "1.5MiB", "99999999999GiB"] {
            assert_eq!(size(text), None, "{text}");
        }
    }
}
