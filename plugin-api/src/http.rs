//! HTTP by the host: within the store's `grants`, with secrets that the plugin doesn't see.
//!
//! One face for every way a plugin is shipped, so that one source serves them all. The host resolves, connects, speaks TLS
//! and keeps connections; it follows no redirect: that is an answer like any other.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

use serde::{
    Deserialize, Serialize,
    de::{DeserializeOwned, IgnoredAny},
};

use crate::{Code, Error};

/// The longest body of a request, in bytes: 1 MiB.
pub const REQUEST_MAX: usize = 1 << 20;

/// The longest body of a response, in bytes: 2 MiB.
pub const RESPONSE_MAX: usize = 2 << 20;

/// How far two clocks may be apart before it is worth a word: about what services let pass.
const SKEW_MAX: Duration = Duration::from_secs(60);

/// The longest time that a service's word is taken to stay away.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(3600);

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(clippy::exhaustive_structs, reason = "the doors write it as a literal")]
pub struct Request {
    /// `GET`, `POST`, …; as the grant has it.
    pub method: String,
    /// Absolute: `https://host[:port]/path?query`.
    pub url: String,
    /// Headers. `host`, `content-length`, and what concerns the connection, are the host's own.
    pub headers: Vec<(String, Value)>,
    /// What is sent.
    pub body: Body,
}

/// The body of a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(clippy::exhaustive_enums, reason = "the doors match all of them")]
pub enum Body {
    /// Nothing.
    None,
    /// As it is, at most [`REQUEST_MAX`].
    Bytes(Vec<u8>),
    /// `application/x-www-form-urlencoded`, which the host encodes.
    Form(Vec<(String, Value)>),
}

/// The value of a header, or of a field of a form: its parts, one after the other.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[expect(clippy::exhaustive_structs, reason = "the doors write it as a literal")]
pub struct Value(pub Vec<Part>);

/// A piece of a value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(clippy::exhaustive_enums, reason = "the doors match all of them")]
pub enum Part {
    /// Text.
    Text(String),
    /// A secret by its name in the store's `secrets`, filled in by the host where the grant names it.
    Secret(String),
}

/// The whole answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(clippy::exhaustive_structs, reason = "the doors write it as a literal")]
pub struct Response {
    /// The status code.
    pub status: u16,
    /// Names in lower case, as often as they came.
    pub headers: Vec<(String, String)>,
    /// The body, at most [`RESPONSE_MAX`].
    #[serde(with = "serde_bytes")]
    pub body: Vec<u8>,
}

impl Request {
    /// A request without headers and body.
    pub fn new(method: impl Into<String>, url: impl Into<String>) -> Self {
        Self { method: method.into(), url: url.into(), headers: Vec::new(), body: Body::None }
    }

    /// Adds a header.
    #[must_use]
    pub fn header(mut self, name: impl Into<String>, value: impl Into<Value>) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// Sends bytes of a media type.
    #[must_use]
    pub fn body(mut self, media_type: &str, bytes: Vec<u8>) -> Self {
        self.body = Body::Bytes(bytes);
        self.header("content-type", media_type)
    }

    /// Sends JSON.
    #[must_use]
    pub fn json(self, value: &serde_json::Value) -> Self {
        self.body("application/json", value.to_string().into_bytes())
    }

    /// Sends the fields of a form.
    #[must_use]
    pub fn form<N: Into<String>, V: Into<Value>>(mut self, fields: impl IntoIterator<Item = (N, V)>) -> Self {
        self.body = Body::Form(fields.into_iter().map(|(name, value)| (name.into(), value.into())).collect());
        self
    }
}

impl Value {
    /// A secret, whole.
    pub fn secret(name: impl Into<String>) -> Self {
        Self::default().and_secret(name)
    }

    /// Text, which more may follow.
    pub fn text(text: impl Into<String>) -> Self {
        Self(vec![Part::Text(text.into())])
    }

    /// Adds a secret: `Value::text("Bearer ").and_secret("token")`.
    #[must_use]
    pub fn and_secret(mut self, name: impl Into<String>) -> Self {
        self.0.push(Part::Secret(name.into()));
        self
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::text(text)
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::text(text)
    }
}

