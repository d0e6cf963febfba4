// A component in C, without an SDK: Ed25519 keys that are secrets of the store, with which the host signs. For the tests.
//
// `backend.h` and `backend.c` are made of the contract's WIT by wit-bindgen. What a function gets is its own to free, and
// what it answers is freed after it has been read.
//
//     {"keys": [{"name": "www", "spki": "302a300506032b6570032100…"}]}
#include "backend.h"
#include <stdlib.h>
#include <string.h>

#define ED25519 0x31 // KEYSTEAD_ED25519
#define UNSUPPORTED 2
#define INVALID_INPUT 3
#define KEYS_MAX 1000

typedef backend_string_t text;
typedef exports_keystead_backend_plugin_error_t failure;
typedef exports_keystead_backend_plugin_call_t call_context;
typedef keystead_backend_types_key_t key;

static bool fail(failure *err, uint32_t code, const char *message) {
    *err = (failure){ .code = code };
    backend_string_dup(&err->message, message);
    return false;
}

static void put(text *path, const char *part, size_t len) {
    memcpy(path->ptr + path->len, part, len);
    path->len += len;
}

// The value of the configuration at `/keys/INDEX/MEMBER`.
static bool member(size_t index, const char *name, text *value) {
    uint8_t memory[64];
    char number[8];
    size_t at = sizeof number;
    text path = { memory, 0 };
    do number[--at] = (char)('0' + index % 10);
    while ((index /= 10) > 0);
    put(&path, "/keys/", 6);
    put(&path, number + at, sizeof number - at);
    put(&path, "/", 1);
    put(&path, name, strlen(name));
    return keystead_backend_host_config(&path, value);
}

static int digit(uint8_t character) {
    const char *digits = "0123456789abcdef", *found = strchr(digits, character);
    return character && found ? (int)(found - digits) : -1;
}

// Bytes of their digits, which it frees.
static bool decode(text digits, backend_list_u8_t *bytes) {
    bool good = digits.len % 2 == 0;
    bytes->len = digits.len / 2;
    bytes->ptr = malloc(bytes->len + 1);
    for (size_t i = 0; good && i < bytes->len; i++) {
        int high = digit(digits.ptr[2 * i]), low = digit(digits.ptr[2 * i + 1]);
        good = high >= 0 && low >= 0;
        bytes->ptr[i] = (uint8_t)(high * 16 + low);
    }
    backend_string_free(&digits);
    return good;
}

static void copy(text from, backend_list_u8_t *to) {
    to->ptr = malloc(from.len + 1);
    to->len = from.len;
    memcpy(to->ptr, from.ptr, from.len);
}

static bool read_key(size_t index, text name, key *listed) {
    text spki;
    static const uint32_t algorithm = ED25519;
    *listed = (key){ .label = name, .algorithms = { malloc(sizeof algorithm), 1 } };
    *listed->algorithms.ptr = algorithm;
    copy(name, &listed->id);
    return member(index, "spki", &spki) && decode(spki, &listed->spki);
}

void exports_keystead_backend_plugin_describe(exports_keystead_backend_plugin_description_t *ret) {
    memset(ret, 0, sizeof *ret);
    backend_string_dup(&ret->name, "guest");
    backend_string_dup(&ret->version, "1.0.0");
    backend_string_dup(&ret->vendor, "the tests");
    backend_string_dup(&ret->schema, "{\"type\": \"object\", \"required\": [\"keys\"]}");
}

bool exports_keystead_backend_plugin_open(failure *err) {
    (void)err;
    return true;
}

void exports_keystead_backend_plugin_advise(exports_keystead_backend_plugin_advice_t *ret) {
    memset(ret, 0, sizeof *ret);
}

bool exports_keystead_backend_plugin_keys(call_context *call, exports_keystead_backend_plugin_listing_t *ret,
                                          failure *err) {
    text name;
    exports_keystead_backend_plugin_call_free(call);
    memset(ret, 0, sizeof *ret);
    ret->keys.ptr = calloc(KEYS_MAX, sizeof(key));
    while (ret->keys.len < KEYS_MAX && member(ret->keys.len, "name", &name)) {
        if (!read_key(ret->keys.len, name, &ret->keys.ptr[ret->keys.len]))
            return fail(err, INVALID_INPUT, "config: `spki` must be hexadecimal, in lower case");
        ret->keys.len++;
    }
    return true;
}

bool exports_keystead_backend_plugin_sign(call_context *call, backend_list_u8_t *id, uint32_t algorithm,
                                          backend_list_u8_t *input, backend_list_u8_t *ret, failure *err) {
    text name = { id->ptr, id->len };
    bool signed_by_host = keystead_backend_credential_sign(&name, algorithm, input, ret, err);
    exports_keystead_backend_plugin_call_free(call);
    backend_list_u8_free(id);
    backend_list_u8_free(input);
    return signed_by_host;
}

bool exports_keystead_backend_plugin_decrypt(call_context *call, backend_list_u8_t *id, uint32_t algorithm,
                                             backend_list_u8_t *input, backend_list_u8_t *ret, failure *err) {
    (void)algorithm, (void)ret;
    exports_keystead_backend_plugin_call_free(call);
    backend_list_u8_free(id);
    backend_list_u8_free(input);
    return fail(err, UNSUPPORTED, "not by this key");
}

bool exports_keystead_backend_plugin_health(call_context *call, uint64_t *ret, failure *err) {
    (void)err;
    exports_keystead_backend_plugin_call_free(call);
    *ret = 1;
    return true;
}
