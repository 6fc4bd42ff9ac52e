/* SPDX-License-Identifier: BSD-3-Clause */
/* LUKS containers, version 1: opening by passphrase, creating, and changing the passphrases.
 *
 * The container is bytes 0 to `limit` of what `struct luks_io` accesses: a file, or a region of
 * an image.  Only header and key material are read and written here; the caller accesses the
 * payload, using the cipher.
 *
 * A passphrase opens the container if the key material of a slot, decrypted with it, gives a
 * key whose digest is that in the header.  Trying a slot takes as long as its creator chose (a
 * second or two), and there are eight.  Messages begin with io->name and never contain a
 * passphrase.  Keys are in secret memory (secret.h), and are wiped on every exit.
 *
 * Changes keep the container openable after a power failure at any point: new key material is
 * durable before the header that uses it, and a header without a slot is durable before the
 * slot's material is overwritten.  `force` on an active slot uses a free slot as well in the
 * meantime.  If all eight are active, a failure may leave that slot with neither passphrase; so
 * the caller needs a passphrase that opens another slot, with which the change can be tried
 * again.  The caller ensures that no other process or thread uses the container meanwhile.
 *
 * Threads: any, with that restriction.  Layer: crypto. */
#ifndef CRYPTO_LUKS_H
#define CRYPTO_LUKS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/compiler.h"
#include "base/diag.h"
#include "crypto/cipher.h"
#include "crypto/luks_header.h"

/* Complete transfer or an error: 0 or -errno.  luks_open needs `read` only. */
struct luks_io {
    int (*read)(void *opaque, void *buf, uint64_t off, size_t len);
    int (*write)(void *opaque, const void *buf, uint64_t off, size_t len);
    int (*flush)(void *opaque); /* makes all writes durable */
    void *opaque;
    uint64_t limit; /* bytes of the container; nothing beyond it is accessed */
    const char *name;
};

struct luks {
    struct luks_header header;
    struct cipher *cipher;
    uint64_t payload_offset; /* bytes; in a LUKS file its first sector has the number 0 */
    unsigned slot;           /* the slot that the passphrase opened */
};

/* Opens a container.  -EKEYREJECTED: the passphrase opens no slot; -EINVAL and -ENOTSUP as for
 * luks_header_parse; the error of `read`; -ENOMEM, -EIO.  Always with a sentence. */
int luks_open(struct luks **out, const struct luks_io *io, const void *passphrase,
              size_t len, struct diag *diag) MUST_USE;

/* NULL is allowed.  No call of the cipher may be in progress. */
void luks_close(struct luks *luks);

struct luks_params {
    struct cipher_spec spec;
    enum hash_alg hash;
    uint32_t iter_time_ms; /* how long trying a slot should take, ms; at least 1 */
};

/* QEMU's defaults: aes-256, xts, plain64, sha256, 2 seconds. */
extern const struct luks_params luks_default_params;

/* The offset of the payload: the size of header and key material, in bytes; a multiple of 4096. */
uint64_t luks_payload_offset(const struct luks_params *params);

/* Creates a container with a new master key, whose slot 0 the passphrase opens.  Everything
 * before the payload is written and flushed.  io->limit must include the start of the payload.
 * *out (unless out is NULL) is as if it had been opened.  Returns 0 or -errno. */
int luks_format(struct luks **out, const struct luks_io *io,
                const struct luks_params *params, const void *passphrase, size_t len,
                struct diag *diag) MUST_USE;

#define LUKS_ANY_SLOT (-1)

/* Adds a passphrase.  `slot`: 0 to 7, or LUKS_ANY_SLOT for the first free one.  -EEXIST: it is
 * active, and not `force`; -ENOSPC: none is free; -EKEYREJECTED: the old passphrase opens no
 * slot; -EPERM: all are active, and the old passphrase opens only the one to be overwritten. */
int luks_add_key(const struct luks_io *io, const void *old_passphrase, size_t old_len,
                 const void *new_passphrase, size_t new_len, int slot,
                 uint32_t iter_time_ms, bool force, struct diag *diag) MUST_USE;

/* Deactivates a slot and overwrites its key material.  -ENOENT: it isn't active; -EPERM: no
 * other slot is, so the data would be lost.  `force` allows both. */
int luks_erase_slot(const struct luks_io *io, unsigned slot, bool force,
                    struct diag *diag) MUST_USE;

/* As luks_erase_slot, for all slots that the passphrase opens; -EKEYREJECTED if it opens none. */
int luks_erase_passphrase(const struct luks_io *io, const void *passphrase, size_t len,
                          bool force, struct diag *diag) MUST_USE;

#endif
