/*
 * keystead_plugin.h - all that a Keystead plugin in C or C++ needs.
 *
 * SPDX-License-Identifier: Apache-2.0 OR MIT
 *
 * Closed plugins may include this file and use it without further ado: nothing of Keystead is linked.
 *
 * Made from plugin-api/src/abi.rs; don't edit. A whole plugin to start from is in examples/plugin-c.
 *
 * BUILDING
 *
 * A plugin is a shared library libkeystead_plugin_NAME.so for 64-bit Linux that exports one symbol, keystead_plugin:
 *
 *     cc -std=c11 -shared -fPIC -fvisibility=hidden -o libkeystead_plugin_NAME.so plugin.c
 *
 * With -fvisibility=hidden the declaration below exports keystead_plugin and nothing else. Libraries that are linked in
 * statically may still export their symbols: hide those with -Wl,--exclude-libs,ALL, or everything by a version script
 * (-Wl,--version-script=FILE) of one line: { global: keystead_plugin; local: *; };
 *
 * The library runs on machines whose glibc is at least as new as the one it was built with, so build it on the oldest
 * system that it is for. Keystead itself needs glibc 2.28. A library that is linked against musl is refused: it would
 * bring a second libc into the process. Libraries are loaded with RTLD_NOW and RTLD_LOCAL, and never unloaded.
 *
 * WHAT A PLUGIN MAY NOT DO
 *
 * A plugin is a guest in a server that goes on for months. It may not end the process, fork, change signal dispositions
 * or masks of threads that aren't its own, the locale, the working directory, the umask or the environment, nor read
 * standard input or write to standard output or error: what it has to say it logs. It may have threads of its own.
 */
