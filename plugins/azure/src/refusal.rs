//! What an answer that isn't a success means: the class, one line for the operator, when to come back. No I/O.

use keystead_plugin_api::{
    Code, Error,
    http::{Response, one_line},
};
use serde::Deserialize;

/// What is shown of a message of a service's, in characters.
const MESSAGE_MAX: usize = 400;

/// A refusal by a vault or a managed HSM.
pub(crate) fn by_vault(doing: &str, response: &Response) -> Error {
    let code = match response.status {
        401 | 403 => Code::Denied,
        404 => Code::NotFound,
        408 | 409 => Code::Unavailable,
        429 => Code::Throttled,
        400..500 => Code::InvalidInput,
        _ => Code::Unavailable,
    };
    error(code, doing, "the vault", &said_by_vault(&response.body), response)
}

/// A refusal by whoever makes tokens. A clock that is wrong makes every assertion one that isn't valid yet, or no more;
/// that isn't the credential's fault: it is tried again, and passes once the clock is set.
pub(crate) fn by_authority(doing: &str, response: &Response) -> Error {
    let code = match response.status {
        429 => Code::Throttled,
        400 | 401 if response.clock_skew().is_some() => Code::Denied,
        400 if said_by_authority(&response.body).ends_with("(temporarily_unavailable)") => Code::Unavailable,
        400 | 401 | 403 => Code::Credentials,
        404 | 405 => Code::InvalidInput,
        _ => Code::Unavailable,
    };
    error(code, doing, "it", &said_by_authority(&response.body), response)
}

/// A refusal by a managed identity's endpoint, which answers 404 and 410 while it is being updated.
pub(crate) fn by_identity(doing: &str, response: &Response) -> Error {
    let code = match response.status {
        429 => Code::Throttled,
        400 | 401 | 403 => Code::Credentials,
        _ => Code::Unavailable,
    };
    error(code, doing, "it", &said_by_authority(&response.body), response)
}

fn error(code: Code, doing: &str, who: &str, said: &str, response: &Response) -> Error {
    let said = one_line(said, MESSAGE_MAX);
    let said = if said.is_empty() { "nothing more" } else { &said };
    let mut message = format!("{doing}: {who} says {said}");
    if let (400 | 401, Some(skew)) = (response.status, response.clock_skew()) {
        message += &format!("; {skew}");
    }
    let error = Error::new(code, message).with_vendor("HTTP", response.status.into());
    match response.retry_after() {
        Some(after) if matches!(code, Code::Throttled | Code::Unavailable) => error.with_retry_after(after),
        _ => error,
    }
}

/// `{"error": {"code", "message", "innererror": {"code"}}}`
fn said_by_vault(body: &[u8]) -> String {
    #[derive(Deserialize)]
    struct Body {
        error: Said,
    }
    #[derive(Deserialize)]
    struct Said {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
        innererror: Option<Inner>,
    }
    #[derive(Deserialize)]
    struct Inner {
        #[serde(default)]
        code: String,
    }
    let Ok(Body { error }) = serde_json::from_slice::<Body>(body) else { return String::new() };
    let inner = error.innererror.map(|inner| inner.code).filter(|code| !code.is_empty());
    let code = inner.unwrap_or(error.code);
    match (error.message.is_empty(), code.is_empty()) {
        (false, false) => format!("{} ({code})", error.message),
        (false, true) => error.message,
        (true, _) => code,
    }
}

