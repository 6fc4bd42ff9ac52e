/* SPDX-License-Identifier: BSD-3-Clause */
/* Guest data that is stored compressed or encrypted.  Private to this folder. */
#ifndef BLOCK_CODED_H
#define BLOCK_CODED_H

#include "block/node.h"

#define CRYPT_SECTOR 512u

/* Reads `len` bytes from guest offset `off` on, where an extent of kind COMPRESSED, ENCRYPTED
 * or ELSEWHERE begins. */
int coded_read(struct node *node, const struct extent *ext, void *buf, uint64_t off,
               uint64_t len) MUST_USE;

/* Encrypts and writes whole sectors: guest offset `off` goes to `host` in `file`. */
int encrypted_write(struct node *node, struct storage *file, const void *buf, uint64_t host,
                    uint64_t off, uint64_t len, unsigned flags) MUST_USE;

/* The same for an extent that can be written in place and begins at `off`, at any alignment:
 * the rest of the sectors at its ends is kept.  The caller has locked the sectors. */
int encrypted_update(struct node *node, const struct extent *ext, const void *buf,
                     uint64_t off, unsigned flags) MUST_USE;

#endif
