/* SPDX-License-Identifier: BSD-3-Clause */
/* Reads and writes the header and the key material of a container, one slot at a time. */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "crypto/af.h"
#include "crypto/internal.h"
#include "crypto/secret.h"

#define MIN_ITERATIONS 1000u /* the minimum of the specification and of QEMU */

/* ---- the header ---- */

int luks_read_header(const struct luks_io *io, struct luks_header *h, struct diag *diag)
{
    uint8_t bytes[LUKS_HEADER_BYTES];
    size_t n = MIN(io->limit, sizeof bytes);
    int err = io->read(io->opaque, bytes, 0, n);

    if (err)
        return diag_errno(diag, -err, "%s: reading the LUKS header", io->name);
    return luks_header_parse(h, bytes, n, io->limit, io->name, diag);
}

int luks_judge_header(const struct luks_io *io, const struct luks_header *h,
                      struct diag *diag)
{
    uint8_t bytes[LUKS_HEADER_BYTES];
    struct luks_header again;

    luks_header_serialise(h, bytes);
    return luks_header_parse(&again, bytes, sizeof bytes, io->limit, io->name, diag);
}

static int write_durably(const struct luks_io *io, const void *buf, uint64_t off,
                         size_t len)
{
    int err = io->write(io->opaque, buf, off, len);

    return err ? err : io->flush(io->opaque);
}

int luks_write_header(const struct luks_io *io, const struct luks_header *h,
                      struct diag *diag)
{
    uint8_t bytes[LUKS_HEADER_BYTES];
    int err = luks_judge_header(io, h, diag);

    if (err)
        return err;
    luks_header_serialise(h, bytes);
    err = write_durably(io, bytes, 0, sizeof bytes);
    return err ? diag_errno(diag, -err, "%s: writing the LUKS header", io->name) : 0;
}

/* ---- keys ---- */

int luks_iterations(enum hash_alg hash, size_t len, uint32_t ms, uint32_t *iterations)
{
    int err = hash_pbkdf2_iterations(hash, len, ms, iterations);

    *iterations = MAX(*iterations, MIN_ITERATIONS);
    *iterations = MIN(*iterations, LUKS_MAX_ITERATIONS);
    return err;
}

int luks_key_digest(const struct luks_header *h, const uint8_t *key,
                    uint8_t digest[LUKS_DIGEST_BYTES])
{
    return hash_pbkdf2(h->hash, digest, LUKS_DIGEST_BYTES, key, h->key_bytes,
                       h->digest_salt, sizeof h->digest_salt, h->digest_iterations);
}

int luks_new_cipher(const struct luks_io *io, const struct luks_header *h,
                    const uint8_t *key, struct cipher **cipher, struct diag *diag)
{
    struct diag reason = {0};
    int err = cipher_new(cipher, &h->spec, key, &reason);

    return err ? diag_set(diag, -err, "%s: %s", io->name, reason.text) : 0;
}

/* The cipher for a slot's material: that of the container, with the key derived from the
 * passphrase. */
static int slot_cipher(const struct luks_io *io, const struct luks_header *h, unsigned slot,
                       const void *passphrase, size_t len, struct cipher **cipher,
                       struct diag *diag)
{
    CLEANUP_SECRET uint8_t *key = secret_alloc(h->key_bytes);
    const struct luks_slot *s = &h->slot[slot];

    if (!key)
        return diag_errno(diag, ENOMEM, "%s: a key", io->name);
    int err = hash_pbkdf2(h->hash, key, h->key_bytes, passphrase, len, s->salt,
                          sizeof s->salt, s->iterations);
    if (err)
        return diag_errno(diag, -err, "%s: a key by PBKDF2 with %s", io->name,
                          hash_name(h->hash));
    return luks_new_cipher(io, h, key, cipher, diag);
}

static uint64_t material_offset(const struct luks_header *h, unsigned slot)
{
    return (uint64_t)h->slot[slot].material_sector * CIPHER_SECTOR;
}

/* ---- opening ---- */

static int read_material(const struct luks_io *io, const struct luks_header *h,
                         unsigned slot, const void *passphrase, size_t len,
                         uint8_t *material, struct diag *diag)
{
    CLEANUP_CIPHER struct cipher *cipher = NULL;
    size_t n = luks_material_bytes(h->key_bytes);
    int err = io->read(io->opaque, material, material_offset(h, slot), n);

    if (err)
        return diag_errno(diag, -err, "%s: reading the material of key slot %u", io->name,
                          slot);
    err = slot_cipher(io, h, slot, passphrase, len, &cipher, diag);
    if (err)
        return err;
    err = cipher_decrypt(cipher, material, material, n, 0);
    return err ? diag_errno(diag, -err, "%s: decrypting key slot %u", io->name, slot) : 0;
}