#ifndef KEYSTEAD_PLUGIN_H
#define KEYSTEAD_PLUGIN_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#ifdef __cplusplus
#define KEYSTEAD_ASSERT(condition) static_assert(condition, #condition)
extern "C" {
#else
#define KEYSTEAD_ASSERT(condition) _Static_assert(condition, #condition)
#endif

// What marks the one symbol that is exported, also under -fvisibility=hidden.
#define KEYSTEAD_EXPORT __attribute__((visibility("default")))

// ---- Rules ----------------------------------------------------------------------------------------------------------

// == A life
//
// Loading a library does nothing: no thread, no I/O. The host asks its entry point (keystead_plugin) for the table,
// calls `describe`, checks the store's configuration against the schema it finds there, and then calls `open`, once for
// each store. `keys` lists what the store holds, `sign` and `decrypt` use it, `health` comes every 30 s, `close` ends
// it. A plugin may have many stores at once. Nothing is ever unloaded.
//
// == Memory
//
// Every struct starts with its own `size` in bytes, which its maker sets; a member beyond `size` isn't there. Arrays of
// structs are walked by the `size` of their first element. Text is UTF-8 without a terminating NUL.
//
// Memory belongs to whoever allocated it, and is valid until the call returns unless its description says otherwise.
// What is to be kept is copied; nobody frees what the other side allocated. Buffers to be filled belong to the caller:
// the callee writes at most `capacity` bytes and sets `len`; where more is needed it sets `len` to that number, writes
// nothing, and answers KEYSTEAD_BUFFER_TOO_SMALL. Pointers are never NULL, except where it is said.
//
// == Errors
//
// A function that returns a number returns 0 when all went well, else the number of a code; what is known beside
// it goes into the keystead_report. Nothing that is reported, logged or listed may hold a secret. No exception,
// unwinding or `longjmp` crosses the boundary, in either direction.
//
// == Threads
//
// The host calls from many threads, and a thread is nobody's own. Each function says when it may be called:
//
// - [any thread]: at any time, from any thread, also overlapping itself.
// - [open]: once for each store, before any other call to it. Several stores may be opened at once.
// - [lane]: on the lane that the keystead_context names. Calls with the same number never overlap, so what a lane owns
//   (a session, a connection) needs no lock. Lanes are numbered from 0; `lanes_max` limits them. Calls on
//   KEYSTEAD_LANE_INLINE may overlap with anything, and must neither block nor take long.
// - [housekeeping lane]: as [lane], on KEYSTEAD_LANE_HOUSEKEEPING; it overlaps with the other lanes.
// - [close]: once, last. No call to the store starts after it, but some may still be on their way, or hang.
//
// A plugin may have threads of its own.

// ---- Numbers --------------------------------------------------------------------------------------------------------

// All went well.
#define KEYSTEAD_OK 0

// No such key. Not retried.
#define KEYSTEAD_NOT_FOUND 1

// The key or backend can't do this. Not retried.
#define KEYSTEAD_UNSUPPORTED 2

// An input, or a piece of configuration, that can't be used. Not retried.
#define KEYSTEAD_INVALID_INPUT 3

// The backend refuses: a policy, a permission. Not retried.
#define KEYSTEAD_DENIED 4

// A PIN, password or token was refused. Never retried by anything until the secret or the configuration changes.
#define KEYSTEAD_CREDENTIALS 5

// Too many requests; `retry_after_ms` of the report may say when. Retried within the deadline.
#define KEYSTEAD_THROTTLED 6

// The device or service can't be reached, or failed in a way that may pass. Retried within the deadline.
#define KEYSTEAD_UNAVAILABLE 7

// The time given ran out. Not retried.
#define KEYSTEAD_DEADLINE 8

// A defect: a panic, a broken rule. Not retried.
#define KEYSTEAD_INTERNAL 9

// The host's buffer is too small; its `len` says what is needed. Only at the boundary.
#define KEYSTEAD_BUFFER_TOO_SMALL 10

// `rsa-pkcs1-md5sha1`, for `sign`; input is a digest of 36 bytes. RSASSA-PKCS1-v1_5 over MD5 || SHA-1, 36 bytes without
// DigestInfo (TLS 1.0, RFC 2246 section 4.7).
#define KEYSTEAD_RSA_PKCS1_MD5SHA1 0x01

// `rsa-pkcs1-sha1`, for `sign`; input is a digest of 20 bytes. RSASSA-PKCS1-v1_5 (RFC 8017 section 8.2) with SHA-1.
#define KEYSTEAD_RSA_PKCS1_SHA1 0x02

// `rsa-pkcs1-sha224`, for `sign`; input is a digest of 28 bytes. RSASSA-PKCS1-v1_5 with SHA-224.
#define KEYSTEAD_RSA_PKCS1_SHA224 0x03

// `rsa-pkcs1-sha256`, for `sign`; input is a digest of 32 bytes. RSASSA-PKCS1-v1_5 with SHA-256.
#define KEYSTEAD_RSA_PKCS1_SHA256 0x04

// `rsa-pkcs1-sha384`, for `sign`; input is a digest of 48 bytes. RSASSA-PKCS1-v1_5 with SHA-384.
#define KEYSTEAD_RSA_PKCS1_SHA384 0x05

// `rsa-pkcs1-sha512`, for `sign`; input is a digest of 64 bytes. RSASSA-PKCS1-v1_5 with SHA-512.
#define KEYSTEAD_RSA_PKCS1_SHA512 0x06

// `rsa-pss-sha256`, for `sign`; input is a digest of 32 bytes. RSASSA-PSS (RFC 8017 section 8.1) with SHA-256, MGF1
// with the same hash, salt as long as the hash.
#define KEYSTEAD_RSA_PSS_SHA256 0x11

// `rsa-pss-sha384`, for `sign`; input is a digest of 48 bytes. RSASSA-PSS with SHA-384, likewise.
#define KEYSTEAD_RSA_PSS_SHA384 0x12

// `rsa-pss-sha512`, for `sign`; input is a digest of 64 bytes. RSASSA-PSS with SHA-512, likewise.
#define KEYSTEAD_RSA_PSS_SHA512 0x13

// `ecdsa-md5sha1`, for `sign`; input is a digest of 36 bytes. ECDSA over MD5 || SHA-1. The result of every ECDSA is DER
// `ECDSA-Sig-Value` (RFC 3279 section 2.2.3).
#define KEYSTEAD_ECDSA_MD5SHA1 0x21

// `ecdsa-sha1`, for `sign`; input is a digest of 20 bytes. ECDSA over a SHA-1 digest.
#define KEYSTEAD_ECDSA_SHA1 0x22

// `ecdsa-sha224`, for `sign`; input is a digest of 28 bytes. ECDSA over a SHA-224 digest.
#define KEYSTEAD_ECDSA_SHA224 0x23

// `ecdsa-sha256`, for `sign`; input is a digest of 32 bytes. ECDSA over a SHA-256 digest. A digest longer than the
// curve's order is truncated (FIPS 186-5 section 6.4).
#define KEYSTEAD_ECDSA_SHA256 0x24

// `ecdsa-sha384`, for `sign`; input is a digest of 48 bytes. ECDSA over a SHA-384 digest.
#define KEYSTEAD_ECDSA_SHA384 0x25

// `ecdsa-sha512`, for `sign`; input is a digest of 64 bytes. ECDSA over a SHA-512 digest.
#define KEYSTEAD_ECDSA_SHA512 0x26

// `ed25519`, for `sign`; input is the message. Pure Ed25519 over the message itself (RFC 8032 section 5.1); 64 bytes
// result.
#define KEYSTEAD_ED25519 0x31

// `rsa-raw`, for `decrypt`; input is a block. The raw RSA private-key operation (RFC 8017 section 5.1.2). The input is
// an integer smaller than the modulus, shorter inputs count as left-padded; the result is always as long as the
// modulus, padding and all.
#define KEYSTEAD_RSA_RAW 0x41

// The draft of this contract. Host and plugin must agree on it exactly until 1.0 is frozen.
#define KEYSTEAD_DRAFT 2

// The lane of calls to keys of class KEYSTEAD_CALL_INLINE, which may overlap with anything.
#define KEYSTEAD_LANE_INLINE UINT32_MAX

// The lane of `keys` and `health`.
#define KEYSTEAD_LANE_HOUSEKEEPING (UINT32_MAX - 1)

// `nanos_left` of a call without a deadline.
#define KEYSTEAD_NO_DEADLINE UINT64_MAX

// The longest key id, in bytes.
#define KEYSTEAD_KEY_ID_MAX 255

// `isolation` of a plugin that is fine in the server's own process.
#define KEYSTEAD_ISOLATION_INLINE 0

// `isolation` of a plugin that is better run in a process of its own, because its libraries may crash or fork.
#define KEYSTEAD_ISOLATION_PROCESS 1

// `call_class` of a key that is used by a short computation (at most some 200 microseconds of CPU, no waiting): called
// on KEYSTEAD_LANE_INLINE.
#define KEYSTEAD_CALL_INLINE 0

// `call_class` of a key whose use may wait for a device or a network: called on numbered lanes.
#define KEYSTEAD_CALL_BLOCKING 1

// `severity` of a finding: it works, but.
#define KEYSTEAD_SEVERITY_WARNING 0

// `severity` of a finding: this entry isn't served.
#define KEYSTEAD_SEVERITY_ERROR 1

// `severity` of a finding: good to know, and nothing is wrong. What there is, and why something was passed over: told
// by `keystead check`, logged at `debug` only.
#define KEYSTEAD_SEVERITY_NOTE 2

// `level` of an event: somebody must act.
#define KEYSTEAD_LOG_ERROR 1

// `level` of an event: something is not as it should be.
#define KEYSTEAD_LOG_WARN 2

// `level` of an event: of interest in ordinary operation, and rare.
#define KEYSTEAD_LOG_INFO 3

// `level` of an event: for whoever looks for a fault.
#define KEYSTEAD_LOG_DEBUG 4

// `level` of an event: each step.
#define KEYSTEAD_LOG_TRACE 5

// `kind` of a part that is text.
#define KEYSTEAD_PART_TEXT 0

// `kind` of a part that is the name of a secret of the store, which the host fills in where the grant names it.
#define KEYSTEAD_PART_SECRET 1

// ---- Types ----------------------------------------------------------------------------------------------------------

// Borrowed bytes. Whoever receives them may read them until the call returns, and copies what it keeps.
typedef struct keystead_bytes {
    // The first byte; anything, also NULL, where `len` is 0.
    const uint8_t *ptr;
    // How many bytes.
    size_t len;
} keystead_bytes;

// A buffer to be filled. It belongs to the caller; the callee writes to it until the call returns, and not later.
typedef struct keystead_buffer {
    // The first byte; anything, also NULL, where `capacity` is 0.
    uint8_t *ptr;
    // How many bytes fit. Set by the caller.
    size_t capacity;
    // How many bytes were written; with KEYSTEAD_BUFFER_TOO_SMALL, how many are needed. Set by the callee.
    size_t len;
} keystead_buffer;

// What the host says with each call. Belongs to the host; valid until the call returns.
typedef struct keystead_context {
    // Size of this struct in bytes.
    uint32_t size;
    // The lane: a number from 0 on, KEYSTEAD_LANE_INLINE or KEYSTEAD_LANE_HOUSEKEEPING.
    uint32_t lane;
    // Nanoseconds left until nobody waits for the answer any more, or KEYSTEAD_NO_DEADLINE. Who can't answer in time
    // answers KEYSTEAD_DEADLINE; an answer that comes late is thrown away.
    uint64_t nanos_left;
    // The request's id, for logs; may be empty.
    keystead_bytes request_id;
} keystead_context;

// What a failing function says beside its code. Belongs to the host, which sets `size` and the buffers and leaves the
// rest zero; valid until the call returns, and NULL where the host doesn't want one. Text that doesn't fit is cut.
typedef struct keystead_report {
    // Size of this struct in bytes.
    uint32_t size;
    // The vendor's own code; counts only where `vendor_name` isn't empty.
    uint64_t vendor_code;
    // Milliseconds after which trying again makes sense; 0 where nothing is known.
    uint64_t retry_after_ms;
    // The vendor's name of that code (`CKR_PIN_INCORRECT`, `HTTP`); the host offers 64 bytes.
    keystead_buffer vendor_name;
    // One sentence for the operator, without secrets: what, where, what to do next; the host offers 1,024 bytes.
    keystead_buffer message;
} keystead_report;

// What a plugin is. Static: the host may read it at any time until the process ends.
typedef struct keystead_description {
    // Size of this struct in bytes.
    uint32_t size;
    // Preferred isolation: KEYSTEAD_ISOLATION_INLINE or KEYSTEAD_ISOLATION_PROCESS.
    uint32_t isolation;
    // The most lanes one store can use; 0 where there is no limit.
    uint32_t lanes_max;
    // Short name, the NAME of `libkeystead_plugin_NAME.so`: 1 to 64 lower-case letters, digits, hyphens, underscores.
    keystead_bytes name;
    // The plugin's own version, 1 to 64 bytes.
    keystead_bytes version;
    // Who made it, 1 to 64 bytes.
    keystead_bytes vendor;
    // JSON Schema (2020-12) of the store's `config`, at most 1 MiB; secrets are marked `"writeOnly": true`. The host
    // refuses a configuration that doesn't fit before `open` is called, and names the member: a plugin needs no checks
    // of its own for `type`, `enum`, `required`, `properties`, `additionalProperties`, `items`, `minItems`, `maxItems`,
    // `uniqueItems`, `minLength`, `maxLength`, `minimum` and `maximum`. Further keywords are the plugin's to enforce.
    keystead_bytes schema;
} keystead_description;

// One key.
typedef struct keystead_key {
    // Size of this struct in bytes.
    uint32_t size;
    // KEYSTEAD_CALL_INLINE or KEYSTEAD_CALL_BLOCKING.
    uint32_t call_class;
    // Opaque id, 1 to KEYSTEAD_KEY_ID_MAX bytes, unique in the store; the same after re-opening and restarting.
    keystead_bytes id;
    // DER SubjectPublicKeyInfo (RFC 5280 section 4.1).
    keystead_bytes spki;
    // What the operator calls it, at most 256 bytes; may be empty.
    keystead_bytes label;
    // Numbers of the algorithms that this key can really do, each once.
    const uint32_t *algorithms;
    // How many.
    size_t algorithms_len;
} keystead_key;

// Something that could not be opened, or that the operator should know. The host takes up to 100,000 of a listing, and
// of each text 1,024 bytes.
typedef struct keystead_finding {
    // Size of this struct in bytes.
    uint32_t size;
    // KEYSTEAD_SEVERITY_WARNING, KEYSTEAD_SEVERITY_ERROR or KEYSTEAD_SEVERITY_NOTE.
    uint32_t severity;
    // Number of the code that fits best; 0 in a note, where nothing is wrong.
    uint32_t code;
    // What it is about: a path, an entry of the configuration. Never a secret. Notes with the same subject that follow
    // each other are shown as one block.
    keystead_bytes subject;
    // What is wrong; in a note, what is so.
    keystead_bytes message;
    // What to do next; may be empty.
    keystead_bytes hint;
} keystead_finding;

// One page of a listing. The struct belongs to the host. The arrays, and what they point to, belong to the plugin and
// stay valid and unchanged until the next call of `keys` or `close` on the same store; the host never makes two of
// those at once.
typedef struct keystead_page {
    // Size of this struct in bytes.
    uint32_t size;
    // The cursor of the next page, of the plugin's choice; 0 after the last.
    uint64_t next;
    // The keys of this page; anything, also NULL, where `keys_len` is 0.
    const keystead_key *keys;
    // How many.
    size_t keys_len;
    // The findings of this page; anything, also NULL, where `findings_len` is 0.
    const keystead_finding *findings;
    // How many.
    size_t findings_len;
} keystead_page;

// What `health` answers. Belongs to the host; valid until the call returns.
typedef struct keystead_health {
    // Size of this struct in bytes.
    uint32_t size;
    // Changes whenever the listing of keys has changed.
    uint64_t generation;
} keystead_health;

// One log event. Belongs to the plugin; the host copies what it keeps.
typedef struct keystead_log_record {
    // Size of this struct in bytes.
    uint32_t size;
    // KEYSTEAD_LOG_ERROR to KEYSTEAD_LOG_TRACE.
    uint32_t level;
    // Module or component.
    keystead_bytes target;
    // The sentence.
    keystead_bytes message;
    // Further fields as a JSON object; may be empty.
    keystead_bytes fields;
    // The request's id; may be empty.
    keystead_bytes request_id;
} keystead_log_record;

// What the host offers to one store. Belongs to the host, and lives until the process ends: the pointer may be kept,
// and the functions called, from `open` on, even after `close`.
typedef struct keystead_host {
    // Size of this struct in bytes.
    uint32_t size;
    // The host's KEYSTEAD_DRAFT.
    uint32_t draft;
    // The host's own, to be passed back with every call.
    void *context;
    // [any thread] 1 where events of a level are wanted, else 0: ask before putting together what is costly.
    uint32_t (*log_enabled)(void *context, uint32_t level);
    // [any thread] Takes one event into the server's log, with plugin and store. Never fails.
    void (*log)(void *context, const keystead_log_record *record);
    // [any thread] The value of the store's configuration at a JSON Pointer (RFC 6901), as JSON text, a string
    // without its quotes: `/server/port`, `/keys/0`, `/keys/1`. The empty path is the whole. KEYSTEAD_NOT_FOUND where
    // there is none: of a member that was left out, behind the end of an array, after `close`.
    uint32_t (*config)(void *context, keystead_bytes path, keystead_buffer *out);
    // [any thread] The value of a secret named in the store's `secrets`, read afresh: ask when it is needed, and zero
    // the buffer after use. KEYSTEAD_NOT_FOUND where no secret has the name, KEYSTEAD_UNAVAILABLE where its source
    // can't be read. May block: not on KEYSTEAD_LANE_INLINE.
    uint32_t (*secret)(void *context, keystead_bytes name, keystead_buffer *out);
    // [any thread] Tells the host to list the keys again. Returns at once; the listing comes later.
    void (*keys_changed)(void *context);
    // [any thread] A further interface of the host by name, or NULL. What it is follows from the name; it lives until
    // the process ends.
    const void *(*extension)(void *context, keystead_bytes name);
} keystead_host;

// The host's memory of refused credentials. A plugin asks before it presents a secret, and tells what came of it, so
// that no token sees the same wrong PIN twice, whichever store or restart it comes from. Where the plugin's process
// dies in between, the secret counts as refused. `token` is whatever the plugin knows the token by, the same each time.
// Belongs to the host, and lives until the process ends.
typedef struct keystead_credentials {
    // Size of this struct in bytes.
    uint32_t size;
    // [any thread] 1 where this token has refused this secret before, else 0. `context` is the host table's.
    uint32_t (*refused)(void *context, keystead_bytes token, keystead_bytes secret);
    // [any thread] Remembers that this token refused this secret. The host keeps only a keyed hash.
    void (*report)(void *context, keystead_bytes token, keystead_bytes secret);
    // [any thread] Notes that this token accepted this secret.
    void (*accepted)(void *context, keystead_bytes token, keystead_bytes secret);
} keystead_credentials;

// A piece of the value of a header, or of a field of a form. Belongs to the plugin.
typedef struct keystead_http_part {
    // Size of this struct in bytes.
    uint32_t size;
    // KEYSTEAD_PART_TEXT or KEYSTEAD_PART_SECRET.
    uint32_t kind;
    // The text, or the name.
    keystead_bytes value;
} keystead_http_part;

// A header, or a field of a form: its parts, one after the other. Belongs to the plugin.
typedef struct keystead_http_field {
    // Size of this struct in bytes.
    uint32_t size;
    // Its name.
    keystead_bytes name;
    // The parts of its value.
    const keystead_http_part *parts;
    // How many.
    size_t parts_len;
} keystead_http_field;

// An HTTP request. Belongs to the plugin; valid until the call returns.
typedef struct keystead_http_request {
    // Size of this struct in bytes.
    uint32_t size;
    // `GET`, `POST`, ...; as the grant has it.
    keystead_bytes method;
    // Absolute: `https://host[:port]/path?query`.
    keystead_bytes url;
    // Headers. `host`, `content-length`, and what concerns the connection, are the host's own.
    const keystead_http_field *headers;
    // How many.
    size_t headers_len;
    // What is sent, at most 1 MiB; nothing where `len` is 0.
    keystead_bytes body;
    // In its place, the fields of a form (`application/x-www-form-urlencoded`), which the host encodes.
    const keystead_http_field *form;
    // How many; 0 where it isn't a form.
    size_t form_len;
} keystead_http_request;

// A header of a response. Belongs to the host.
typedef struct keystead_http_header {
    // Size of this struct in bytes.
    uint32_t size;
    // Its name, in lower case.
    keystead_bytes name;
    // Its value.
    keystead_bytes value;
} keystead_http_header;

// An HTTP response. The struct belongs to the plugin; what the host put into it belongs to the host, and is valid until
// `release`.
typedef struct keystead_http_response {
    // Size of this struct in bytes.
    uint32_t size;
    // The status code.
    uint32_t status;
    // Headers, as often as they came.
    const keystead_http_header *headers;
    // How many.
    size_t headers_len;
    // The body, at most 2 MiB.
    keystead_bytes body;
    // The host's own.
    void *owner;
} keystead_http_response;

// HTTP by the host, within the store's `grants`: it resolves, connects, speaks TLS, keeps connections, fills in
// secrets. Belongs to the host, and lives until the process ends.
typedef struct keystead_http {
    // Size of this struct in bytes.
    uint32_t size;
    // [any thread] Sends a request and waits at most `nanos_left` for the whole answer. A status of any kind is an
    // answer, a redirect too. KEYSTEAD_DENIED where no grant covers the request, with the line of YAML that would;
    // KEYSTEAD_UNAVAILABLE without a connection or with a broken one; KEYSTEAD_DEADLINE; KEYSTEAD_INVALID_INPUT for a
    // request that can't be sent. `context` is the host table's. Blocks: not on KEYSTEAD_LANE_INLINE.
    uint32_t (*fetch)(void *context,
                      uint64_t nanos_left,
                      const keystead_http_request *request,
                      keystead_http_response *response,
                      keystead_report *report);
    // [any thread] Gives back what `fetch` put into a response, once, if it answered 0.
    void (*release)(keystead_http_response *response);
} keystead_http;

// Values that expire, shared by all that serve the store: access tokens. Belongs to the host, and lives until the
// process ends.
typedef struct keystead_cache {
    // Size of this struct in bytes.
    uint32_t size;
    // [any thread] The value of a name, if it lives for `at_least_ms` from now. KEYSTEAD_NOT_FOUND makes the caller the
    // one who gets a new one: it calls `put` or `give_up`, and until then others who ask wait, at most `nanos_left` and
    // at most 30 s. Blocks: not on KEYSTEAD_LANE_INLINE.
    uint32_t (*get)(void *context,
                    uint64_t nanos_left,
                    keystead_bytes name,
                    uint64_t at_least_ms,
                    keystead_buffer *out);
    // [any thread] Keeps a value for `for_ms`, at most 64 KiB.
    uint32_t (*put)(void *context, keystead_bytes name, keystead_bytes value, uint64_t for_ms);
    // [any thread] Has the next who asks get a value, since this one could not.
    void (*give_up)(void *context, keystead_bytes name);
    // [any thread] Forgets a value which is no longer good, if it is still this one.
    void (*forget)(void *context, keystead_bytes name, keystead_bytes value);
} keystead_cache;

// Uses of the store's secrets by the host, which doesn't hand them out for it. Belongs to the host, and lives until the
// process ends.
typedef struct keystead_signer {
    // Size of this struct in bytes.
    uint32_t size;
    // [any thread] Signs a message with the private key that a secret is: PEM or DER, PKCS#8, PKCS#1 or SEC 1. The
    // algorithm is one that signs a digest, which the host makes of the message, or Ed25519.
    uint32_t (*sign)(void *context,
                     keystead_bytes secret,
                     uint32_t algorithm,
                     keystead_bytes message,
                     keystead_buffer *out,
                     keystead_report *report);
    // [any thread] HMAC-SHA-256 (RFC 2104) of a message: 32 bytes. The key is a secret, with `prefix` before it.
    uint32_t (*hmac)(void *context,
                     keystead_bytes secret,
                     keystead_bytes prefix,
                     keystead_bytes message,
                     keystead_buffer *out,
                     keystead_report *report);
} keystead_signer;

// Which stores of a plugin belong into one process, where it runs in processes of its own. Static and constant.
typedef struct keystead_isolation {
    // Size of this struct in bytes.
    uint32_t size;
    // [any thread] Names the group of a store by its configuration, a JSON object, before any store is open: stores
    // with the same name share a process. Opens nothing. KEYSTEAD_NOT_FOUND for the plugin's common group.
    uint32_t (*group)(keystead_bytes config, keystead_buffer *out);
} keystead_isolation;

// What a plugin advises for one store.
typedef struct keystead_advice_report {
    // Size of this struct in bytes.
    uint32_t size;
    // How many lanes get the most out of it; 0 for no opinion.
    uint32_t lanes;
    // How long all its lanes may hang in calls before none will come back, in milliseconds; 0 for no opinion.
    uint64_t stuck_after_ms;
} keystead_advice_report;

// How a store is best used, where its configuration doesn't say. Static and constant.
typedef struct keystead_advice {
    // Size of this struct in bytes.
    uint32_t size;
    // [any thread] Fills `advice` in for an open store. Asked once, after `open`; does nothing else.
    uint32_t (*advise)(void *store, keystead_advice_report *advice);
} keystead_advice;

// What a plugin offers: the one table of the contract. Static and constant; no function is NULL.
typedef struct keystead_backend {
    // Size of this struct in bytes.
    uint32_t size;
    // The plugin's KEYSTEAD_DRAFT.
    uint32_t draft;
    // [any thread] What the plugin is: always the same static struct. Does nothing else.
    const keystead_description *(*describe)(void);
    // [open] Opens a store and sets `store` to a pointer of the plugin's own, which comes back with every call. `host`
    // lives until the process ends and may be kept. On failure, nothing stays behind: the host tries again later, with
    // a new call. KEYSTEAD_CREDENTIALS where a PIN or passphrase was refused, which is not tried again with the same.
    uint32_t (*open)(const keystead_host *host, void **store, keystead_report *report);
    // [close] Closes a store within `grace` nanoseconds: logs out, and zeroes secrets. Calls that are still going on
    // may end with KEYSTEAD_UNAVAILABLE, and must find the memory they use.
    uint32_t (*close)(void *store, uint64_t grace, keystead_report *report);
    // [housekeeping lane] One page of the keys. Cursor 0 takes a new, consistent listing; other cursors come from the
    // page before. An entry that can't be used is a finding, not a failure: the rest is served.
    uint32_t (*keys)(void *store,
                     const keystead_context *context,
                     uint64_t cursor,
                     keystead_page *page,
                     keystead_report *report);
    // [lane] Signs `input` with a key by an algorithm into the host's buffer. What `input` is, and its length,
    // follows from the algorithm. KEYSTEAD_NOT_FOUND for an id that no key has, KEYSTEAD_UNSUPPORTED for an algorithm
    // that the key hasn't listed, KEYSTEAD_INVALID_INPUT for an input of the wrong length.
    uint32_t (*sign)(void *store,
                     const keystead_context *context,
                     keystead_bytes key,
                     uint32_t algorithm,
                     keystead_bytes input,
                     keystead_buffer *out,
                     keystead_report *report);
    // [lane] Decrypts likewise. The plaintext is a secret.
    uint32_t (*decrypt)(void *store,
                        const keystead_context *context,
                        keystead_bytes key,
                        uint32_t algorithm,
                        keystead_bytes input,
                        keystead_buffer *out,
                        keystead_report *report);
    // [housekeeping lane] Whether the store works, asked every 30 s; the place for keep-alives.
    uint32_t (*health)(void *store,
                       const keystead_context *context,
                       keystead_health *health,
                       keystead_report *report);
    // [any thread] A further interface of the plugin by name, or NULL.
    const void *(*extension)(keystead_bytes name);
} keystead_backend;

// [any thread] The one symbol that a plugin in C exports, called KEYSTEAD_ENTRY_POINT. The host passes the draft it
// speaks; the plugin answers its static table of that draft, or NULL where it doesn't speak it, so that a host can ask
// for what it knows from the newest to the oldest. Does nothing else.
KEYSTEAD_EXPORT const keystead_backend *keystead_plugin(uint32_t draft);

// ---- The same layout on both sides ----------------------------------------------------------------------------------

KEYSTEAD_ASSERT(sizeof(keystead_bytes) == 16);
KEYSTEAD_ASSERT(offsetof(keystead_bytes, ptr) == 0);
KEYSTEAD_ASSERT(offsetof(keystead_bytes, len) == 8);
KEYSTEAD_ASSERT(sizeof(keystead_buffer) == 24);
KEYSTEAD_ASSERT(offsetof(keystead_buffer, ptr) == 0);
KEYSTEAD_ASSERT(offsetof(keystead_buffer, capacity) == 8);
KEYSTEAD_ASSERT(offsetof(keystead_buffer, len) == 16);
KEYSTEAD_ASSERT(sizeof(keystead_context) == 32);
KEYSTEAD_ASSERT(offsetof(keystead_context, size) == 0);
KEYSTEAD_ASSERT(offsetof(keystead_context, lane) == 4);
KEYSTEAD_ASSERT(offsetof(keystead_context, nanos_left) == 8);
KEYSTEAD_ASSERT(offsetof(keystead_context, request_id) == 16);
KEYSTEAD_ASSERT(sizeof(keystead_report) == 72);
KEYSTEAD_ASSERT(offsetof(keystead_report, size) == 0);
KEYSTEAD_ASSERT(offsetof(keystead_report, vendor_code) == 8);
KEYSTEAD_ASSERT(offsetof(keystead_report, retry_after_ms) == 16);
KEYSTEAD_ASSERT(offsetof(keystead_report, vendor_name) == 24);
KEYSTEAD_ASSERT(offsetof(keystead_report, message) == 48);
KEYSTEAD_ASSERT(sizeof(keystead_description) == 80);
KEYSTEAD_ASSERT(offsetof(keystead_description, size) == 0);
KEYSTEAD_ASSERT(offsetof(keystead_description, isolation) == 4);
KEYSTEAD_ASSERT(offsetof(keystead_description, lanes_max) == 8);
KEYSTEAD_ASSERT(offsetof(keystead_description, name) == 16);
KEYSTEAD_ASSERT(offsetof(keystead_description, version) == 32);
KEYSTEAD_ASSERT(offsetof(keystead_description, vendor) == 48);
KEYSTEAD_ASSERT(offsetof(keystead_description, schema) == 64);
KEYSTEAD_ASSERT(sizeof(keystead_key) == 72);
KEYSTEAD_ASSERT(offsetof(keystead_key, size) == 0);
KEYSTEAD_ASSERT(offsetof(keystead_key, call_class) == 4);
KEYSTEAD_ASSERT(offsetof(keystead_key, id) == 8);
KEYSTEAD_ASSERT(offsetof(keystead_key, spki) == 24);
KEYSTEAD_ASSERT(offsetof(keystead_key, label) == 40);
KEYSTEAD_ASSERT(offsetof(keystead_key, algorithms) == 56);
KEYSTEAD_ASSERT(offsetof(keystead_key, algorithms_len) == 64);
KEYSTEAD_ASSERT(sizeof(keystead_finding) == 64);
KEYSTEAD_ASSERT(offsetof(keystead_finding, size) == 0);
KEYSTEAD_ASSERT(offsetof(keystead_finding, severity) == 4);
KEYSTEAD_ASSERT(offsetof(keystead_finding, code) == 8);
KEYSTEAD_ASSERT(offsetof(keystead_finding, subject) == 16);
KEYSTEAD_ASSERT(offsetof(keystead_finding, message) == 32);
KEYSTEAD_ASSERT(offsetof(keystead_finding, hint) == 48);
KEYSTEAD_ASSERT(sizeof(keystead_page) == 48);
KEYSTEAD_ASSERT(offsetof(keystead_page, size) == 0);
KEYSTEAD_ASSERT(offsetof(keystead_page, next) == 8);
KEYSTEAD_ASSERT(offsetof(keystead_page, keys) == 16);
KEYSTEAD_ASSERT(offsetof(keystead_page, keys_len) == 24);
KEYSTEAD_ASSERT(offsetof(keystead_page, findings) == 32);
KEYSTEAD_ASSERT(offsetof(keystead_page, findings_len) == 40);
KEYSTEAD_ASSERT(sizeof(keystead_health) == 16);
KEYSTEAD_ASSERT(offsetof(keystead_health, size) == 0);
KEYSTEAD_ASSERT(offsetof(keystead_health, generation) == 8);
KEYSTEAD_ASSERT(sizeof(keystead_log_record) == 72);
KEYSTEAD_ASSERT(offsetof(keystead_log_record, size) == 0);
KEYSTEAD_ASSERT(offsetof(keystead_log_record, level) == 4);
KEYSTEAD_ASSERT(offsetof(keystead_log_record, target) == 8);
KEYSTEAD_ASSERT(offsetof(keystead_log_record, message) == 24);
KEYSTEAD_ASSERT(offsetof(keystead_log_record, fields) == 40);
KEYSTEAD_ASSERT(offsetof(keystead_log_record, request_id) == 56);
KEYSTEAD_ASSERT(sizeof(keystead_host) == 64);
KEYSTEAD_ASSERT(offsetof(keystead_host, size) == 0);
KEYSTEAD_ASSERT(offsetof(keystead_host, draft) == 4);
KEYSTEAD_ASSERT(offsetof(keystead_host, context) == 8);
KEYSTEAD_ASSERT(offsetof(keystead_host, log_enabled) == 16);
KEYSTEAD_ASSERT(offsetof(keystead_host, log) == 24);
KEYSTEAD_ASSERT(offsetof(keystead_host, config) == 32);
KEYSTEAD_ASSERT(offsetof(keystead_host, secret) == 40);
KEYSTEAD_ASSERT(offsetof(keystead_host, keys_changed) == 48);
KEYSTEAD_ASSERT(offsetof(keystead_host, extension) == 56);
KEYSTEAD_ASSERT(sizeof(keystead_credentials) == 32);
KEYSTEAD_ASSERT(offsetof(keystead_credentials, size) == 0);
KEYSTEAD_ASSERT(offsetof(keystead_credentials, refused) == 8);
KEYSTEAD_ASSERT(offsetof(keystead_credentials, report) == 16);
KEYSTEAD_ASSERT(offsetof(keystead_credentials, accepted) == 24);
KEYSTEAD_ASSERT(sizeof(keystead_http_part) == 24);
KEYSTEAD_ASSERT(offsetof(keystead_http_part, size) == 0);
KEYSTEAD_ASSERT(offsetof(keystead_http_part, kind) == 4);
KEYSTEAD_ASSERT(offsetof(keystead_http_part, value) == 8);
KEYSTEAD_ASSERT(sizeof(keystead_http_field) == 40);
KEYSTEAD_ASSERT(offsetof(keystead_http_field, size) == 0);
KEYSTEAD_ASSERT(offsetof(keystead_http_field, name) == 8);
KEYSTEAD_ASSERT(offsetof(keystead_http_field, parts) == 24);
KEYSTEAD_ASSERT(offsetof(keystead_http_field, parts_len) == 32);
KEYSTEAD_ASSERT(sizeof(keystead_http_request) == 88);
KEYSTEAD_ASSERT(offsetof(keystead_http_request, size) == 0);
KEYSTEAD_ASSERT(offsetof(keystead_http_request, method) == 8);
KEYSTEAD_ASSERT(offsetof(keystead_http_request, url) == 24);
KEYSTEAD_ASSERT(offsetof(keystead_http_request, headers) == 40);
KEYSTEAD_ASSERT(offsetof(keystead_http_request, headers_len) == 48);
KEYSTEAD_ASSERT(offsetof(keystead_http_request, body) == 56);
KEYSTEAD_ASSERT(offsetof(keystead_http_request, form) == 72);
KEYSTEAD_ASSERT(offsetof(keystead_http_request, form_len) == 80);
KEYSTEAD_ASSERT(sizeof(keystead_http_header) == 40);
KEYSTEAD_ASSERT(offsetof(keystead_http_header, size) == 0);
KEYSTEAD_ASSERT(offsetof(keystead_http_header, name) == 8);
KEYSTEAD_ASSERT(offsetof(keystead_http_header, value) == 24);
KEYSTEAD_ASSERT(sizeof(keystead_http_response) == 48);
KEYSTEAD_ASSERT(offsetof(keystead_http_response, size) == 0);
KEYSTEAD_ASSERT(offsetof(keystead_http_response, status) == 4);
KEYSTEAD_ASSERT(offsetof(keystead_http_response, headers) == 8);
KEYSTEAD_ASSERT(offsetof(keystead_http_response, headers_len) == 16);
KEYSTEAD_ASSERT(offsetof(keystead_http_response, body) == 24);
KEYSTEAD_ASSERT(offsetof(keystead_http_response, owner) == 40);
KEYSTEAD_ASSERT(sizeof(keystead_http) == 24);
KEYSTEAD_ASSERT(offsetof(keystead_http, size) == 0);
KEYSTEAD_ASSERT(offsetof(keystead_http, fetch) == 8);
KEYSTEAD_ASSERT(offsetof(keystead_http, release) == 16);
KEYSTEAD_ASSERT(sizeof(keystead_cache) == 40);
KEYSTEAD_ASSERT(offsetof(keystead_cache, size) == 0);
KEYSTEAD_ASSERT(offsetof(keystead_cache, get) == 8);
KEYSTEAD_ASSERT(offsetof(keystead_cache, put) == 16);
KEYSTEAD_ASSERT(offsetof(keystead_cache, give_up) == 24);
KEYSTEAD_ASSERT(offsetof(keystead_cache, forget) == 32);
KEYSTEAD_ASSERT(sizeof(keystead_signer) == 24);
KEYSTEAD_ASSERT(offsetof(keystead_signer, size) == 0);
KEYSTEAD_ASSERT(offsetof(keystead_signer, sign) == 8);
KEYSTEAD_ASSERT(offsetof(keystead_signer, hmac) == 16);
KEYSTEAD_ASSERT(sizeof(keystead_isolation) == 16);
KEYSTEAD_ASSERT(offsetof(keystead_isolation, size) == 0);
KEYSTEAD_ASSERT(offsetof(keystead_isolation, group) == 8);
KEYSTEAD_ASSERT(sizeof(keystead_advice_report) == 16);
KEYSTEAD_ASSERT(offsetof(keystead_advice_report, size) == 0);
KEYSTEAD_ASSERT(offsetof(keystead_advice_report, lanes) == 4);
KEYSTEAD_ASSERT(offsetof(keystead_advice_report, stuck_after_ms) == 8);
KEYSTEAD_ASSERT(sizeof(keystead_advice) == 16);
KEYSTEAD_ASSERT(offsetof(keystead_advice, size) == 0);
KEYSTEAD_ASSERT(offsetof(keystead_advice, advise) == 8);
KEYSTEAD_ASSERT(sizeof(keystead_backend) == 72);
KEYSTEAD_ASSERT(offsetof(keystead_backend, size) == 0);
KEYSTEAD_ASSERT(offsetof(keystead_backend, draft) == 4);
KEYSTEAD_ASSERT(offsetof(keystead_backend, describe) == 8);
KEYSTEAD_ASSERT(offsetof(keystead_backend, open) == 16);
KEYSTEAD_ASSERT(offsetof(keystead_backend, close) == 24);
KEYSTEAD_ASSERT(offsetof(keystead_backend, keys) == 32);
KEYSTEAD_ASSERT(offsetof(keystead_backend, sign) == 40);
KEYSTEAD_ASSERT(offsetof(keystead_backend, decrypt) == 48);
KEYSTEAD_ASSERT(offsetof(keystead_backend, health) == 56);
KEYSTEAD_ASSERT(offsetof(keystead_backend, extension) == 64);

// ---- In a plugin's code ---------------------------------------------------------------------------------------------

// The bytes of a string literal, as an initializer.
#define KEYSTEAD_TEXT(literal) { (const uint8_t *)("" literal), sizeof(literal) - 1 }

// The bytes of a C string.
static inline keystead_bytes keystead_text(const char *text) {
    keystead_bytes bytes = { (const uint8_t *)text, strlen(text) };
    return bytes;
}

// Whether two byte strings are the same. Not for secrets: it takes less time the earlier they differ.
static inline int keystead_equal(keystead_bytes a, keystead_bytes b) {
    return a.len == b.len && (a.len == 0 || memcmp(a.ptr, b.ptr, a.len) == 0);
}

// Fills a buffer and answers KEYSTEAD_OK, or KEYSTEAD_BUFFER_TOO_SMALL with what is needed.
static inline uint32_t keystead_fill(keystead_buffer *buffer, const void *bytes, size_t len) {
    buffer->len = len;
    if (len > buffer->capacity) return KEYSTEAD_BUFFER_TOO_SMALL;
    if (len > 0) memcpy(buffer->ptr, bytes, len);
    return KEYSTEAD_OK;
}

// Reports a sentence, as much of it as fits, and answers with the code of the error.
static inline uint32_t keystead_fail(keystead_report *report, uint32_t code, const char *message) {
    if (report != NULL) {
        size_t len = strlen(message), room = report->message.capacity;
        keystead_fill(&report->message, message, len < room ? len : room);
    }
    return code;
}

#ifdef __cplusplus
} // extern "C"
#endif

#endif // KEYSTEAD_PLUGIN_H
