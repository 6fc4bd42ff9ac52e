/* SPDX-License-Identifier: BSD-3-Clause */
/* Ciphers: keys, key schedules, and the initial vectors of sectors. */
#include "crypto/cipher.h"

#include <assert.h>
#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/cleanup.h"
#include "base/spares.h"
#include "crypto/internal.h"
#include "crypto/secret.h"

struct keys {
    uint8_t data[32], tweak[32], essiv[32];
};

struct cipher {
    struct spares encryptors, decryptors; /* of struct schedule */
    struct cipher_spec spec;
    EVP_CIPHER *aes, *essiv_aes;
    struct keys *keys; /* secret memory */
    _Atomic unsigned owners;
};

/* Key schedules for one call; NULL if spec doesn't need it. */
struct schedule {
    EVP_CIPHER_CTX *data, *tweak, *essiv;
};

enum direction { DECRYPT = 0, ENCRYPT = 1 }; /* the library's values */

/* ---- key schedules ---- */

static void free_schedule(struct schedule *s)
{
    openssl.EVP_CIPHER_CTX_free(s->data); /* also wipes it */
    openssl.EVP_CIPHER_CTX_free(s->tweak);
    openssl.EVP_CIPHER_CTX_free(s->essiv);
    free(s);
}

static EVP_CIPHER_CTX *expand_key(EVP_CIPHER *aes, const uint8_t *key,
                                  enum direction direction)
{
    EVP_CIPHER_CTX *ctx = openssl.EVP_CIPHER_CTX_new();

    if (ctx && openssl.EVP_CipherInit_ex2(ctx, aes, key, NULL, (int)direction, NULL) == 1) {
        openssl.EVP_CIPHER_CTX_set_padding(ctx, 0);
        return ctx;
    }
    openssl.EVP_CIPHER_CTX_free(ctx);
    return NULL;
}

static struct schedule *new_schedule(const struct cipher *c, enum direction direction)
{
    struct schedule *s = calloc(1, sizeof *s);
    bool xts = c->spec.mode == CIPHER_XTS;

    if (!s)
        return NULL;
    s->data = expand_key(c->aes, c->keys->data, direction);
    s->tweak = xts ? expand_key(c->aes, c->keys->tweak, ENCRYPT) : NULL;
    s->essiv = c->essiv_aes ? expand_key(c->essiv_aes, c->keys->essiv, ENCRYPT) : NULL;
    if (!s->data || !s->tweak != !xts || !s->essiv != !c->essiv_aes) {
        free_schedule(s);
        return NULL;
    }
    return s;
}

/* ---- making a cipher ---- */

static EVP_CIPHER *fetch_aes(size_t key_bytes)
{
    const char *name = key_bytes == 16   ? "AES-128-ECB"
                       : key_bytes == 24 ? "AES-192-ECB"
                                         : "AES-256-ECB";

    return openssl_cipher(name);
}

/* As in dm-crypt: the digest of the whole key is the AES key, and determines its size. */
static int make_essiv(struct cipher *c, const void *key, struct diag *diag)
{
    CLEANUP_HASH struct hash *hash = NULL;
    const char *name = hash_name(c->spec.iv_hash);
    size_t n = hash_bytes(c->spec.iv_hash);

    if (!cipher_essiv_hash_fits(c->spec.iv_hash))
        return diag_set(diag, ENOTSUP, "essiv:%s: a digest of %zu bytes is no key of AES",
                        name, n);
    int err = hash_new(&hash, c->spec.iv_hash);
    if (err)
        return diag_errno(diag, -err, "essiv:%s", name);
    err = hash_digest(hash, c->keys->essiv, key, cipher_key_bytes(&c->spec), NULL, 0);
    if (err)
        return diag_errno(diag, -err, "essiv:%s", name);
    c->essiv_aes = fetch_aes(n);
    if (!c->essiv_aes)
        return diag_set(diag, ENOTSUP, "essiv:%s: no AES in the crypto library", name);
    return 0;
}

