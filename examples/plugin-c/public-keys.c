// Prints the public keys of names, in PEM: what certificates are made over.
#include "token.h"
#include <openssl/crypto.h>
#include <openssl/pem.h>
#include <stdio.h>

int main(int count, char **words) {
    char line[1024] = "", said[1024] = "";
    uint8_t seed[TOKEN_SEED];
    keystead_report report = { sizeof report, 0, 0, { NULL, 0, 0 }, { (uint8_t *)said, sizeof said - 1, 0 } };
    FILE *passphrase = count > 3 ? fopen(words[2], "r") : NULL;
    if (passphrase == NULL || fgets(line, sizeof line, passphrase) == NULL) {
        fprintf(stderr, "usage: %s SEED_FILE PASSPHRASE_FILE NAME...\n", words[0]);
        return 2;
    }
    line[strcspn(line, "\n")] = '\0';
    uint32_t code = token_unseal(words[1], keystead_text(line), seed, &report);
    if (code != KEYSTEAD_OK) fprintf(stderr, "%s\n", said);
    for (int i = 3; code == KEYSTEAD_OK && i < count; i++) {
        EVP_PKEY *key = token_derive(seed, keystead_text(words[i]));
        if (key == NULL || PEM_write_PUBKEY(stdout, key) <= 0) code = KEYSTEAD_INTERNAL;
        EVP_PKEY_free(key);
    }
    OPENSSL_cleanse(line, sizeof line);
    OPENSSL_cleanse(seed, sizeof seed);
    return code != KEYSTEAD_OK;
}
