/* SPDX-License-Identifier: BSD-3-Clause */
/* Opening and creating containers. */
#include "crypto/luks.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "crypto/internal.h"
#include "crypto/secret.h"

const struct luks_params luks_default_params = {
    .spec = {CIPHER_AES_256, CIPHER_XTS, CIPHER_PLAIN64, HASH_SHA256},
    .hash = HASH_SHA256,
    .iter_time_ms = 2000,
};

/* ---- opening ---- */

static void cleanup_luks(struct luks **luks)
{
    luks_close(*luks);
}
#define CLEANUP_LUKS CLEANUP(cleanup_luks)

void luks_close(struct luks *luks)
{
    if (!luks)
        return;
    cipher_free(luks->cipher);
    free(luks);
}

/* Makes a struct luks when the master key is known. */
static int make_open(struct luks **out, const struct luks_io *io,
                     const struct luks_header *h, const uint8_t *key, unsigned slot,
                     struct diag *diag)
{
    CLEANUP_LUKS struct luks *luks = calloc(1, sizeof *luks);

    if (!luks)
        return diag_errno(diag, ENOMEM, "%s", io->name);
    luks->header = *h;
    luks->payload_offset = (uint64_t)h->payload_sector * CIPHER_SECTOR;
    luks->slot = slot;
    int err = luks_new_cipher(io, h, key, &luks->cipher, diag);
    if (err)
        return err;
    *out = TAKE(&luks);
    return 0;
}

int luks_open(struct luks **out, const struct luks_io *io, const void *passphrase,
              size_t len, struct diag *diag)
{
    CLEANUP_SECRET uint8_t *key = secret_alloc(CIPHER_MAX_KEY_BYTES);
    struct luks_header h;
    unsigned slot = 0;

    if (!key)
        return diag_errno(diag, ENOMEM, "%s: a key", io->name);
    int err = luks_read_header(io, &h, diag);
    if (!err)
        err = luks_unlock(io, &h, passphrase, len, key, &slot, diag);
    return err ? err : make_open(out, io, &h, key, slot, diag);
}

/* ---- creating ---- */

/* Sectors per slot, in QEMU's layout: the header, the material of all slots, the payload, each
 * at a multiple of 4096. */
static uint32_t material_sectors(const struct luks_params *params)
{
    uint32_t key_bytes = (uint32_t)cipher_key_bytes(&params->spec);

    return (uint32_t)(align_up(luks_material_bytes(key_bytes), LUKS_AREA_BYTES) /
                      CIPHER_SECTOR);
}

uint64_t luks_payload_offset(const struct luks_params *params)
{
    return LUKS_AREA_BYTES +
           (uint64_t)material_sectors(params) * CIPHER_SECTOR * LUKS_SLOTS;
}

/* A random UUID (version 4), as text. */
static int make_uuid(char *uuid)
{
    uint8_t b[16];

    int err = openssl_random(b, sizeof b);

    if (err)
        return err;
    b[6] = (uint8_t)((b[6] & 0x0f) | 0x40);
    b[8] = (uint8_t)((b[8] & 0x3f) | 0x80);
    for (size_t i = 0; i < sizeof b; i++) {
        snprintf(uuid, 4, "%02x%s", b[i], i == 3 || i == 5 || i == 7 || i == 9 ? "-" : "");
        uuid += strlen(uuid);
    }
    return 0;
}

static int make_digest(struct luks_header *h, uint32_t iter_time_ms, const uint8_t *key)
{
    int err = luks_iterations(h->hash, sizeof h->digest, MAX(iter_time_ms / 8, 1),
                              &h->digest_iterations);

    if (!err)
        err = openssl_random(h->digest_salt, sizeof h->digest_salt);
    return err ? err : luks_key_digest(h, key, h->digest);
}

static int make_header(struct luks_header *h, const struct luks_params *params,
                       const uint8_t *key)
{
    uint32_t each = material_sectors(params);

    memset(h, 0, sizeof *h);
    h->spec = params->spec;
    h->hash = params->hash;
    h->key_bytes = (uint32_t)cipher_key_bytes(&params->spec);
    h->payload_sector = (uint32_t)(luks_payload_offset(params) / CIPHER_SECTOR);
    for (uint32_t i = 0; i < LUKS_SLOTS; i++) {
        h->slot[i].material_sector = LUKS_AREA_BYTES / CIPHER_SECTOR + i * each;
        h->slot[i].stripes = LUKS_STRIPES;
    }
    int err = make_uuid(h->uuid);
    return err ? err : make_digest(h, params->iter_time_ms, key);
}

/* Overwrites old content, which could contain a header or key material. */
static int clear_everything(const struct luks_io *io, uint64_t end, struct diag *diag)
{
    static const uint8_t zeroes[1 << 16];

    for (uint64_t at = 0, n; at < end; at += n) {
        n = MIN(end - at, sizeof zeroes);
        int err = io->write(io->opaque, zeroes, at, n);
        if (err)
            return diag_errno(diag, -err, "%s: clearing the place of the LUKS header",
                              io->name);
    }
    return 0;
}

int luks_format(struct luks **out, const struct luks_io *io,
                const struct luks_params *params, const void *passphrase, size_t len,
                struct diag *diag)
{
    size_t key_bytes = cipher_key_bytes(&params->spec);
    CLEANUP_SECRET uint8_t *key = secret_alloc(key_bytes);
    CLEANUP_LUKS struct luks *luks = NULL;
    uint64_t end = luks_payload_offset(params);
    struct luks_header h;

    if (!key)
        return diag_errno(diag, ENOMEM, "%s: a key", io->name);
    if (io->limit < end)
        return diag_set(diag, ENOSPC,
                        "%s: a LUKS header takes %" PRIu64 " bytes, not %" PRIu64, io->name,
                        end, io->limit);
    int err = openssl_secret_random(key, key_bytes);
    if (!err)
        err = make_header(&h, params, key);
    if (err)
        return diag_errno(diag, -err, "%s: making a LUKS header with %s", io->name,
                          hash_name(params->hash));
    /* Finds unsupported parameters before anything is written. */
    err = make_open(&luks, io, &h, key, 0, diag);
    if (err)
        return err;
    err = clear_everything(io, end, diag);
    if (err)
        return err;
    err = luks_fill_slot(io, &h, 0, params->iter_time_ms, key, passphrase, len, diag);
    if (err)
        return err;
    err = luks_write_header(io, &h, diag);
    if (err)
        return err;
    luks->header = h;
    if (out)
        *out = TAKE(&luks);
    return 0;
}
