//! What an answer means that isn't a success.

use std::time::Duration;

use keystead_plugin_api::{
    Code, Error,
    http::{Response, one_line},
};
use serde::Deserialize;

/// What is shown of a message of a service's.
const MESSAGE_MAX: usize = 300;

/// An error of a Google API, as far as it is of interest.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Refusal {
    status: String,
    message: String,
    details: Vec<Detail>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Detail {
    /// Of a `RetryInfo`: `1.5s`.
    retry_delay: Option<String>,
}

/// The envelope of one.
#[derive(Deserialize)]
struct Envelope {
    error: Refusal,
}

/// An error of a token endpoint (RFC 6749 section 5.2).
#[derive(Default, Deserialize)]
#[serde(default)]
struct OAuth {
    error: String,
    error_description: String,
}

/// What Cloud KMS, or another API of Google's, means by an answer.
pub(crate) fn of_the_api(doing: &str, response: &Response) -> Error {
    let refusal =
        serde_json::from_slice::<Envelope>(&response.body).map(|body| body.error).unwrap_or_default();
    let code = class(response.status, &refusal);
    let said = [refusal.status.as_str(), refusal.message.as_str()];
    let after = refusal.details.iter().find_map(|detail| delay(detail.retry_delay.as_deref()?));
    let error = error(code, doing, &said, response);
    match error.retry_after.or(after) {
        Some(after) => error.with_retry_after(after),
        None => error,
    }
}

/// What a token endpoint means by one.
pub(crate) fn of_the_token_endpoint(doing: &str, response: &Response) -> Error {
    let OAuth { error: name, error_description } = serde_json::from_slice(&response.body).unwrap_or_default();
    let code = match (response.status, name.as_str()) {
        (429, _) => Code::Throttled,
        (400 | 401, "invalid_client" | "invalid_grant" | "unauthorized_client") => Code::Credentials,
        (400, "invalid_scope" | "invalid_target" | "unsupported_grant_type") => Code::InvalidInput,
        (408, _) | (_, "") => Code::Unavailable, // not a word of the endpoint's: something on the way
        (400..500, _) => Code::Denied,
        _ => Code::Unavailable,
    };
    error(code, doing, &[&name, &error_description], response)
}

fn class(status: u16, refusal: &Refusal) -> Code {
    match (status, refusal.status.as_str()) {
        (429, _) | (_, "RESOURCE_EXHAUSTED") => Code::Throttled,
        // Whatever is wrong, an account that was disabled or a key that is too new, is mended there, and locks nothing.
        (401, _) => Code::Denied,
        // Not a word of the service's: something on the way answers.
        (400..500, "") => Code::Unavailable,
        (403, _) => Code::Denied,
        (404, _) => Code::NotFound,
        // A version that is disabled, destroyed or still being made: another that has the key may serve it.
        (400, "FAILED_PRECONDITION") => Code::Denied,
        // What was sent isn't what arrived.
        (400, _) if refusal.message.to_ascii_lowercase().contains("checksum") => Code::Unavailable,
        (408 | 409 | 499, _) => Code::Unavailable,
        (400..500, _) => Code::InvalidInput,
        _ => Code::Unavailable,
    }
}

fn error(mut code: Code, doing: &str, said: &[&str], response: &Response) -> Error {
    let said = said.iter().filter(|part| !part.is_empty()).copied().collect::<Vec<_>>().join(": ");
    let mut message = match one_line(&said, MESSAGE_MAX) {
        said if said.is_empty() => format!("{doing}: the service says nothing more"),
        said => format!("{doing}: the service says {said}"),
    };
    if (code == Code::Credentials || response.status == 401)
        && let Some(skew) = response.clock_skew()
    {
        message = format!("{message}; {skew}");
        code = Code::Denied; // what was refused may be right: it is tried again, and passes once the clock is set
    }
    let error = Error::new(code, message).with_vendor("HTTP", response.status.into());
    match response.retry_after() {
        Some(after) => error.with_retry_after(after),
        None => error,
    }
}

