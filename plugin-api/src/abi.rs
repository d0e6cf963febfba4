//! The C table: what crosses the boundary between host and plugin, whatever the plugin is written in.
//!
//! Rules, for both sides:
//!
//! - Every struct starts with its own `size` in bytes; a member beyond `size` isn't there. Arrays of structs are walked
//!   by the `size` of their first element.
//! - Text is UTF-8 without a terminating NUL. A [`Bytes`] with `len` 0 may have any `ptr`.
//! - Memory belongs to whoever allocated it and is valid until the call returns, unless a member says otherwise. What
//!   is to be kept is copied. Buffers to be filled belong to the caller: the callee writes at most `capacity` bytes
//!   and sets `len`; where more is needed it sets `len` to that number and answers [`Code::BufferTooSmall`].
//! - Functions return 0, or the number of a [`Code`]; what is known beside it goes into the [`Report`].
//! - No unwinding, `longjmp` or exception crosses the boundary.
//! - The host calls from many threads. Calls with the same lane number never overlap; calls with
//!   [`LANE_INLINE`] may overlap with anything.
//! - Host functions may be called from any thread, from `open` until the process ends; the [`HostTable`] lives that long.
//!
//! [`Code`]: crate::Code
//! [`Code::BufferTooSmall`]: crate::Code::BufferTooSmall

use std::ffi::c_void;

use abi_stable::{
    StableAbi, declare_root_module_statics, library::RootModule, package_version_strings,
    sabi_types::VersionStrings,
};

use crate::Error;

/// The draft of this contract. Host and plugin must agree on it exactly until 1.0 is frozen.
pub const DRAFT: u32 = 2;

/// The lane of calls to keys of class `inline`, which may overlap with anything.
pub const LANE_INLINE: u32 = u32::MAX;

/// The lane of `keys` and `health`.
pub const LANE_HOUSEKEEPING: u32 = u32::MAX - 1;

/// The longest key id, in bytes.
pub const KEY_ID_MAX: usize = 255;

/// Borrowed bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, StableAbi)]
pub struct Bytes {
    /// The first byte; anything where `len` is 0.
    pub ptr: *const u8,
    /// How many bytes.
    pub len: usize,
}

/// A caller's buffer to be filled.
#[repr(C)]
#[derive(Debug, StableAbi)]
pub struct Buffer {
    /// The first byte.
    pub ptr: *mut u8,
    /// How many bytes fit.
    pub capacity: usize,
    /// How many bytes were written, or are needed.
    pub len: usize,
}

/// What the host says with each call.
#[repr(C)]
#[derive(Clone, Copy, Debug, StableAbi)]
pub struct Context {
    /// Size of this struct in bytes.
    pub size: u32,
    /// The lane; see the rules above.
    pub lane: u32,
    /// Nanoseconds left until nobody waits for the answer any more; `u64::MAX` where there is no deadline.
    pub nanos_left: u64,
    /// The request's id, for logs; may be empty.
    pub request_id: Bytes,
}

/// What a failing function says beside its code. The host sets `size` and the buffers.
#[repr(C)]
#[derive(Debug, StableAbi)]
pub struct Report {
    /// Size of this struct in bytes.
    pub size: u32,
    /// The vendor's own code; counts only where `vendor_name` isn't empty.
    pub vendor_code: u64,
    /// Milliseconds after which trying again makes sense; 0 where nothing is known.
    pub retry_after_ms: u64,
    /// The vendor's name of that code (`CKR_PIN_INCORRECT`, `HTTP`).
    pub vendor_name: Buffer,
    /// One sentence for the operator, without secrets.
    pub message: Buffer,
}

/// What a plugin is. Static: the host may read it at any time.
#[repr(C)]
#[derive(Clone, Copy, Debug, StableAbi)]
pub struct DescriptionTable {
    /// Size of this struct in bytes.
    pub size: u32,
    /// Preferred isolation: 0 inline, 1 process.
    pub isolation: u32,
    /// The most lanes one store can use; 0 where there is no limit.
    pub lanes_max: u32,
    /// Short name, the `NAME` of `libkeystead_plugin_NAME.so`.
    pub name: Bytes,
    /// The plugin's own version.
    pub version: Bytes,
    /// Who made it.
    pub vendor: Bytes,
    /// JSON Schema of its `config`; secrets are marked `"writeOnly": true`.
    pub schema: Bytes,
}

