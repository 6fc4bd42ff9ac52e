/* SPDX-License-Identifier: BSD-3-Clause */
/* Hashes by name, and key derivation from passphrases (PBKDF2 with HMAC, RFC 8018).  Threads:
 * any.  Layer: crypto. */
#ifndef CRYPTO_HASH_H
#define CRYPTO_HASH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/compiler.h"
#include "base/library.h"

enum hash_alg {
    HASH_SHA1,
    HASH_SHA224,
    HASH_SHA256,
    HASH_SHA384,
    HASH_SHA512,
    HASH_RIPEMD160,
    HASH_MD5,
    HASH_COUNT
};

#define HASH_MAX_BYTES 64

/* Names as in LUKS headers and QEMU's options: "sha256". */
const char *hash_name(enum hash_alg alg);
bool hash_by_name(const char *name, enum hash_alg *alg) MUST_USE;

/* The size of a digest, bytes. */
size_t hash_bytes(enum hash_alg alg);

/* Does the crypto library of this machine have it? */
bool hash_available(enum hash_alg alg) MUST_USE;

/* A hash context, for many short inputs.  One thread at a time. */
struct hash;

/* Returns 0, -ENOTSUP if the library doesn't have it, or -ENOMEM. */
int hash_new(struct hash **out, enum hash_alg alg) MUST_USE;
void hash_free(struct hash *hash);

/* Computes the digest (hash_bytes) of the concatenation of a and b.  Returns 0 or -EIO. */
int hash_digest(struct hash *hash, uint8_t *digest, const void *a, size_t a_len,
                const void *b, size_t b_len) MUST_USE;

static inline void cleanup_hash(struct hash **hash)
{
    hash_free(*hash);
}
#define CLEANUP_HASH CLEANUP(cleanup_hash)

/* Derives a key of `len` bytes.  iterations: 1 to INT32_MAX.  Returns 0, -ENOTSUP or -EIO. */
int hash_pbkdf2(enum hash_alg alg, void *key, size_t len, const void *passphrase,
                size_t passphrase_len, const void *salt, size_t salt_len,
                uint32_t iterations) MUST_USE;

/* Measures how many iterations for `len` bytes take `ms` milliseconds of processor time (takes
 * a tenth of a second at most).  *iterations: 1 to UINT32_MAX.  Returns 0, -ENOTSUP or -EIO. */
int hash_pbkdf2_iterations(enum hash_alg alg, size_t len, uint32_t ms,
                           uint32_t *iterations) MUST_USE;

void crypto_tell_libraries(library_sink *sink, void *opaque);

#endif
