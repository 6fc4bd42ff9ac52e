/* SPDX-License-Identifier: BSD-3-Clause */
/* Hashes and PBKDF2, using the crypto library. */
#include "crypto/hash.h"

#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "crypto/openssl.h"
#include "crypto/secret.h"

static const struct {
    const char *name, *library_name;
    size_t bytes;
} hashes[HASH_COUNT] = {
    [HASH_SHA1] = {"sha1", "SHA1", 20},
    [HASH_SHA224] = {"sha224", "SHA2-224", 28},
    [HASH_SHA256] = {"sha256", "SHA2-256", 32},
    [HASH_SHA384] = {"sha384", "SHA2-384", 48},
    [HASH_SHA512] = {"sha512", "SHA2-512", 64},
    [HASH_RIPEMD160] = {"ripemd160", "RIPEMD160", 20},
    [HASH_MD5] = {"md5", "MD5", 16},
};

struct hash {
    EVP_MD *md;
    EVP_MD_CTX *ctx;
};

static void cleanup_md(EVP_MD **md)
{
    if (*md) /* otherwise the library may not be loaded */
        openssl.EVP_MD_free(*md);
}

const char *hash_name(enum hash_alg alg)
{
    return hashes[alg].name;
}

bool hash_by_name(const char *name, enum hash_alg *alg)
{
    for (unsigned i = 0; i < HASH_COUNT; i++) {
        if (strcmp(name, hashes[i].name) == 0) {
            *alg = (enum hash_alg)i;
            return true;
        }
    }
    return false;
}

size_t hash_bytes(enum hash_alg alg)
{
    return hashes[alg].bytes;
}

bool hash_available(enum hash_alg alg)
{
    CLEANUP(cleanup_md) EVP_MD *md = openssl_hash(hashes[alg].library_name);

    return md != NULL;
}

int hash_new(struct hash **out, enum hash_alg alg)
{
    struct hash *hash = calloc(1, sizeof *hash);

    if (!hash)
        return -ENOMEM;
    hash->md = openssl_hash(hashes[alg].library_name);
    if (!hash->md) {
        free(hash);
        return -ENOTSUP;
    }
    hash->ctx = openssl.EVP_MD_CTX_new();
    if (!hash->ctx) {
        hash_free(hash);
        return -ENOMEM;
    }
    *out = hash;
    return 0;
}

void hash_free(struct hash *hash)
{
    if (!hash)
        return;
    openssl.EVP_MD_CTX_free(hash->ctx);
    openssl.EVP_MD_free(hash->md);
    free(hash);
}

int hash_digest(struct hash *hash, uint8_t *digest, const void *a, size_t a_len,
                const void *b, size_t b_len)
{
    if (!openssl.EVP_DigestInit_ex2(hash->ctx, hash->md, NULL) ||
        !openssl.EVP_DigestUpdate(hash->ctx, a, a_len) ||
        !openssl.EVP_DigestUpdate(hash->ctx, b, b_len) ||
        !openssl.EVP_DigestFinal_ex(hash->ctx, digest, NULL))
        return -EIO;
    return 0;
}

int hash_pbkdf2(enum hash_alg alg, void *key, size_t len, const void *passphrase,
                size_t passphrase_len, const void *salt, size_t salt_len,
                uint32_t iterations)
{
    CLEANUP(cleanup_md) EVP_MD *md = openssl_hash(hashes[alg].library_name);

    if (!md)
        return -ENOTSUP;
    if (passphrase_len > INT_MAX || iterations == 0 || iterations > INT32_MAX)
        return -EIO;
    /* Not NULL, for which the library would choose a length itself. */
    if (!openssl.PKCS5_PBKDF2_HMAC(passphrase_len ? passphrase : "", (int)passphrase_len,
                                   salt, (int)salt_len, (int)iterations, md, (int)len, key))
        return -EIO;
    return 0;
}

/* ---- iterations for a given time ---- */

/* Long enough for an accuracy of a few per cent; less if the time asked for is shorter. */
#define MEASURE_MAX_MS 50u

/* The processor time of this thread: not affected by other load. */
static uint64_t processor_ns(void)
{
    struct timespec t;

    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

int hash_pbkdf2_iterations(enum hash_alg alg, size_t len, uint32_t ms, uint32_t *iterations)
{
    static const uint8_t salt[32];
    uint8_t key[HASH_MAX_BYTES * 2] = {0};
    uint64_t took = 0, enough = 1000000u * (uint64_t)MAX(MIN(ms, MEASURE_MAX_MS), 1);
    uint32_t n = 1 << 10;

    len = MIN(len, sizeof key);
    int err = hash_pbkdf2(alg, key, len, "", 0, salt, sizeof salt, 1); /* warms up */
    if (err)
        return err;
    for (;; n *= 2) {
        uint64_t began = processor_ns();
        err = hash_pbkdf2(alg, key, len, "passphrase", 10, salt, sizeof salt, n);
        if (err)
            return err;
        took = processor_ns() - began;
        if (took >= enough || n >= 1u << 30)
            break;
    }
    double wanted = (double)n * ms * 1e6 / (double)MAX(took, 1);
    *iterations = wanted < 1 ? 1 : wanted > UINT32_MAX ? UINT32_MAX : (uint32_t)wanted;
    return 0;
}
