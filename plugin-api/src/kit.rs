//! The trampolines between the C table and the author's [`Backend`]: the only unsafe code a Rust plugin has.
//!
//! Every entry point catches panics, turns errors into codes and reports, and notes for the time of the call which
//! store and request the thread works for, so that `tracing` events reach the host with both.

use std::{
    any::Any,
    ffi::c_void,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex, PoisonError, RwLock},
    time::{Duration, Instant},
};

#[doc(hidden)]
pub use abi_stable::library::LibHeader;
use abi_stable::{
    library::{CheckTypeLayout, RootModuleResult},
    prefix_type::PrefixTypeTrait,
};

use crate::{
    Advice, Backend, Call, CallClass, Code, Description, Error, Health, Host, Isolation, Lane, Listing,
    Output, Severity,
    abi::{
        ADVICE_EXTENSION, AdviceReport, AdviceTable, BackendTable, Buffer, Bytes, CALL_BLOCKING, CALL_INLINE,
        Context, DRAFT, DescriptionTable, FindingEntry, HealthReport, HostTable, ISOLATION_EXTENSION,
        ISOLATION_INLINE, ISOLATION_PROCESS, IsolationTable, KeyEntry, KeyPage, LANE_HOUSEKEEPING,
        LANE_INLINE, NO_DEADLINE, Report, Root, RootRef, struct_size,
    },
    algorithm::Operation,
    backend::acceptable,
    forward,
    host::Way,
};

/// Exports a [`Backend`] as a plugin library. Once per crate, which is a `cdylib`.
#[macro_export]
macro_rules! export_backend {
    ($backend:ty) => {
        $crate::export_table!($crate::kit::table::<$backend>());
    };
}

/// Exports a table that was made by other means than [`export_backend!`](crate::export_backend).
#[macro_export]
macro_rules! export_table {
    ($table:expr) => {
        const _: () = {
            struct Exported;

            impl $crate::kit::Export for Exported {
                const TABLE: &'static $crate::abi::BackendTable = &$table;
            }

            // The name under which abi_stable looks for the header of a library.
            #[unsafe(export_name = "_1as_0lib_1header_0root_bmodule_bloader")]
            static HEADER: $crate::kit::LibHeader = $crate::kit::header::<Exported>();
        };
    };
}

/// What [`export_table!`](crate::export_table) exports.
#[doc(hidden)]
pub trait Export: 'static {
    /// The table.
    const TABLE: &'static BackendTable;
}

/// The header that abi_stable checks before anything of the library is used.
#[doc(hidden)]
#[must_use]
pub const fn header<E: Export>() -> LibHeader {
    // SAFETY: `constructor` answers with an erased `RootRef`, and with nothing else.
    unsafe { LibHeader::from_constructor::<RootRef>(constructor::<E>, CheckTypeLayout::Yes) }
}

extern "C" fn constructor<E: Export>() -> RootModuleResult {
    fn root<E: Export>() -> RootRef {
        forward::catch_panics();
        Root { backend: E::TABLE }.leak_into_prefix()
    }
    abi_stable::library::__call_root_module_loader(root::<E>)
}

/// The table of a backend.
#[must_use]
pub const fn table<B: Backend>() -> BackendTable {
    BackendTable {
        size: struct_size::<BackendTable>(),
        draft: DRAFT,
        describe: describe::<B>,
        open: open::<B>,
        close: close::<B>,
        keys: keys::<B>,
        sign: sign::<B>,
        decrypt: decrypt::<B>,
        health: health::<B>,
        extension: extension::<B>,
    }
}

/// How many keys, and how many findings, one page holds.
const PAGE: usize = 256;

/// What a `store` pointer leads to. It is never freed, so that a call that comes late, or still hangs, finds it; the
/// backend is let go by `close`, and dropped when the last call has returned.
struct Store<B> {
    backend: RwLock<Option<Arc<B>>>,
    host: Host,
    listing: Mutex<Option<Snapshot>>,
}

impl<B> Store<B> {
    fn backend(&self) -> Result<Arc<B>, Error> {
        let backend = self.backend.read().unwrap_or_else(PoisonError::into_inner);
        backend.clone().ok_or_else(|| Error::new(Code::Unavailable, "the store is closed"))
    }
}

