//! What a host has beside its table: the memory of refused credentials, HTTP, values that expire, the use of secrets.

use std::{
    ffi::c_void,
    time::{Duration, Instant},
};

use keystead_plugin_api::{
    Code, Error,
    abi::{
        Buffer, Bytes, CACHE_EXTENSION, CREDENTIALS_EXTENSION, CacheTable, CredentialsTable, HTTP_EXTENSION,
        HttpField, HttpHeader, HttpPart, HttpRequest, HttpResponse, HttpTable, PART_SECRET, PART_TEXT,
        Report, SIGNER_EXTENSION, SignerTable, struct_size,
    },
    http::{Body, Part, Request, Response, Value},
};
use zeroize::Zeroizing;

use super::{
    contain,
    table::{answer, side},
};
use crate::{
    native::Elements,
    reach::{Ask, PATIENCE, Reached},
};

/// The most headers of a request, fields of a form, and parts of a value.
const FIELDS_MAX: usize = 1024;

/// An extension by its name, or NULL.
pub(super) fn named(name: &[u8]) -> *const c_void {
    static CREDENTIALS: CredentialsTable =
        CredentialsTable { size: struct_size::<CredentialsTable>(), refused, report, accepted };
    static HTTP: HttpTable = HttpTable { size: struct_size::<HttpTable>(), fetch, release };
    static CACHE: CacheTable = CacheTable { size: struct_size::<CacheTable>(), get, put, give_up, forget };
    static SIGNER: SignerTable = SignerTable { size: struct_size::<SignerTable>(), sign, hmac };
    match name {
        name if name == CREDENTIALS_EXTENSION.as_bytes() => (&raw const CREDENTIALS).cast(),
        name if name == HTTP_EXTENSION.as_bytes() => (&raw const HTTP).cast(),
        name if name == CACHE_EXTENSION.as_bytes() => (&raw const CACHE).cast(),
        name if name == SIGNER_EXTENSION.as_bytes() => (&raw const SIGNER).cast(),
        _ => std::ptr::null(),
    }
}

unsafe extern "C" fn refused(context: *mut c_void, token: Bytes, secret: Bytes) -> u32 {
    // SAFETY: the context is ours, and the plugin keeps both slices valid through the call.
    let (side, token, secret) = unsafe { (side(context), token.as_slice(), secret.as_slice()) };
    u32::from(contain(true, || side.was_refused(token, secret)))
}

unsafe extern "C" fn report(context: *mut c_void, token: Bytes, secret: Bytes) {
    // SAFETY: the context is ours, and the plugin keeps both slices valid through the call.
    let (side, token, secret) = unsafe { (side(context), token.as_slice(), secret.as_slice()) };
    contain((), || side.presented(token, secret, false));
}

unsafe extern "C" fn accepted(context: *mut c_void, token: Bytes, secret: Bytes) {
    // SAFETY: the context is ours, and the plugin keeps both slices valid through the call.
    let (side, token, secret) = unsafe { (side(context), token.as_slice(), secret.as_slice()) };
    contain((), || side.presented(token, secret, true));
}

unsafe extern "C" fn fetch(
    context: *mut c_void,
    nanos_left: u64,
    request: *const HttpRequest,
    response: *mut HttpResponse,
    report: *mut Report,
) -> u32 {
    // SAFETY: the plugin passes a request of its own, and what that points to, which live through the call.
    let asked = unsafe { request.as_ref().ok_or_else(no_request).and_then(|request| read_request(request)) };
    // SAFETY: the context is ours.
    let got = asked.and_then(|request| unsafe { ask(context, Ask::Fetch(request), nanos_left) });
    // SAFETY: the plugin passes a place for the response, and one for the report or NULL, which live through the call.
    unsafe {
        match (got, response.as_mut()) {
            (Ok(Reached::Response(got)), Some(response)) => {
                *response = Kept::hand_out(got);
                0
            }
            (Ok(_), _) => tell(&no_request(), report),
            (Err(error), _) => tell(&error, report),
        }
    }
}

fn no_request() -> Error {
    Error::invalid("the plugin passed no request, or no place for a response")
}

/// A response that a plugin has: what its pointers lead to.
struct Kept {
    _response: Response,
    headers: Vec<HttpHeader>,
}

