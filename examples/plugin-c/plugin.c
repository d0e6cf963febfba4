// A Keystead plugin: the keys of a software token. token.c has the cryptography, this file the contract.
#include "token.h"
#include <openssl/crypto.h>
#include <openssl/err.h>
#include <openssl/x509.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

#define KEYS_MAX 64

static const keystead_description description = {
    .size = sizeof(keystead_description),
    .isolation = KEYSTEAD_ISOLATION_INLINE, // nothing here crashes, forks or waits
    .lanes_max = 0,
    .name = KEYSTEAD_TEXT("c"),
    .version = KEYSTEAD_TEXT("1.0.0"),
    .vendor = KEYSTEAD_TEXT("Keystead's examples"),
    .schema = KEYSTEAD_TEXT(
        "{"
        "\"type\": \"object\", \"additionalProperties\": false, \"required\": [\"seed\", \"keys\"],"
        "\"description\": \"Keys from a seed; the secret `passphrase` opens it.\","
        "\"properties\": {"
        "  \"seed\": {\"type\": \"string\", \"maxLength\": 1000, \"description\": \"Path of the seed file.\"},"
        "  \"keys\": {\"type\": \"array\", \"minItems\": 1, \"maxItems\": 64, \"uniqueItems\": true,"
        "    \"items\": {\"type\": \"string\", \"minLength\": 1, \"maxLength\": 60},"
        "    \"description\": \"Names; each has a key of its own.\"}}}"),
};

// What each key does, and how long the digests are.
static const uint32_t algorithms[] = { KEYSTEAD_ECDSA_SHA256, KEYSTEAD_ECDSA_SHA384, KEYSTEAD_ECDSA_SHA512,
                                       KEYSTEAD_ECDSA_SHA224, KEYSTEAD_ECDSA_SHA1,   KEYSTEAD_ECDSA_MD5SHA1 };
static const size_t lengths[] = { 32, 48, 64, 28, 20, 36 };
#define ALGORITHMS (sizeof algorithms / sizeof *algorithms)

// What a store is while it is open.
struct token {
    size_t count;
    keystead_key keys[KEYS_MAX];
    EVP_PKEY *private_keys[KEYS_MAX];
    uint8_t *spkis[KEYS_MAX], names[KEYS_MAX][KEYSTEAD_KEY_ID_MAX];
};

// What the host holds. It is never freed: a call that comes while the store is being closed must find the lock.
struct store {
    pthread_rwlock_t lock; // read by calls, written by close
    struct token *token;
};

static struct token no_keys; // the token of a store that is closed

static const keystead_description *describe(void) {
    return &description;
}

static void token_free(struct token *token) {
    for (size_t i = 0; token != NULL && i < KEYS_MAX; i++) {
        EVP_PKEY_free(token->private_keys[i]); // zeroes the private key
        OPENSSL_free(token->spkis[i]);
    }
    free(token);
}

static int token_add(struct token *token, keystead_bytes name, const uint8_t seed[TOKEN_SEED]) {
    size_t i = token->count++;
    token->private_keys[i] = token_derive(seed, name);
    int len = token->private_keys[i] != NULL ? i2d_PUBKEY(token->private_keys[i], &token->spkis[i]) : 0;
    keystead_bytes spki = { token->spkis[i], len > 0 ? (size_t)len : 0 };
    keystead_key key = { sizeof key, KEYSTEAD_CALL_INLINE, name, spki, name, algorithms, ALGORITHMS };
    token->keys[i] = key;
    return len > 0;
}

// The host has checked the configuration by the schema: the names are there, short enough, and none twice.
static int token_fill(struct token *token, const keystead_host *host, const uint8_t seed[TOKEN_SEED]) {
    for (size_t i = 0; i < KEYS_MAX; i++) {
        char path[32];
        snprintf(path, sizeof path, "/keys/%zu", i);
        keystead_buffer name = { token->names[i], sizeof token->names[i], 0 };
        uint32_t code = host->config(host->context, keystead_text(path), &name);
        if (code == KEYSTEAD_NOT_FOUND) return 1; // behind the end of the array
        keystead_bytes bytes = { name.ptr, name.len };
        if (code != KEYSTEAD_OK || !token_add(token, bytes, seed)) return 0;
    }
    return 1;
}

static uint32_t unseal(const keystead_host *host, uint8_t seed[TOKEN_SEED], keystead_report *report) {
    uint8_t file[4096] = { 0 }, secret[1024];
    keystead_buffer path = { file, sizeof file - 1, 0 }, passphrase = { secret, sizeof secret, 0 };
    uint32_t code = host->config(host->context, keystead_text("/seed"), &path);
    if (code == KEYSTEAD_OK) code = host->secret(host->context, keystead_text("passphrase"), &passphrase);
    if (code != KEYSTEAD_OK) return keystead_fail(report, code, "the secret `passphrase` can't be had");
    keystead_bytes bytes = { passphrase.ptr, passphrase.len };
    code = token_unseal((const char *)file, bytes, seed, report);
    OPENSSL_cleanse(secret, sizeof secret);
    return code;
}

