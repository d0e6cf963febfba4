// A plugin in C that signs well, and does a deed beside where its configuration says so: for the tests of what stays
// outside of the server. The key of a name is always the same. A deed with `once` is done only while that file is
// there, which is removed first.
//
//     {"keys": [{"name": "well"}, {"name": "ill", "sign": "null", "once": "/flag"}],
//      "open": "wrong_pin", "attempts": "/file with a byte for each attempt to log in"}
#define _GNU_SOURCE
#define OPENSSL_API_COMPAT 0x10100000L // the short way to a key from a scalar
#include <errno.h>
#include <fcntl.h>
#include <keystead_plugin.h>
#include <openssl/ec.h>
#include <openssl/sha.h>
#include <openssl/x509.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define KEYS_MAX 8
#define TEXT 512

static const uint32_t algorithms[] = { KEYSTEAD_ECDSA_SHA256 };

struct key {
    char name[TEXT], deed[TEXT], once[TEXT];
    EC_KEY *pair;
    uint8_t *spki;
};

struct store {
    const keystead_host *host;
    uint8_t pin[TEXT]; // kept, as vendors' libraries do
    size_t count;
    struct key keys[KEYS_MAX];
    keystead_key listed[KEYS_MAX];
};

// ---- Deeds of `sign` ----------------------------------------------------------------------------------------------

static void null(const keystead_host *host) {
    volatile int *nowhere = NULL;
    (void)host;
    *nowhere = 1;
}

static void aborts(const keystead_host *host) {
    (void)host;
    abort();
}

static void exits(const keystead_host *host) {
    (void)host;
    exit(0);
}

static void spin(const keystead_host *host) {
    (void)host;
    for (volatile int turns = 0;; turns = !turns) {}
}

static void hang(const keystead_host *host) {
    (void)host;
    for (;;) pause();
}

// No look whether there was any memory, as in many a library.
static void gobble(const keystead_host *host) {
    (void)host;
    for (size_t bite = 1 << 20;;) memset(malloc(bite), 1, bite);
}

// The standard ones as well, and that to the server.
static void close_all(const keystead_host *host) {
    (void)host;
    for (int descriptor = 0; descriptor < 1024; descriptor++) close(descriptor);
}

// Writes over what the allocator keeps between two pieces.
static void corrupt(const keystead_host *host) {
    volatile size_t too_much = 64;
    char *one = malloc(24), *next = malloc(24);
    (void)host;
    memset(one, 0x41, too_much);
    free(next);
    free(one);
}

static void sigpipe(const keystead_host *host) {
    (void)host;
    signal(SIGPIPE, SIG_DFL);
    raise(SIGPIPE);
}

static void write_to_sockets(const void *bytes, size_t len) {
    struct stat file;
    for (int descriptor = 0; descriptor < 1024; descriptor++)
        if (fstat(descriptor, &file) == 0 && S_ISSOCK(file.st_mode) && write(descriptor, bytes, len) < 0) abort();
}

// Nothing that the server can read, of the length that it says.
static void garbage(const keystead_host *host) {
    (void)host;
    write_to_sockets("\4\0\0\0\377\377\377\377", 8);
}

// The answer `Done` to call 9,999.
static void forge(const keystead_host *host) {
    (void)host;
    write_to_sockets("\5\0\0\0\0\217\116\0\0", 9);
}

static void oversize(const keystead_host *host) {
    (void)host;
    write_to_sockets("\377\377\377\177", 4);
}

// The beginning of a message: what comes after it is taken for the rest.
static void torn(const keystead_host *host) {
    (void)host;
    write_to_sockets("\0\0\1\0\0", 5);
}

// Says one thing, faster than anybody can read it.
static void say_for_ever(const char *frame, size_t len) {
    static char frames[4096 * 16];
    for (size_t at = 0; at < 4096; at++) memcpy(frames + at * len, frame, len);
    for (;;) write_to_sockets(frames, 4096 * len);
}

// That the keys of store 1 have changed. Number 0 is the plugin.
static void *changed(void *unused) {
    say_for_ever("\2\0\0\0\3\1", 6);
    return unused;
}

static void nag(const keystead_host *host) {
    pthread_t other;
    (void)host;
    if (pthread_create(&other, NULL, changed, NULL) == 0) changed(NULL);
}

static void stop(int signal) {
    (void)signal;
    for (;;) pause();
}

// Asks for store 1 whether a token has refused a PIN, and has nobody read the answers, which is for the main thread.
static void deaf(const keystead_host *host) {
    (void)host;
    signal(SIGUSR1, stop);
    syscall(SYS_tgkill, getpid(), getpid(), SIGUSR1);
    say_for_ever("\7\0\0\0\5\0\1\1t\1p", 11);
}