/// A duration of protobuf's in JSON, of which half a second is the least worth waiting for.
fn delay(text: &str) -> Option<Duration> {
    let seconds: f64 = text.strip_suffix('s')?.parse().ok()?;
    Duration::try_from_secs_f64(seconds).ok()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn answer(status: u16, body: &Value) -> Response {
        Response { status, headers: Vec::new(), body: body.to_string().into_bytes() }
    }

    fn refused(status: u16, name: &str, message: &str) -> Error {
        of_the_api(
            "signing",
            &answer(status, &json!({"error": {"code": status, "status": name, "message": message}})),
        )
    }

    #[test]
    fn a_refusal_has_a_class_the_status_and_the_words_of_the_service() {
        let classes = [
            (400, "INVALID_ARGUMENT", "bad", Code::InvalidInput),
            (400, "INVALID_ARGUMENT", "The checksum in field digest_crc32c did not match", Code::Unavailable),
            (400, "FAILED_PRECONDITION", "is not enabled, current state is: DISABLED.", Code::Denied),
            (401, "UNAUTHENTICATED", "invalid authentication credentials", Code::Denied),
            (403, "PERMISSION_DENIED", "Permission denied", Code::Denied),
            (403, "RESOURCE_EXHAUSTED", "Quota", Code::Throttled),
            (404, "NOT_FOUND", "not found", Code::NotFound),
            (409, "ABORTED", "again", Code::Unavailable),
            (429, "RESOURCE_EXHAUSTED", "Quota exceeded", Code::Throttled),
            (500, "INTERNAL", "oops", Code::Unavailable),
            (503, "UNAVAILABLE", "later", Code::Unavailable),
            (504, "DEADLINE_EXCEEDED", "late", Code::Unavailable),
        ];
        for (status, name, message, code) in classes {
            let error = refused(status, name, message);
            assert_eq!(error.code, code, "{status} {name}");
            assert_eq!(
                error.to_string(),
                format!("signing: the service says {name}: {message} (HTTP {status})")
            );
        }
        assert_eq!(of_the_api("signing", &answer(302, &json!({}))).code, Code::Unavailable);
    }

    #[test]
    fn what_something_on_the_way_answers_is_not_taken_for_a_word_of_the_service() {
        for body in ["<!DOCTYPE html><h1>Forbidden</h1>", "", "[]", r#"{"error": "no"}"#] {
            for status in [400, 403, 404, 405, 407, 421] {
                let response = Response { status, headers: Vec::new(), body: body.into() };
                assert_eq!(of_the_api("listing", &response).code, Code::Unavailable, "{status} {body}");
            }
        }
        for body in ["<!DOCTYPE html><h1>Forbidden</h1>", "", "[]", r#"{"message": "no"}"#] {
            for status in [400, 401, 403, 404, 405, 407] {
                let response = Response { status, headers: Vec::new(), body: body.into() };
                assert_eq!(
                    of_the_token_endpoint("asking", &response).code,
                    Code::Unavailable,
                    "{status} {body}"
                );
            }
        }
    }

    #[test]
    fn whatever_is_answered_becomes_one_short_line() {
        assert_eq!(
            refused(500, "INTERNAL", "a\n b\t\tc").message,
            "signing: the service says INTERNAL: a b c"
        );
        let long = refused(500, "INTERNAL", &"ä".repeat(5000));
        assert!(long.message.chars().count() < 2 * MESSAGE_MAX, "{}", long.message);
        for body in ["", "<html>", r#"{"error": 7}"#, r#"{"error": {"status": 7}}"#, "[]"] {
            let response = Response { status: 502, headers: Vec::new(), body: body.into() };
            assert_eq!(of_the_api("signing", &response).message, "signing: the service says nothing more");
            assert_eq!(
                of_the_token_endpoint("asking", &response).message,
                "asking: the service says nothing more"
            );
        }
    }

    #[test]
    fn a_quota_says_when_to_come_back() {
        let detail = json!({"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "1.5s"});
        let info =
            json!({"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "RATE_LIMIT_EXCEEDED"});
        let body =
            json!({"error": {"status": "RESOURCE_EXHAUSTED", "message": "Quota", "details": [info, detail]}});
        let mut response = answer(429, &body);
        assert_eq!(of_the_api("signing", &response).retry_after, Some(Duration::from_millis(1500)));
        response.headers.push(("retry-after".to_owned(), "7".to_owned()));
        assert_eq!(of_the_api("signing", &response).retry_after, Some(Duration::from_secs(7)));
        for odd in ["-1s", "s", "1", "1e300s", "NaNs", "infs"] {
            assert_eq!(delay(odd), None, "{odd}");
        }
    }

    #[test]
    fn a_token_endpoint_refuses_the_credentials_or_what_was_asked() {
        let code = |status, name: &str| {
            let body = json!({"error": name, "error_description": "why"});
            of_the_token_endpoint("asking", &answer(status, &body)).code
        };
        assert_eq!(code(400, "invalid_grant"), Code::Credentials);
        assert_eq!(code(401, "invalid_client"), Code::Credentials);
        assert_eq!(code(400, "invalid_target"), Code::InvalidInput);
        assert_eq!(code(403, "access_denied"), Code::Denied);
        assert_eq!(code(400, "unauthorized_client"), Code::Credentials);
        assert_eq!(code(400, "invalid_request"), Code::Denied);
        assert_eq!(code(404, "not_found"), Code::Denied);
        assert_eq!(code(403, "invalid_grant"), Code::Denied, "whoever answers that is no token endpoint");
        assert_eq!(code(429, "slow_down"), Code::Throttled);
        assert_eq!(code(503, "temporarily_unavailable"), Code::Unavailable);
    }
}