/// One key.
#[repr(C)]
#[derive(Clone, Copy, Debug, StableAbi)]
pub struct KeyEntry {
    /// Size of this struct in bytes.
    pub size: u32,
    /// 0 inline: short, pure CPU, callable on any thread at any time; 1 blocking: called on lanes.
    pub call_class: u32,
    /// Opaque id, 1 to 255 bytes; the same after re-opening and restarting.
    pub id: Bytes,
    /// DER SubjectPublicKeyInfo (RFC 5280 section 4.1).
    pub spki: Bytes,
    /// What the operator calls it; may be empty.
    pub label: Bytes,
    /// Numbers of the algorithms that this key can really do.
    pub algorithms: *const u32,
    /// How many.
    pub algorithms_len: usize,
}

/// Something that could not be opened, or that the operator should know.
#[repr(C)]
#[derive(Clone, Copy, Debug, StableAbi)]
pub struct FindingEntry {
    /// Size of this struct in bytes.
    pub size: u32,
    /// 0 warning: it works, but; 1 error: this entry isn't served.
    pub severity: u32,
    /// Number of the [`Code`](crate::Code) that fits best.
    pub code: u32,
    /// What it is about: a path, an entry of the configuration. Never a secret.
    pub subject: Bytes,
    /// What is wrong.
    pub message: Bytes,
    /// What to do next; may be empty.
    pub hint: Bytes,
}

/// One page of a listing. The arrays stay valid until the next call of `keys` or `close` on the same store; the host
/// never makes two of those at once.
#[repr(C)]
#[derive(Debug, StableAbi)]
pub struct KeyPage {
    /// Size of this struct in bytes.
    pub size: u32,
    /// The cursor of the next page; 0 after the last.
    pub next: u64,
    /// The keys of this page.
    pub keys: *const KeyEntry,
    /// How many.
    pub keys_len: usize,
    /// The findings of this page.
    pub findings: *const FindingEntry,
    /// How many.
    pub findings_len: usize,
}

/// What `health` answers.
#[repr(C)]
#[derive(Clone, Copy, Debug, StableAbi)]
pub struct HealthReport {
    /// Size of this struct in bytes.
    pub size: u32,
    /// Changes whenever the listing of keys has changed.
    pub generation: u64,
}

/// One log event.
#[repr(C)]
#[derive(Clone, Copy, Debug, StableAbi)]
pub struct LogRecord {
    /// Size of this struct in bytes.
    pub size: u32,
    /// 1 error, 2 warn, 3 info, 4 debug, 5 trace.
    pub level: u32,
    /// Module or component.
    pub target: Bytes,
    /// The sentence.
    pub message: Bytes,
    /// Further fields as a JSON object; may be empty.
    pub fields: Bytes,
    /// The request's id; may be empty.
    pub request_id: Bytes,
}

/// What the host offers to one store. Lives until the process ends.
#[repr(C)]
#[derive(Clone, Copy, Debug, StableAbi)]
pub struct HostTable {
    /// Size of this struct in bytes.
    pub size: u32,
    /// The host's [`DRAFT`].
    pub draft: u32,
    /// To be passed back with every call.
    pub context: *mut c_void,
    /// 1 where events of a level are wanted, else 0.
    pub log_enabled: unsafe extern "C" fn(context: *mut c_void, level: u32) -> u32,
    /// Takes one event.
    pub log: unsafe extern "C" fn(context: *mut c_void, record: *const LogRecord),
    /// The store's `config`: the whole as JSON for an empty path, else the value at a JSON Pointer (RFC 6901), a
    /// string without its quotes. [`Code::NotFound`](crate::Code::NotFound) where there is none.
    pub config: unsafe extern "C" fn(context: *mut c_void, path: Bytes, out: *mut Buffer) -> u32,
    /// The value of a secret named in the store's `secrets`, read afresh.
    pub secret: unsafe extern "C" fn(context: *mut c_void, name: Bytes, out: *mut Buffer) -> u32,
    /// Tells the host to list the keys again.
    pub keys_changed: unsafe extern "C" fn(context: *mut c_void),
    /// A further interface of the host by name, or NULL.
    pub extension: unsafe extern "C" fn(context: *mut c_void, name: Bytes) -> *const c_void,
}

