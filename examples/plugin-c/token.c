#include "token.h"
#include <openssl/bn.h>
#include <openssl/core_names.h>
#include <openssl/ec.h>
#include <openssl/err.h>
#include <openssl/kdf.h>
#include <openssl/pem.h>
#include <stdio.h>

// Answers libcrypto, which asks for a passphrase only where the file is under one.
static int answer(char *buffer, int size, int writing, void *user) {
    keystead_buffer *passphrase = (keystead_buffer *)user;
    if (writing || passphrase->capacity > (size_t)size) return -1;
    passphrase->len = passphrase->capacity;
    memcpy(buffer, passphrase->ptr, passphrase->len);
    return (int)passphrase->len;
}

uint32_t token_unseal(const char *file, keystead_bytes passphrase, uint8_t seed[TOKEN_SEED], keystead_report *report) {
    char message[1024];
    FILE *stream = fopen(file, "rbe"); // e: not to be inherited by programs that others start
    if (stream == NULL) {
        snprintf(message, sizeof message, "the seed file %s can't be read: %m", file);
        return keystead_fail(report, KEYSTEAD_UNAVAILABLE, message);
    }
    keystead_buffer given = { (uint8_t *)passphrase.ptr, passphrase.len, 0 };
    size_t len = TOKEN_SEED;
    EVP_PKEY *key = PEM_read_PrivateKey(stream, NULL, answer, &given);
    int asked = given.len > 0, refused = asked && key == NULL;
    int done = asked && !refused && EVP_PKEY_get_raw_private_key(key, seed, &len) > 0 && len == TOKEN_SEED;
    EVP_PKEY_free(key);
    fclose(stream);
    ERR_clear_error(); // the queue is the thread's, and the thread is the server's
    if (done) return KEYSTEAD_OK;
    snprintf(message, sizeof message, "the seed file %s %s", file,
             refused ? "doesn't open with this passphrase" : "is not an encrypted X25519 key; make one by `make seed`");
    return keystead_fail(report, refused ? KEYSTEAD_CREDENTIALS : KEYSTEAD_INVALID_INPUT, message);
}

// HKDF-SHA256 (RFC 5869): 48 bytes of the name's own.
static int expand(const uint8_t seed[TOKEN_SEED], keystead_bytes name, uint8_t wide[48]) {
    char digest[] = "SHA256", salt[] = "keystead plugin-c P-256 1";
    OSSL_PARAM params[] = {
        OSSL_PARAM_construct_utf8_string(OSSL_KDF_PARAM_DIGEST, digest, 0),
        OSSL_PARAM_construct_octet_string(OSSL_KDF_PARAM_KEY, (void *)seed, TOKEN_SEED),
        OSSL_PARAM_construct_octet_string(OSSL_KDF_PARAM_SALT, salt, sizeof salt - 1),
        OSSL_PARAM_construct_octet_string(OSSL_KDF_PARAM_INFO, (void *)name.ptr, name.len),
        OSSL_PARAM_construct_end(),
    };
    EVP_KDF *kdf = EVP_KDF_fetch(NULL, "HKDF", NULL);
    EVP_KDF_CTX *context = EVP_KDF_CTX_new(kdf);
    int done = context != NULL && EVP_KDF_derive(context, wide, 48, params) > 0;
    EVP_KDF_CTX_free(context);
    EVP_KDF_free(kdf);
    return done;
}

// A private key in 1 to n-1, and its public key. 128 bits more than n has leave no bias (FIPS 186-5, A.2.1).
static int key_pair(const uint8_t wide[48], uint8_t scalar[32], uint8_t point[65]) {
    BN_CTX *scratch = BN_CTX_secure_new();
    EC_GROUP *group = EC_GROUP_new_by_curve_name(NID_X9_62_prime256v1);
    EC_POINT *q = group != NULL ? EC_POINT_new(group) : NULL;
    BIGNUM *range = group != NULL ? BN_dup(EC_GROUP_get0_order(group)) : NULL, *d = BN_secure_new();
    if (d != NULL) BN_set_flags(d, BN_FLG_CONSTTIME);
    int done = scratch != NULL && q != NULL && range != NULL && d != NULL && BN_bin2bn(wide, 48, d) != NULL
               && BN_sub_word(range, 1) && BN_mod(d, d, range, scratch) && BN_add_word(d, 1)
               && EC_POINT_mul(group, q, d, NULL, NULL, scratch)
               && EC_POINT_point2oct(group, q, POINT_CONVERSION_UNCOMPRESSED, point, 65, scratch) == 65
               && BN_bn2nativepad(d, scalar, 32) == 32;
    BN_clear_free(d);
    BN_free(range);
    EC_POINT_free(q);
    EC_GROUP_free(group);
    BN_CTX_free(scratch);
    return done;
}

EVP_PKEY *token_derive(const uint8_t seed[TOKEN_SEED], keystead_bytes name) {
    char curve[] = "P-256";
    uint8_t wide[48], scalar[32], point[65];
    OSSL_PARAM params[] = {
        OSSL_PARAM_construct_utf8_string(OSSL_PKEY_PARAM_GROUP_NAME, curve, 0),
        OSSL_PARAM_construct_BN(OSSL_PKEY_PARAM_PRIV_KEY, scalar, sizeof scalar),
        OSSL_PARAM_construct_octet_string(OSSL_PKEY_PARAM_PUB_KEY, point, sizeof point),
        OSSL_PARAM_construct_end(),
    };
    EVP_PKEY *key = NULL;
    EVP_PKEY_CTX *context = EVP_PKEY_CTX_new_from_name(NULL, "EC", NULL);
    if (context != NULL && expand(seed, name, wide) && key_pair(wide, scalar, point)
        && EVP_PKEY_fromdata_init(context) > 0)
        EVP_PKEY_fromdata(context, &key, EVP_PKEY_KEYPAIR, params);
    OPENSSL_cleanse(wide, sizeof wide);
    OPENSSL_cleanse(scalar, sizeof scalar);
    EVP_PKEY_CTX_free(context);
    ERR_clear_error();
    return key;
}
