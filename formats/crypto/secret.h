/* SPDX-License-Identifier: BSD-3-Clause */
/* Memory for keys and passphrases: whole pages that aren't included in core dumps, aren't
 * swapped out (as far as the limit on locked memory allows), and are wiped when they are freed.
 * Threads: any.  Layer: crypto. */
#ifndef CRYPTO_SECRET_H
#define CRYPTO_SECRET_H

#include <stddef.h>

#include "base/compiler.h"

/* Returns n zeroed bytes (0 is allowed), or NULL when memory is short. */
void *secret_alloc(size_t n) MUST_USE;

/* Wipes and frees; NULL is allowed. */
void secret_free(void *secret);

/* A copy of n bytes in secret memory; NULL when memory is short. */
void *secret_copy(const void *bytes, size_t n) MUST_USE;

/* Wipes other memory (a buffer on the stack); the compiler doesn't optimise it away. */
void secret_wipe(void *memory, size_t n);

static inline void cleanup_secret(void *pp)
{
    secret_free(*(void **)pp);
}

/* Variables marked so are wiped and released when they leave scope. */
#define CLEANUP_SECRET CLEANUP(cleanup_secret)

#endif
