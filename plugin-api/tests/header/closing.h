
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
