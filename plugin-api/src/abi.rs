//! The C table: what crosses the boundary between host and plugin, whatever the plugin is written in.
//!
//! These are the rules for both sides. `include/keystead_plugin.h` is made of this module, words and numbers.
//!
//! # A life
//!
//! Loading a library does nothing: no thread, no I/O. The host asks its entry point ([`EntryPoint`]) for the table,
//! calls `describe`, checks the store's configuration against the schema it finds there, and then calls `open`, once for
//! each store. `keys` lists what the store holds, `sign` and `decrypt` use it, `health` comes every 30 s, `close` ends
//! it. A plugin may have many stores at once. Nothing is ever unloaded.
//!
//! # Memory
//!
//! Every struct starts with its own `size` in bytes, which its maker sets; a member beyond `size` isn't there. Arrays of
//! structs are walked by the `size` of their first element. Text is UTF-8 without a terminating NUL.
//!
//! Memory belongs to whoever allocated it, and is valid until the call returns unless its description says otherwise.
//! What is to be kept is copied; nobody frees what the other side allocated. Buffers to be filled belong to the caller:
//! the callee writes at most `capacity` bytes and sets `len`; where more is needed it sets `len` to that number, writes
//! nothing, and answers [`Code::BufferTooSmall`]. Pointers are never NULL, except where it is said.
//!
//! # Errors
//!
//! A function that returns a number returns 0 when all went well, else the number of a [`Code`]; what is known beside
//! it goes into the [`Report`]. Nothing that is reported, logged or listed may hold a secret. No exception, unwinding or
//! `longjmp` crosses the boundary, in either direction.
//!
//! # Threads
//!
//! The host calls from many threads, and a thread is nobody's own. Each function says when it may be called:
//!
//! - `[any thread]`: at any time, from any thread, also overlapping itself.
//! - `[open]`: once for each store, before any other call to it. Several stores may be opened at once.
//! - `[lane]`: on the lane that the [`Context`] names. Calls with the same number never overlap, so what a lane owns (a
//!   session, a connection) needs no lock. Lanes are numbered from 0; `lanes_max` limits them. Calls on [`LANE_INLINE`]
//!   may overlap with anything, and must neither block nor take long.
//! - `[housekeeping lane]`: as `[lane]`, on [`LANE_HOUSEKEEPING`]; it overlaps with the other lanes.
//! - `[close]`: once, last. No call to the store starts after it, but some may still be on their way, or hang.
//!
//! A plugin may have threads of its own.

use std::ffi::c_void;

use abi_stable::{
    StableAbi, declare_root_module_statics, library::RootModule, package_version_strings,
    sabi_types::VersionStrings,
};

#[cfg(doc)]
use crate::{Algorithm, Code};
use crate::{Error, Severity};

/// The draft of this contract. Host and plugin must agree on it exactly until 1.0 is frozen.
pub const DRAFT: u32 = 2;

/// The lane of calls to keys of class [`CALL_INLINE`], which may overlap with anything.
pub const LANE_INLINE: u32 = 0xffff_ffff;

/// The lane of `keys` and `health`.
pub const LANE_HOUSEKEEPING: u32 = 0xffff_fffe;

/// `nanos_left` of a call without a deadline.
pub const NO_DEADLINE: u64 = 0xffff_ffff_ffff_ffff;

/// The longest key id, in bytes.
pub const KEY_ID_MAX: usize = 255;

/// `isolation` of a plugin that is fine in the server's own process.
pub const ISOLATION_INLINE: u32 = 0;

/// `isolation` of a plugin that is better run in a process of its own, because its libraries may crash or fork.
pub const ISOLATION_PROCESS: u32 = 1;

/// `call_class` of a key that is used by a short computation (at most some 200 microseconds of CPU, no waiting): called
/// on [`LANE_INLINE`].
pub const CALL_INLINE: u32 = 0;

