/* SPDX-License-Identifier: BSD-3-Clause */
/* The passphrases of a chain's layers, in memory that is wiped when freed.  Threads: one at
 * a time.  Layer: server. */
#ifndef COMMON_PASSPHRASES_H
#define COMMON_PASSPHRASES_H

#include "base/compiler.h"
#include "block/chain.h"

/* Zero-initialised: empty. */
struct passphrases {
    struct chain_passphrase *list; /* owned, including the bytes */
    size_t count;
};

/* Adds a copy of the bytes for the layer at that depth (0: the top).  -EEXIST: that layer
 * has one; -ENOMEM. */
int passphrases_add(struct passphrases *all, unsigned depth, const void *bytes,
                    size_t len) MUST_USE;

/* Wipes and frees all; leaves it empty. */
void passphrases_free(struct passphrases *all);

#endif