static int compare_digest(const struct luks_header *h, const uint8_t *key)
{
    uint8_t digest[LUKS_DIGEST_BYTES];
    int err = luks_key_digest(h, key, digest);

    if (!err && openssl.CRYPTO_memcmp(digest, h->digest, sizeof digest) != 0)
        err = -EKEYREJECTED;
    secret_wipe(digest, sizeof digest);
    return err;
}

int luks_try_slot(const struct luks_io *io, const struct luks_header *h, unsigned slot,
                  const void *passphrase, size_t len, uint8_t *key, struct diag *diag)
{
    CLEANUP_SECRET uint8_t *material = secret_alloc(luks_material_bytes(h->key_bytes));

    if (!material)
        return diag_errno(diag, ENOMEM, "%s: the material of key slot %u", io->name, slot);
    int err = read_material(io, h, slot, passphrase, len, material, diag);
    if (err)
        return err;
    err = af_merge(h->hash, key, material, h->key_bytes, LUKS_STRIPES);
    if (!err)
        err = compare_digest(h, key);
    if (err && err != -EKEYREJECTED)
        return diag_errno(diag, -err, "%s: the key of slot %u", io->name, slot);
    return err;
}

int luks_unlock(const struct luks_io *io, const struct luks_header *h,
                const void *passphrase, size_t len, uint8_t *key, unsigned *slot,
                struct diag *diag)
{
    for (unsigned i = 0; i < LUKS_SLOTS; i++) {
        if (!h->slot[i].active)
            continue;
        int err = luks_try_slot(io, h, i, passphrase, len, key, diag);
        if (err == 0)
            *slot = i;
        if (err != -EKEYREJECTED)
            return err;
    }
    return diag_set(diag, EKEYREJECTED, "%s: the passphrase opens none of the %u key slots",
                    io->name, luks_active_slots(h));
}

/* ---- changing slots ---- */

/* Splits the key into `material`, and encrypts that. */
static int make_material(const struct luks_io *io, const struct luks_header *h,
                         unsigned slot, const uint8_t *key, const void *passphrase,
                         size_t len, uint8_t *material, struct diag *diag)
{
    CLEANUP_CIPHER struct cipher *cipher = NULL;
    size_t n = luks_material_bytes(h->key_bytes);
    int err = af_split(h->hash, material, key, h->key_bytes, LUKS_STRIPES);

    if (err)
        return diag_errno(diag, -err, "%s: splitting a key", io->name);
    err = slot_cipher(io, h, slot, passphrase, len, &cipher, diag);
    if (err)
        return err;
    err = cipher_encrypt(cipher, material, material, n, 0);
    return err ? diag_errno(diag, -err, "%s: encrypting key material", io->name) : 0;
}

static int write_material(const struct luks_io *io, const struct luks_header *h,
                          unsigned slot, const uint8_t *material, struct diag *diag)
{
    int err = write_durably(io, material, material_offset(h, slot),
                            luks_material_bytes(h->key_bytes));

    return err ? diag_errno(diag, -err, "%s: writing the material of key slot %u", io->name,
                            slot)
               : 0;
}

int luks_fill_slot(const struct luks_io *io, struct luks_header *h, unsigned slot,
                   uint32_t iter_time_ms, const uint8_t *key, const void *passphrase,
                   size_t len, struct diag *diag)
{
    CLEANUP_SECRET uint8_t *material = secret_alloc(luks_material_bytes(h->key_bytes));
    struct luks_slot *s = &h->slot[slot];

    if (!material)
        return diag_errno(diag, ENOMEM, "%s: the material of key slot %u", io->name, slot);
    s->active = true;
    int err = luks_iterations(h->hash, h->key_bytes, iter_time_ms, &s->iterations);
    if (!err)
        err = openssl_random(s->salt, sizeof s->salt);
    if (err)
        return diag_errno(diag, -err, "%s: a salt and its iterations", io->name);
    err = luks_judge_header(io, h, diag); /* before anything is overwritten */
    if (!err)
        err = make_material(io, h, slot, key, passphrase, len, material, diag);
    return err ? err : write_material(io, h, slot, material, diag);
}

int luks_wipe_material(const struct luks_io *io, const struct luks_header *h, unsigned slot,
                       struct diag *diag)
{
    size_t n = luks_material_bytes(h->key_bytes);
    CLEANUP_SECRET uint8_t *noise = secret_alloc(n);

    int err = noise ? openssl_random(noise, n) : -ENOMEM;

    if (err)
        return diag_errno(diag, -err,
                          "%s: key slot %u is out of use, but its material is still there",
                          io->name, slot);
    return write_material(io, h, slot, noise, diag);
}
