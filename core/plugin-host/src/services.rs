//! What the host offers to a plugin: log, configuration, secrets, news of changed keys, the memory of refused
//! credentials. One set for every store; it lives until the process ends, because a plugin may call it at any time.

use std::{
    ffi::c_void,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex, PoisonError},
};

use keystead_plugin_api::{
    Code,
    abi::{Buffer, Bytes, CREDENTIALS_EXTENSION, CredentialsTable, DRAFT, HostTable, LogRecord, struct_size},
};
use tokio::sync::Notify;
use zeroize::Zeroizing;

use crate::{failure::tame, latch::Latch};

/// Where a store's secrets come from; read afresh at each call.
pub trait Secrets: Send + Sync {
    /// The value of a secret; `None` where the configuration names none.
    ///
    /// # Errors
    ///
    /// Where its source can't be read: a sentence without the secret.
    fn read(&self, name: &str) -> Option<Result<Zeroizing<Vec<u8>>, String>>;
}

/// The host's side of one store.
pub(crate) struct Services {
    store: String,
    plugin: String,
    private: Mutex<Option<Private>>,
    latch: Arc<Latch>,
    changed: Notify,
}

/// What is forgotten when the store is closed.
#[derive(Clone)]
struct Private {
    config: Zeroizing<Vec<u8>>,
    secrets: Arc<dyn Secrets>,
}

