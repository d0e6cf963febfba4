//! What an answer that isn't a success means: the class, one line for the operator, when to come back. No I/O.

use keystead_plugin_api::{
    Code, Error,
    http::{Response, one_line},
};
use serde::Deserialize;

/// What is shown of a message of a service's, in characters.
const MESSAGE_MAX: usize = 400;

/// What a vault refuses whoever asks, whichever key that is about.
const OF_THE_VAULT: [&str; 3] = ["ForbiddenByFirewall", "ForbiddenByConnection", "ForbiddenByPolicy"];

/// What a token endpoint says of a credential that won't do another time.
const OF_THE_CREDENTIAL: [&str; 3] = ["invalid_client", "invalid_grant", "unauthorized_client"];

/// A refusal by a vault or a managed HSM. What answers in its place doesn't know which keys there are.
pub(crate) fn by_vault(doing: &str, response: &Response) -> Error {
    let said = said_by_vault(&response.body);
    let code = match response.status {
        401 | 403 => Code::Denied,
        404 if said.is_some() => Code::NotFound,
        404 => Code::Unavailable,
        408 | 409 => Code::Unavailable,
        429 => Code::Throttled,
        400..500 => Code::InvalidInput,
        _ => Code::Unavailable,
    };
    error(code, doing, "the vault", said.as_ref(), response)
}

/// Whether a vault's refusal is about what was asked for: said by itself, for a proxy knows of no keys, and not about
/// whoever asks.
pub(crate) fn is_of_the_key(response: &Response) -> bool {
    matches!(response.status, 400 | 403 | 404)
        && said_by_vault(&response.body).is_some_and(|said| !OF_THE_VAULT.contains(&said.code.as_str()))
}

/// A refusal by whoever makes tokens, or by what answers in its place. A clock that is wrong makes every assertion one
/// that isn't valid yet, or no more; that isn't the credential's fault: it is tried again, and passes once the clock is
/// set.
pub(crate) fn by_authority(doing: &str, response: &Response) -> Error {
    let said = said_by_authority(&response.body);
    let named = said.as_ref().map(|said| said.code.as_str());
    let code = match (response.status, named) {
        (429, _) => Code::Throttled,
        (400 | 401, Some(named)) if OF_THE_CREDENTIAL.contains(&named) && response.clock_skew().is_none() => {
            Code::Credentials
        }
        (400, Some("temporarily_unavailable")) | (408, _) => Code::Unavailable,
        (400..500, Some(_)) => Code::Denied,
        _ => Code::Unavailable,
    };
    error(code, doing, "it", said.as_ref(), response)
}

/// A refusal by a managed identity's endpoint, which answers 404 and 410 while it is being updated.
pub(crate) fn by_identity(doing: &str, response: &Response) -> Error {
    let code = match response.status {
        429 => Code::Throttled,
        400 | 401 | 403 => Code::Denied,
        _ => Code::Unavailable,
    };
    error(code, doing, "it", said_by_authority(&response.body).as_ref(), response)
}