unsafe extern "C" fn describe<B: Backend>() -> *const DescriptionTable {
    trait Described {
        const TABLE: DescriptionTable;
    }
    impl<B: Backend> Described for B {
        const TABLE: DescriptionTable = description(&B::DESCRIPTION);
    }
    std::ptr::from_ref(const { &Static(<B as Described>::TABLE) }).cast()
}

/// A table that holds pointers to statics only, and may so be shared.
#[repr(transparent)]
struct Static(DescriptionTable);

// SAFETY: `description` fills the table with pointers to `'static` text that nobody writes to.
unsafe impl Sync for Static {}

const fn description(description: &Description) -> DescriptionTable {
    DescriptionTable {
        size: struct_size::<DescriptionTable>(),
        isolation: match description.isolation {
            Isolation::Inline => ISOLATION_INLINE,
            Isolation::Process => ISOLATION_PROCESS,
        },
        lanes_max: match description.lanes_max {
            Some(lanes) => lanes,
            None => 0,
        },
        name: Bytes::new(description.name.as_bytes()),
        version: Bytes::new(description.version.as_bytes()),
        vendor: Bytes::new(description.vendor.as_bytes()),
        schema: Bytes::new(description.schema.as_bytes()),
    }
}

unsafe extern "C" fn open<B: Backend>(
    host: *const HostTable,
    store: *mut *mut c_void,
    report: *mut Report,
) -> u32 {
    let host = Host::by(Way::new(host));
    forward::install(host);
    // SAFETY: the host passes a report of its own that lives through the call.
    let report = unsafe { report.as_mut() };
    contain(host, Bytes::EMPTY, report, || {
        let backend = RwLock::new(Some(Arc::new(B::open(host)?)));
        let opened = Box::leak(Box::new(Store { backend, host, listing: Mutex::new(None) }));
        // SAFETY: the host passes a place for the store that lives through the call.
        unsafe { *store = std::ptr::from_mut(opened).cast() };
        Ok(())
    })
}

unsafe extern "C" fn close<B: Backend>(store: *mut c_void, grace: u64, report: *mut Report) -> u32 {
    // SAFETY: `store` is what `open` of this table made; the report is the host's own and lives through the call.
    let (store, report) = unsafe { (borrow::<B>(store), report.as_mut()) };
    contain(store.host, Bytes::EMPTY, report, || {
        let backend = store.backend.write().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(backend) = backend {
            backend.close(Duration::from_nanos(grace));
        }
        Ok(())
    })
}

unsafe extern "C" fn keys<B: Backend>(
    store: *mut c_void,
    context: *const Context,
    cursor: u64,
    page: *mut KeyPage,
    report: *mut Report,
) -> u32 {
    // SAFETY: the arguments are as `abi` demands of the host.
    let (store, context, report) = unsafe { (borrow::<B>(store), &*context, report.as_mut()) };
    contain(store.host, context.request_id, report, || {
        let mut listing = store.listing.lock().unwrap_or_else(PoisonError::into_inner);
        if cursor == 0 {
            *listing = Some(Snapshot::new(store.backend()?.keys(&call(context))?));
        }
        let snapshot = listing.as_ref().ok_or_else(|| Error::invalid("a listing starts with cursor 0"))?;
        // SAFETY: the host passes a page of its own that lives through the call.
        unsafe { *page = snapshot.page(cursor) };
        Ok(())
    })
}

unsafe extern "C" fn sign<B: Backend>(
    store: *mut c_void,
    context: *const Context,
    key: Bytes,
    algorithm: u32,
    input: Bytes,
    out: *mut Buffer,
    report: *mut Report,
) -> u32 {
    // SAFETY: the arguments are as `abi` demands of the host.
    unsafe { perform::<B>(Operation::Sign, store, context, key, algorithm, input, out, report) }
}

unsafe extern "C" fn decrypt<B: Backend>(
    store: *mut c_void,
    context: *const Context,
    key: Bytes,
    algorithm: u32,
    input: Bytes,
    out: *mut Buffer,
    report: *mut Report,
) -> u32 {
    // SAFETY: the arguments are as `abi` demands of the host.
    unsafe { perform::<B>(Operation::Decrypt, store, context, key, algorithm, input, out, report) }
}

