//! A plugin's C table as an [`Instance`]: the only place that calls into native plugins.

use std::{
    ffi::c_void,
    ptr,
    sync::{
        Arc, Condvar, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use keystead_plugin_api::{
    Advice, CallClass, Code, Error, Finding, Isolation, Severity,
    abi::{
        ADVICE_EXTENSION, AdviceReport, AdviceTable, BackendTable, Buffer, Bytes, Context, DescriptionTable,
        FindingEntry, HealthReport, ISOLATION_EXTENSION, IsolationTable, KEY_ID_MAX, KeyEntry, KeyPage,
        Report, struct_size,
    },
    algorithm::Operation,
};

use crate::{
    Description,
    failure::tame,
    instance::{ALGORITHMS_MAX, Call, Instance, NAME_MAX, RawKey, RawListing, Refusal, SPKI_MAX, believed},
    services::{self, HostSide},
};

/// The most keys, the most findings, and the most pages of one store's listing.
pub(crate) const ENTRIES_MAX: usize = 100_000;

/// The longest schema of a plugin's configuration, in bytes.
pub(crate) const SCHEMA_MAX: usize = 1 << 20;

/// The longest time that a plugin may ask its callers to wait.
pub(crate) const RETRY_AFTER_MAX: Duration = Duration::from_secs(3600);

/// Asks a loaded plugin what it is.
pub(crate) fn describe(table: &'static BackendTable) -> Result<Description, String> {
    // SAFETY: the table is of the right size and draft, and of the layout that abi_stable compared, or that the header
    // has made the plugin's compiler assert; `describe` answers with a static struct or NULL.
    let said = unsafe { (table.describe)().as_ref() }.ok_or("it describes itself as NULL")?;
    if said.size < struct_size::<DescriptionTable>() {
        return Err(format!("its description has {} bytes", said.size));
    }
    // SAFETY: the description's text is static (`abi`).
    let [name, version, vendor] =
        unsafe { [said.name, said.version, said.vendor].map(|text| first(text, NAME_MAX + 1)) };
    // SAFETY: as above.
    let schema = unsafe { first(said.schema, SCHEMA_MAX) };
    let mut description = Description::checked(name, version, vendor, schema)?;
    description.contract = table.draft;
    description.isolation = if said.isolation == 1 { Isolation::Process } else { Isolation::Inline };
    description.lanes_max = (said.lanes_max > 0).then_some(said.lanes_max);
    Ok(description)
}

/// The longest name of a group of stores, in bytes.
const GROUP_MAX: usize = 4096;

/// Asks a plugin which group a store belongs to, by its configuration.
pub(crate) fn isolation_group(table: &'static BackendTable, config: &[u8]) -> Result<Option<String>, Error> {
    // SAFETY: the name lives through the call; under this name the plugin answers NULL or an `IsolationTable` that is
    // static.
    let isolation = unsafe {
        (table.extension)(Bytes::new(ISOLATION_EXTENSION.as_bytes())).cast::<IsolationTable>().as_ref()
    };
    let Some(isolation) = isolation.filter(|isolation| isolation.size >= struct_size::<IsolationTable>())
    else {
        return Ok(None);
    };
    let mut memory = vec![0; GROUP_MAX];
    let mut out = Buffer::new(&mut memory);
    // SAFETY: the configuration and the buffer live through the call.
    let code = unsafe { (isolation.group)(Bytes::new(config), &raw mut out) };
    let len = out.len;
    match (code, memory.get(..len)) {
        (0, Some(name)) => Ok(Some(tame(name, GROUP_MAX))),
        (code, _) if Code::from_number(code) == Code::NotFound => Ok(None),
        _ => Err(broken("the plugin can't name the group of its store".to_owned())),
    }
}

/// Opens a store of a plugin.
pub(crate) fn open(
    table: &'static BackendTable,
    side: &'static dyn HostSide,
) -> Result<Arc<dyn Instance>, Error> {
    let mut store = ptr::null_mut();
    let mut memory = Memory::default();
    let mut report = memory.report();
    // SAFETY: the host's table lives for ever, `store` and `report` through the call.
    let code = unsafe { (table.open)(services::table(side), &raw mut store, &raw mut report) };
    outcome(code, &report, &memory)?;
    Ok(Arc::new(Native {
        table,
        store,
        calls: AtomicUsize::new(0),
        stopped: AtomicBool::new(false),
        idle: (Mutex::default(), Condvar::new()),
    }))
}

/// One open store.
struct Native {
    table: &'static BackendTable,
    store: *mut c_void,
    calls: AtomicUsize,
    stopped: AtomicBool,
    /// Signalled when the last call of a stopped store returns.
    idle: (Mutex<()>, Condvar),
}

// SAFETY: a plugin takes calls from any thread (`abi`); the pointer is only ever handed back to it.
unsafe impl Send for Native {}
// SAFETY: as above.
unsafe impl Sync for Native {}

impl Instance for Native {
    fn keys(&self, call: &Call<'_>) -> Result<RawListing, Refusal> {
        let _entered = self.enter()?;
        let mut listing = RawListing::default();
        let mut cursor = 0;
        for _ in 0..ENTRIES_MAX {
            let context = context(call);
            if context.nanos_left == 0 {
                return Err(Refusal::new(Code::Deadline, "the plugin's listing of keys takes too long"));
            }
            let page = self.page(&context, cursor)?;
            // SAFETY: the page is fresh from the plugin, and stays valid until the next call for it.
            unsafe { take(&page, &mut listing) }?;
            if page.next == 0 {
                return Ok(listing);
            }
            cursor = page.next;
        }
        Err(Refusal::new(Code::Internal, "the plugin's listing of keys never ends"))
    }

    fn perform(
        &self,
        call: &Call<'_>,
        operation: Operation,
        key: &[u8],
        algorithm: u32,
        input: &[u8],
        out: &mut [u8],
    ) -> Result<usize, Refusal> {
        let _entered = self.enter()?;
        let context = context(call);
        let mut memory = Memory::default();
        let mut report = memory.report();
        let mut buffer = Buffer::new(out);
        let function = match operation {
            Operation::Decrypt => self.table.decrypt,
            _ => self.table.sign,
        };
        let (key, input) = (Bytes::new(key), Bytes::new(input));
        // SAFETY: the store is open, and all the rest lives through the call.
        let code = unsafe {
            function(self.store, &raw const context, key, algorithm, input, &raw mut buffer, &raw mut report)
        };
        outcome(code, &report, &memory).map_err(|error| Refusal { error, needed: buffer.len })?;
        if buffer.len > buffer.capacity {
            return Err(Refusal::new(Code::Internal, "the plugin claims a result larger than its buffer"));
        }
        Ok(buffer.len)
    }

    fn health(&self, call: &Call<'_>) -> Result<u64, Refusal> {
        let _entered = self.enter()?;
        let context = context(call);
        let mut memory = Memory::default();
        let mut report = memory.report();
        let mut health = HealthReport { size: struct_size::<HealthReport>(), generation: 0 };
        // SAFETY: the store is open, and all the rest lives through the call.
        let code =
            unsafe { (self.table.health)(self.store, &raw const context, &raw mut health, &raw mut report) };
        outcome(code, &report, &memory)?;
        Ok(health.generation)
    }

    fn advice(&self) -> Advice {
        // SAFETY: the name lives through the call; under this name the plugin answers NULL or an `AdviceTable` that is
        // static.
        let table = unsafe {
            (self.table.extension)(Bytes::new(ADVICE_EXTENSION.as_bytes())).cast::<AdviceTable>().as_ref()
        };
        let mut report = AdviceReport { size: struct_size::<AdviceReport>(), lanes: 0, stuck_after_ms: 0 };
        match (table.filter(|table| table.size >= struct_size::<AdviceTable>()), self.enter()) {
            // SAFETY: the store is the plugin's own and still open, and `report` lives through the call.
            (Some(table), Ok(_entered)) if unsafe { (table.advise)(self.store, &raw mut report) } == 0 => {}
            _ => return Advice::default(),
        }
        let stuck_after = Some(Duration::from_millis(report.stuck_after_ms));
        believed(Advice { lanes: Some(report.lanes), stuck_after })
    }

    fn stop(&self) {
        self.stopped.store(true, Ordering::SeqCst);
    }

    fn close(&self, grace: Duration) {
        self.stop();
        let started = Instant::now();
        self.wait_until_idle(grace / 2);
        let grace = grace.saturating_sub(started.elapsed());
        let mut memory = Memory::default();
        let mut report = memory.report();
        let grace = u64::try_from(grace.as_nanos()).unwrap_or(u64::MAX);
        // SAFETY: the store is open; whoever calls `close` makes no further call.
        let code = unsafe { (self.table.close)(self.store, grace, &raw mut report) };
        if let Err(failure) = outcome(code, &report, &memory) {
            tracing::warn!(%failure, "a store did not close cleanly");
        }
    }
}

/// A call to the plugin that is going on.
struct Entered<'a>(&'a Native);

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        if self.0.calls.fetch_sub(1, Ordering::SeqCst) == 1 && self.0.stopped.load(Ordering::SeqCst) {
            // Under the lock, so that it doesn't fall between the other side's look and its sleep.
            let _guard = self.0.idle.0.lock().unwrap_or_else(PoisonError::into_inner);
            self.0.idle.1.notify_all();
        }
    }
}

