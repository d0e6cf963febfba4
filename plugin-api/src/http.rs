//! HTTP by the host: within the store's `grants`, with secrets that the plugin doesn't see.
//!
//! One face for every way a plugin is shipped, so that one source serves them all. The host resolves, connects, speaks TLS
//! and keeps connections; it follows no redirect: that is an answer like any other.

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{Code, Error};

/// The longest body of a request, in bytes: 1 MiB.
pub const REQUEST_MAX: usize = 1 << 20;

/// The longest body of a response, in bytes: 2 MiB.
pub const RESPONSE_MAX: usize = 2 << 20;

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
}
