/* SPDX-License-Identifier: BSD-3-Clause */
/* Shared by the parts of the cipher, and by those of LUKS; private to this folder.  Layer:
 * crypto. */
#ifndef CRYPTO_INTERNAL_H
#define CRYPTO_INTERNAL_H

#include <stddef.h>
#include <stdint.h>

#include "crypto/cipher.h"
#include "crypto/luks.h"
#include "crypto/openssl.h"

/* ---- cipher_modes.c: many sectors at once, with the library's AES on blocks ---- */

#define AES_BLOCK         16u
#define BLOCKS_PER_SECTOR (CIPHER_SECTOR / AES_BLOCK)

/* The number of sectors that are processed together: enough to make a call of the library
 * cheap, and few enough to stay in the L1 cache. */
#define BATCH_SECTORS 16u

/* One initial vector for each sector of a batch; XTS encrypts them in place. */
struct vectors {
    uint8_t iv[BATCH_SECTORS][AES_BLOCK];
};

/* Encrypts or decrypts n bytes, whole blocks, with AES, as ctx was made for; `dst` may be
 * `src`. Returns 0 or -EIO. */
int aes_blocks(EVP_CIPHER_CTX *ctx, uint8_t *dst, const uint8_t *src, size_t n) MUST_USE;

/* Process 1 to BATCH_SECTORS sectors; `dst` may be `src`. Return 0 or -EIO.  For XTS, `tweak`
 * encrypts vectors, and `data` has the direction. */
int xts_batch(EVP_CIPHER_CTX *data, EVP_CIPHER_CTX *tweak, struct vectors *v, uint8_t *dst,
              const uint8_t *src, size_t sectors) MUST_USE;
int cbc_encrypt_batch(EVP_CIPHER_CTX *data, struct vectors *v, uint8_t *dst,
                      const uint8_t *src, size_t sectors) MUST_USE;
int cbc_decrypt_batch(EVP_CIPHER_CTX *data, struct vectors *v, uint8_t *dst,
                      const uint8_t *src, size_t sectors) MUST_USE;

/* ---- luks_io.c: header and key material ---- */

int luks_read_header(const struct luks_io *io, struct luks_header *h,
                     struct diag *diag) MUST_USE;

/* Validates a header as luks_read_header does. */
int luks_judge_header(const struct luks_io *io, const struct luks_header *h,
                      struct diag *diag) MUST_USE;

/* Durable when it returns 0. */
int luks_write_header(const struct luks_io *io, const struct luks_header *h,
                      struct diag *diag) MUST_USE;

/* Decrypts the slot's key material with the passphrase.  Returns 0 with the master key
 * (h->key_bytes) in `key`, or -EKEYREJECTED, without a sentence, if the passphrase is wrong. */
int luks_try_slot(const struct luks_io *io, const struct luks_header *h, unsigned slot,
                  const void *passphrase, size_t len, uint8_t *key,
                  struct diag *diag) MUST_USE;

/* Finds the first active slot that the passphrase opens.  -EKEYREJECTED with a sentence: there
 * is none. */
int luks_unlock(const struct luks_io *io, const struct luks_header *h,
                const void *passphrase, size_t len, uint8_t *key, unsigned *slot,
                struct diag *diag) MUST_USE;

/* Fills the slot with the key for a passphrase: changes its fields in *h only; its material is
 * written, and durable when 0 is returned. */
int luks_fill_slot(const struct luks_io *io, struct luks_header *h, unsigned slot,
                   uint32_t iter_time_ms, const uint8_t *key, const void *passphrase,
                   size_t len, struct diag *diag) MUST_USE;

/* Overwrites the key material with random bytes; durable when 0 is returned. */
int luks_wipe_material(const struct luks_io *io, const struct luks_header *h, unsigned slot,
                       struct diag *diag) MUST_USE;

/* Makes the container's cipher with this key; messages begin with io->name. */
int luks_new_cipher(const struct luks_io *io, const struct luks_header *h,
                    const uint8_t *key, struct cipher **cipher, struct diag *diag) MUST_USE;

/* Computes the digest of a master key, by which the header identifies it. */
int luks_key_digest(const struct luks_header *h, const uint8_t *key,
                    uint8_t digest[LUKS_DIGEST_BYTES]) MUST_USE;

/* The number of iterations for a time in ms, within what a header may have. */
int luks_iterations(enum hash_alg hash, size_t len, uint32_t ms,
                    uint32_t *iterations) MUST_USE;

#endif