/// `call_class` of a key whose use may wait for a device or a network: called on numbered lanes.
pub const CALL_BLOCKING: u32 = 1;

/// `severity` of a finding: it works, but.
pub const SEVERITY_WARNING: u32 = 0;

/// `severity` of a finding: this entry isn't served.
pub const SEVERITY_ERROR: u32 = 1;

/// `severity` of a finding: good to know, and nothing is wrong. What there is, and why something was passed over: told by
/// `keystead check`, logged at `debug` only.
pub const SEVERITY_NOTE: u32 = 2;

const _: () = assert!(
    SEVERITY_WARNING == Severity::Warning as u32
        && SEVERITY_ERROR == Severity::Error as u32
        && SEVERITY_NOTE == Severity::Note as u32
);

/// `level` of an event: somebody must act.
pub const LOG_ERROR: u32 = 1;

/// `level` of an event: something is not as it should be.
pub const LOG_WARN: u32 = 2;

/// `level` of an event: of interest in ordinary operation, and rare.
pub const LOG_INFO: u32 = 3;

/// `level` of an event: for whoever looks for a fault.
pub const LOG_DEBUG: u32 = 4;

/// `level` of an event: each step.
pub const LOG_TRACE: u32 = 5;

/// Borrowed bytes. Whoever receives them may read them until the call returns, and copies what it keeps.
#[repr(C)]
#[derive(Clone, Copy, Debug, StableAbi)]
pub struct Bytes {
    /// The first byte; anything, also NULL, where `len` is 0.
    pub ptr: *const u8,
    /// How many bytes.
    pub len: usize,
}

/// A buffer to be filled. It belongs to the caller; the callee writes to it until the call returns, and not later.
#[repr(C)]
#[derive(Debug, StableAbi)]
pub struct Buffer {
    /// The first byte; anything, also NULL, where `capacity` is 0.
    pub ptr: *mut u8,
    /// How many bytes fit. Set by the caller.
    pub capacity: usize,
    /// How many bytes were written; with [`Code::BufferTooSmall`], how many are needed. Set by the callee.
    pub len: usize,
}

/// What the host says with each call. Belongs to the host; valid until the call returns.
#[repr(C)]
#[derive(Clone, Copy, Debug, StableAbi)]
pub struct Context {
    /// Size of this struct in bytes.
    pub size: u32,
    /// The lane: a number from 0 on, [`LANE_INLINE`] or [`LANE_HOUSEKEEPING`].
    pub lane: u32,
    /// Nanoseconds left until nobody waits for the answer any more, or [`NO_DEADLINE`]. Who can't answer in time answers
    /// [`Code::Deadline`]; an answer that comes late is thrown away.
    pub nanos_left: u64,
    /// The request's id, for logs; may be empty.
    pub request_id: Bytes,
}

/// What a failing function says beside its code. Belongs to the host, which sets `size` and the buffers and leaves the
/// rest zero; valid until the call returns, and NULL where the host doesn't want one. Text that doesn't fit is cut.
#[repr(C)]
#[derive(Debug, StableAbi)]
pub struct Report {
    /// Size of this struct in bytes.
    pub size: u32,
    /// The vendor's own code; counts only where `vendor_name` isn't empty.
    pub vendor_code: u64,
    /// Milliseconds after which trying again makes sense; 0 where nothing is known.
    pub retry_after_ms: u64,
    /// The vendor's name of that code (`CKR_PIN_INCORRECT`, `HTTP`); the host offers 64 bytes.
    pub vendor_name: Buffer,
    /// One sentence for the operator, without secrets: what, where, what to do next; the host offers 1,024 bytes.
    pub message: Buffer,
}

