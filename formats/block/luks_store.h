/* SPDX-License-Identifier: BSD-3-Clause */
/* LUKS containers that lie in a store: a whole file, or a part of an image.  What crypto/luks.h
 * does with one goes through `struct luks_io`; here it is made of a store.
 * Threads: any.  Layer: block. */
#ifndef BLOCK_LUKS_STORE_H
#define BLOCK_LUKS_STORE_H

#include <stdint.h>

#include "base/compiler.h"
#include "block/image_info.h"
#include "crypto/luks.h"
#include "storage/storage.h"

struct luks_place {
    struct storage *file; /* borrowed */
    uint64_t offset;      /* where the container begins, bytes */
    uint64_t limit;       /* its bytes, from there on */
    const char *name;     /* begins sentences of errors; borrowed */
};

/* Reads, writes and flushes the container; what it is made of must live as long. */
struct luks_io luks_io_of(struct luks_place *place);

/* What the header says of itself, whether or not it could be opened; no key is looked at.
 * 0, -EINVAL: there is none of version 1, or what reading returned; then out->known is
 * false. */
int luks_info_read(const struct luks_place *place, struct luks_info *out) MUST_USE;

/* Opens the container, and gives the cipher of its payload, which is the caller's.  As
 * luks_open. */
int luks_take_cipher(struct luks_place *place, const void *passphrase, size_t len,
                     struct cipher **cipher, struct diag *diag) MUST_USE;

/* Makes a container.  As luks_format, and luks_take_cipher. */
int luks_make_container(struct luks_place *place, const struct luks_params *params,
                        const void *passphrase, size_t len, struct cipher **cipher,
                        struct diag *diag) MUST_USE;

#endif
