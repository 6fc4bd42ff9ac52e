/* SPDX-License-Identifier: BSD-3-Clause */
/* LUKS containers in a store: a whole file, or a part of an image.  crypto/luks.h does its I/O
 * through `struct luks_io`, which is made from a store here.  Threads: any.  Layer: block. */
#ifndef BLOCK_LUKS_STORE_H
#define BLOCK_LUKS_STORE_H

#include <stdint.h>

#include "base/compiler.h"
#include "block/image_info.h"
#include "crypto/luks.h"
#include "storage/storage.h"

struct luks_place {
    struct storage *file; /* borrowed */
    uint64_t offset;      /* of the container, bytes */
    uint64_t limit;       /* its length, bytes */
    const char *name;     /* messages begin with it; borrowed */
};

/* I/O functions for the container; `place` must live as long as they are used. */
struct luks_io luks_io_of(struct luks_place *place);

/* Reads what the header says, whether or not the container can be opened; needs no key.
 * Returns 0; -EINVAL: there is no LUKS header of version 1; or the error of the read.  On
 * errors out->known is false. */
int luks_info_read(const struct luks_place *place, struct luks_info *out) MUST_USE;

/* Opens the container, and returns the cipher of its payload, which the caller frees.  Errors
 * as for luks_open. */
int luks_take_cipher(struct luks_place *place, const void *passphrase, size_t len,
                     struct cipher **cipher, struct diag *diag) MUST_USE;

/* Creates a container and returns its cipher.  Errors as for luks_format. */
int luks_make_container(struct luks_place *place, const struct luks_params *params,
                        const void *passphrase, size_t len, struct cipher **cipher,
                        struct diag *diag) MUST_USE;

#endif