/// Name of the host extension [`CredentialsTable`].
pub const CREDENTIALS_EXTENSION: &str = "keystead.credentials/1";

/// The host's memory of refused credentials. A plugin asks before it presents a secret, and tells what came of it, so
/// that no token sees the same wrong PIN twice, whichever store or restart it comes from. Where the plugin's process dies
/// in between, the secret counts as refused.
#[repr(C)]
#[derive(Clone, Copy, Debug, StableAbi)]
pub struct CredentialsTable {
    /// Size of this struct in bytes.
    pub size: u32,
    /// 1 where this token has refused this secret before, else 0. `context` is the host table's.
    pub refused: unsafe extern "C" fn(context: *mut c_void, token: Bytes, secret: Bytes) -> u32,
    /// Remembers that this token refused this secret. The host keeps only a keyed hash.
    pub report: unsafe extern "C" fn(context: *mut c_void, token: Bytes, secret: Bytes),
    /// Notes that this token accepted this secret.
    pub accepted: unsafe extern "C" fn(context: *mut c_void, token: Bytes, secret: Bytes),
}

/// Name of the plugin extension [`IsolationTable`].
pub const ISOLATION_EXTENSION: &str = "keystead.isolation/1";

/// Which stores of a plugin belong into one process, where it runs in processes of its own.
#[repr(C)]
#[derive(Clone, Copy, Debug, StableAbi)]
pub struct IsolationTable {
    /// Size of this struct in bytes.
    pub size: u32,
    /// Names the group of a store by its configuration, a JSON object, before any store is open: stores with the same
    /// name share a process. Opens nothing. [`Code::NotFound`](crate::Code::NotFound) for the plugin's common group.
    pub group: unsafe extern "C" fn(config: Bytes, out: *mut Buffer) -> u32,
}

/// What a plugin offers: the one table of the contract.
#[repr(C)]
#[derive(Clone, Copy, Debug, StableAbi)]
pub struct BackendTable {
    /// Size of this struct in bytes.
    pub size: u32,
    /// The plugin's [`DRAFT`].
    pub draft: u32,
    /// What the plugin is.
    pub describe: unsafe extern "C" fn() -> *const DescriptionTable,
    /// Opens a store and sets `store`. `host` lives until the process ends.
    pub open:
        unsafe extern "C" fn(host: *const HostTable, store: *mut *mut c_void, report: *mut Report) -> u32,
    /// Closes a store, within `grace` nanoseconds; no call starts after it, but some may still hang in it.
    pub close: unsafe extern "C" fn(store: *mut c_void, grace: u64, report: *mut Report) -> u32,
    /// One page of the keys. Cursor 0 takes a new, consistent listing; other cursors come from the page before.
    pub keys: unsafe extern "C" fn(
        store: *mut c_void,
        context: *const Context,
        cursor: u64,
        page: *mut KeyPage,
        report: *mut Report,
    ) -> u32,
    /// Signs `input` with a key by an algorithm of the registry, into the host's buffer.
    pub sign: unsafe extern "C" fn(
        store: *mut c_void,
        context: *const Context,
        key: Bytes,
        algorithm: u32,
        input: Bytes,
        out: *mut Buffer,
        report: *mut Report,
    ) -> u32,
    /// Decrypts likewise.
    pub decrypt: unsafe extern "C" fn(
        store: *mut c_void,
        context: *const Context,
        key: Bytes,
        algorithm: u32,
        input: Bytes,
        out: *mut Buffer,
        report: *mut Report,
    ) -> u32,
    /// Called every 30 s on a lane of its own; the place for keep-alives.
    pub health: unsafe extern "C" fn(
        store: *mut c_void,
        context: *const Context,
        health: *mut HealthReport,
        report: *mut Report,
    ) -> u32,
    /// A further interface of the plugin by name, or NULL.
    pub extension: unsafe extern "C" fn(name: Bytes) -> *const c_void,
}