impl Services {
    pub(crate) fn new(
        store: &str,
        plugin: &str,
        config: &serde_json::Value,
        secrets: Box<dyn Secrets>,
        latch: Arc<Latch>,
    ) -> &'static Self {
        let config = Zeroizing::new(config.to_string().into_bytes());
        Box::leak(Box::new(Self {
            store: store.to_owned(),
            plugin: plugin.to_owned(),
            private: Mutex::new(Some(Private { config, secrets: secrets.into() })),
            latch,
            changed: Notify::new(),
        }))
    }

    /// The table that the plugin gets.
    pub(crate) fn table(&'static self) -> &'static HostTable {
        Box::leak(Box::new(HostTable {
            size: struct_size::<HostTable>(),
            draft: DRAFT,
            context: std::ptr::from_ref(self).cast_mut().cast(),
            log_enabled,
            log,
            config,
            secret,
            keys_changed,
            extension,
        }))
    }

    /// Waits until the plugin says that its keys have changed.
    pub(crate) async fn keys_changed(&self) {
        self.changed.notified().await;
    }

    /// Forgets the configuration, which may hold secrets, and the way to the secrets, once the store is closed.
    pub(crate) fn forget(&self) {
        *self.private.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    fn private(&self) -> Option<Private> {
        self.private.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn config_at(&self, path: &str) -> Option<Zeroizing<Vec<u8>>> {
        let config = self.private()?.config;
        if path.is_empty() {
            return Some(config);
        }
        let whole: serde_json::Value = serde_json::from_slice(&config).ok()?;
        let text = match whole.pointer(path)? {
            serde_json::Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        Some(Zeroizing::new(text.into_bytes()))
    }

    fn record(&self, record: &LogRecord) {
        // SAFETY: the plugin keeps what the record points to valid through the call (`abi`).
        let (target, message, fields, request) = unsafe {
            (
                tame(record.target.as_slice(), 128),
                tame(record.message.as_slice(), 1024),
                tame(record.fields.as_slice(), 1024),
                tame(record.request_id.as_slice(), 128),
            )
        };
        let (plugin, store) = (&self.plugin, &self.store);
        macro_rules! event {
            ($level:ident) => {
                tracing::$level!(target: "keystead::plugin", plugin, store, request, module = target, fields, "{message}")
            };
        }
        match record.level {
            1 => event!(error),
            2 => event!(warn),
            3 => event!(info),
            4 => event!(debug),
            _ => event!(trace),
        }
    }
}

/// # Safety
///
/// `context` is that of a table made by [`Services::table`].
unsafe fn services(context: *mut c_void) -> &'static Services {
    // SAFETY: promised by the caller; the services are leaked and so live for ever.
    unsafe { &*context.cast_const().cast::<Services>() }
}

/// # Safety
///
/// As `abi` demands of the plugin: `out` is a buffer of its own.
unsafe fn answer(out: *mut Buffer, value: Option<&[u8]>) -> u32 {
    // SAFETY: the plugin passes a buffer of its own that lives through the call; NULL is answered as a defect.
    match (unsafe { out.as_mut() }, value) {
        (None, _) => Code::InvalidInput as u32,
        (_, None) => Code::NotFound as u32,
        // SAFETY: the plugin's buffer has the capacity it states.
        (Some(out), Some(value)) => match unsafe { out.fill(value) } {
            true => 0,
            false => Code::BufferTooSmall as u32,
        },
    }
}

/// Runs code of the server's, a subscriber or a source of secrets: a panic there must not end the process, which it
/// would at the boundary to the plugin.
fn contain<T>(otherwise: T, body: impl FnOnce() -> T) -> T {
    catch_unwind(AssertUnwindSafe(body)).unwrap_or(otherwise)
}

unsafe extern "C" fn log_enabled(_context: *mut c_void, level: u32) -> u32 {
    macro_rules! enabled {
        ($level:ident) => {
            tracing::enabled!(target: "keystead::plugin", tracing::Level::$level)
        };
    }
    u32::from(match level {
        1 => enabled!(ERROR),
        2 => enabled!(WARN),
        3 => enabled!(INFO),
        4 => enabled!(DEBUG),
        _ => enabled!(TRACE),
    })
}

unsafe extern "C" fn log(context: *mut c_void, record: *const LogRecord) {
    // SAFETY: the context is ours, and the plugin passes a record of its own or, in error, NULL.
    if let (services, Some(record)) = unsafe { (services(context), record.as_ref()) } {
        contain((), || services.record(record));
    }
}

unsafe extern "C" fn config(context: *mut c_void, path: Bytes, out: *mut Buffer) -> u32 {
    // SAFETY: the context is ours, and the plugin keeps the path valid through the call.
    let (services, path) = unsafe { (services(context), path.as_slice()) };
    let value = std::str::from_utf8(path).ok().and_then(|path| services.config_at(path));
    // SAFETY: the buffer is the plugin's.
    unsafe { answer(out, value.as_ref().map(|value| value.as_slice())) }
}

unsafe extern "C" fn secret(context: *mut c_void, name: Bytes, out: *mut Buffer) -> u32 {
    // SAFETY: the context is ours, and the plugin keeps the name valid through the call.
    let (services, name) = unsafe { (services(context), name.as_slice()) };
    let name = std::str::from_utf8(name).unwrap_or_default();
    let read = || services.private().and_then(|private| private.secrets.read(name));
    match contain(Some(Err("reading it panicked".to_owned())), read) {
        Some(Err(error)) => {
            tracing::warn!(store = services.store, secret = name, "a secret can't be read: {error}");
            Code::Unavailable as u32
        }
        // SAFETY: the buffer is the plugin's.
        Some(Ok(value)) => unsafe { answer(out, Some(&value)) },
        // SAFETY: the buffer is the plugin's.
        None => unsafe { answer(out, None) },
    }
}

unsafe extern "C" fn keys_changed(context: *mut c_void) {
    // SAFETY: the context is ours.
    unsafe { services(context) }.changed.notify_one();
}

unsafe extern "C" fn extension(_context: *mut c_void, name: Bytes) -> *const c_void {
    static CREDENTIALS: CredentialsTable =
        CredentialsTable { size: struct_size::<CredentialsTable>(), refused, report };
    // SAFETY: the plugin keeps the name valid through the call.
    match unsafe { name.as_slice() } {
        name if name == CREDENTIALS_EXTENSION.as_bytes() => (&raw const CREDENTIALS).cast(),
        _ => std::ptr::null(),
    }
}

unsafe extern "C" fn refused(context: *mut c_void, token: Bytes, secret: Bytes) -> u32 {
    // SAFETY: the context is ours, and the plugin keeps both slices valid through the call.
    let (services, token, secret) = unsafe { (services(context), token.as_slice(), secret.as_slice()) };
    u32::from(services.latch.is_refused(&services.plugin, token, secret))
}

unsafe extern "C" fn report(context: *mut c_void, token: Bytes, secret: Bytes) {
    // SAFETY: the context is ours, and the plugin keeps both slices valid through the call.
    let (services, token, secret) = unsafe { (services(context), token.as_slice(), secret.as_slice()) };
    services.latch.remember(&services.plugin, token, secret);
}
