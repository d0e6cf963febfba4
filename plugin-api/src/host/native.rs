//! A library's way to the host: the C table that `open` got, and its extensions.

use std::{
    ffi::c_void,
    mem, ptr,
    time::{Duration, Instant},
};

use zeroize::Zeroizing;

use crate::{
    Algorithm, Call, Code, Error, Secret,
    abi::{
        Buffer, Bytes, CACHE_EXTENSION, CREDENTIALS_EXTENSION, CacheTable, CredentialsTable, HTTP_EXTENSION,
        HostTable, HttpField, HttpHeader, HttpPart, HttpRequest, HttpResponse, HttpTable, NO_DEADLINE,
        PART_SECRET, PART_TEXT, Report, SIGNER_EXTENSION, SignerTable, struct_size,
    },
    http::{Body, Part, Request, Response, Value},
};

/// A store's host table.
#[derive(Clone, Copy)]
pub(crate) struct Way {
    table: *const HostTable,
}

// SAFETY: the host's functions may be called from any thread, and its table lives until the process ends (`abi`).
unsafe impl Send for Way {}
// SAFETY: as above; the table is never written to.
unsafe impl Sync for Way {}

/// The host's memory of refused credentials.
#[derive(Clone, Copy)]
pub(super) struct Memory {
    context: *mut c_void,
    table: &'static CredentialsTable,
}

// SAFETY: the host's context may be passed back to it from any thread (`abi`).
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

impl Way {
    /// By the table given to `open`.
    pub(crate) fn new(table: *const HostTable) -> Self {
        Self { table }
    }

