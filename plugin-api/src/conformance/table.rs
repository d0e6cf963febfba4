//! The first of the doors: a backend's C table, driven as the server does.

use std::{
    ffi::c_void,
    ptr::{from_ref, null, null_mut},
    sync::Arc,
    time::Duration,
};

use serde_json::Value;

use super::{Described, Door, Failure, Opened, Record, Request, TestHost};
use crate::{
    Algorithm, CallClass, Code, Error, Finding, Health, Key, Listing, Severity,
    abi::{
        BackendTable, Buffer, Bytes, CREDENTIALS_EXTENSION, Context, CredentialsTable, DRAFT, FindingEntry,
        HealthReport, HostTable, KeyEntry, KeyPage, LANE_HOUSEKEEPING, LogRecord, Report, struct_size,
    },
    algorithm::Operation,
    schema,
};

/// Bytes behind each output buffer that must stay as they are.
const CANARY: [u8; 64] = [0xa5; 64];

/// More pages than any listing has; a plugin that goes beyond is going round in circles.
const PAGES_MAX: usize = 100_000;

/// A backend by its table.
#[derive(Debug)]
pub(super) struct Table(pub(super) &'static BackendTable);

impl Door for Table {
    fn describe(&self) -> Result<Described, String> {
        let table = self.0;
        let at_least = struct_size::<BackendTable>();
        ensure!(table.size >= at_least, "the table says it has {} bytes", table.size);
        ensure!(table.draft == DRAFT, "the table is of draft {}, not {DRAFT}", table.draft);
        // SAFETY: `describe` may be called at any time, and what it answers is static.
        let (first, second) = unsafe { ((table.describe)(), (table.describe)()) };
        ensure!(first == second && !first.is_null(), "`describe` is not static");
        // SAFETY: as above.
        let (texts, lanes_max) = unsafe {
            let told = &*first;
            ([told.name, told.version, told.vendor, told.schema].map(|text| text.as_slice()), told.lanes_max)
        };
        let utf8 = |text: &[u8], what| match str::from_utf8(text) {
            Ok(text) => Ok(text.to_owned()),
            Err(_) => Err(format!("the {what} is not UTF-8")),
        };
        let [name, version, vendor, schema] = texts;
        Ok(Described {
            name: utf8(name, "name")?,
            version: utf8(version, "version")?,
            vendor: utf8(vendor, "vendor")?,
            lanes_max: (lanes_max > 0).then_some(lanes_max),
            schema: utf8(schema, "schema")?,
        })
    }

    fn open(&self, host: &'static TestHost) -> Result<Arc<dyn Opened>, Error> {
        let described = self.describe().map_err(broken)?;
        let schema = serde_json::from_str(&described.schema).map_err(|_| broken("the schema is not JSON"))?;
        schema::check(&schema, host.config())?;
        let services: &'static HostTable = Box::leak(Box::new(services(host)));
        let mut store = null_mut();
        reported(|report| {
            // SAFETY: the host table lives until the process ends, `store` and `report` through the call.
            unsafe { (self.0.open)(services, &raw mut store, report) }
        })?;
        Ok(Arc::new(Store { table: self.0, store }))
    }
}

/// A store that a table has opened.
#[derive(Debug)]
struct Store {
    table: &'static BackendTable,
    store: *mut c_void,
}

// SAFETY: a store may be called from any thread (`abi`); the rest is `'static` and shared safely.
unsafe impl Send for Store {}
// SAFETY: as above; the lanes are for the caller to keep apart.
unsafe impl Sync for Store {}

impl Opened for Store {
    fn listing(&self) -> Result<Listing, Error> {
        let (mut listing, mut cursor) = (Listing::default(), 0);
        for _ in 0..PAGES_MAX {
            cursor = self.page(cursor, &mut listing)?;
            if cursor == 0 {
                return Ok(listing);
            }
        }
        Err(broken("the pages of the listing never end"))
    }

    fn perform(&self, operation: Operation, request: &Request<'_>) -> Result<Vec<u8>, Failure> {
        let function = match operation {
            Operation::Sign => self.table.sign,
            Operation::Decrypt => self.table.decrypt,
        };
        let context = context(request.lane, request.time, request.request_id);
        let mut memory = vec![0; request.capacity];
        memory.extend_from_slice(&CANARY);
        let mut out = Buffer { ptr: memory.as_mut_ptr(), capacity: request.capacity, len: 0 };
        let (key, input) = (Bytes::new(request.key), Bytes::new(request.input));
        let result = reported(|report| {
            // SAFETY: all that is pointed to lives through the call, and `memory` is used by nobody else.
            unsafe {
                let out = &raw mut out;
                function(self.store, &raw const context, key, request.algorithm, input, out, report)
            }
        });
        let needed = out.len;
        let failure = |error| Failure { error, needed };
        if !memory.ends_with(&CANARY) {
            return Err(failure(broken("bytes were written behind the buffer")));
        }
        result.map_err(failure)?;
        let bytes = memory.get(..needed).filter(|_| needed <= request.capacity);
        bytes.map(<[u8]>::to_vec).ok_or_else(|| failure(broken("the result is longer than its buffer")))
    }

    fn health(&self) -> Result<Health, Error> {
        let context = context(LANE_HOUSEKEEPING, Some(Duration::from_secs(30)), "");
        let mut health = HealthReport { size: struct_size::<HealthReport>(), generation: 0 };
        reported(|report| {
            // SAFETY: context, health and report live through the call.
            unsafe { (self.table.health)(self.store, &raw const context, &raw mut health, report) }
        })?;
        Ok(Health { generation: health.generation })
    }

    fn close(&self) -> Result<(), Error> {
        reported(|report| {
            // SAFETY: the store came from `open` of this table, and the report lives through the call.
            unsafe { (self.table.close)(self.store, 1_000_000_000, report) }
        })
    }
}

impl Store {
    fn page(&self, cursor: u64, listing: &mut Listing) -> Result<u64, Error> {
        let context = context(LANE_HOUSEKEEPING, Some(Duration::from_secs(30)), "");
        let mut page = KeyPage {
            size: struct_size::<KeyPage>(),
            next: 0,
            keys: null(),
            keys_len: 0,
            findings: null(),
            findings_len: 0,
        };
        reported(|report| {
            // SAFETY: context, page and report live through the call.
            unsafe { (self.table.keys)(self.store, &raw const context, cursor, &raw mut page, report) }
        })?;
        // SAFETY: the arrays stay valid until `keys` or `close` is called again, and what they point to with them.
        unsafe {
            for entry in entries(page.keys, page.keys_len, |first| first.size)? {
                listing.keys.push(key(entry)?);
            }
            for entry in entries(page.findings, page.findings_len, |first| first.size)? {
                listing.findings.push(finding(entry)?);
            }
        }
        Ok(page.next)
    }
}

/// # Safety
///
/// The entry comes from a page that is still valid.
unsafe fn key(entry: &KeyEntry) -> Result<Key, Error> {
    // SAFETY: promised by the caller.
    let (id, spki, label, numbers) = unsafe {
        let numbers = match entry.algorithms_len {
            0 => &[],
            len => std::slice::from_raw_parts(entry.algorithms, len),
        };
        (entry.id.as_slice(), entry.spki.as_slice(), text(entry.label.as_slice())?, numbers)
    };
    Ok(Key {
        id: id.to_vec(),
        spki: spki.to_vec(),
        label,
        algorithms: numbers.iter().filter_map(|number| Algorithm::from_number(*number)).collect(),
        call_class: match entry.call_class {
            0 => CallClass::Inline,
            1 => CallClass::Blocking,
            other => return Err(broken(format!("call class {other} is unknown"))),
        },
    })
}

/// # Safety
///
/// The entry comes from a page that is still valid.
unsafe fn finding(entry: &FindingEntry) -> Result<Finding, Error> {
    // SAFETY: promised by the caller.
    let (subject, message, hint) = unsafe {
        (text(entry.subject.as_slice())?, text(entry.message.as_slice())?, text(entry.hint.as_slice())?)
    };
    Ok(Finding {
        severity: Severity::from_number(entry.severity)
            .ok_or_else(|| broken(format!("severity {} is unknown", entry.severity)))?,
        subject,
        error: Error::new(Code::from_number(entry.code), message),
        hint,
    })
}

/// Calls the plugin with a report, and turns code and report into a result.
fn reported(call: impl FnOnce(*mut Report) -> u32) -> Result<(), Error> {
    let (mut message, mut name) = ([0; 1024], [0; 64]);
    let mut report = Report {
        size: struct_size::<Report>(),
        vendor_code: 0,
        retry_after_ms: 0,
        vendor_name: Buffer::new(&mut name),
        message: Buffer::new(&mut message),
    };
    let code = call(&raw mut report);
    let (vendor_code, retry_after) = (report.vendor_code, report.retry_after_ms);
    let (message_len, name_len) = (report.message.len, report.vendor_name.len);
    if code == 0 {
        return Ok(());
    }
    let text = |bytes: &[u8], len| text(bytes.get(..len).unwrap_or(bytes));
    let mut error = Error::new(Code::from_number(code), text(&message, message_len)?);
    if name_len > 0 {
        error = error.with_vendor(text(&name, name_len)?, vendor_code);
    }
    if retry_after > 0 {
        error = error.with_retry_after(Duration::from_millis(retry_after));
    }
    Err(error)
}

/// The host's table, as a plugin gets it.
fn services(host: &'static TestHost) -> HostTable {
    HostTable {
        size: struct_size::<HostTable>(),
        draft: DRAFT,
        context: from_ref(host).cast_mut().cast(),
        log_enabled,
        log,
        config,
        secret,
        keys_changed,
        extension,
    }
}

fn context(lane: u32, time: Option<Duration>, request_id: &str) -> Context {
    let nanos = time.map_or(u128::from(u64::MAX), |time| time.as_nanos());
    Context {
        size: struct_size::<Context>(),
        lane,
        nanos_left: u64::try_from(nanos).unwrap_or(u64::MAX),
        request_id: Bytes::new(request_id.as_bytes()),
    }
}

/// The structs of an array, walked by the size of its first element.
///
/// # Safety
///
/// `first` points to `len` structs, all as long as the first says, valid for `'a`.
unsafe fn entries<'a, T>(first: *const T, len: usize, size: fn(&T) -> u32) -> Result<Vec<&'a T>, Error> {
    if len == 0 {
        return Ok(Vec::new());
    }
    // SAFETY: the caller promises at least one struct.
    let stride = unsafe { first.as_ref() }.map_or(0, |first| size(first) as usize);
    if stride < size_of::<T>() || !stride.is_multiple_of(align_of::<T>()) {
        return Err(broken(format!("structs of {stride} bytes, {} expected", size_of::<T>())));
    }
    // SAFETY: the caller promises `len` structs that are `stride` bytes apart.
    Ok((0..len).map(|index| unsafe { &*first.byte_add(index * stride) }).collect())
}

fn text(bytes: &[u8]) -> Result<String, Error> {
    String::from_utf8(bytes.to_vec()).map_err(|_| broken("text is not UTF-8"))
}

fn broken(what: impl Into<String>) -> Error {
    Error::new(Code::Internal, what)
}

/// # Safety
///
/// `context` is that of a [`TestHost`]'s table.
unsafe fn host(context: *mut c_void) -> &'static TestHost {
    // SAFETY: promised by the caller; a `TestHost` is never freed and only used shared.
    unsafe { &*context.cast_const().cast() }
}

