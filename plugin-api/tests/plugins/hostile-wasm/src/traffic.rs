//! Requests over HTTP, by the host.

use serde::Deserialize;

use crate::{
    INTERNAL, amplify,
    bindings::{
        exports::keystead::backend::plugin::Error,
        keystead::backend::http::{self, Body, Field, Part, Request, Response},
    },
    tell,
};

/// A request.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Errand {
    url: String,
    #[serde(default = "get")]
    method: String,
    /// Name and value each; a secret's name stands after `secret:`.
    #[serde(default)]
    headers: Vec<(String, String)>,
    /// Fields likewise; with any, the body is a form.
    #[serde(default)]
    form: Vec<(String, String)>,
}

fn get() -> String {
    "GET".to_owned()
}

impl Errand {
    fn request(&self) -> Request {
        Request {
            method: self.method.clone(),
            url: self.url.clone(),
            headers: fields(&self.headers),
            body: if self.form.is_empty() { Body::None } else { Body::Form(fields(&self.form)) },
        }
    }
}

fn fields(fields: &[(String, String)]) -> Vec<Field> {
    let part = |value: &String| match value.strip_prefix("secret:") {
        Some(name) => Part::Secret(name.to_owned()),
        None => Part::Text(value.clone()),
    };
    fields.iter().map(|(name, value)| Field { name: name.clone(), value: vec![part(value)] }).collect()
}

/// Tells the status and the beginning of the body, or what the host said.
pub(crate) fn fetch(errand: &Errand) -> Error {
    send(&errand.request())
}

/// As a plugin does whose keys are with the service.
pub(crate) fn through(errand: &Errand) -> Result<(), Error> {
    http::fetch(&errand.request()).map(drop)
}

/// As a client that follows redirects.
pub(crate) fn follow(errand: &Errand) -> Error {
    let mut request = errand.request();
    loop {
        let response = match http::fetch(&request) {
            Ok(response) => response,
            Err(refusal) => return refusal,
        };
        match response.headers.iter().find(|(name, _)| name == "location") {
            Some((_, location)) => request.url.clone_from(location),
            None => return told(response),
        }
    }
}

/// A request whose headers claim more than there is memory.
pub(crate) fn swell(errand: &Errand, count: usize, len: usize) -> Error {
    let header = |(number, value): (usize, Vec<u8>)| Field {
        name: format!("x-{number}"),
        value: vec![Part::Text(String::from_utf8(value).unwrap_or_default())],
    };
    let headers = amplify::copies(count, len).into_iter().enumerate().map(header).collect();
    send(&Request { headers, ..errand.request() })
}

/// A request whose values are many times as long.
pub(crate) fn multiply(errand: &Errand, times: usize) -> Error {
    let mut request = errand.request();
    let repeat = |field: &mut Field| field.value = vec![field.value.clone(); times].concat();
    request.headers.iter_mut().for_each(repeat);
    if let Body::Form(form) = &mut request.body {
        form.iter_mut().for_each(repeat);
    }
    send(&request)
}

fn send(request: &Request) -> Error {
    http::fetch(request).map_or_else(|refusal| refusal, told)
}

fn told(response: Response) -> Error {
    let beginning: String = String::from_utf8_lossy(&response.body).chars().take(200).collect();
    tell(INTERNAL, format!("answered {}: {beginning}", response.status))
}