/// What a plugin is. Static: the host may read it at any time until the process ends.
#[repr(C)]
#[derive(Clone, Copy, Debug, StableAbi)]
pub struct DescriptionTable {
    /// Size of this struct in bytes.
    pub size: u32,
    /// Preferred isolation: [`ISOLATION_INLINE`] or [`ISOLATION_PROCESS`].
    pub isolation: u32,
    /// The most lanes one store can use; 0 where there is no limit.
    pub lanes_max: u32,
    /// Short name, the NAME of `libkeystead_plugin_NAME.so`: 1 to 64 lower-case letters, digits, hyphens, underscores.
    pub name: Bytes,
    /// The plugin's own version, 1 to 64 bytes.
    pub version: Bytes,
    /// Who made it, 1 to 64 bytes.
    pub vendor: Bytes,
    /// JSON Schema (2020-12) of the store's `config`, at most 1 MiB; secrets are marked `"writeOnly": true`. The host
    /// refuses a configuration that doesn't fit before `open` is called, and names the member: a plugin needs no checks
    /// of its own for `type`, `enum`, `required`, `properties`, `additionalProperties`, `items`, `minItems`, `maxItems`,
    /// `uniqueItems`, `minLength`, `maxLength`, `minimum` and `maximum`. Further keywords are the plugin's to enforce.
    pub schema: Bytes,
}

/// One key.
#[repr(C)]
#[derive(Clone, Copy, Debug, StableAbi)]
pub struct KeyEntry {
    /// Size of this struct in bytes.
    pub size: u32,
    /// [`CALL_INLINE`] or [`CALL_BLOCKING`].
    pub call_class: u32,
    /// Opaque id, 1 to [`KEY_ID_MAX`] bytes, unique in the store; the same after re-opening and restarting.
    pub id: Bytes,
    /// DER SubjectPublicKeyInfo (RFC 5280 section 4.1).
    pub spki: Bytes,
    /// What the operator calls it, at most 256 bytes; may be empty.
    pub label: Bytes,
    /// Numbers of the [`Algorithm`]s that this key can really do, each once.
    pub algorithms: *const u32,
    /// How many.
    pub algorithms_len: usize,
}

/// Something that could not be opened, or that the operator should know. The host takes up to 100,000 of a listing, and
/// of each text 1,024 bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, StableAbi)]
pub struct FindingEntry {
    /// Size of this struct in bytes.
    pub size: u32,
    /// [`SEVERITY_WARNING`], [`SEVERITY_ERROR`] or [`SEVERITY_NOTE`].
    pub severity: u32,
    /// Number of the [`Code`] that fits best; 0 in a note, where nothing is wrong.
    pub code: u32,
    /// What it is about: a path, an entry of the configuration. Never a secret. Notes with the same subject that follow
    /// each other are shown as one block.
    pub subject: Bytes,
    /// What is wrong; in a note, what is so.
    pub message: Bytes,
    /// What to do next; may be empty.
    pub hint: Bytes,
}

/// One page of a listing. The struct belongs to the host. The arrays, and what they point to, belong to the plugin and
/// stay valid and unchanged until the next call of `keys` or `close` on the same store; the host never makes two of
/// those at once.
#[repr(C)]
#[derive(Debug, StableAbi)]
pub struct KeyPage {
    /// Size of this struct in bytes.
    pub size: u32,
    /// The cursor of the next page, of the plugin's choice; 0 after the last.
    pub next: u64,
    /// The keys of this page; anything, also NULL, where `keys_len` is 0.
    pub keys: *const KeyEntry,
    /// How many.
    pub keys_len: usize,
    /// The findings of this page; anything, also NULL, where `findings_len` is 0.
    pub findings: *const FindingEntry,
    /// How many.
    pub findings_len: usize,
}

/// What `health` answers. Belongs to the host; valid until the call returns.
#[repr(C)]
#[derive(Clone, Copy, Debug, StableAbi)]
pub struct HealthReport {
    /// Size of this struct in bytes.
    pub size: u32,
    /// Changes whenever the listing of keys has changed.
    pub generation: u64,
}

