//! What vaults and managed HSMs answer (REST interface, version 7.4).

use std::time::Instant;

use base64ct::{Base64UrlUnpadded, Encoding};
use serde_json::{Value, json};

use super::{LOGINS, State, TENANT, keys::Version};
use crate::{Answer, Asked};

/// How many keys a page has at most.
const PAGE: usize = 25;

/// Answers a request, with the services' own time.
pub(super) fn answer(state: &State, asked: &Asked) -> Answer {
    let vault = asked.header("host").unwrap_or_default().trim_end_matches(":443").to_owned();
    let answer = refused(state, &vault, asked)
        .unwrap_or_else(|| routed(state, &vault, asked).unwrap_or_else(|refusal| refusal));
    answer.header("date", &state.date()).header("x-ms-keyvault-service-version", "1.9.2000.1")
}

/// Whoever doesn't say who he is, or has a token that isn't good here, learns where tokens are made.
fn refused(state: &State, vault: &str, asked: &Asked) -> Option<Answer> {
    let (kind, domain) = vault.split_once('.').and_then(|(_, rest)| rest.split_once('.')).unwrap_or_default();
    let (_, login) = LOGINS.into_iter().find(|(cloud, _)| *cloud == domain)?;
    let resource = format!("https://{kind}.{domain}");
    let why = match asked.header("authorization").and_then(|header| header.strip_prefix("Bearer ")) {
        None => "AKV10000: Request is missing a Bearer or PoP token.",
        Some(token) => match state.lock().tokens.iter().find(|known| known.text == token) {
            None => "AKV10046: Unable to resolve the key used for signature validation.",
            Some(known) if known.resource != resource => "AKV10022: Invalid audience.",
            Some(known) if known.until <= Instant::now() => "AKV10041: Token is expired.",
            Some(_) => return None,
        },
    };
    let challenge = format!(r#"Bearer authorization="https://{login}/{TENANT}", resource="{resource}""#);
    Some(error(401, "Unauthorized", why).header("www-authenticate", &challenge))
}

fn routed(state: &State, vault: &str, asked: &Asked) -> Result<Answer, Answer> {
    let parameter = |name: &str| {
        let mut query = form_urlencoded::parse(asked.query.as_bytes());
        query.find(|(found, _)| found == name).map(|(_, value)| value.into_owned())
    };
    if parameter("api-version").is_none() {
        return Err(error(400, "BadParameter", "api-version must be specified"));
    }
    let page = Page {
        from: parameter("$skiptoken").and_then(|text| text.parse().ok()).unwrap_or(0),
        most: parameter("maxresults").and_then(|text| text.parse().ok()).unwrap_or(PAGE).min(PAGE),
        link: format!(
            "https://{vault}:443{}?api-version={}",
            asked.path,
            parameter("api-version").unwrap_or_default()
        ),
    };
    let path = asked.path.trim_matches('/').to_ascii_lowercase();
    let segments: Vec<_> = path.split('/').collect();
    match (asked.method.as_str(), segments.as_slice()) {
        ("GET", ["keys"]) => Ok(list(state, vault, &page)),
        ("GET", ["keys", name, "versions"]) => versions(state, vault, name, &page),
        ("GET", ["keys", name]) => {
            with_version(state, vault, name, None, |version, kid| Ok(version.bundle(kid)))
        }
        ("GET", ["keys", name, version]) => {
            with_version(state, vault, name, Some(version), |version, kid| Ok(version.bundle(kid)))
        }
        ("POST", ["keys", name, version, operation @ ("sign" | "decrypt")]) => {
            operate(state, (vault, name, version), operation, asked)
        }
        _ => Err(error(404, "NotFound", "Resource not found.")),
    }
}

/// Which part of a list is wanted, and the link that the next begins with.
struct Page {
    from: usize,
    most: usize,
    link: String,
}

impl Page {
    fn of(&self, items: &[Value]) -> Answer {
        let value: Vec<_> = items.iter().skip(self.from).take(self.most).collect();
        let end = self.from + value.len();
        let next =
            (end < items.len()).then(|| format!("{}&$skiptoken={end}&maxresults={}", self.link, self.most));
        Answer::json(200, &json!({"value": value, "nextLink": next}))
    }
}

/// The keys of a vault; each as its newest version is.
fn list(state: &State, vault: &str, page: &Page) -> Answer {
    let changing = state.lock();
    let own = changing.keys.iter().filter(|((at, _), _)| at == vault);
    let items = own.filter_map(|((_, name), versions)| {
        Some(versions.last()?.item(&format!("https://{vault}/keys/{name}")))
    });
    page.of(&items.collect::<Vec<_>>())
}

fn versions(state: &State, vault: &str, name: &str, page: &Page) -> Result<Answer, Answer> {
    let changing = state.lock();
    let versions = changing.keys.get(&(vault.to_owned(), name.to_owned())).ok_or_else(|| no_key(name))?;
    let kid = |version: &Version| format!("https://{vault}/keys/{name}/{}", version.id);
    let items: Vec<_> = versions.iter().map(|version| version.item(&kid(version))).collect();
    Ok(page.of(&items))
}

/// Does something with a version of a key, the newest where none is given.
fn with_version(
    state: &State,
    vault: &str,
    name: &str,
    version: Option<&str>,
    act: impl FnOnce(&Version, &str) -> Result<Value, Answer>,
) -> Result<Answer, Answer> {
    let changing = state.lock();
    let versions = changing.keys.get(&(vault.to_owned(), name.to_owned())).ok_or_else(|| no_key(name))?;
    let found = match version {
        None => versions.last(),
        Some(id) => versions.iter().find(|version| version.id == id),
    };
    let version = found.ok_or_else(|| no_key(&format!("{name}/{}", version.unwrap_or_default())))?;
    let kid = format!("https://{vault}/keys/{name}/{}", version.id);
    Ok(Answer::json(200, &act(version, &kid)?))
}

/// `{"alg", "value"}` in, `{"kid", "value"}` out.
fn operate(
    state: &State,
    (vault, name, version): (&str, &str, &str),
    operation: &str,
    asked: &Asked,
) -> Result<Answer, Answer> {
    let bad = |what: &str| error(400, "BadParameter", what);
    let body: Value = serde_json::from_slice(&asked.body).map_err(|_| bad("The request body is not JSON"))?;
    let text =
        |name: &str| body.get(name).and_then(Value::as_str).ok_or_else(|| bad(&format!("{name} is missing")));
    let value = Base64UrlUnpadded::decode_vec(text("value")?).map_err(|_| bad("value is not base64url"))?;
    let (algorithm, now) = (text("alg")?, state.now());
    with_version(state, vault, name, Some(version), |version, kid| {
        if let Some((inner, why)) = version.refuses(operation, now) {
            let body = json!({"error": {"code": "Forbidden", "message": why, "innererror": {"code": inner}}});
            return Err(Answer::json(403, &body));
        }
        let result = match operation {
            "sign" => version.sign(algorithm, &value),
            _ => version.decrypt(algorithm, &value),
        };
        let result = result.map_err(|what| bad(&what))?;
        Ok(json!({"kid": kid, "value": Base64UrlUnpadded::encode_string(&result)}))
    })
}

fn no_key(name: &str) -> Answer {
    let what = format!(
        "A key with (name/id) {name} was not found in this key vault. If you recently deleted this key you may be able \
         to recover it using the correct recovery command."
    );
    error(404, "KeyNotFound", &what)
}

fn error(status: u16, code: &str, message: &str) -> Answer {
    Answer::json(status, &json!({"error": {"code": code, "message": message}}))
}