impl Native {
    /// Counts a call in; none starts once the store is being closed.
    fn enter(&self) -> Result<Entered<'_>, Error> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        let entered = Entered(self);
        if self.stopped.load(Ordering::SeqCst) {
            return Err(Error::new(Code::Unavailable, "the store is closed"));
        }
        Ok(entered)
    }

    /// Waits until no call is going on, or the time is up.
    fn wait_until_idle(&self, time: Duration) {
        let guard = self.idle.0.lock().unwrap_or_else(PoisonError::into_inner);
        let busy = |(): &mut ()| self.calls.load(Ordering::SeqCst) > 0;
        drop(self.idle.1.wait_timeout_while(guard, time, busy));
    }

    fn page(&self, context: &Context, cursor: u64) -> Result<KeyPage, Error> {
        let mut memory = Memory::default();
        let mut report = memory.report();
        let mut page = KeyPage {
            size: struct_size::<KeyPage>(),
            next: 0,
            keys: ptr::null(),
            keys_len: 0,
            findings: ptr::null(),
            findings_len: 0,
        };
        // SAFETY: the store is open, and all the rest lives through the call.
        let code = unsafe { (self.table.keys)(self.store, context, cursor, &raw mut page, &raw mut report) };
        outcome(code, &report, &memory).map(|()| page)
    }
}

