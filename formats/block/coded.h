/* SPDX-License-Identifier: BSD-3-Clause */
/* Guest data that isn't in the file as the guest sees it: compressed clusters and encrypted
 * sectors.  Private to this folder. */
#ifndef BLOCK_CODED_H
#define BLOCK_CODED_H

#include "block/node.h"

#define CRYPT_SECTOR 512u

/* Reads what an extent of kind COMPRESSED, ENCRYPTED or ELSEWHERE stands for: `len` bytes from the
 * guest offset `off` on, which the extent begins with. */
int coded_read(struct node *node, const struct extent *ext, void *buf, uint64_t off,
               uint64_t len) MUST_USE;

/* Writes whole sectors of an encrypted node: guest offset `off` to `host` in `file`. */
int encrypted_write(struct node *node, struct storage *file, const void *buf, uint64_t host,
                    uint64_t off, uint64_t len, unsigned flags) MUST_USE;

/* The same over an extent that can be written in place, and that begins at `off`: of the
 * sectors at its ends the rest is kept.  The caller has locked the sectors. */
int encrypted_update(struct node *node, const struct extent *ext, const void *buf,
                     uint64_t off, unsigned flags) MUST_USE;

#endif
