/* SPDX-License-Identifier: BSD-3-Clause */
/* The splitter (LUKS On-Disk Format Specification, 2.4).  All stripes but the last are random;
 * they are mixed into one block, and the last stripe is the key XORed with it. */
#include "crypto/af.h"

#include <errno.h>
#include <string.h>

#include "base/bytes.h"
#include "crypto/openssl.h"
#include "crypto/secret.h"

static void xor_into(uint8_t *block, const uint8_t *other, size_t n)
{
    for (size_t i = 0; i < n; i++)
        block[i] ^= other[i];
}

/* Replaces each digest-sized piece of the block by the digest of its number and itself.  The
 * last piece may be shorter, and gets the beginning of its digest. */
static int diffuse_block(struct hash *hash, size_t digest_bytes, uint8_t *block, size_t n)
{
    uint8_t digest[HASH_MAX_BYTES], number[4];
    int err = 0;

    for (size_t at = 0; at < n && !err; at += digest_bytes) {
        size_t piece = MIN(digest_bytes, n - at);
        store_be32(number, (uint32_t)(at / digest_bytes));
        err = hash_digest(hash, digest, number, sizeof number, block + at, piece);
        if (!err)
            memcpy(block + at, digest, piece);
    }
    secret_wipe(digest, sizeof digest);
    return err;
}

/* Mixes all stripes but the last into `block`. */
static int mix_stripes(enum hash_alg alg, uint8_t *block, const uint8_t *split,
                       size_t key_bytes, uint32_t stripes)
{
    CLEANUP_HASH struct hash *hash = NULL;
    int err = hash_new(&hash, alg);

    memset(block, 0, key_bytes);
    for (uint32_t i = 0; i + 1 < stripes && !err; i++) {
        xor_into(block, split + (size_t)i * key_bytes, key_bytes);
        err = diffuse_block(hash, hash_bytes(alg), block, key_bytes);
    }
    return err;
}

int af_split(enum hash_alg alg, uint8_t *split, const uint8_t *key, size_t key_bytes,
             uint32_t stripes)
{
    size_t random = key_bytes * (stripes - 1);

    int err = random > 0 ? openssl_secret_random(split, random) : 0;
    if (!err)
        err = mix_stripes(alg, split + random, split, key_bytes, stripes);
    if (!err)
        xor_into(split + random, key, key_bytes);
    return err;
}

int af_merge(enum hash_alg alg, uint8_t *key, const uint8_t *split, size_t key_bytes,
             uint32_t stripes)
{
    int err = mix_stripes(alg, key, split, key_bytes, stripes);

    if (!err)
        xor_into(key, split + key_bytes * (stripes - 1), key_bytes);
    return err;
}