static uint32_t store_open(const keystead_host *host, void **opened, keystead_report *report) {
    uint8_t seed[TOKEN_SEED];
    uint32_t code = unseal(host, seed, report);
    if (code != KEYSTEAD_OK) return code;
    struct store *store = (struct store *)calloc(1, sizeof *store);
    struct token *token = (struct token *)calloc(1, sizeof *token);
    int done = store != NULL && token != NULL && token_fill(token, host, seed);
    OPENSSL_cleanse(seed, sizeof seed);
    if (!done || pthread_rwlock_init(&store->lock, NULL) != 0) {
        token_free(token);
        free(store);
        return keystead_fail(report, KEYSTEAD_INTERNAL, "the keys can't be derived");
    }
    store->token = token;
    *opened = store;
    return KEYSTEAD_OK;
}

static uint32_t store_close(void *handle, uint64_t grace, keystead_report *report) {
    struct store *store = (struct store *)handle;
    (void)grace, (void)report; // the calls that it waits for take microseconds
    pthread_rwlock_wrlock(&store->lock);
    token_free(store->token);
    store->token = &no_keys;
    pthread_rwlock_unlock(&store->lock);
    return KEYSTEAD_OK;
}

static uint32_t store_keys(void *handle, const keystead_context *context, uint64_t cursor, keystead_page *page,
                           keystead_report *report) {
    struct store *store = (struct store *)handle;
    (void)context, (void)cursor, (void)report; // there is one page
    pthread_rwlock_rdlock(&store->lock);
    page->keys = store->token->keys;
    page->keys_len = store->token->count;
    page->findings_len = 0;
    page->next = 0;
    pthread_rwlock_unlock(&store->lock);
    return KEYSTEAD_OK;
}

static uint32_t sign(EVP_PKEY *key, keystead_bytes digest, keystead_buffer *out, keystead_report *report) {
    uint8_t signature[80]; // in DER, two numbers of 32 bytes take 72 at most
    size_t len = sizeof signature;
    EVP_PKEY_CTX *context = EVP_PKEY_CTX_new_from_pkey(NULL, key, NULL);
    int done = context != NULL && EVP_PKEY_sign_init(context) > 0
               && EVP_PKEY_sign(context, signature, &len, digest.ptr, digest.len) > 0;
    EVP_PKEY_CTX_free(context);
    ERR_clear_error();
    return done ? keystead_fill(out, signature, len) : keystead_fail(report, KEYSTEAD_INTERNAL, "libcrypto can't sign");
}

static uint32_t token_sign(const struct token *token, keystead_bytes id, uint32_t algorithm, keystead_bytes digest,
                           keystead_buffer *out, keystead_report *report) {
    size_t key = 0, known = 0;
    while (key < token->count && !keystead_equal(token->keys[key].id, id)) key++;
    if (key == token->count) return keystead_fail(report, KEYSTEAD_NOT_FOUND, "no such key");
    while (known < ALGORITHMS && algorithms[known] != algorithm) known++;
    if (known == ALGORITHMS) return keystead_fail(report, KEYSTEAD_UNSUPPORTED, "this key signs by ECDSA only");
    if (digest.len != lengths[known]) return keystead_fail(report, KEYSTEAD_INVALID_INPUT, "not a digest of this hash");
    return sign(token->private_keys[key], digest, out, report);
}

static uint32_t store_sign(void *handle, const keystead_context *context, keystead_bytes key, uint32_t algorithm,
                           keystead_bytes input, keystead_buffer *out, keystead_report *report) {
    struct store *store = (struct store *)handle;
    (void)context; // what takes microseconds needs neither lane nor deadline
    pthread_rwlock_rdlock(&store->lock);
    uint32_t code = token_sign(store->token, key, algorithm, input, out, report);
    pthread_rwlock_unlock(&store->lock);
    return code;
}

static uint32_t store_decrypt(void *store, const keystead_context *context, keystead_bytes key, uint32_t algorithm,
                              keystead_bytes input, keystead_buffer *out, keystead_report *report) {
    (void)store, (void)context, (void)key, (void)algorithm, (void)input, (void)out;
    return keystead_fail(report, KEYSTEAD_UNSUPPORTED, "this key signs by ECDSA only");
}

static uint32_t store_health(void *store, const keystead_context *context, keystead_health *health,
                             keystead_report *report) {
    (void)store, (void)context, (void)report;
    health->generation = 0; // the list of keys never changes while the store is open
    return KEYSTEAD_OK;
}

static const void *extension(keystead_bytes name) {
    (void)name;
    return NULL;
}

static const keystead_backend backend = {
    .size = sizeof(keystead_backend),
    .draft = KEYSTEAD_DRAFT,
    .describe = describe,
    .open = store_open,
    .close = store_close,
    .keys = store_keys,
    .sign = store_sign,
    .decrypt = store_decrypt,
    .health = store_health,
    .extension = extension,
};

const keystead_backend *keystead_plugin(uint32_t draft) {
    return draft == KEYSTEAD_DRAFT ? &backend : NULL;
}