/// `{"error": "invalid_client", "error_description": "AADSTS…: … Trace ID: …"}`
fn said_by_authority(body: &[u8]) -> String {
    #[derive(Deserialize)]
    struct Body {
        #[serde(default)]
        error: String,
        #[serde(default)]
        error_description: String,
    }
    let Ok(Body { error, error_description }) = serde_json::from_slice::<Body>(body) else {
        return String::new();
    };
    let sentence = error_description.split("Trace ID").next().unwrap_or_default();
    match sentence.trim().is_empty() {
        true => error,
        false => format!("{sentence} ({error})"),
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use serde_json::{Value, json};

    use super::*;

    fn response(status: u16, headers: &[(&str, &str)], body: &Value) -> Response {
        let headers = headers.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect();
        Response { status, headers, body: body.to_string().into_bytes() }
    }

    #[test]
    fn a_refusal_has_a_class_the_status_and_the_words_of_the_vault_in_one_line() {
        let body = json!({"error": {"code": "Forbidden", "message": "Operation sign\r\n is not allowed."}});
        for (status, code) in [
            (400, Code::InvalidInput),
            (401, Code::Denied),
            (403, Code::Denied),
            (404, Code::NotFound),
            (408, Code::Unavailable),
            (409, Code::Unavailable),
            (429, Code::Throttled),
            (500, Code::Unavailable),
            (503, Code::Unavailable),
            (302, Code::Unavailable),
        ] {
            let error = by_vault("signing", &response(status, &[], &body));
            assert_eq!(error.code, code, "{status}");
            let line =
                format!("signing: the vault says Operation sign is not allowed. (Forbidden) (HTTP {status})");
            assert_eq!(error.to_string(), line);
        }
        let inner = json!({"error": {"code": "Forbidden", "message": "no", "innererror": {"code": "ForbiddenByRbac"}}});
        assert!(by_vault("x", &response(403, &[], &inner)).message.ends_with("no (ForbiddenByRbac)"));
    }

    #[test]
    fn a_body_that_is_odd_or_long_is_not_repeated() {
        for body in [b"".as_slice(), b"<html>", br#"{"error": 7}"#, br#"{"error": {}}"#, b"\xff\xfe"] {
            let response = Response { status: 502, headers: Vec::new(), body: body.to_vec() };
            assert_eq!(by_vault("signing", &response).message, "signing: the vault says nothing more");
        }
        let long = json!({"error": {"code": "x", "message": "ä".repeat(5000)}});
        assert!(by_vault("signing", &response(500, &[], &long)).message.chars().count() < 500);
    }

    #[test]
    fn the_authority_says_why_in_its_first_sentence() {
        let description = "AADSTS7000215: Invalid client secret provided.\r\nTrace ID: 1\r\nTimestamp: 2";
        let body = json!({"error": "invalid_client", "error_description": description});
        let error = by_authority("getting a token", &response(401, &[], &body));
        assert_eq!(error.code, Code::Credentials);
        let line = "getting a token: it says AADSTS7000215: Invalid client secret provided. (invalid_client)";
        assert_eq!(error.message, line);
        for (status, code) in [(429, Code::Throttled), (503, Code::Unavailable), (404, Code::InvalidInput)] {
            assert_eq!(by_authority("x", &response(status, &[], &body)).code, code);
        }
        for (status, code) in [(404, Code::Unavailable), (410, Code::Unavailable), (400, Code::Credentials)] {
            assert_eq!(by_identity("x", &response(status, &[], &body)).code, code);
        }
    }

    #[test]
    fn a_clock_that_is_wrong_is_said_and_is_not_the_credentials_fault() {
        let body = json!({"error": "invalid_client"});
        let at = |seconds: i64| {
            let now = SystemTime::now();
            let shift = Duration::from_secs(seconds.unsigned_abs());
            let date = httpdate::fmt_http_date(if seconds < 0 { now - shift } else { now + shift });
            by_authority("x", &response(401, &[("date", &date)], &body))
        };
        assert_eq!(at(30).code, Code::Credentials);
        assert!(!at(30).message.contains("clock"));
        for (seconds, how) in [(600, "behind"), (-600, "ahead of")] {
            assert_eq!(at(seconds).code, Code::Denied);
            assert!(at(seconds).message.contains(how), "{}", at(seconds));
        }
    }

    #[test]
    fn a_throttled_request_knows_when_to_come_back() {
        let throttled = by_vault("x", &response(429, &[("retry-after", "7")], &json!({})));
        assert_eq!(throttled.retry_after, Some(Duration::from_secs(7)));
        let denied = by_vault("x", &response(403, &[("retry-after", "7")], &json!({})));
        assert_eq!(denied.retry_after, None, "coming back doesn't help");
    }
}
