/* SPDX-License-Identifier: BSD-3-Clause */
/* LUKS containers in stores. */
#include "block/luks_store.h"

#include <stddef.h>

static int read_place(void *opaque, void *buf, uint64_t off, size_t len)
{
    const struct luks_place *place = opaque;

    return storage_read(place->file, buf, place->offset + off, len);
}

static int write_place(void *opaque, const void *buf, uint64_t off, size_t len)
{
    const struct luks_place *place = opaque;

    return storage_write(place->file, buf, place->offset + off, len, 0);
}

static int flush_place(void *opaque)
{
    const struct luks_place *place = opaque;

    return storage_flush(place->file);
}

struct luks_io luks_io_of(struct luks_place *place)
{
    return (struct luks_io){.read = read_place,
                            .write = write_place,
                            .flush = flush_place,
                            .opaque = place,
                            .limit = place->limit,
                            .name = place->name};
}

/* Moves the cipher out of the container and frees the rest. */
static void keep_cipher(struct luks *luks, struct cipher **cipher)
{
    *cipher = luks->cipher;
    luks->cipher = NULL;
    luks_close(luks);
}

int luks_take_cipher(struct luks_place *place, const void *passphrase, size_t len,
                     struct cipher **cipher, struct diag *diag)
{
    const struct luks_io io = luks_io_of(place);
    struct luks *luks;

    int err = luks_open(&luks, &io, passphrase, len, diag);
    if (!err)
        keep_cipher(luks, cipher);
    return err;
}

int luks_make_container(struct luks_place *place, const struct luks_params *params,
                        const void *passphrase, size_t len, struct cipher **cipher,
                        struct diag *diag)
{
    const struct luks_io io = luks_io_of(place);
    struct luks *luks = NULL;

    int err = luks_format(&luks, &io, params, passphrase, len, diag);
    if (!err)
        keep_cipher(luks, cipher);
    return err;
}
