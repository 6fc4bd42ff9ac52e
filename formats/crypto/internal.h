/* SPDX-License-Identifier: BSD-3-Clause */
/* What the parts of the cipher, and those of LUKS, share; private to this folder.
 * Layer: crypto. */
#ifndef CRYPTO_INTERNAL_H
#define CRYPTO_INTERNAL_H

#include <stddef.h>
#include <stdint.h>

#include "crypto/cipher.h"
#include "crypto/luks.h"
#include "crypto/openssl.h"

/* ---- cipher_modes.c: many sectors, with the library's AES on blocks ---- */

#define AES_BLOCK         16u
#define BLOCKS_PER_SECTOR (CIPHER_SECTOR / AES_BLOCK)

/* So many sectors are gone through at once: enough to make a call of the library cheap, and
 * few enough to stay in the nearest cache. */
#define BATCH_SECTORS 16u

/* One initial vector for each sector of a batch, encrypted in place for XTS. */
struct vectors {
    uint8_t iv[BATCH_SECTORS][AES_BLOCK];
};

/* Runs n bytes, whole blocks, through AES in the direction that ctx was made for; `dst` may
 * be `src`.  0 or -EIO. */
int aes_blocks(EVP_CIPHER_CTX *ctx, uint8_t *dst, const uint8_t *src, size_t n) MUST_USE;

/* 1 to BATCH_SECTORS sectors; `dst` may be `src`.  0 or -EIO.  For XTS `tweak` encrypts
 * vectors, and `data` has the direction. */
int xts_batch(EVP_CIPHER_CTX *data, EVP_CIPHER_CTX *tweak, struct vectors *v, uint8_t *dst,
              const uint8_t *src, size_t sectors) MUST_USE;
int cbc_encrypt_batch(EVP_CIPHER_CTX *data, struct vectors *v, uint8_t *dst,
                      const uint8_t *src, size_t sectors) MUST_USE;
int cbc_decrypt_batch(EVP_CIPHER_CTX *data, struct vectors *v, uint8_t *dst,
                      const uint8_t *src, size_t sectors) MUST_USE;

/* ---- luks_io.c: header and key material ---- */

int luks_read_header(const struct luks_io *io, struct luks_header *h,
                     struct diag *diag) MUST_USE;

/* Would luks_read_header take it? */
int luks_judge_header(const struct luks_io *io, const struct luks_header *h,
                      struct diag *diag) MUST_USE;

/* Durable when it returns 0. */
int luks_write_header(const struct luks_io *io, const struct luks_header *h,
                      struct diag *diag) MUST_USE;

/* What the material of the slot gives with the passphrase: h->key_bytes go to `key`, which
 * is the master key when 0 is returned.  -EKEYREJECTED (without a sentence) when it isn't.
 */
int luks_try_slot(const struct luks_io *io, const struct luks_header *h, unsigned slot,
                  const void *passphrase, size_t len, uint8_t *key,
                  struct diag *diag) MUST_USE;

/* The first slot in use that the passphrase opens; -EKEYREJECTED with a sentence. */
int luks_unlock(const struct luks_io *io, const struct luks_header *h,
                const void *passphrase, size_t len, uint8_t *key, unsigned *slot,
                struct diag *diag) MUST_USE;

/* Makes the slot one that the passphrase opens: its fields change in *h alone; its material
 * is written, and durable when 0 is returned. */
int luks_fill_slot(const struct luks_io *io, struct luks_header *h, unsigned slot,
                   uint32_t iter_time_ms, const uint8_t *key, const void *passphrase,
                   size_t len, struct diag *diag) MUST_USE;

/* Overwrites the material with random bytes; durable when 0 is returned. */
int luks_wipe_material(const struct luks_io *io, const struct luks_header *h, unsigned slot,
                       struct diag *diag) MUST_USE;

/* The container's cipher with that key; the sentence begins with io->name. */
int luks_new_cipher(const struct luks_io *io, const struct luks_header *h,
                    const uint8_t *key, struct cipher **cipher, struct diag *diag) MUST_USE;

/* The digest by which a master key is known. */
int luks_key_digest(const struct luks_header *h, const uint8_t *key,
                    uint8_t digest[LUKS_DIGEST_BYTES]) MUST_USE;

/* Iterations for a time, within what a header may have. */
int luks_iterations(enum hash_alg hash, size_t len, uint32_t ms,
                    uint32_t *iterations) MUST_USE;

#endif
