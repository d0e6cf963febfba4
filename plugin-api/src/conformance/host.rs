//! A host in miniature: drives a backend through its table, as the server does.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::c_void,
    fmt,
    ptr::{from_ref, null, null_mut},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use serde_json::Value;

use crate::{
    Algorithm, CallClass, Code, Error, Finding, Health, Key, Listing, Severity,
    abi::{
        BackendTable, Buffer, Bytes, CREDENTIALS_EXTENSION, Context, CredentialsTable, DRAFT, FindingEntry,
        HealthReport, HostTable, KeyEntry, KeyPage, LANE_HOUSEKEEPING, LANE_INLINE, LogRecord, Report,
        struct_size,
    },
    algorithm::Operation,
};

/// Room for every result of the registry: RSA of 16,384 bits.
const CAPACITY: usize = 2048;

/// Bytes behind each output buffer that must stay as they are.
const CANARY: [u8; 64] = [0xa5; 64];

/// More pages than any listing has; a plugin that goes beyond is going round in circles.
const PAGES_MAX: usize = 100_000;

/// The host of one store: its configuration and secrets, and all that the plugin said.
pub struct TestHost {
    config: Value,
    secrets: Mutex<BTreeMap<String, Vec<u8>>>,
    secret_reads: AtomicU64,
    records: Mutex<Vec<Record>>,
    said: Mutex<Vec<String>>,
    refused: Mutex<BTreeSet<(String, Vec<u8>)>>,
    keys_changed: AtomicU64,
}

impl fmt::Debug for TestHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TestHost").finish_non_exhaustive()
    }
}

/// A log event of the plugin.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Record {
    /// 1 error, 2 warn, 3 info, 4 debug, 5 trace.
    pub level: u32,
    /// Module or component.
    pub target: String,
    /// The sentence.
    pub message: String,
    /// Further fields as a JSON object; may be empty.
    pub fields: String,
    /// The request's id; may be empty.
    pub request_id: String,
}

impl TestHost {
    /// A host that lives until the process ends, as the contract demands.
    #[must_use]
    pub fn leak(config: Value, secrets: BTreeMap<String, Vec<u8>>) -> &'static Self {
        Box::leak(Box::new(Self {
            config,
            secrets: Mutex::new(secrets),
            secret_reads: AtomicU64::new(0),
            records: Mutex::default(),
            said: Mutex::default(),
            refused: Mutex::default(),
            keys_changed: AtomicU64::new(0),
        }))
    }

    /// Opens a store of a backend with this host.
    ///
    /// # Errors
    ///
    /// What the backend answers; [`Code::Internal`] where it succeeds without setting the store.
    pub fn open(&'static self, table: &'static BackendTable) -> Result<Session, Error> {
        let host: &'static HostTable = Box::leak(Box::new(self.table()));
        let mut store = null_mut();
        self.reported(|report| {
            // SAFETY: the host table lives until the process ends, `store` and `report` through the call.
            unsafe { (table.open)(host, &raw mut store, report) }
        })?;
        Ok(Session { table, host: self, store })
    }

    /// Gives a secret a new value.
    pub fn set_secret(&self, name: &str, value: &[u8]) {
        lock(&self.secrets).insert(name.to_owned(), value.to_vec());
    }

    /// How often the plugin has read a secret.
    pub fn secret_reads(&self) -> u64 {
        self.secret_reads.load(Ordering::Relaxed)
    }

    /// Every log event so far.
    pub fn records(&self) -> Vec<Record> {
        lock(&self.records).clone()
    }

    /// The refusals that the plugin reported: token and secret.
    pub fn refusals(&self) -> Vec<(String, Vec<u8>)> {
        lock(&self.refused).iter().cloned().collect()
    }

    /// How often the plugin asked for its keys to be listed again.
    pub fn keys_changed(&self) -> u64 {
        self.keys_changed.load(Ordering::Relaxed)
    }

    /// Everything the plugin logged, reported or listed that holds the value of a secret.
    pub fn leaks(&self) -> Vec<String> {
        let secrets = lock(&self.secrets);
        let leaks = |text: &&String| {
            secrets.values().any(|secret| {
                !secret.is_empty() && text.as_bytes().windows(secret.len()).any(|window| window == secret)
            })
        };
        lock(&self.said).iter().filter(leaks).cloned().collect()
    }

    fn table(&'static self) -> HostTable {
        HostTable {
            size: struct_size::<HostTable>(),
            draft: DRAFT,
            context: from_ref(self).cast_mut().cast(),
            log_enabled,
            log,
            config,
            secret,
            keys_changed,
            extension,
        }
    }

    /// Calls the plugin with a report, and turns code and report into a result.
    fn reported(&self, call: impl FnOnce(*mut Report) -> u32) -> Result<(), Error> {
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
        self.hear(error.to_string());
        Err(error)
    }

    fn hear(&self, text: String) {
        lock(&self.said).push(text);
    }
}