fn context<'a>(call: &Call<'a>) -> Context {
    let left = call.deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()).as_nanos());
    Context {
        size: struct_size::<Context>(),
        lane: call.lane,
        nanos_left: left.map_or(u64::MAX, |left| u64::try_from(left).unwrap_or(u64::MAX - 1)),
        request_id: Bytes::new(call.request_id.as_bytes()),
    }
}

/// The memory that a report's text is written to.
struct Memory {
    message: [u8; 1024],
    vendor: [u8; 64],
}

impl Default for Memory {
    fn default() -> Self {
        Self { message: [0; 1024], vendor: [0; 64] }
    }
}

impl Memory {
    fn report(&mut self) -> Report {
        Report {
            size: struct_size::<Report>(),
            vendor_code: 0,
            retry_after_ms: 0,
            vendor_name: Buffer::new(&mut self.vendor),
            message: Buffer::new(&mut self.message),
        }
    }
}

fn outcome(code: u32, report: &Report, memory: &Memory) -> Result<(), Error> {
    if code == 0 {
        return Ok(());
    }
    let part = |memory: &[u8], buffer: &Buffer| {
        tame(memory.get(..buffer.len.min(memory.len())).unwrap_or_default(), 1024)
    };
    let code = Code::from_number(code);
    let message = part(&memory.message, &report.message);
    let name = part(&memory.vendor, &report.vendor_name);
    let mut error =
        Error::new(code, if message.is_empty() { format!("the plugin answered {code}") } else { message });
    if !name.is_empty() {
        error = error.with_vendor(name, report.vendor_code);
    }
    if report.retry_after_ms > 0 {
        error = error.with_retry_after(Duration::from_millis(report.retry_after_ms).min(RETRY_AFTER_MAX));
    }
    Err(error)
}

fn broken(message: String) -> Error {
    Error::new(Code::Internal, message)
}