static int before(struct timespec end) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec < end.tv_sec || (now.tv_sec == end.tv_sec && now.tv_nsec < end.tv_nsec);
}

// More than anybody wants to read, for 300 ms.
static void flood(const keystead_host *host) {
    keystead_log_record record = { sizeof record, KEYSTEAD_LOG_INFO, KEYSTEAD_TEXT("deadly"),
                                   KEYSTEAD_TEXT("a flood of events"), KEYSTEAD_TEXT(""), KEYSTEAD_TEXT("") };
    struct timespec end;
    clock_gettime(CLOCK_MONOTONIC, &end);
    end.tv_nsec += 300 * 1000 * 1000;
    if (end.tv_nsec >= 1000 * 1000 * 1000) end.tv_sec++, end.tv_nsec -= 1000 * 1000 * 1000;
    while (before(end)) {
        fputs("a flood of lines\n", stderr);
        host->log(host->context, &record);
    }
}

// Hangs like a library that waits for its device, and says so.
static void murmur(const keystead_host *host) {
    keystead_log_record record = { sizeof record, KEYSTEAD_LOG_INFO, KEYSTEAD_TEXT("deadly"),
                                   KEYSTEAD_TEXT("waiting for the device"), KEYSTEAD_TEXT(""), KEYSTEAD_TEXT("") };
    for (;;) {
        host->log(host->context, &record);
        usleep(20000);
    }
}

// The one that may fail.
static int forks(void) {
    pid_t child = fork();
    if (child == 0) _exit(0);
    return child > 0;
}

static const struct deed {
    const char *name;
    void (*act)(const keystead_host *host);
} deeds[] = {
    { "null", null },           { "abort", aborts },    { "exit", exits },       { "spin", spin },
    { "hang", hang },           { "gobble", gobble },   { "corrupt", corrupt },  { "sigpipe", sigpipe },
    { "close_all", close_all }, { "garbage", garbage }, { "forge", forge },      { "oversize", oversize },
    { "torn", torn },           { "murmur", murmur },   { "flood", flood },
    { "nag", nag },             { "deaf", deaf },
};

static void act(const char *name, const keystead_host *host) {
    for (size_t i = 0; i < sizeof deeds / sizeof *deeds; i++)
        if (strcmp(deeds[i].name, name) == 0) deeds[i].act(host);
}

// ---- Deeds of `open` ------------------------------------------------------------------------------------------------