impl Kept {
    fn hand_out(response: Response) -> HttpResponse {
        let header = |(name, value): &(String, String)| HttpHeader {
            size: struct_size::<HttpHeader>(),
            name: Bytes::new(name.as_bytes()),
            value: Bytes::new(value.as_bytes()),
        };
        let headers = response.headers.iter().map(header).collect();
        let (status, body) = (response.status.into(), Bytes::new(&response.body));
        let kept = Box::new(Self { _response: response, headers });
        HttpResponse {
            size: struct_size::<HttpResponse>(),
            status,
            headers: kept.headers.as_ptr(),
            headers_len: kept.headers.len(),
            body,
            owner: Box::into_raw(kept).cast(),
        }
    }
}

unsafe extern "C" fn release(response: *mut HttpResponse) {
    // SAFETY: the plugin passes a response that `fetch` filled in, or in error NULL, and not twice: the owner is taken.
    unsafe {
        let Some(response) = response.as_mut() else { return };
        let owner = std::mem::replace(&mut response.owner, std::ptr::null_mut()).cast::<Kept>();
        if !owner.is_null() {
            drop(Box::from_raw(owner));
        }
    }
}

/// # Safety
///
/// What the request points to is valid, as `abi` demands of the plugin.
unsafe fn read_request(request: &HttpRequest) -> Result<Request, Error> {
    // SAFETY: promised by the caller.
    unsafe {
        let form = fields(request.form, request.form_len)?;
        let body = request.body.as_slice();
        Ok(Request {
            method: text(request.method)?,
            url: text(request.url)?,
            headers: fields(request.headers, request.headers_len)?,
            body: match (form.is_empty(), body.is_empty()) {
                (false, _) => Body::Form(form),
                (true, false) => Body::Bytes(body.to_vec()),
                (true, true) => Body::None,
            },
        })
    }
}

/// # Safety
///
/// `first` leads to `len` fields, valid as `abi` demands, or `len` is 0.
unsafe fn fields(first: *const HttpField, len: usize) -> Result<Vec<(String, Value)>, Error> {
    // SAFETY: promised by the caller.
    unsafe {
        let fields = elements(first, len, |field| field.size)?;
        let field = |HttpField { name, parts, parts_len, .. }| {
            let parts = elements(parts, parts_len, |part| part.size)?;
            let parts = parts.map(|read| part(&read)).collect::<Result<_, _>>()?;
            Ok((text(name)?, Value(parts)))
        };
        fields.map(field).collect()
    }
}

/// # Safety
///
/// The part's value is valid as `abi` demands.
unsafe fn part(part: &HttpPart) -> Result<Part, Error> {
    // SAFETY: promised by the caller.
    let value = unsafe { text(part.value) }?;
    match part.kind {
        PART_TEXT => Ok(Part::Text(value)),
        PART_SECRET => Ok(Part::Secret(value)),
        kind => Err(Error::invalid(format!("the plugin passed a part of kind {kind}"))),
    }
}

/// The elements of an array, of which there are not too many.
///
/// # Safety
///
/// As for [`Elements::new`].
unsafe fn elements<T>(first: *const T, len: usize, size: fn(&T) -> u32) -> Result<Elements<T>, Error> {
    if len > FIELDS_MAX {
        return Err(Error::invalid(format!("the plugin passed {len} fields or parts")));
    }
    // SAFETY: promised by the caller.
    let elements = unsafe { Elements::new(first, len, size) };
    elements.map_err(|stride| {
        Error::invalid(format!("the plugin passed {len} fields or parts of {stride} bytes"))
    })
}

/// # Safety
///
/// The bytes are valid as `abi` demands.
unsafe fn text(bytes: Bytes) -> Result<String, Error> {
    // SAFETY: promised by the caller.
    let bytes = unsafe { bytes.as_slice() };
    let text =
        std::str::from_utf8(bytes).map_err(|_| Error::invalid("the plugin passed text that is not UTF-8"));
    text.map(str::to_owned)
}