/// The root of a Rust plugin: its layout is checked when the library is loaded, before the table is used.
#[repr(C)]
#[derive(StableAbi)]
#[sabi(kind(Prefix(prefix_ref = RootRef)))]
#[sabi(missing_field(panic))]
pub struct Root {
    /// The plugin's table.
    #[sabi(last_prefix_field)]
    pub backend: &'static BackendTable,
}

impl RootModule for RootRef {
    declare_root_module_statics! {RootRef}
    const BASE_NAME: &'static str = "keystead_plugin";
    const NAME: &'static str = "keystead_plugin";
    const VERSION_STRINGS: VersionStrings = package_version_strings!();
}

/// The size of a struct, as its `size` member has it.
#[must_use]
#[expect(clippy::cast_possible_truncation, reason = "structs of the contract are a few hundred bytes")]
pub const fn struct_size<T>() -> u32 {
    size_of::<T>() as u32
}

impl Bytes {
    /// No bytes.
    pub const EMPTY: Self = Self { ptr: std::ptr::null(), len: 0 };

    /// Borrows a slice; valid while the slice is.
    #[must_use]
    pub const fn new(slice: &[u8]) -> Self {
        Self { ptr: slice.as_ptr(), len: slice.len() }
    }

    /// The slice again.
    ///
    /// # Safety
    ///
    /// `ptr` points to `len` bytes that stay readable and unchanged for `'a`, or `len` is 0.
    #[must_use]
    pub const unsafe fn as_slice<'a>(self) -> &'a [u8] {
        if self.len == 0 || self.ptr.is_null() {
            return &[];
        }
        // SAFETY: the caller promises `len` readable bytes at the non-null `ptr`.
        unsafe { std::slice::from_raw_parts(self.ptr, self.len) }
    }
}

impl Buffer {
    /// Offers the whole of a slice; valid while the slice is borrowed.
    #[must_use]
    pub const fn new(slice: &mut [u8]) -> Self {
        Self { ptr: slice.as_mut_ptr(), capacity: slice.len(), len: 0 }
    }

    /// Copies `bytes` in; where they don't fit, sets `len` to what is needed and answers false.
    ///
    /// # Safety
    ///
    /// `ptr` points to `capacity` bytes that are writable and not otherwise borrowed.
    pub unsafe fn fill(&mut self, bytes: &[u8]) -> bool {
        self.len = bytes.len();
        if bytes.len() > self.capacity {
            return false;
        }
        if !bytes.is_empty() {
            // SAFETY: the caller promises `capacity` writable bytes, `bytes` is not longer, and they can't overlap
            // because `bytes` is borrowed and `ptr`'s memory isn't.
            unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.ptr, bytes.len()) };
        }
        true
    }

    /// The whole buffer, to be written.
    ///
    /// # Safety
    ///
    /// `ptr` points to `capacity` bytes that are initialised, writable and not otherwise borrowed for `'a`.
    pub unsafe fn as_mut_slice<'a>(&mut self) -> &'a mut [u8] {
        if self.capacity == 0 {
            return &mut [];
        }
        // SAFETY: the caller promises `capacity` exclusive bytes at `ptr`.
        unsafe { std::slice::from_raw_parts_mut(self.ptr, self.capacity) }
    }
}

impl Report {
    /// Writes an error down; text that doesn't fit is cut at a character's edge.
    ///
    /// # Safety
    ///
    /// Both buffers are as [`Buffer::fill`] demands.
    pub unsafe fn fill(&mut self, error: &Error) {
        let after = error.retry_after.map_or(0, |after| after.as_millis());
        self.retry_after_ms = u64::try_from(after).unwrap_or(u64::MAX);
        // SAFETY: promised by the caller for both buffers.
        unsafe {
            self.message.fill(cut(&error.message, self.message.capacity).as_bytes());
            if let Some(vendor) = &error.vendor {
                self.vendor_code = vendor.number;
                self.vendor_name.fill(cut(&vendor.name, self.vendor_name.capacity).as_bytes());
            }
        }
    }
}

fn cut(text: &str, max: usize) -> &str {
    text.get(..text.floor_char_boundary(max)).unwrap_or(text)
}