unsafe extern "C" fn log_enabled(_context: *mut c_void, _level: u32) -> u32 {
    1
}

unsafe extern "C" fn log(context: *mut c_void, record: *const LogRecord) {
    // SAFETY: the plugin passes the context back, and a record whose text lives through the call.
    let (host, record) = unsafe {
        let (record, text) =
            (&*record, |bytes: Bytes| String::from_utf8_lossy(bytes.as_slice()).into_owned());
        let record = Record {
            level: record.level,
            target: text(record.target),
            message: text(record.message),
            fields: text(record.fields),
            request_id: text(record.request_id),
        };
        (host(context), record)
    };
    host.log(record);
}

unsafe extern "C" fn config(context: *mut c_void, path: Bytes, out: *mut Buffer) -> u32 {
    // SAFETY: the plugin passes the context back, and a path and buffer that live through the call.
    let (host, path, out) = unsafe { (host(context), path.as_slice(), &mut *out) };
    let value = std::str::from_utf8(path).ok().and_then(|path| host.config().pointer(path));
    let text = match value {
        None => return Code::NotFound as u32,
        Some(Value::String(text)) if !path.is_empty() => text.clone(),
        Some(value) => value.to_string(),
    };
    // SAFETY: the buffer is the plugin's own, and nobody else uses it during the call.
    unsafe { give(out, text.as_bytes()) }
}