    pub(crate) fn table(self) -> &'static HostTable {
        // SAFETY: a way is only made from the table given to `open`, which lives until the process ends.
        unsafe { &*self.table }
    }

    pub(super) fn config(self) -> Result<Secret, Error> {
        let table = self.table();
        // SAFETY: the empty path and the buffer live through the call.
        read(|buffer| unsafe { (table.config)(table.context, Bytes::EMPTY, buffer) })
            .map_err(|code| Error::new(code, "the host gave no configuration"))
    }

    pub(super) fn secret(self, name: &str) -> Result<Secret, Error> {
        let table = self.table();
        // SAFETY: the name and the buffer live through the call.
        read(|buffer| unsafe { (table.secret)(table.context, Bytes::new(name.as_bytes()), buffer) })
            .map_err(|code| Error::new(code, format!("the secret `{name}` can't be had ({code})")))
    }

    pub(super) fn keys_changed(self) {
        let table = self.table();
        // SAFETY: the host's own context is passed back to it.
        unsafe { (table.keys_changed)(table.context) }
    }

    pub(super) fn credentials(self) -> Option<Memory> {
        let table = self.extension(CREDENTIALS_EXTENSION).cast::<CredentialsTable>();
        // SAFETY: under this name the host answers NULL or a `CredentialsTable` that lives until the process ends.
        unsafe { table.as_ref() }.map(|table| Memory { context: self.table().context, table })
    }

    pub(super) fn fetch(self, call: &Call<'_>, request: &Request) -> Result<Response, Error> {
        let table = self.extension(HTTP_EXTENSION).cast::<HttpTable>();
        // SAFETY: under this name the host answers NULL or an `HttpTable` that lives until the process ends.
        let table = unsafe { table.as_ref() }.ok_or_else(|| lacks(HTTP_EXTENSION))?;
        let headers = Fields::new(&request.headers);
        let (body, form) = match &request.body {
            Body::None => (Bytes::EMPTY, Fields::new(&[])),
            Body::Bytes(bytes) => (Bytes::new(bytes), Fields::new(&[])),
            Body::Form(form) => (Bytes::EMPTY, Fields::new(form)),
        };
        let asked = HttpRequest {
            size: struct_size::<HttpRequest>(),
            method: Bytes::new(request.method.as_bytes()),
            url: Bytes::new(request.url.as_bytes()),
            headers: headers.fields.as_ptr(),
            headers_len: headers.fields.len(),
            body,
            form: form.fields.as_ptr(),
            form_len: form.fields.len(),
        };
        let mut answer = no_response();
        let (context, left) = (self.table().context, nanos_left(call));
        reported(|report| {
            // SAFETY: the request, what it points to, and the places for the answer live through the call.
            unsafe { (table.fetch)(context, left, &raw const asked, &raw mut answer, report) }
        })?;
        // SAFETY: the host has just filled the answer in, and what it points to is valid until `release`, which comes
        // once, and last.
        Ok(unsafe {
            let response = take(&answer);
            (table.release)(&raw mut answer);
            response
        })
    }

    pub(super) fn cached(
        self,
        call: &Call<'_>,
        name: &str,
        at_least: Duration,
    ) -> Result<Option<Secret>, Error> {
        let (table, context) = (self.cache()?, self.table().context);
        let at_least = milliseconds(at_least);
        let name = Bytes::new(name.as_bytes());
        // SAFETY: the name and the buffer live through the call.
        let value = read(|out| unsafe { (table.get)(context, nanos_left(call), name, at_least, out) });
        match value {
            Ok(value) => Ok(Some(value)),
            Err(Code::NotFound) => Ok(None),
            Err(code) => Err(Error::new(code, format!("a value that all wait for can't be had ({code})"))),
        }
    }

    pub(super) fn keep(self, name: &str, value: &Secret, lives: Duration) -> Result<(), Error> {
        let (table, context) = (self.cache()?, self.table().context);
        let (name, value) = (Bytes::new(name.as_bytes()), Bytes::new(value.expose()));
        // SAFETY: the name and the value live through the call.
        match unsafe { (table.put)(context, name, value, milliseconds(lives)) } {
            0 => Ok(()),
            code => Err(Error::new(Code::from_number(code), "the host doesn't keep the value")),
        }
    }

    pub(super) fn give_up(self, name: &str) {
        if let Ok(table) = self.cache() {
            // SAFETY: the name lives through the call.
            unsafe { (table.give_up)(self.table().context, Bytes::new(name.as_bytes())) }
        }
    }

    pub(super) fn forget(self, name: &str, value: &Secret) {
        if let Ok(table) = self.cache() {
            let (name, value) = (Bytes::new(name.as_bytes()), Bytes::new(value.expose()));
            // SAFETY: the name and the value live through the call.
            unsafe { (table.forget)(self.table().context, name, value) }
        }
    }

    pub(super) fn sign_with(
        self,
        secret: &str,
        algorithm: Algorithm,
        message: &[u8],
    ) -> Result<Vec<u8>, Error> {
        let (table, context) = (self.signer()?, self.table().context);
        let (secret, message) = (Bytes::new(secret.as_bytes()), Bytes::new(message));
        // SAFETY: all that is passed lives through the call.
        result(|out, report| unsafe {
            (table.sign)(context, secret, algorithm.number(), message, out, report)
        })
    }

    pub(super) fn hmac_with(self, secret: &str, prefix: &[u8], message: &[u8]) -> Result<Vec<u8>, Error> {
        let (table, context) = (self.signer()?, self.table().context);
        let (secret, prefix) = (Bytes::new(secret.as_bytes()), Bytes::new(prefix));
        let message = Bytes::new(message);
        // SAFETY: all that is passed lives through the call.
        result(|out, report| unsafe { (table.hmac)(context, secret, prefix, message, out, report) })
    }

    fn cache(self) -> Result<&'static CacheTable, Error> {
        let table = self.extension(CACHE_EXTENSION).cast::<CacheTable>();
        // SAFETY: under this name the host answers NULL or a `CacheTable` that lives until the process ends.
        unsafe { table.as_ref() }.ok_or_else(|| lacks(CACHE_EXTENSION))
    }

    fn signer(self) -> Result<&'static SignerTable, Error> {
        let table = self.extension(SIGNER_EXTENSION).cast::<SignerTable>();
        // SAFETY: under this name the host answers NULL or a `SignerTable` that lives until the process ends.
        unsafe { table.as_ref() }.ok_or_else(|| lacks(SIGNER_EXTENSION))
    }

    fn extension(self, name: &str) -> *const c_void {
        let table = self.table();
        // SAFETY: the name lives through the call.
        unsafe { (table.extension)(table.context, Bytes::new(name.as_bytes())) }
    }
}

impl Memory {
    pub(super) fn refused(self, token: &str, secret: &[u8]) -> bool {
        // SAFETY: both slices live through the call.
        unsafe { (self.table.refused)(self.context, Bytes::new(token.as_bytes()), Bytes::new(secret)) != 0 }
    }

    pub(super) fn report(self, token: &str, secret: &[u8]) {
        // SAFETY: both slices live through the call.
        unsafe { (self.table.report)(self.context, Bytes::new(token.as_bytes()), Bytes::new(secret)) }
    }

    pub(super) fn accepted(self, token: &str, secret: &[u8]) {
        // SAFETY: both slices live through the call.
        unsafe { (self.table.accepted)(self.context, Bytes::new(token.as_bytes()), Bytes::new(secret)) }
    }
}

fn lacks(extension: &str) -> Error {
    Error::new(Code::Unsupported, format!("this host has no `{extension}`"))
}