fn error(code: Code, doing: &str, who: &str, said: Option<&Said>, response: &Response) -> Error {
    let said = said.map(|said| one_line(&said.line(), MESSAGE_MAX)).unwrap_or_default();
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

/// What a service says of itself: the name of the error, and a sentence.
struct Said {
    code: String,
    message: String,
}

impl Said {
    fn line(&self) -> String {
        match (self.message.trim().is_empty(), self.code.is_empty()) {
            (false, false) => format!("{} ({})", self.message.trim(), self.code),
            (false, true) => self.message.clone(),
            (true, _) => self.code.clone(),
        }
    }
}

/// `{"error": {"code", "message", "innererror": {"code"}}}`; what is another with each answer is left out.
fn said_by_vault(body: &[u8]) -> Option<Said> {
    #[derive(Deserialize)]
    struct Body {
        error: Outer,
    }
    #[derive(Deserialize)]
    struct Outer {
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
    let Body { error } = serde_json::from_slice(body).ok()?;
    let inner = error.innererror.map(|inner| inner.code).filter(|code| !code.is_empty());
    let message = match error.message.split_once("(Activity ID:") {
        Some((before, after)) => {
            before.trim_end().to_owned() + after.split_once(')').map_or("", |(_, rest)| rest)
        }
        None => error.message,
    };
    Some(Said { code: inner.unwrap_or(error.code), message })
}

/// `{"error": "invalid_client", "error_description": "AADSTS…: … Trace ID: …"}`
fn said_by_authority(body: &[u8]) -> Option<Said> {
    #[derive(Deserialize)]
    struct Body {
        error: String,
        #[serde(default)]
        error_description: String,
    }
    let Body { error, error_description } = serde_json::from_slice(body).ok()?;
    let sentence = error_description.split("Trace ID").next().unwrap_or_default();
    Some(Said { code: error, message: sentence.to_owned() })
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
        for (status, code) in [(429, Code::Throttled), (503, Code::Unavailable), (404, Code::Denied)] {
            assert_eq!(by_authority("x", &response(status, &[], &body)).code, code);
        }
        for (status, code) in [(404, Code::Unavailable), (410, Code::Unavailable), (400, Code::Denied)] {
            assert_eq!(by_identity("x", &response(status, &[], &body)).code, code);
        }
    }

    #[test]
    fn only_the_authority_itself_takes_a_credential_for_good() {
        let class = |status, body: Value| by_authority("x", &response(status, &[], &body)).code;
        for named in ["invalid_client", "invalid_grant", "unauthorized_client"] {
            for (status, code) in
                [(400, Code::Credentials), (401, Code::Credentials), (403, Code::Denied), (407, Code::Denied)]
            {
                assert_eq!(class(status, json!({"error": named})), code, "{status} {named}");
            }
        }
        assert_eq!(class(400, json!({"error": "invalid_request"})), Code::Denied);
        assert_eq!(class(400, json!({"error": "temporarily_unavailable"})), Code::Unavailable);
        for status in [400, 401, 403, 404, 405, 407, 408] {
            for odd in
                [json!("<html>no way to there</html>"), json!({"message": "blocked"}), json!({"error": 7})]
            {
                assert_eq!(class(status, odd), Code::Unavailable, "{status}");
            }
        }
    }

    #[test]
    fn a_refusal_is_about_the_key_where_the_vault_itself_says_so() {
        let said = |code: &str| json!({"error": {"code": "Forbidden", "message": "no", "innererror": {"code": code}}});
        let of_the_key = |status, body: &Value| is_of_the_key(&response(status, &[], body));
        for status in [400, 403, 404] {
            assert!(
                of_the_key(status, &said("ForbiddenByRbac")) && of_the_key(status, &said("")),
                "{status}"
            );
            assert!(!of_the_key(status, &json!("<html>")) && !of_the_key(status, &json!({"error": 7})));
        }
        for inner in ["ForbiddenByFirewall", "ForbiddenByConnection", "ForbiddenByPolicy"] {
            assert!(!of_the_key(403, &said(inner)), "{inner}");
        }
        for status in [401, 405, 408, 421, 429, 503] {
            assert!(!of_the_key(status, &said("")), "{status}");
        }
        assert_eq!(by_vault("x", &response(404, &[], &json!("<html>"))).code, Code::Unavailable);
    }

    #[test]
    fn what_is_another_with_each_answer_is_left_out() {
        let said = |message: &str| {
            let body = json!({"error": {"code": "Forbidden", "message": message}});
            by_vault("x", &response(403, &[], &body)).message
        };
        let id = "0b1c2d3e-0000-1111-2222-333344445555";
        let message = format!("User is not authorized to perform this (Activity ID: {id})");
        assert_eq!(said(&message), "x: the vault says User is not authorized to perform this (Forbidden)");
        assert_eq!(said(&format!("No (Activity ID: {id}).")), "x: the vault says No. (Forbidden)");
        assert_eq!(said(&format!("No (Activity ID: {id}")), "x: the vault says No (Forbidden)");
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
