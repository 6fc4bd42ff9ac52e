/* SPDX-License-Identifier: BSD-3-Clause */
/* XTS (IEEE 1619, whole blocks only) and CBC (NIST SP 800-38A) for a batch of sectors. */
#include <errno.h>
#include <string.h>

#include "base/bytes.h"
#include "crypto/internal.h"

#define BATCH_BYTES (BATCH_SECTORS * CIPHER_SECTOR)

/* A block at any address.  The compilers use one vector instruction for an operation on it. */
typedef uint64_t block __attribute__((vector_size(AES_BLOCK), aligned(1), may_alias));

static void xor_block(uint8_t *dst, const uint8_t *a, const uint8_t *b)
{
    *(block *)dst = *(const block *)a ^ *(const block *)b;
}

static void xor_blocks(uint8_t *dst, const uint8_t *a, const uint8_t *b, size_t n)
{
    for (size_t i = 0; i < n; i += AES_BLOCK)
        xor_block(dst + i, a + i, b + i);
}

int aes_blocks(EVP_CIPHER_CTX *ctx, uint8_t *dst, const uint8_t *src, size_t n)
{
    int written = 0;

    if (!openssl.EVP_CipherUpdate(ctx, dst, &written, src, (int)n) || (size_t)written != n)
        return -EIO;
    return 0;
}

/* Computes a tweak for each block of a sector: each is the previous one multiplied by x in
 * GF(2^128). */
static void expand_tweak(uint8_t *tweaks, const uint8_t *first)
{
    uint64_t low = load_le64(first), high = load_le64(first + 8);

    for (size_t i = 0; i < BLOCKS_PER_SECTOR; i++) {
        store_le64(tweaks + i * AES_BLOCK, low);
        store_le64(tweaks + i * AES_BLOCK + 8, high);
        uint64_t carry = (0 - (high >> 63)) & 0x87;
        high = high << 1 | low >> 63;
        low = low << 1 ^ carry;
    }
}

int xts_batch(EVP_CIPHER_CTX *data, EVP_CIPHER_CTX *tweak, struct vectors *v, uint8_t *dst,
              const uint8_t *src, size_t sectors)
{
    uint8_t tweaks[BATCH_BYTES];
    size_t n = sectors * CIPHER_SECTOR;

    int err = aes_blocks(tweak, v->iv[0], v->iv[0], sectors * AES_BLOCK);
    if (err)
        return err;
    for (size_t i = 0; i < sectors; i++)
        expand_tweak(tweaks + i * CIPHER_SECTOR, v->iv[i]);
    xor_blocks(dst, src, tweaks, n);
    err = aes_blocks(data, dst, dst, n);
    if (err)
        return err;
    xor_blocks(dst, dst, tweaks, n);
    return 0;
}

/* In CBC a block depends on the encrypted block before it.  So the sectors are processed in
 * parallel, block by block. */
int cbc_encrypt_batch(EVP_CIPHER_CTX *data, struct vectors *v, uint8_t *dst,
                      const uint8_t *src, size_t sectors)
{
    for (size_t at = 0; at < CIPHER_SECTOR; at += AES_BLOCK) {
        for (size_t i = 0; i < sectors; i++)
            xor_block(v->iv[i], v->iv[i], src + i * CIPHER_SECTOR + at);
        int err = aes_blocks(data, v->iv[0], v->iv[0], sectors * AES_BLOCK);
        if (err)
            return err;
        for (size_t i = 0; i < sectors; i++)
            memcpy(dst + i * CIPHER_SECTOR + at, v->iv[i], AES_BLOCK);
    }
    return 0;
}

/* Decrypts all blocks at once, then XORs each with the encrypted block before it, of which a
 * copy is kept in case `dst` is `src`. */
int cbc_decrypt_batch(EVP_CIPHER_CTX *data, struct vectors *v, uint8_t *dst,
                      const uint8_t *src, size_t sectors)
{
    uint8_t encrypted[BATCH_BYTES];
    size_t n = sectors * CIPHER_SECTOR;

    memcpy(encrypted, src, n);
    int err = aes_blocks(data, dst, encrypted, n);
    if (err)
        return err;
    for (size_t at = 0; at < n; at += CIPHER_SECTOR) {
        xor_block(dst + at, dst + at, v->iv[at / CIPHER_SECTOR]);
        xor_blocks(dst + at + AES_BLOCK, dst + at + AES_BLOCK, encrypted + at,
                   CIPHER_SECTOR - AES_BLOCK);
    }
    return 0;
}
