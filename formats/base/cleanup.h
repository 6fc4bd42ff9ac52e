/* SPDX-License-Identifier: BSD-3-Clause */
/* Release bound to scope, so that an error path is a plain `return`.  Layer: base. */
#ifndef BASE_CLEANUP_H
#define BASE_CLEANUP_H

#include <stdlib.h>
#include <unistd.h>

#include "base/compiler.h"

static inline void cleanup_free(void *pp)
{
    free(*(void **)pp);
}

static inline void cleanup_close(int *fd)
{
    if (*fd >= 0)
        close(*fd);
}

/* Variables marked so are released when they leave scope. */
#define CLEANUP_FREE  CLEANUP(cleanup_free)
#define CLEANUP_CLOSE CLEANUP(cleanup_close)

/* Hands the pointer in `*pp` (a `T **`) to the caller; the scope no longer frees it. */
#define TAKE(pp)                          \
    __extension__({                       \
        __typeof__(*(pp)) taken_ = *(pp); \
        *(pp) = NULL;                     \
        taken_;                           \
    })

#endif
