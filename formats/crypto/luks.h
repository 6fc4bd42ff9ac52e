/* SPDX-License-Identifier: BSD-3-Clause */
/* LUKS containers, version 1: opening by passphrase, making, and changing who may open them.
 *
 * The container is bytes 0 to `limit` of what `struct luks_io` reaches: a file, or the
 * region of another image.  Only header and key material are read and written here; the
 * payload is its owner's, through the cipher.
 *
 * A passphrase opens the container when with it a slot's key material gives a key whose
 * digest is the header's: a slot costs as long as its maker wanted (a second or two), and
 * there are eight.  Sentences of errors begin with io->name and never have a passphrase in
 * them.  Keys lie in memory of secret.h, and are wiped at each end.
 *
 * Changes keep the container openable at each power failure: new key material is durable
 * before the header that has it, and a header without a slot before its material is
 * overwritten.  `force` on a slot in use takes a free one along meanwhile.  Where all eight are in
 * use a failure may leave that one with neither passphrase, and the caller needs one that opens
 * another, with which the same can be tried again.
 * Who calls holds the container for himself.
 *
 * Threads: any, but for the rule above.  Layer: crypto. */
#ifndef CRYPTO_LUKS_H
#define CRYPTO_LUKS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/compiler.h"
#include "base/diag.h"
#include "crypto/cipher.h"
#include "crypto/luks_header.h"

/* All or an error, 0 or -errno.  luks_open needs `read` alone. */
struct luks_io {
    int (*read)(void *opaque, void *buf, uint64_t off, size_t len);
    int (*write)(void *opaque, const void *buf, uint64_t off, size_t len);
    int (*flush)(void *opaque); /* what was written is durable */
    void *opaque;
    uint64_t limit; /* bytes of the container; nothing past it is asked for */
    const char *name;
};

struct luks {
    struct luks_header header;
    struct cipher *cipher;
    uint64_t payload_offset; /* bytes; whose first sector has the number 0 in a LUKS file */
    unsigned slot;           /* the one that was opened */
};

/* -EKEYREJECTED when the passphrase opens no slot; -EINVAL and -ENOTSUP as
 * luks_header_parse; what `read` returned; -ENOMEM, -EIO.  Always with a sentence. */
int luks_open(struct luks **out, const struct luks_io *io, const void *passphrase,
              size_t len, struct diag *diag) MUST_USE;

/* NULL is allowed.  No call of the cipher is under way. */
void luks_close(struct luks *luks);

struct luks_params {
    struct cipher_spec spec;
    enum hash_alg hash;
    uint32_t iter_time_ms; /* how long a slot shall take; 1 or more */
};

/* As QEMU's: aes-256, xts, plain64, sha256, 2 seconds. */
extern const struct luks_params luks_default_params;

/* Where the payload begins, and so what a header with its key material takes, in bytes: a
 * multiple of 4096. */
uint64_t luks_payload_offset(const struct luks_params *params);

/* Makes a container whose slot 0 the passphrase opens, and a new master key; everything in
 * front of the payload is written, and flushed.  io->limit has to reach the payload.
 * `out`, unless NULL, is as if it had been opened. */
int luks_format(struct luks **out, const struct luks_io *io,
                const struct luks_params *params, const void *passphrase, size_t len,
                struct diag *diag) MUST_USE;

#define LUKS_ANY_SLOT (-1)

/* Lets another passphrase open the container, too.  `slot`: 0 to 7, or LUKS_ANY_SLOT for
 * the first that is free.  -EEXIST when it is in use, unless `force`; -ENOSPC when none is
 * free; -EKEYREJECTED when the old passphrase opens none; -EPERM when all are in use and it opens
 * none but the one to be overwritten. */
int luks_add_key(const struct luks_io *io, const void *old_passphrase, size_t old_len,
                 const void *new_passphrase, size_t new_len, int slot,
                 uint32_t iter_time_ms, bool force, struct diag *diag) MUST_USE;

/* Takes a slot out of use, and overwrites its key material.  -ENOENT when it isn't in use,
 * -EPERM when no other is: the data would be lost.  With `force` both are done. */
int luks_erase_slot(const struct luks_io *io, unsigned slot, bool force,
                    struct diag *diag) MUST_USE;

/* As luks_erase_slot for all slots that the passphrase opens; -EKEYREJECTED when none. */
int luks_erase_passphrase(const struct luks_io *io, const void *passphrase, size_t len,
                          bool force, struct diag *diag) MUST_USE;

#endif