/// One call to a key. Adjust what a test is about; the rest is what an ordinary call has.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Request<'a> {
    /// The key's id.
    pub key: &'a [u8],
    /// The algorithm's number, known or not.
    pub algorithm: u32,
    /// The input.
    pub input: &'a [u8],
    /// The lane; by default [`LANE_INLINE`] or 0, by the key's call class.
    pub lane: u32,
    /// The time left; `None` is no deadline.
    pub time: Option<Duration>,
    /// How many bytes the output buffer has.
    pub capacity: usize,
    /// The request's id.
    pub request_id: &'a str,
}

impl<'a> Request<'a> {
    /// An ordinary call to a key of a listing.
    #[must_use]
    pub fn new(key: &'a Key, algorithm: Algorithm, input: &'a [u8]) -> Self {
        Self {
            key: &key.id,
            algorithm: algorithm.number(),
            input,
            lane: match key.call_class {
                CallClass::Inline => LANE_INLINE,
                CallClass::Blocking => 0,
            },
            time: Some(Duration::from_secs(30)),
            capacity: CAPACITY,
            request_id: "conformance",
        }
    }
}

/// An open store. Closing is up to the test: [`Session::close`].
#[derive(Clone, Copy, Debug)]
pub struct Session {
    table: &'static BackendTable,
    host: &'static TestHost,
    store: *mut c_void,
}

// SAFETY: a store may be called from any thread (`abi`); the rest is `'static` and shared safely.
unsafe impl Send for Session {}
// SAFETY: as above; the lanes are for the caller to keep apart.
unsafe impl Sync for Session {}

