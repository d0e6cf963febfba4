//! Sizes and offsets: Rust's numbers, which the header makes the C compiler compare with its own.

use std::mem::offset_of;

use keystead_plugin_api::abi::{
    AdviceReport, AdviceTable, BackendTable, Buffer, Bytes, CacheTable, Context, CredentialsTable,
    DescriptionTable, FindingEntry, HealthReport, HostTable, HttpField, HttpHeader, HttpPart, HttpRequest,
    HttpResponse, HttpTable, IsolationTable, KeyEntry, KeyPage, LogRecord, Report, SignerTable,
};

/// The layout of each struct, as assertions in C.
pub(crate) fn assertions() -> String {
    let structs = [
        layout!(Bytes "bytes": ptr, len),
        layout!(Buffer "buffer": ptr, capacity, len),
        layout!(Context "context": size, lane, nanos_left, request_id),
        layout!(Report "report": size, vendor_code, retry_after_ms, vendor_name, message),
        layout!(DescriptionTable "description": size, isolation, lanes_max, name, version, vendor, schema),
        layout!(KeyEntry "key": size, call_class, id, spki, label, algorithms, algorithms_len),
        layout!(FindingEntry "finding": size, severity, code, subject, message, hint),
        layout!(KeyPage "page": size, next, keys, keys_len, findings, findings_len),
        layout!(HealthReport "health": size, generation),
        layout!(LogRecord "log_record": size, level, target, message, fields, request_id),
        layout!(HostTable "host": size, draft, context, log_enabled, log, config, secret, keys_changed, extension),
        layout!(CredentialsTable "credentials": size, refused, report, accepted),
        layout!(HttpPart "http_part": size, kind, value),
        layout!(HttpField "http_field": size, name, parts, parts_len),
        layout!(HttpRequest "http_request": size, method, url, headers, headers_len, body, form, form_len),
        layout!(HttpHeader "http_header": size, name, value),
        layout!(HttpResponse "http_response": size, status, headers, headers_len, body, owner),
        layout!(HttpTable "http": size, fetch, release),
        layout!(CacheTable "cache": size, get, put, give_up, forget),
        layout!(SignerTable "signer": size, sign, hmac),
        layout!(IsolationTable "isolation": size, group),
        layout!(AdviceReport "advice_report": size, lanes, stuck_after_ms),
        layout!(AdviceTable "advice": size, advise),
        layout!(BackendTable "backend": size, draft, describe, open, close, keys, sign, decrypt, health, extension),
    ];
    structs.concat()
}

macro_rules! layout {
    ($rust:ident $c:literal: $($field:ident),+) => {{
        // Doesn't compile where a member is missing here.
        let _all_of_them = |$rust { $($field: _),+ }: $rust| ();
        let size = format!("KEYSTEAD_ASSERT(sizeof(keystead_{}) == {});\n", $c, size_of::<$rust>());
        let offset = |field: &str, offset: usize| {
            format!("KEYSTEAD_ASSERT(offsetof(keystead_{}, {field}) == {offset});\n", $c)
        };
        [size, $(offset(stringify!($field), offset_of!($rust, $field))),+].concat()
    }};
}
use layout;
