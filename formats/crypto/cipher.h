/* SPDX-License-Identifier: BSD-3-Clause */
/* Encryption of sectors of 512 bytes by their number: AES in XTS or CBC mode.  Initial vectors
 * are made from the sector number as dm-crypt and QEMU do it.
 *
 * The library provides AES on blocks.  The modes are our own, because they process many sectors
 * with one call of the library (a call per sector costs more than AES itself), and because the
 * library has no XTS for keys of 192 bits.
 *
 * Threads: cipher_encrypt and cipher_decrypt from any number at once, without waiting for each
 * other: each call uses a key schedule of its own, which is kept for reuse (base/spares.h).
 * Keys are in secret memory (secret.h); schedules are in the library's memory, which it wipes.
 * Layer: crypto. */
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

/* PLAIN: the low 32 bits of the sector number, little-endian.  PLAIN64: all 64 bits.  ESSIV: as
 * PLAIN64, encrypted with AES, whose key is the hash of the key. */
enum cipher_ivgen { CIPHER_PLAIN, CIPHER_PLAIN64, CIPHER_ESSIV };

struct cipher_spec {
    enum cipher_alg alg;
    enum cipher_mode mode;
    enum cipher_ivgen ivgen;
    enum hash_alg iv_hash; /* ESSIV only: a hash of 16 or 32 bytes (md5, sha256) */
};

/* The names of QEMU's options ("aes-256", "xts", "plain64"), and the reverse. */
const char *cipher_alg_name(enum cipher_alg alg);
const char *cipher_mode_name(enum cipher_mode mode);
const char *cipher_ivgen_name(enum cipher_ivgen ivgen);
bool cipher_alg_by_name(const char *name, enum cipher_alg *alg) MUST_USE;
bool cipher_mode_by_name(const char *name, enum cipher_mode *mode) MUST_USE;
bool cipher_ivgen_by_name(const char *name, enum cipher_ivgen *ivgen) MUST_USE;

/* The size of the key: 16, 24 or 32 bytes, and twice that for XTS. */
size_t cipher_key_bytes(const struct cipher_spec *spec);

/* Is its digest as long as an AES key? */
bool cipher_essiv_hash_fits(enum hash_alg hash);

struct cipher;

/* Makes a cipher; the key (cipher_key_bytes) is copied.  Returns 0; -ENOTSUP with the reason if
 * there is no such combination or the library doesn't have it; or -ENOMEM. */
int cipher_new(struct cipher **out, const struct cipher_spec *spec, const void *key,
               struct diag *diag) MUST_USE;

/* Takes a reference to the cipher, which has to be freed as well. */
struct cipher *cipher_share(struct cipher *cipher) MUST_USE;

/* Drops a reference; the last one frees the cipher, and no call may be in progress then.  NULL
 * is allowed. */
void cipher_free(struct cipher *cipher);

/* Encrypt or decrypt `len` bytes, whole sectors, the first of which has the number `sector`.
 * `dst` may be `src`; otherwise they must not overlap.  Return 0, -ENOMEM or -EIO (the library
 * failed); after an error `dst` must not be used. */
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