/// Copies a page out.
///
/// # Safety
///
/// The page is one that the plugin filled and hasn't been asked to replace since.
unsafe fn take(page: &KeyPage, listing: &mut RawListing) -> Result<(), Error> {
    let most = listing
        .keys
        .len()
        .saturating_add(page.keys_len)
        .max(listing.findings.len().saturating_add(page.findings_len));
    if most > ENTRIES_MAX {
        return Err(broken(format!("the plugin lists more than {ENTRIES_MAX} keys or findings")));
    }
    // SAFETY: the caller promises a valid page; its arrays have the lengths it states.
    unsafe {
        for entry in Elements::new(page.keys, page.keys_len, |entry: &KeyEntry| entry.size).map_err(lists)? {
            listing.keys.push(raw_key(entry));
        }
        for entry in Elements::new(page.findings, page.findings_len, |entry: &FindingEntry| entry.size)
            .map_err(lists)?
        {
            listing.findings.push(finding(entry));
        }
    }
    Ok(())
}

fn lists(stride: usize) -> Error {
    broken(format!("the plugin lists entries of {stride} bytes"))
}

/// An array of structs that is walked by the size its first element states.
pub(crate) struct Elements<T> {
    next: *const T,
    left: usize,
    stride: usize,
}

impl<T> Elements<T> {
    /// Fails with the stride, where structs can't stand so close.
    ///
    /// # Safety
    ///
    /// `first` points to `len` structs, each at least as large as the first one's `size` says.
    pub(crate) unsafe fn new(first: *const T, len: usize, size: fn(&T) -> u32) -> Result<Self, usize> {
        if len == 0 || first.is_null() {
            return Ok(Self { next: first, left: 0, stride: 0 });
        }
        // SAFETY: promised by the caller, as there is an element.
        let stride = size(unsafe { &*first }) as usize;
        if stride < size_of::<T>() || !stride.is_multiple_of(align_of::<T>()) {
            return Err(stride);
        }
        Ok(Self { next: first, left: len, stride })
    }
}

impl<T: Copy> Iterator for Elements<T> {
    type Item = T;

    fn next(&mut self) -> Option<T> {
        self.left = self.left.checked_sub(1)?;
        // SAFETY: `new`'s caller promised `len` elements at this stride, and `left` counts them.
        unsafe {
            let element = *self.next;
            self.next = self.next.byte_add(self.stride);
            Some(element)
        }
    }
}

/// # Safety
///
/// The entry is of a valid page.
unsafe fn raw_key(entry: KeyEntry) -> RawKey {
    // SAFETY: the entry's pointers have the lengths they state while its page is valid. Of what is too long, one byte
    // more is copied than will be accepted.
    unsafe {
        let algorithms = match entry.algorithms.is_null() {
            true => &[][..],
            false => std::slice::from_raw_parts(entry.algorithms, entry.algorithms_len.min(ALGORITHMS_MAX)),
        };
        RawKey {
            id: first(entry.id, KEY_ID_MAX + 1).to_vec(),
            spki: first(entry.spki, SPKI_MAX + 1).to_vec(),
            label: tame(first(entry.label, 257), 256),
            algorithms: algorithms.to_vec(),
            class: if entry.call_class == 0 { CallClass::Inline } else { CallClass::Blocking },
        }
    }
}

/// # Safety
///
/// The entry is of a valid page.
unsafe fn finding(entry: FindingEntry) -> Finding {
    // SAFETY: the entry's pointers have the lengths they state while its page is valid.
    unsafe {
        Finding {
            severity: Severity::from_number(entry.severity).unwrap_or(Severity::Error),
            subject: tame(first(entry.subject, 1025), 1024),
            error: Error::new(Code::from_number(entry.code), tame(first(entry.message, 1025), 1024)),
            hint: tame(first(entry.hint, 1025), 1024),
        }
    }
}

/// As much of a plugin's bytes as is of interest: nothing reads further, whatever length they claim.
///
/// # Safety
///
/// As [`Bytes::as_slice`], for the first `max` bytes.
unsafe fn first<'a>(bytes: Bytes, max: usize) -> &'a [u8] {
    // SAFETY: promised by the caller.
    unsafe { Bytes { ptr: bytes.ptr, len: bytes.len.min(max) }.as_slice() }
}