impl Response {
    /// The first header of a name, which is given in lower case.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
    }

    /// The body as JSON.
    ///
    /// # Errors
    ///
    /// [`Code::Unavailable`] where it isn't: a proxy or a broken service answered. The message has no piece of the body.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T, Error> {
        serde_json::from_slice(&self.body).map_err(|error| {
            let (status, line, column) = (self.status, error.line(), error.column());
            let what = format!("the answer is not the JSON that was expected (line {line}, column {column})");
            Error::new(Code::Unavailable, what).with_vendor("HTTP", status.into())
        })
    }

    /// The body as JSON, where it is an object. [`json`](Self::json) would take a list for a structure with its members in
    /// order, and an empty list for one whose members may all be missing.
    ///
    /// # Errors
    ///
    /// As [`json`](Self::json).
    pub fn object<T: DeserializeOwned>(&self) -> Result<T, Error> {
        if self.body.trim_ascii_start().first() != Some(&b'{') {
            self.json::<BTreeMap<String, IgnoredAny>>()?; // which it isn't
        }
        self.json()
    }

    /// How long the service wants to be left alone, an hour at most (RFC 9110 section 10.2.3): so many seconds, or until a
    /// date, by its own clock.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        let text = self.header("retry-after")?.trim();
        let after = match text.parse() {
            Ok(seconds) => Duration::from_secs(seconds),
            Err(_) => {
                let until = httpdate::parse_http_date(text).ok()?;
                until.duration_since(self.date().unwrap_or_else(SystemTime::now)).unwrap_or_default()
            }
        };
        Some(after.min(RETRY_AFTER_MAX))
    }

    /// What to say where this machine's clock and the service's are more than a minute apart, so that what depends on the
    /// time is refused: a signed token.
    #[must_use]
    pub fn clock_skew(&self) -> Option<String> {
        let (theirs, ours) = (self.date()?, SystemTime::now());
        let (apart, how) = match ours.duration_since(theirs) {
            Ok(apart) => (apart, "ahead of"),
            Err(error) => (error.duration(), "behind"),
        };
        let seconds = apart.as_secs();
        (apart > SKEW_MAX)
            .then(|| format!("this machine's clock is {seconds} s {how} the service's: set it right"))
    }

    fn date(&self) -> Option<SystemTime> {
        httpdate::parse_http_date(self.header("date")?).ok()
    }
}

/// A service's text as an operator is to see it: in one line, of so many characters at most.
#[must_use]
pub fn one_line(text: &str, most: usize) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(most) {
        Some((end, _)) => format!("{}…", line.get(..end).unwrap_or_default()),
        None => line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn response(headers: &[(&str, &str)]) -> Response {
        let headers = headers.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect();
        Response { status: 429, headers, body: Vec::new() }
    }

    #[test]
    fn a_service_says_when_to_come_back_in_seconds_or_by_a_date_of_its_own() {
        let after =
            |value: &str, date: &str| response(&[("retry-after", value), ("date", date)]).retry_after();
        assert_eq!(after(" 7", ""), Some(Duration::from_secs(7)));
        let (date, later) = ("Wed, 21 Oct 2015 07:28:00 GMT", "Wed, 21 Oct 2015 07:28:09 GMT");
        assert_eq!(after(later, date), Some(Duration::from_secs(9)));
        assert_eq!(after(date, later), Some(Duration::ZERO));
        assert_eq!(after("99999999", ""), Some(RETRY_AFTER_MAX));
        assert_eq!(after("soon", date), None);
        assert_eq!(response(&[]).retry_after(), None);
    }

    #[test]
    fn a_clock_that_is_wrong_is_said() {
        let said = |date: SystemTime| response(&[("date", &httpdate::fmt_http_date(date))]).clock_skew();
        let (now, far) = (SystemTime::now(), Duration::from_secs(600));
        assert_eq!(said(now + Duration::from_secs(50)), None);
        assert!(said(now + far).unwrap().contains(" s behind the service's"));
        assert!(said(now - far).unwrap().contains(" s ahead of the service's"));
        assert_eq!(response(&[("date", "yesterday")]).clock_skew(), None);
    }

    #[test]
    fn a_list_is_no_object_whatever_it_could_stand_for() {
        #[derive(Debug, Default, PartialEq, Deserialize)]
        #[serde(default)]
        struct Page {
            items: Vec<u8>,
        }
        let object = |body: &str| {
            let response = Response { status: 200, headers: Vec::new(), body: body.into() };
            response.object::<Page>().map_err(|error| error.code)
        };
        assert_eq!(object(" \r\n{\"items\": [7]}").unwrap().items, [7]);
        assert_eq!(object("{}"), Ok(Page::default()));
        for other in ["[]", " [[7]]", "7", "null", "", "{", "{}]"] {
            assert_eq!(object(other), Err(Code::Unavailable), "{other}");
        }
    }

    #[test]
    fn a_text_becomes_one_line_of_bounded_length() {
        assert_eq!(one_line("a\r\n b\t\tc ", 9), "a b c");
        assert_eq!(one_line(&"ä".repeat(5000), 3), "äää…");
        assert_eq!(one_line("", 3), "");
    }
}
