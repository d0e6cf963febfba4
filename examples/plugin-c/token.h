// The token: private keys that follow from a seed and their names. It knows nothing of who uses them.
#ifndef TOKEN_H
#define TOKEN_H

#include <keystead_plugin.h>
#include <openssl/evp.h>

#define TOKEN_SEED 32

// Opens a seed file, which is a PKCS#8 file under a passphrase. Answers with a code, and says what is wrong.
uint32_t token_unseal(const char *file, keystead_bytes passphrase, uint8_t seed[TOKEN_SEED], keystead_report *report);

// Makes the P-256 key of a name, always the same; NULL where libcrypto fails. The caller frees it, which zeroes it.
EVP_PKEY *token_derive(const uint8_t seed[TOKEN_SEED], keystead_bytes name);

#endif