/// # Safety
///
/// The pointers are as [`abi`](crate::abi) demands of the host.
#[expect(clippy::too_many_arguments, reason = "the shape of the table")]
unsafe fn perform<B: Backend>(
    operation: Operation,
    store: *mut c_void,
    context: *const Context,
    key: Bytes,
    algorithm: u32,
    input: Bytes,
    out: *mut Buffer,
    report: *mut Report,
) -> u32 {
    // SAFETY: the caller promises pointers as `abi` demands; all live through this call.
    let (store, context, out, report, key, input) = unsafe {
        (borrow::<B>(store), &*context, &mut *out, report.as_mut(), key.as_slice(), input.as_slice())
    };
    contain(store.host, context.request_id, report, || {
        let algorithm = acceptable(operation, algorithm, input)?;
        // SAFETY: the host's buffer has `capacity` bytes that nobody else uses during the call.
        let buffer = unsafe { out.as_mut_slice() };
        let mut output = Output::new(buffer);
        let backend = store.backend()?;
        let done = match operation {
            Operation::Sign => backend.sign(&call(context), key, algorithm, input, &mut output),
            Operation::Decrypt => backend.decrypt(&call(context), key, algorithm, input, &mut output),
        };
        out.len = output.len();
        done
    })
}

unsafe extern "C" fn health<B: Backend>(
    store: *mut c_void,
    context: *const Context,
    health: *mut HealthReport,
    report: *mut Report,
) -> u32 {
    // SAFETY: the arguments are as `abi` demands of the host.
    let (store, context, report) = unsafe { (borrow::<B>(store), &*context, report.as_mut()) };
    contain(store.host, context.request_id, report, || {
        let Health { generation } = store.backend()?.health(&call(context))?;
        // SAFETY: the host passes a place for the answer that lives through the call.
        unsafe { *health = HealthReport { size: struct_size::<HealthReport>(), generation } };
        Ok(())
    })
}

unsafe extern "C" fn extension<B: Backend>(name: Bytes) -> *const c_void {
    // SAFETY: the host keeps the name valid through the call.
    match unsafe { name.as_slice() } {
        name if name == ISOLATION_EXTENSION.as_bytes() => std::ptr::from_ref(
            const { &IsolationTable { size: struct_size::<IsolationTable>(), group: group::<B> } },
        )
        .cast(),
        name if name == ADVICE_EXTENSION.as_bytes() => std::ptr::from_ref(
            const { &AdviceTable { size: struct_size::<AdviceTable>(), advise: advise::<B> } },
        )
        .cast(),
        _ => std::ptr::null(),
    }
}

unsafe extern "C" fn advise<B: Backend>(store: *mut c_void, advice: *mut AdviceReport) -> u32 {
    // SAFETY: the store is as `abi` demands of the host.
    let store = unsafe { borrow::<B>(store) };
    contain(store.host, Bytes::EMPTY, None, || {
        let Advice { lanes, stuck_after } = store.backend()?.advice();
        let stuck_after = stuck_after.map_or(0, |time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
        let size = struct_size::<AdviceReport>();
        let report = AdviceReport { size, lanes: lanes.unwrap_or(0), stuck_after_ms: stuck_after };
        // SAFETY: the host passes a place for the answer that lives through the call.
        unsafe { *advice = report };
        Ok(())
    })
}

unsafe extern "C" fn group<B: Backend>(config: Bytes, out: *mut Buffer) -> u32 {
    // SAFETY: the host keeps the configuration valid through the call, and passes a buffer of its own.
    let (config, out) = unsafe { (config.as_slice(), &mut *out) };
    let named = || B::isolation_group(&serde_json::from_slice(config).ok()?);
    match catch_unwind(AssertUnwindSafe(named)) {
        Ok(None) => Code::NotFound as u32,
        // SAFETY: the host's buffer has the capacity it states, and nobody else uses it during the call.
        Ok(Some(name)) => match unsafe { out.fill(name.as_bytes()) } {
            true => 0,
            false => Code::BufferTooSmall as u32,
        },
        Err(panic) => {
            std::mem::forget(panic); // as in `contain`
            Code::Internal as u32
        }
    }
}

/// # Safety
///
/// `store` is what `open` of the same table made.
unsafe fn borrow<B: Backend>(store: *mut c_void) -> &'static Store<B> {
    // SAFETY: the caller promises a store of this type, and those are never freed.
    unsafe { &*store.cast_const().cast::<Store<B>>() }
}

