//! The host's C table, as a library gets it.

use std::ffi::c_void;

use keystead_plugin_api::{
    Code,
    abi::{Buffer, Bytes, DRAFT, HostTable, LogRecord, struct_size},
};
use zeroize::Zeroizing;

use super::{Event, HostSide, contain, extensions};

/// The table that a plugin gets. It lives until the process ends.
pub(crate) fn table(side: &'static dyn HostSide) -> &'static HostTable {
    Box::leak(Box::new(HostTable {
        size: struct_size::<HostTable>(),
        draft: DRAFT,
        context: std::ptr::from_mut(Box::leak(Box::new(side))).cast(),
        log_enabled,
        log,
        config,
        secret,
        keys_changed,
        extension,
    }))
}

/// The value of the configuration at a JSON Pointer, as text.
pub(crate) fn config_at(side: &dyn HostSide, path: &str) -> Option<Zeroizing<Vec<u8>>> {
    let config = side.config()?;
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

/// # Safety
///
/// `context` is that of a table made by [`table`].
pub(super) unsafe fn side(context: *mut c_void) -> &'static dyn HostSide {
    // SAFETY: promised by the caller; what the context leads to is leaked and so lives for ever.
    unsafe { *context.cast_const().cast::<&'static dyn HostSide>() }
}

/// # Safety
///
/// As `abi` demands of the plugin: `out` is a buffer of its own.
pub(super) unsafe fn answer(out: *mut Buffer, value: Option<&[u8]>) -> u32 {
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

unsafe extern "C" fn log_enabled(context: *mut c_void, level: u32) -> u32 {
    // SAFETY: the context is ours.
    let side = unsafe { side(context) };
    u32::from(contain(false, || side.wants(level)))
}

unsafe extern "C" fn log(context: *mut c_void, record: *const LogRecord) {
    // SAFETY: the context is ours, and the plugin passes a record of its own or, in error, NULL.
    let (side, Some(record)) = (unsafe { (side(context), record.as_ref()) }) else { return };
    // SAFETY: the plugin keeps what the record points to valid through the call (`abi`).
    let event = unsafe {
        Event {
            level: record.level,
            target: record.target.as_slice(),
            message: record.message.as_slice(),
            fields: record.fields.as_slice(),
            request: record.request_id.as_slice(),
        }
    };
    contain((), || side.log(&event));
}

unsafe extern "C" fn config(context: *mut c_void, path: Bytes, out: *mut Buffer) -> u32 {
    // SAFETY: the context is ours, and the plugin keeps the path valid through the call.
    let (side, path) = unsafe { (side(context), path.as_slice()) };
    let value = std::str::from_utf8(path).ok().and_then(|path| config_at(side, path));
    // SAFETY: the buffer is the plugin's.
    unsafe { answer(out, value.as_ref().map(|value| value.as_slice())) }
}

unsafe extern "C" fn secret(context: *mut c_void, name: Bytes, out: *mut Buffer) -> u32 {
    // SAFETY: the context is ours, and the plugin keeps the name valid through the call.
    let (side, name) = unsafe { (side(context), name.as_slice()) };
    let name = std::str::from_utf8(name).unwrap_or_default();
    match contain(Some(Err(String::new())), || side.secret(name)) {
        Some(Err(_)) => Code::Unavailable as u32,
        // SAFETY: the buffer is the plugin's.
        Some(Ok(value)) => unsafe { answer(out, Some(&value)) },
        // SAFETY: the buffer is the plugin's.
        None => unsafe { answer(out, None) },
    }
}

unsafe extern "C" fn keys_changed(context: *mut c_void) {
    // SAFETY: the context is ours.
    let side = unsafe { side(context) };
    contain((), || side.keys_changed());
}

unsafe extern "C" fn extension(_context: *mut c_void, name: Bytes) -> *const c_void {
    // SAFETY: the plugin keeps the name valid through the call.
    extensions::named(unsafe { name.as_slice() })
}