fn nanos_left(call: &Call<'_>) -> u64 {
    let left = call.deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()).as_nanos());
    left.map_or(NO_DEADLINE, |left| u64::try_from(left).unwrap_or(NO_DEADLINE - 1))
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// Fields as the table has them, and the arrays that they point into.
struct Fields {
    fields: Vec<HttpField>,
    _parts: Vec<Vec<HttpPart>>,
}

impl Fields {
    fn new(values: &[(String, Value)]) -> Self {
        let parts: Vec<Vec<HttpPart>> =
            values.iter().map(|(_, value)| value.0.iter().map(part).collect()).collect();
        let field = |((name, _), parts): (&(String, Value), &Vec<HttpPart>)| HttpField {
            size: struct_size::<HttpField>(),
            name: Bytes::new(name.as_bytes()),
            parts: parts.as_ptr(),
            parts_len: parts.len(),
        };
        Self { fields: values.iter().zip(&parts).map(field).collect(), _parts: parts }
    }
}

fn part(part: &Part) -> HttpPart {
    let (kind, value) = match part {
        Part::Text(text) => (PART_TEXT, text),
        Part::Secret(name) => (PART_SECRET, name),
    };
    HttpPart { size: struct_size::<HttpPart>(), kind, value: Bytes::new(value.as_bytes()) }
}

fn no_response() -> HttpResponse {
    HttpResponse {
        size: struct_size::<HttpResponse>(),
        status: 0,
        headers: ptr::null(),
        headers_len: 0,
        body: Bytes::EMPTY,
        owner: ptr::null_mut(),
    }
}

/// Copies a response out.
///
/// # Safety
///
/// The host has filled it in, and it hasn't been released.
unsafe fn take(response: &HttpResponse) -> Response {
    let mut headers = Vec::with_capacity(response.headers_len);
    let mut next = response.headers;
    for _ in 0..response.headers_len {
        // SAFETY: the caller promises a response of the host's, whose headers stand one after the other, each as large as
        // its `size` says, and stay valid until it is released.
        unsafe {
            let HttpHeader { size, name, value } = *next;
            let text = |bytes: Bytes| String::from_utf8_lossy(bytes.as_slice()).into_owned();
            headers.push((text(name), text(value)));
            next = next.byte_add(size as usize);
        }
    }
    // SAFETY: as above.
    let body = unsafe { response.body.as_slice() }.to_vec();
    Response { status: u16::try_from(response.status).unwrap_or_default(), headers, body }
}

/// Makes a call that reports, and an error of what it says.
fn reported(call: impl FnOnce(*mut Report) -> u32) -> Result<(), Error> {
    let (mut message, mut vendor) = ([0; 1024], [0; 64]);
    let mut report = Report {
        size: struct_size::<Report>(),
        vendor_code: 0,
        retry_after_ms: 0,
        vendor_name: Buffer::new(&mut vendor),
        message: Buffer::new(&mut message),
    };
    let code = call(&raw mut report);
    if code == 0 {
        return Ok(());
    }
    let (message_len, vendor_len) = (report.message.len, report.vendor_name.len);
    let text = |memory: &[u8], len: usize| {
        String::from_utf8_lossy(memory.get(..len).unwrap_or_default()).into_owned()
    };
    let mut error = Error::new(Code::from_number(code), text(&message, message_len));
    if vendor_len > 0 {
        error = error.with_vendor(text(&vendor, vendor_len), report.vendor_code);
    }
    if report.retry_after_ms > 0 {
        error = error.with_retry_after(Duration::from_millis(report.retry_after_ms));
    }
    Err(error)
}

/// Makes a call that reports and whose result is no longer than a signature.
fn result(call: impl FnOnce(*mut Buffer, *mut Report) -> u32) -> Result<Vec<u8>, Error> {
    let mut memory = vec![0; 2048];
    let mut out = Buffer::new(&mut memory);
    reported(|report| call(&raw mut out, report))?;
    let len = mem::take(&mut out.len);
    memory.truncate(len);
    Ok(memory)
}

/// Reads a value of unknown length from the host; what it held is zeroed.
fn read(mut get: impl FnMut(*mut Buffer) -> u32) -> Result<Secret, Code> {
    let mut memory = Zeroizing::new(vec![0; 4096]);
    loop {
        let mut buffer = Buffer::new(&mut memory);
        let (code, len) = (get(&raw mut buffer), buffer.len);
        match code {
            0 => return Ok(Secret::new(memory.get(..len).unwrap_or_default().to_vec())),
            code if Code::from_number(code) == Code::BufferTooSmall && len > memory.len() => {
                memory = Zeroizing::new(vec![0; len]);
            }
            code => return Err(Code::from_number(code)),
        }
    }
}