/// Runs the author's code: panics and errors end here, as a code and a report.
fn contain(
    host: Host,
    request_id: Bytes,
    report: Option<&mut Report>,
    body: impl FnOnce() -> Result<(), Error>,
) -> u32 {
    let _scope = forward::Scope::enter(host, request_id);
    match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(())) => 0,
        Ok(Err(error)) => tell(&error, report),
        Err(panic) => {
            let code = tell(&Error::new(Code::Internal, panicked(panic.as_ref())), report);
            // What was thrown may panic again when it is dropped, and that would cross the boundary.
            std::mem::forget(panic);
            code
        }
    }
}

fn tell(error: &Error, report: Option<&mut Report>) -> u32 {
    if let Some(report) = report {
        // SAFETY: the host's buffers have the capacity they state, and nobody else uses them during the call.
        unsafe { report.fill(error) };
    }
    error.code as u32
}

fn panicked(panic: &(dyn Any + Send)) -> String {
    let text = panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message");
    format!("the plugin panicked: {text}")
}

fn call(context: &Context) -> Call<'_> {
    // SAFETY: the host keeps the request id valid through the call, which the lifetime of `context` stands for.
    let id = unsafe { context.request_id.as_slice() };
    Call {
        deadline: (context.nanos_left != NO_DEADLINE)
            .then(|| Instant::now().checked_add(Duration::from_nanos(context.nanos_left)))
            .flatten(),
        lane: match context.lane {
            LANE_INLINE => Lane::Inline,
            LANE_HOUSEKEEPING => Lane::Housekeeping,
            number => Lane::Number(number),
        },
        request_id: std::str::from_utf8(id).unwrap_or_default(),
    }
}

/// A listing, and the C structs that point into it.
struct Snapshot {
    keys: Vec<KeyEntry>,
    findings: Vec<FindingEntry>,
    _listing: Listing,
    _numbers: Vec<Vec<u32>>,
}

// SAFETY: the pointers lead into `_listing` and `_numbers`, which move along and are never changed.
unsafe impl Send for Snapshot {}

impl Snapshot {
    fn new(listing: Listing) -> Self {
        let numbers: Vec<Vec<u32>> = listing
            .keys
            .iter()
            .map(|key| key.algorithms.iter().map(|algorithm| algorithm.number()).collect())
            .collect();
        let keys = listing.keys.iter().zip(&numbers).map(|(key, numbers)| key_entry(key, numbers)).collect();
        let findings = listing.findings.iter().map(finding_entry).collect();
        Self { keys, findings, _listing: listing, _numbers: numbers }
    }

    fn page(&self, cursor: u64) -> KeyPage {
        let start = usize::try_from(cursor).unwrap_or(usize::MAX);
        let end = start.saturating_add(PAGE);
        let keys = part(&self.keys, start, end);
        let findings = part(&self.findings, start, end);
        let more = end < self.keys.len().max(self.findings.len());
        KeyPage {
            size: struct_size::<KeyPage>(),
            next: if more { end as u64 } else { 0 },
            keys: keys.as_ptr(),
            keys_len: keys.len(),
            findings: findings.as_ptr(),
            findings_len: findings.len(),
        }
    }
}

fn part<T>(all: &[T], start: usize, end: usize) -> &[T] {
    all.get(start..end.min(all.len())).unwrap_or_default()
}

fn key_entry(key: &crate::Key, numbers: &[u32]) -> KeyEntry {
    KeyEntry {
        size: struct_size::<KeyEntry>(),
        call_class: match key.call_class {
            CallClass::Inline => CALL_INLINE,
            CallClass::Blocking => CALL_BLOCKING,
        },
        id: Bytes::new(&key.id),
        spki: Bytes::new(&key.spki),
        label: Bytes::new(key.label.as_bytes()),
        algorithms: numbers.as_ptr(),
        algorithms_len: numbers.len(),
    }
}

fn finding_entry(finding: &crate::Finding) -> FindingEntry {
    FindingEntry {
        size: struct_size::<FindingEntry>(),
        severity: finding.severity as u32,
        code: match finding.severity {
            Severity::Warning | Severity::Error => finding.error.code as u32,
            Severity::Note => 0,
        },
        subject: Bytes::new(finding.subject.as_bytes()),
        message: Bytes::new(finding.error.message.as_bytes()),
        hint: Bytes::new(finding.hint.as_bytes()),
    }
}
