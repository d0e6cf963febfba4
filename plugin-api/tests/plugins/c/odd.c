// A plugin in C without keys, and with one thing wrong where a macro asks for it: for the tests of the host.
#include <keystead_plugin.h>
#include <stdlib.h>

static const keystead_description description = {
    .size = sizeof(keystead_description),
    .isolation = KEYSTEAD_ISOLATION_INLINE,
    .name = KEYSTEAD_TEXT("odd"),
    .version = KEYSTEAD_TEXT("1.0.0"),
    .vendor = KEYSTEAD_TEXT("the tests"),
    .schema = KEYSTEAD_TEXT("{\"type\": \"object\", \"additionalProperties\": false}"),
};

static const keystead_description *describe(void) {
#ifdef OVERFLOW
    // What a sanitizer must tell: a byte behind the end of what was allocated.
    volatile char *bytes = malloc(16);
    volatile size_t end = 16;
    bytes[end] = 1;
    free((void *)bytes);
#endif
    return &description;
}

static uint32_t open(const keystead_host *host, void **store, keystead_report *report) {
    (void)report;
    *store = (void *)(uintptr_t)host;
    return KEYSTEAD_OK;
}

static uint32_t close(void *store, uint64_t grace, keystead_report *report) {
    (void)store, (void)grace, (void)report;
    return KEYSTEAD_OK;
}

static uint32_t keys(void *store, const keystead_context *context, uint64_t cursor, keystead_page *page,
                     keystead_report *report) {
    (void)store, (void)context, (void)cursor, (void)report;
    page->next = 0;
    page->keys_len = page->findings_len = 0;
    return KEYSTEAD_OK;
}

static uint32_t use(void *store, const keystead_context *context, keystead_bytes key, uint32_t algorithm,
                    keystead_bytes input, keystead_buffer *out, keystead_report *report) {
    (void)store, (void)context, (void)key, (void)algorithm, (void)input, (void)out;
    return keystead_fail(report, KEYSTEAD_NOT_FOUND, "no such key");
}

static uint32_t health(void *store, const keystead_context *context, keystead_health *health, keystead_report *report) {
    (void)store, (void)context, (void)report;
    health->generation = 0;
    return KEYSTEAD_OK;
}

static const void *extension(keystead_bytes name) {
    (void)name;
    return NULL;
}

#ifdef HEALTH_IS_NULL
#define HEALTH (0 ? health : NULL)
#else
#define HEALTH health
#endif
#ifndef SIZE
#define SIZE sizeof(keystead_backend)
#endif
#ifndef DRAFT
#define DRAFT KEYSTEAD_DRAFT
#endif

static const keystead_backend table = {
    .size = SIZE,
    .draft = DRAFT,
    .describe = describe,
    .open = open,
    .close = close,
    .keys = keys,
    .sign = use,
    .decrypt = use,
    .health = HEALTH,
    .extension = extension,
};

#ifdef BOTH
// The name of the header by which abi_stable knows a plugin in Rust.
KEYSTEAD_EXPORT extern const int _1as_0lib_1header_0root_bmodule_bloader;
const int _1as_0lib_1header_0root_bmodule_bloader = 0;
#endif

const keystead_backend *keystead_plugin(uint32_t draft) {
#if defined(SILENT)
    return draft == 0 ? &table : NULL;
#elif defined(MISALIGNED)
    return (const keystead_backend *)((uintptr_t)&table + (draft > 0));
#else
    return draft > 0 ? &table : NULL;
#endif
}