static void attempt(const char *file) {
    int attempts = open(file, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (attempts < 0 || write(attempts, "x", 1) != 1) abort();
    close(attempts);
}

// Presents its PIN, to a token that is called as the file: `login` to one that accepts it, `crash` in the middle of
// that, and `wrong_pin` to one that refuses it, after which it crashes.
static uint32_t present(struct store *store, const char *deed, const char *file, keystead_report *report) {
    void *context = store->host->context;
    const keystead_credentials *credentials =
        (const keystead_credentials *)store->host->extension(context, keystead_text("keystead.credentials/1"));
    keystead_bytes token = keystead_text(file), pin = keystead_text((const char *)store->pin);
    if (credentials->refused(context, token, pin))
        return keystead_fail(report, KEYSTEAD_CREDENTIALS, "the token has refused this PIN before");
    attempt(file);
    if (strcmp(deed, "wrong_pin") == 0) credentials->report(context, token, pin);
    if (strcmp(deed, "login") != 0) abort();
    credentials->accepted(context, token, pin);
    return KEYSTEAD_OK;
}

// ---- What is well-behaved -------------------------------------------------------------------------------------------

static const keystead_description description = {
    .size = sizeof(keystead_description),
    .isolation = KEYSTEAD_ISOLATION_PROCESS,
    .name = KEYSTEAD_TEXT("deadly"),
    .version = KEYSTEAD_TEXT("1.0.0"),
    .vendor = KEYSTEAD_TEXT("the tests"),
    .schema = KEYSTEAD_TEXT("{\"type\": \"object\"}"),
};

static const keystead_description *describe(void) {
    return &description;
}

// A text of the configuration; empty where there is none.
static int read_text(const keystead_host *host, const char *path, char text[TEXT]) {
    keystead_buffer buffer = { (uint8_t *)text, TEXT - 1, 0 };
    uint32_t code = host->config(host->context, keystead_text(path), &buffer);
    text[code == KEYSTEAD_OK ? buffer.len : 0] = '\0';
    return code == KEYSTEAD_OK;
}

// The private key of a name is its hash.
static EC_KEY *pair_of(const char *name) {
    uint8_t hash[SHA256_DIGEST_LENGTH];
    SHA256((const uint8_t *)name, strlen(name), hash);
    BIGNUM *scalar = BN_bin2bn(hash, sizeof hash, NULL);
    EC_KEY *pair = EC_KEY_new_by_curve_name(NID_X9_62_prime256v1);
    EC_POINT *point = EC_POINT_new(EC_KEY_get0_group(pair));
    if (!EC_POINT_mul(EC_KEY_get0_group(pair), point, scalar, NULL, NULL, NULL)
        || !EC_KEY_set_private_key(pair, scalar) || !EC_KEY_set_public_key(pair, point))
        abort();
    EC_POINT_free(point);
    BN_clear_free(scalar);
    return pair;
}

static int read_key(struct store *store) {
    struct key *key = &store->keys[store->count];
    const char *members[] = { "name", "sign", "once" };
    char *texts[] = { key->name, key->deed, key->once };
    for (size_t i = 0; i < 3; i++) {
        char path[64];
        snprintf(path, sizeof path, "/keys/%zu/%s", store->count, members[i]);
        if (!read_text(store->host, path, texts[i]) && i == 0) return 0;
    }
    key->pair = pair_of(key->name);
    keystead_bytes name = keystead_text(key->name), spki = { NULL, (size_t)i2d_EC_PUBKEY(key->pair, &key->spki) };
    spki.ptr = key->spki;
    keystead_key listed = { sizeof listed, KEYSTEAD_CALL_BLOCKING, name, spki, name, algorithms, 1 };
    store->listed[store->count++] = listed;
    return store->count < KEYS_MAX;
}

static uint32_t store_open(const keystead_host *host, void **opened, keystead_report *report) {
    char deed[TEXT], attempts[TEXT];
    struct store *store = (struct store *)calloc(1, sizeof *store);
    keystead_buffer pin = { store->pin, sizeof store->pin - 1, 0 };
    store->host = host;
    host->secret(host->context, keystead_text("pin"), &pin);
    read_text(host, "/attempts", attempts);
    uint32_t code = read_text(host, "/open", deed) ? present(store, deed, attempts, report) : KEYSTEAD_OK;
    if (code != KEYSTEAD_OK) {
        free(store);
        return code;
    }
    while (read_key(store)) {}
    *opened = store;
    return KEYSTEAD_OK;
}

// Frees nothing: calls may hang in it.
static uint32_t store_close(void *store, uint64_t grace, keystead_report *report) {
    (void)store, (void)grace, (void)report;
    return KEYSTEAD_OK;
}

static uint32_t store_keys(void *handle, const keystead_context *context, uint64_t cursor, keystead_page *page,
                           keystead_report *report) {
    struct store *store = (struct store *)handle;
    (void)context, (void)cursor, (void)report;
    page->keys = store->listed;
    page->keys_len = store->count;
    page->findings_len = 0;
    page->next = 0;
    return KEYSTEAD_OK;
}

static uint32_t sign(const struct store *store, const struct key *key, keystead_bytes digest, keystead_buffer *out,
                     keystead_report *report) {
    uint8_t signature[80]; // in DER, two numbers of 32 bytes take 72 at most
    unsigned int len = sizeof signature;
    if (strcmp(key->deed, "fork") == 0 && !forks()) return keystead_fail(report, KEYSTEAD_DENIED, strerror(errno));
    if (key->once[0] == '\0' || unlink(key->once) == 0) act(key->deed, store->host);
    if (!ECDSA_sign(0, digest.ptr, (int)digest.len, signature, &len, key->pair))
        return keystead_fail(report, KEYSTEAD_INTERNAL, "libcrypto can't sign");
    return keystead_fill(out, signature, len);
}

static uint32_t store_sign(void *handle, const keystead_context *context, keystead_bytes id, uint32_t algorithm,
                           keystead_bytes digest, keystead_buffer *out, keystead_report *report) {
    struct store *store = (struct store *)handle;
    size_t i = 0;
    (void)context;
    while (i < store->count && !keystead_equal(store->listed[i].id, id)) i++;
    if (i == store->count) return keystead_fail(report, KEYSTEAD_NOT_FOUND, "no such key");
    if (algorithm != KEYSTEAD_ECDSA_SHA256) return keystead_fail(report, KEYSTEAD_UNSUPPORTED, "not by this key");
    return sign(store, &store->keys[i], digest, out, report);
}

static uint32_t store_decrypt(void *store, const keystead_context *context, keystead_bytes key, uint32_t algorithm,
                              keystead_bytes input, keystead_buffer *out, keystead_report *report) {
    (void)store, (void)context, (void)key, (void)algorithm, (void)input, (void)out;
    return keystead_fail(report, KEYSTEAD_UNSUPPORTED, "not by this key");
}

static uint32_t store_health(void *store, const keystead_context *context, keystead_health *health,
                             keystead_report *report) {
    (void)store, (void)context, (void)report;
    health->generation = 0;
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