/// # Safety
///
/// The context is that of a table of ours.
unsafe fn ask(context: *mut c_void, ask: Ask, nanos_left: u64) -> Result<Reached, Error> {
    // SAFETY: promised by the caller.
    let side = unsafe { side(context) };
    let deadline = Instant::now() + Duration::from_nanos(nanos_left).min(PATIENCE);
    let panicked = Err(Error::new(Code::Internal, "the host failed"));
    contain(panicked, || side.reach(ask, deadline))
}

/// # Safety
///
/// The report is the plugin's own, with buffers as `abi` demands, or NULL.
unsafe fn tell(error: &Error, report: *mut Report) -> u32 {
    // SAFETY: promised by the caller.
    unsafe {
        if let Some(report) = report.as_mut() {
            report.fill(error);
        }
    }
    error.code as u32
}

unsafe extern "C" fn get(
    context: *mut c_void,
    nanos_left: u64,
    name: Bytes,
    at_least_ms: u64,
    out: *mut Buffer,
) -> u32 {
    // SAFETY: the context is ours; the plugin keeps the name valid through the call, and passes a buffer of its own.
    unsafe {
        let got = text(name).and_then(|name| {
            ask(context, Ask::Cached { name, at_least: Duration::from_millis(at_least_ms) }, nanos_left)
        });
        match got {
            Ok(Reached::Bytes(value)) => answer(out, value.as_ref().map(|value| value.as_slice())),
            Ok(_) => Code::Internal as u32,
            Err(error) => error.code as u32,
        }
    }
}

unsafe extern "C" fn put(context: *mut c_void, name: Bytes, value: Bytes, for_ms: u64) -> u32 {
    // SAFETY: the context is ours, and the plugin keeps name and value valid through the call.
    unsafe {
        let value = Zeroizing::new(value.as_slice().to_vec());
        let lives = Duration::from_millis(for_ms);
        let kept = text(name).and_then(|name| ask(context, Ask::Keep { name, value, lives }, u64::MAX));
        kept.map_or_else(|error| error.code as u32, |_| 0)
    }
}

unsafe extern "C" fn give_up(context: *mut c_void, name: Bytes) {
    // SAFETY: the context is ours, and the plugin keeps the name valid through the call.
    let _ = unsafe { text(name).and_then(|name| ask(context, Ask::GiveUp { name }, u64::MAX)) };
}

unsafe extern "C" fn forget(context: *mut c_void, name: Bytes, value: Bytes) {
    // SAFETY: the context is ours, and the plugin keeps name and value valid through the call.
    unsafe {
        let value = Zeroizing::new(value.as_slice().to_vec());
        let _ = text(name).and_then(|name| ask(context, Ask::Forget { name, value }, u64::MAX));
    }
}

unsafe extern "C" fn sign(
    context: *mut c_void,
    secret: Bytes,
    algorithm: u32,
    message: Bytes,
    out: *mut Buffer,
    report: *mut Report,
) -> u32 {
    // SAFETY: the context is ours; the plugin keeps what it passes valid through the call.
    unsafe {
        let message = message.as_slice().to_vec();
        let asked = text(secret).map(|secret| Ask::Sign { secret, algorithm, message });
        made(context, asked, out, report)
    }
}

unsafe extern "C" fn hmac(
    context: *mut c_void,
    secret: Bytes,
    prefix: Bytes,
    message: Bytes,
    out: *mut Buffer,
    report: *mut Report,
) -> u32 {
    // SAFETY: the context is ours; the plugin keeps what it passes valid through the call.
    unsafe {
        let (prefix, message) = (prefix.as_slice().to_vec(), message.as_slice().to_vec());
        let asked = text(secret).map(|secret| Ask::Hmac { secret, prefix, message });
        made(context, asked, out, report)
    }
}

/// # Safety
///
/// The context is ours; `out` and `report` are the plugin's own, as `abi` demands.
unsafe fn made(
    context: *mut c_void,
    asked: Result<Ask, Error>,
    out: *mut Buffer,
    report: *mut Report,
) -> u32 {
    // SAFETY: promised by the caller.
    unsafe {
        match asked.and_then(|asked| ask(context, asked, u64::MAX)) {
            Ok(Reached::Bytes(Some(made))) => answer(out, Some(&made)),
            Ok(_) => Code::Internal as u32,
            Err(error) => tell(&error, report),
        }
    }
}