/// One log event. Belongs to the plugin; the host copies what it keeps.
#[repr(C)]
#[derive(Clone, Copy, Debug, StableAbi)]
pub struct LogRecord {
    /// Size of this struct in bytes.
    pub size: u32,
    /// [`LOG_ERROR`] to [`LOG_TRACE`].
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

/// What the host offers to one store. Belongs to the host, and lives until the process ends: the pointer may be kept,
/// and the functions called, from `open` on, even after `close`.
#[repr(C)]
#[derive(Clone, Copy, Debug, StableAbi)]
pub struct HostTable {
    /// Size of this struct in bytes.
    pub size: u32,
    /// The host's [`DRAFT`].
    pub draft: u32,
    /// The host's own, to be passed back with every call.
    pub context: *mut c_void,
    /// `[any thread]` 1 where events of a level are wanted, else 0: ask before putting together what is costly.
    pub log_enabled: unsafe extern "C" fn(context: *mut c_void, level: u32) -> u32,
    /// `[any thread]` Takes one event into the server's log, with plugin and store. Never fails.
    pub log: unsafe extern "C" fn(context: *mut c_void, record: *const LogRecord),
    /// `[any thread]` The value of the store's configuration at a JSON Pointer (RFC 6901), as JSON text, a string
    /// without its quotes: `/server/port`, `/keys/0`, `/keys/1`. The empty path is the whole. [`Code::NotFound`] where
    /// there is none: of a member that was left out, behind the end of an array, after `close`.
    pub config: unsafe extern "C" fn(context: *mut c_void, path: Bytes, out: *mut Buffer) -> u32,
    /// `[any thread]` The value of a secret named in the store's `secrets`, read afresh: ask when it is needed, and zero
    /// the buffer after use. [`Code::NotFound`] where no secret has the name, [`Code::Unavailable`] where its source
    /// can't be read. May block: not on [`LANE_INLINE`].
    pub secret: unsafe extern "C" fn(context: *mut c_void, name: Bytes, out: *mut Buffer) -> u32,
    /// `[any thread]` Tells the host to list the keys again. Returns at once; the listing comes later.
    pub keys_changed: unsafe extern "C" fn(context: *mut c_void),
    /// `[any thread]` A further interface of the host by name, or NULL. What it is follows from the name; it lives until
    /// the process ends.
    pub extension: unsafe extern "C" fn(context: *mut c_void, name: Bytes) -> *const c_void,
}

/// Name of the host extension [`CredentialsTable`].
pub const CREDENTIALS_EXTENSION: &str = "keystead.credentials/1";

/// The host's memory of refused credentials. A plugin asks before it presents a secret, and tells what came of it, so
/// that no token sees the same wrong PIN twice, whichever store or restart it comes from. Where the plugin's process dies
/// in between, the secret counts as refused. `token` is whatever the plugin knows the token by, the same each time.
/// Belongs to the host, and lives until the process ends.
#[repr(C)]
#[derive(Clone, Copy, Debug, StableAbi)]
pub struct CredentialsTable {
    /// Size of this struct in bytes.
    pub size: u32,
    /// `[any thread]` 1 where this token has refused this secret before, else 0. `context` is the host table's.
    pub refused: unsafe extern "C" fn(context: *mut c_void, token: Bytes, secret: Bytes) -> u32,
    /// `[any thread]` Remembers that this token refused this secret. The host keeps only a keyed hash.
    pub report: unsafe extern "C" fn(context: *mut c_void, token: Bytes, secret: Bytes),
    /// `[any thread]` Notes that this token accepted this secret.
    pub accepted: unsafe extern "C" fn(context: *mut c_void, token: Bytes, secret: Bytes),
}

/// Name of the host extension [`HttpTable`].
pub const HTTP_EXTENSION: &str = "keystead.http/1";

/// `kind` of a part that is text.
pub const PART_TEXT: u32 = 0;

/// `kind` of a part that is the name of a secret of the store, which the host fills in where the grant names it.
pub const PART_SECRET: u32 = 1;

/// A piece of the value of a header, or of a field of a form. Belongs to the plugin.
#[repr(C)]
#[derive(Clone, Copy, Debug, StableAbi)]
pub struct HttpPart {
    /// Size of this struct in bytes.
    pub size: u32,
    /// [`PART_TEXT`] or [`PART_SECRET`].
    pub kind: u32,
    /// The text, or the name.
    pub value: Bytes,
}

/// A header, or a field of a form: its parts, one after the other. Belongs to the plugin.
#[repr(C)]
#[derive(Clone, Copy, Debug, StableAbi)]
pub struct HttpField {
    /// Size of this struct in bytes.
    pub size: u32,
    /// Its name.
    pub name: Bytes,
    /// The parts of its value.
    pub parts: *const HttpPart,
    /// How many.
    pub parts_len: usize,
}

/// An HTTP request. Belongs to the plugin; valid until the call returns.
#[repr(C)]
#[derive(Clone, Copy, Debug, StableAbi)]
pub struct HttpRequest {
    /// Size of this struct in bytes.
    pub size: u32,
    /// `GET`, `POST`, ...; as the grant has it.
    pub method: Bytes,
    /// Absolute: `https://host[:port]/path?query`.
    pub url: Bytes,
    /// Headers. `host`, `content-length`, and what concerns the connection, are the host's own.
    pub headers: *const HttpField,
    /// How many.
    pub headers_len: usize,
    /// What is sent, at most 1 MiB; nothing where `len` is 0.
    pub body: Bytes,
    /// In its place, the fields of a form (`application/x-www-form-urlencoded`), which the host encodes.
    pub form: *const HttpField,
    /// How many; 0 where it isn't a form.
    pub form_len: usize,
}

/// A header of a response. Belongs to the host.
#[repr(C)]
#[derive(Clone, Copy, Debug, StableAbi)]
pub struct HttpHeader {
    /// Size of this struct in bytes.
    pub size: u32,
    /// Its name, in lower case.
    pub name: Bytes,
    /// Its value.
    pub value: Bytes,
}

/// An HTTP response. The struct belongs to the plugin; what the host put into it belongs to the host, and is valid until
/// `release`.
#[repr(C)]
#[derive(Debug, StableAbi)]
pub struct HttpResponse {
    /// Size of this struct in bytes.
    pub size: u32,
    /// The status code.
    pub status: u32,
    /// Headers, as often as they came.
    pub headers: *const HttpHeader,
    /// How many.
    pub headers_len: usize,
    /// The body, at most 2 MiB.
    pub body: Bytes,
    /// The host's own.
    pub owner: *mut c_void,
}

/// HTTP by the host, within the store's `grants`: it resolves, connects, speaks TLS, keeps connections, fills in secrets.
/// Belongs to the host, and lives until the process ends.
#[repr(C)]
#[derive(Clone, Copy, Debug, StableAbi)]
pub struct HttpTable {
    /// Size of this struct in bytes.
    pub size: u32,
    /// `[any thread]` Sends a request and waits at most `nanos_left` for the whole answer. A status of any kind is an
    /// answer, a redirect too. [`Code::Denied`] where no grant covers the request, with the line of YAML that would;
    /// [`Code::Unavailable`] without a connection or with a broken one; [`Code::Deadline`]; [`Code::InvalidInput`] for a
    /// request that can't be sent. `context` is the host table's. Blocks: not on [`LANE_INLINE`].
    pub fetch: unsafe extern "C" fn(
        context: *mut c_void,
        nanos_left: u64,
        request: *const HttpRequest,
        response: *mut HttpResponse,
        report: *mut Report,
    ) -> u32,
    /// `[any thread]` Gives back what `fetch` put into a response, once, if it answered 0.
    pub release: unsafe extern "C" fn(response: *mut HttpResponse),
}

/// Name of the host extension [`CacheTable`].
pub const CACHE_EXTENSION: &str = "keystead.cache/1";

/// Values that expire, shared by all that serve the store: access tokens. Belongs to the host, and lives until the
/// process ends.
#[repr(C)]
#[derive(Clone, Copy, Debug, StableAbi)]
pub struct CacheTable {
    /// Size of this struct in bytes.
    pub size: u32,
    /// `[any thread]` The value of a name, if it lives for `at_least_ms` from now. [`Code::NotFound`] makes the caller the
    /// one who gets a new one: it calls `put` or `give_up`, and until then others who ask wait, at most `nanos_left` and at
    /// most 30 s. Blocks: not on [`LANE_INLINE`].
    pub get: unsafe extern "C" fn(
        context: *mut c_void,
        nanos_left: u64,
        name: Bytes,
        at_least_ms: u64,
        out: *mut Buffer,
    ) -> u32,
    /// `[any thread]` Keeps a value for `for_ms`, at most 64 KiB.
    pub put: unsafe extern "C" fn(context: *mut c_void, name: Bytes, value: Bytes, for_ms: u64) -> u32,
    /// `[any thread]` Has the next who asks get a value, since this one could not.
    pub give_up: unsafe extern "C" fn(context: *mut c_void, name: Bytes),
    /// `[any thread]` Forgets a value which is no longer good, if it is still this one.
    pub forget: unsafe extern "C" fn(context: *mut c_void, name: Bytes, value: Bytes),
}

/// Name of the host extension [`SignerTable`].
pub const SIGNER_EXTENSION: &str = "keystead.signer/1";

/// Uses of the store's secrets by the host, which doesn't hand them out for it. Belongs to the host, and lives until the
/// process ends.
#[repr(C)]
#[derive(Clone, Copy, Debug, StableAbi)]
pub struct SignerTable {
    /// Size of this struct in bytes.
    pub size: u32,
    /// `[any thread]` Signs a message with the private key that a secret is: PEM or DER, PKCS#8, PKCS#1 or SEC 1. The
    /// [`Algorithm`] is one that signs a digest, which the host makes of the message, or Ed25519.
    pub sign: unsafe extern "C" fn(
        context: *mut c_void,
        secret: Bytes,
        algorithm: u32,
        message: Bytes,
        out: *mut Buffer,
        report: *mut Report,
    ) -> u32,
    /// `[any thread]` HMAC-SHA-256 (RFC 2104) of a message: 32 bytes. The key is a secret, with `prefix` before it.
    pub hmac: unsafe extern "C" fn(
        context: *mut c_void,
        secret: Bytes,
        prefix: Bytes,
        message: Bytes,
        out: *mut Buffer,
        report: *mut Report,
    ) -> u32,
}

/// Name of the plugin extension [`IsolationTable`].
pub const ISOLATION_EXTENSION: &str = "keystead.isolation/1";

/// Which stores of a plugin belong into one process, where it runs in processes of its own. Static and constant.
#[repr(C)]
#[derive(Clone, Copy, Debug, StableAbi)]
pub struct IsolationTable {
    /// Size of this struct in bytes.
    pub size: u32,
    /// `[any thread]` Names the group of a store by its configuration, a JSON object, before any store is open: stores
    /// with the same name share a process. Opens nothing. [`Code::NotFound`] for the plugin's common group.
    pub group: unsafe extern "C" fn(config: Bytes, out: *mut Buffer) -> u32,
}

/// Name of the plugin extension [`AdviceTable`].
pub const ADVICE_EXTENSION: &str = "keystead.advice/1";

/// How a store is best used, where its configuration doesn't say. Static and constant.
#[repr(C)]
#[derive(Clone, Copy, Debug, StableAbi)]
pub struct AdviceTable {
    /// Size of this struct in bytes.
    pub size: u32,
    /// `[any thread]` Fills `advice` in for an open store. Asked once, after `open`; does nothing else.
    pub advise: unsafe extern "C" fn(store: *mut c_void, advice: *mut AdviceReport) -> u32,
}

/// What a plugin advises for one store.
#[repr(C)]
#[derive(Clone, Copy, Debug, StableAbi)]
pub struct AdviceReport {
    /// Size of this struct in bytes.
    pub size: u32,
    /// How many lanes get the most out of it; 0 for no opinion.
    pub lanes: u32,
    /// How long all its lanes may hang in calls before none will come back, in milliseconds; 0 for no opinion.
    pub stuck_after_ms: u64,
}

/// What a plugin offers: the one table of the contract. Static and constant; no function is NULL.
#[repr(C)]
#[derive(Clone, Copy, Debug, StableAbi)]
pub struct BackendTable {
    /// Size of this struct in bytes.
    pub size: u32,
    /// The plugin's [`DRAFT`].
    pub draft: u32,
    /// `[any thread]` What the plugin is: always the same static struct. Does nothing else.
    pub describe: unsafe extern "C" fn() -> *const DescriptionTable,
    /// `[open]` Opens a store and sets `store` to a pointer of the plugin's own, which comes back with every call. `host`
    /// lives until the process ends and may be kept. On failure, nothing stays behind: the host tries again later, with
    /// a new call. [`Code::Credentials`] where a PIN or passphrase was refused, which is not tried again with the same.
    pub open:
        unsafe extern "C" fn(host: *const HostTable, store: *mut *mut c_void, report: *mut Report) -> u32,
    /// `[close]` Closes a store within `grace` nanoseconds: logs out, and zeroes secrets. Calls that are still going on
    /// may end with [`Code::Unavailable`], and must find the memory they use.
    pub close: unsafe extern "C" fn(store: *mut c_void, grace: u64, report: *mut Report) -> u32,
    /// `[housekeeping lane]` One page of the keys. Cursor 0 takes a new, consistent listing; other cursors come from the
    /// page before. An entry that can't be used is a finding, not a failure: the rest is served.
    pub keys: unsafe extern "C" fn(
        store: *mut c_void,
        context: *const Context,
        cursor: u64,
        page: *mut KeyPage,
        report: *mut Report,
    ) -> u32,
    /// `[lane]` Signs `input` with a key by an [`Algorithm`] into the host's buffer. What `input` is, and its length,
    /// follows from the algorithm. [`Code::NotFound`] for an id that no key has, [`Code::Unsupported`] for an algorithm
    /// that the key hasn't listed, [`Code::InvalidInput`] for an input of the wrong length.
    pub sign: unsafe extern "C" fn(
        store: *mut c_void,
        context: *const Context,
        key: Bytes,
        algorithm: u32,
        input: Bytes,
        out: *mut Buffer,
        report: *mut Report,
    ) -> u32,
    /// `[lane]` Decrypts likewise. The plaintext is a secret.
    pub decrypt: unsafe extern "C" fn(
        store: *mut c_void,
        context: *const Context,
        key: Bytes,
        algorithm: u32,
        input: Bytes,
        out: *mut Buffer,
        report: *mut Report,
    ) -> u32,
    /// `[housekeeping lane]` Whether the store works, asked every 30 s; the place for keep-alives.
    pub health: unsafe extern "C" fn(
        store: *mut c_void,
        context: *const Context,
        health: *mut HealthReport,
        report: *mut Report,
    ) -> u32,
    /// `[any thread]` A further interface of the plugin by name, or NULL.
    pub extension: unsafe extern "C" fn(name: Bytes) -> *const c_void,
}

/// `[any thread]` The one symbol that a plugin in C exports, called [`ENTRY_POINT`]. The host passes the draft it
/// speaks; the plugin answers its static table of that draft, or NULL where it doesn't speak it, so that a host can ask
/// for what it knows from the newest to the oldest. Does nothing else.
pub type EntryPoint = unsafe extern "C" fn(draft: u32) -> *const BackendTable;

/// Name of the entry point of a plugin in C. A plugin in Rust exports a header of `abi_stable` in its place.
pub const ENTRY_POINT: &str = "keystead_plugin";

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
