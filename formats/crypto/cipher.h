/* SPDX-License-Identifier: BSD-3-Clause */
/* Encryption of sectors of 512 bytes, each by its number: AES with XTS or CBC, whose initial
 * vectors come from the number as dm-crypt and QEMU make them.
 *
 * The library's AES works on blocks; the modes are ours, since they can go through many
 * sectors with one call of it (per-sector calls cost more than AES itself), and the library
 * has no XTS for keys of 192 bits.
 *
 * Threads: cipher_encrypt and cipher_decrypt from any number at once, never waiting for each
 * other: each call has a key schedule of its own while it runs, which is kept for the next
 * (base/spares.h).  Keys lie in memory of secret.h; schedules in the library's, which wipes
 * them.  Layer: crypto. */
#ifndef CRYPTO_CIPHER_H
#define CRYPTO_CIPHER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/compiler.h"
#include "base/diag.h"
#include "crypto/hash.h"

#define CIPHER_SECTOR        512u
#define CIPHER_MAX_KEY_BYTES 64u

enum cipher_alg { CIPHER_AES_128, CIPHER_AES_192, CIPHER_AES_256 };
enum cipher_mode { CIPHER_XTS, CIPHER_CBC };

/* PLAIN: the sector's low 32 bits, little-endian; PLAIN64: all 64; ESSIV: these, encrypted
 * with AES under the hash of the key. */
enum cipher_ivgen { CIPHER_PLAIN, CIPHER_PLAIN64, CIPHER_ESSIV };

struct cipher_spec {
    enum cipher_alg alg;
    enum cipher_mode mode;
    enum cipher_ivgen ivgen;
    enum hash_alg iv_hash; /* ESSIV only: one with 16 or 32 bytes (md5, sha256) */
};

/* "aes-256", "xts", "plain64": the words of QEMU's options, and back. */
const char *cipher_alg_name(enum cipher_alg alg);
const char *cipher_mode_name(enum cipher_mode mode);
const char *cipher_ivgen_name(enum cipher_ivgen ivgen);
bool cipher_alg_by_name(const char *name, enum cipher_alg *alg) MUST_USE;
bool cipher_mode_by_name(const char *name, enum cipher_mode *mode) MUST_USE;
bool cipher_ivgen_by_name(const char *name, enum cipher_ivgen *ivgen) MUST_USE;

/* The bytes of the key: 16, 24 or 32, and for XTS twice as many. */
size_t cipher_key_bytes(const struct cipher_spec *spec);

/* Can AES have its digest as a key? */
bool cipher_essiv_hash_fits(enum hash_alg hash);

struct cipher;

/* The key (cipher_key_bytes) is copied.  0; -ENOTSUP with the reason, when there is no such
 * combination or the library doesn't have it; -ENOMEM. */
int cipher_new(struct cipher **out, const struct cipher_spec *spec, const void *key,
               struct diag *diag) MUST_USE;

/* Another owner of the same cipher, who has to free it, too. */
struct cipher *cipher_share(struct cipher *cipher) MUST_USE;

/* NULL is allowed.  Of the last owner: no call is under way. */
void cipher_free(struct cipher *cipher);

/* `len` bytes, whole sectors, of which the first has the number `sector`.  `dst` may be
 * `src`; else they don't overlap.  0, -ENOMEM or -EIO (the library failed): then `dst` is
 * not to be used. */
int cipher_encrypt(struct cipher *cipher, void *dst, const void *src, size_t len,
                   uint64_t sector) MUST_USE;
int cipher_decrypt(struct cipher *cipher, void *dst, const void *src, size_t len,
                   uint64_t sector) MUST_USE;

static inline void cleanup_cipher(struct cipher **cipher)
{
    cipher_free(*cipher);
}
#define CLEANUP_CIPHER CLEANUP(cleanup_cipher)

#endif
