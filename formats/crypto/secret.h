/* SPDX-License-Identifier: BSD-3-Clause */
/* Memory for keys and passphrases: pages of their own that aren't in core dumps, aren't
 * swapped out where the limit allows that, and are wiped when they are given back.
 * Threads: any.  Layer: crypto. */
#ifndef CRYPTO_SECRET_H
#define CRYPTO_SECRET_H

#include <stddef.h>

#include "base/compiler.h"

/* n zeroed bytes (0 is allowed), or NULL when there is no memory. */
void *secret_alloc(size_t n) MUST_USE;

/* Wipes and releases; NULL is allowed. */
void secret_free(void *secret);

/* A copy of the n bytes, as secret_alloc. */
void *secret_copy(const void *bytes, size_t n) MUST_USE;

/* Wipes memory that lies elsewhere (a buffer on the stack); the compiler keeps it. */
void secret_wipe(void *memory, size_t n);

static inline void cleanup_secret(void *pp)
{
    secret_free(*(void **)pp);
}

/* Variables marked so are wiped and released when they leave scope. */
#define CLEANUP_SECRET CLEANUP(cleanup_secret)

#endif