impl Session {
    /// The store's host.
    #[must_use]
    pub fn host(&self) -> &'static TestHost {
        self.host
    }

    /// The whole listing, page by page. Algorithms with unknown numbers are left aside.
    ///
    /// # Errors
    ///
    /// What the backend answers; [`Code::Internal`] where a page breaks the contract.
    pub fn listing(&self) -> Result<Listing, Error> {
        let (mut listing, mut cursor) = (Listing::default(), 0);
        for _ in 0..PAGES_MAX {
            cursor = self.page(cursor, &mut listing)?;
            if cursor == 0 {
                return Ok(listing);
            }
        }
        Err(broken("the pages of the listing never end"))
    }

    /// Signs with a key of the listing.
    ///
    /// # Errors
    ///
    /// What the backend answers.
    pub fn sign(&self, key: &Key, algorithm: Algorithm, input: &[u8]) -> Result<Vec<u8>, Error> {
        self.perform(Operation::Sign, &Request::new(key, algorithm, input)).map_err(|failure| failure.error)
    }

    /// Decrypts with a key of the listing.
    ///
    /// # Errors
    ///
    /// What the backend answers.
    pub fn decrypt(&self, key: &Key, algorithm: Algorithm, input: &[u8]) -> Result<Vec<u8>, Error> {
        self.perform(Operation::Decrypt, &Request::new(key, algorithm, input))
            .map_err(|failure| failure.error)
    }

    /// Calls `sign` or `decrypt` of the table as a request says.
    ///
    /// # Errors
    ///
    /// What the backend answers; [`Code::Internal`] where it writes or claims more than its buffer has.
    pub fn perform(&self, operation: Operation, request: &Request<'_>) -> Result<Vec<u8>, Failure> {
        let function = match operation {
            Operation::Sign => self.table.sign,
            Operation::Decrypt => self.table.decrypt,
        };
        let context = context(request.lane, request.time, request.request_id);
        let mut memory = vec![0; request.capacity];
        memory.extend_from_slice(&CANARY);
        let mut out = Buffer { ptr: memory.as_mut_ptr(), capacity: request.capacity, len: 0 };
        let (key, input) = (Bytes::new(request.key), Bytes::new(request.input));
        let result = self.host.reported(|report| {
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

    /// Asks for the store's health.
    ///
    /// # Errors
    ///
    /// What the backend answers.
    pub fn health(&self) -> Result<Health, Error> {
        let context = context(LANE_HOUSEKEEPING, Some(Duration::from_secs(30)), "");
        let mut health = HealthReport { size: struct_size::<HealthReport>(), generation: 0 };
        self.host.reported(|report| {
            // SAFETY: context, health and report live through the call.
            unsafe { (self.table.health)(self.store, &raw const context, &raw mut health, report) }
        })?;
        Ok(Health { generation: health.generation })
    }

    /// Closes the store. Call nothing after it.
    ///
    /// # Errors
    ///
    /// What the backend answers.
    pub fn close(self) -> Result<(), Error> {
        self.host.reported(|report| {
            // SAFETY: the store came from `open` of this table, and the report lives through the call.
            unsafe { (self.table.close)(self.store, 1_000_000_000, report) }
        })
    }

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
        self.host.reported(|report| {
            // SAFETY: context, page and report live through the call.
            unsafe { (self.table.keys)(self.store, &raw const context, cursor, &raw mut page, report) }
        })?;
        // SAFETY: the arrays stay valid until `keys` or `close` is called again, and what they point to with them.
        unsafe {
            for entry in entries(page.keys, page.keys_len, |first| first.size)? {
                listing.keys.push(self.key(entry)?);
            }
            for entry in entries(page.findings, page.findings_len, |first| first.size)? {
                listing.findings.push(self.finding(entry)?);
            }
        }
        Ok(page.next)
    }

    /// # Safety
    ///
    /// The entry comes from a page that is still valid.
    unsafe fn key(&self, entry: &KeyEntry) -> Result<Key, Error> {
        // SAFETY: promised by the caller.
        let (id, spki, label, numbers) = unsafe {
            let numbers = match entry.algorithms_len {
                0 => &[],
                len => std::slice::from_raw_parts(entry.algorithms, len),
            };
            (entry.id.as_slice(), entry.spki.as_slice(), text(entry.label.as_slice())?, numbers)
        };
        self.host.hear(label.clone());
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
    unsafe fn finding(&self, entry: &FindingEntry) -> Result<Finding, Error> {
        // SAFETY: promised by the caller.
        let (subject, message, hint) = unsafe {
            (text(entry.subject.as_slice())?, text(entry.message.as_slice())?, text(entry.hint.as_slice())?)
        };
        self.host.hear(format!("{subject}: {message}: {hint}"));
        Ok(Finding {
            severity: match entry.severity {
                0 => Severity::Warning,
                1 => Severity::Error,
                other => return Err(broken(format!("severity {other} is unknown"))),
            },
            subject,
            error: Error::new(Code::from_number(entry.code), message),
            hint,
        })
    }
}

/// Why a call failed.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Failure {
    /// What the backend answered.
    pub error: Error,
    /// The `len` of the output buffer: with [`Code::BufferTooSmall`], what is needed.
    pub needed: usize,
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

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
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
    host.hear(format!("{} {}", record.message, record.fields));
    lock(&host.records).push(record);
}

unsafe extern "C" fn config(context: *mut c_void, path: Bytes, out: *mut Buffer) -> u32 {
    // SAFETY: the plugin passes the context back, and a path and buffer that live through the call.
    let (host, path, out) = unsafe { (host(context), path.as_slice(), &mut *out) };
    let value = std::str::from_utf8(path).ok().and_then(|path| host.config.pointer(path));
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
    host.secret_reads.fetch_add(1, Ordering::Relaxed);
    match std::str::from_utf8(name).ok().and_then(|name| lock(&host.secrets).get(name).cloned()) {
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
    unsafe { host(context) }.keys_changed.fetch_add(1, Ordering::Relaxed);
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
    // SAFETY: as `remembered` demands, by the rules of the contract.
    let (host, entry) = unsafe { remembered(context, token, secret) };
    u32::from(lock(&host.refused).contains(&entry))
}

unsafe extern "C" fn report(context: *mut c_void, token: Bytes, secret: Bytes) {
    // SAFETY: as `remembered` demands, by the rules of the contract.
    let (host, entry) = unsafe { remembered(context, token, secret) };
    lock(&host.refused).insert(entry);
}

unsafe extern "C" fn accepted(context: *mut c_void, token: Bytes, secret: Bytes) {
    // SAFETY: as `remembered` demands, by the rules of the contract.
    let (host, entry) = unsafe { remembered(context, token, secret) };
    lock(&host.refused).remove(&entry);
}

/// # Safety
///
/// `context` is that of a [`TestHost`]'s table; token and secret are readable.
unsafe fn remembered(
    context: *mut c_void,
    token: Bytes,
    secret: Bytes,
) -> (&'static TestHost, (String, Vec<u8>)) {
    // SAFETY: promised by the caller.
    let (host, token, secret) = unsafe { (host(context), token.as_slice(), secret.as_slice()) };
    (host, (String::from_utf8_lossy(token).into_owned(), secret.to_vec()))
}