static int set_up(struct cipher *c, const void *key, struct diag *diag)
{
    size_t n = cipher_key_bytes(&c->spec);

    c->keys = secret_alloc(sizeof *c->keys);
    if (!c->keys)
        return diag_errno(diag, ENOMEM, "a cipher's keys");
    if (c->spec.mode == CIPHER_XTS) {
        n /= 2;
        memcpy(c->keys->tweak, (const uint8_t *)key + n, n);
    }
    memcpy(c->keys->data, key, n);
    c->aes = fetch_aes(n);
    if (!c->aes)
        return diag_set(diag, ENOTSUP, "%s: not in the crypto library",
                        cipher_alg_name(c->spec.alg));
    return c->spec.ivgen == CIPHER_ESSIV ? make_essiv(c, key, diag) : 0;
}

int cipher_new(struct cipher **out, const struct cipher_spec *spec, const void *key,
               struct diag *diag)
{
    CLEANUP_CIPHER struct cipher *c = aligned_alloc(_Alignof(struct cipher), sizeof *c);

    if (!c)
        return diag_errno(diag, ENOMEM, "a cipher");
    memset(c, 0, sizeof *c);
    c->spec = *spec;
    atomic_init(&c->owners, 1);
    int err = set_up(c, key, diag);
    if (err)
        return err;
    *out = TAKE(&c);
    return 0;
}

struct cipher *cipher_share(struct cipher *c)
{
    atomic_fetch_add(&c->owners, 1);
    return c;
}

void cipher_free(struct cipher *c)
{
    struct schedule *s;

    if (!c || atomic_fetch_sub(&c->owners, 1) > 1)
        return;
    while ((s = spares_take(&c->encryptors)))
        free_schedule(s);
    while ((s = spares_take(&c->decryptors)))
        free_schedule(s);
    if (c->aes)
        openssl.EVP_CIPHER_free(c->aes);
    if (c->essiv_aes)
        openssl.EVP_CIPHER_free(c->essiv_aes);
    secret_free(c->keys);
    free(c);
}

/* ---- sectors ---- */

static int make_vectors(const struct cipher *c, const struct schedule *s, struct vectors *v,
                        uint64_t sector, size_t n)
{
    for (size_t i = 0; i < n; i++, sector++) {
        uint64_t number = c->spec.ivgen == CIPHER_PLAIN ? (uint32_t)sector : sector;
        store_le64(v->iv[i], number);
        store_le64(v->iv[i] + 8, 0);
    }
    return s->essiv ? aes_blocks(s->essiv, v->iv[0], v->iv[0], n * AES_BLOCK) : 0;
}

static int run_batch(const struct cipher *c, const struct schedule *s,
                     enum direction direction, uint8_t *dst, const uint8_t *src, size_t n,
                     uint64_t sector)
{
    struct vectors v;
    int err = make_vectors(c, s, &v, sector, n);

    if (err)
        return err;
    if (c->spec.mode == CIPHER_XTS)
        return xts_batch(s->data, s->tweak, &v, dst, src, n);
    return direction == ENCRYPT ? cbc_encrypt_batch(s->data, &v, dst, src, n)
                                : cbc_decrypt_batch(s->data, &v, dst, src, n);
}

static int transform_sectors(struct cipher *c, enum direction direction, uint8_t *dst,
                             const uint8_t *src, size_t len, uint64_t sector)
{
    struct spares *spares = direction == ENCRYPT ? &c->encryptors : &c->decryptors;
    struct schedule *s = spares_take(spares);
    int err = 0;

    assert(len % CIPHER_SECTOR == 0);
    if (!s)
        s = new_schedule(c, direction);
    if (!s)
        return -ENOMEM;
    for (size_t left = len / CIPHER_SECTOR, n; left > 0 && !err; left -= n, sector += n) {
        n = MIN(left, BATCH_SECTORS);
        err = run_batch(c, s, direction, dst, src, n, sector);
        dst += n * CIPHER_SECTOR;
        src += n * CIPHER_SECTOR;
    }
    /* After an error its state is unknown. */
    if (err || !spares_leave(spares, s))
        free_schedule(s);
    return err;
}

int cipher_encrypt(struct cipher *c, void *dst, const void *src, size_t len,
                   uint64_t sector)
{
    return transform_sectors(c, ENCRYPT, dst, src, len, sector);
}

int cipher_decrypt(struct cipher *c, void *dst, const void *src, size_t len,
                   uint64_t sector)
{
    return transform_sectors(c, DECRYPT, dst, src, len, sector);
}