unsafe extern "C" fn secret(context: *mut c_void, name: Bytes, out: *mut Buffer) -> u32 {
    // SAFETY: the plugin passes the context back, and a name and buffer that live through the call.
    let (host, name, out) = unsafe { (host(context), name.as_slice(), &mut *out) };
    match host.secret(&String::from_utf8_lossy(name)) {
        // SAFETY: the buffer is the plugin's own, and nobody else uses it during the call.
        Some(value) => unsafe { give(out, &value) },
        None => Code::NotFound as u32,
    }
}

/// # Safety
///
/// As [`Buffer::fill`].
unsafe fn give(out: &mut Buffer, value: &[u8]) -> u32 {
    // SAFETY: promised by the caller.
    if unsafe { out.fill(value) } { 0 } else { Code::BufferTooSmall as u32 }
}

unsafe extern "C" fn keys_changed(context: *mut c_void) {
    // SAFETY: the plugin passes the context back.
    unsafe { host(context) }.note_keys_changed();
}

unsafe extern "C" fn extension(_context: *mut c_void, name: Bytes) -> *const c_void {
    static CREDENTIALS: CredentialsTable =
        CredentialsTable { size: struct_size::<CredentialsTable>(), refused, report, accepted };
    // SAFETY: the name lives through the call.
    match unsafe { name.as_slice() } == CREDENTIALS_EXTENSION.as_bytes() {
        true => from_ref(&CREDENTIALS).cast(),
        false => null(),
    }
}

unsafe extern "C" fn refused(context: *mut c_void, token: Bytes, secret: Bytes) -> u32 {
    // SAFETY: the plugin passes the context back, and a token and secret that live through the call.
    let (host, token, secret) = unsafe { (host(context), token.as_slice(), secret.as_slice()) };
    u32::from(host.was_refused(&String::from_utf8_lossy(token), secret))
}

unsafe extern "C" fn report(context: *mut c_void, token: Bytes, secret: Bytes) {
    // SAFETY: as above.
    let (host, token, secret) = unsafe { (host(context), token.as_slice(), secret.as_slice()) };
    host.note_refusal(&String::from_utf8_lossy(token), secret);
}

unsafe extern "C" fn accepted(context: *mut c_void, token: Bytes, secret: Bytes) {
    // SAFETY: as above.
    let (host, token, secret) = unsafe { (host(context), token.as_slice(), secret.as_slice()) };
    host.note_acceptance(&String::from_utf8_lossy(token), secret);
}
