/* SPDX-License-Identifier: BSD-3-Clause */
/* Cache modes as three booleans; no other code compares the names of modes.  Layer: block. */
#ifndef BLOCK_CACHE_MODE_H
#define BLOCK_CACHE_MODE_H

#include <stdbool.h>

#include "base/compiler.h"

struct cache_mode {
    const char *name;
    bool direct;        /* O_DIRECT */
    bool no_flush;      /* flush and FUA succeed without a sync */
    bool write_through; /* a write is answered when it is durable */
};

/* "writeback" (the default), "writethrough", "none", "directsync", "volatile", "unsafe"
 * (alias of volatile); NULL for any other word. */
const struct cache_mode *cache_mode_find(const char *name);

/* The mode with these properties; NULL: there is none. */
const struct cache_mode *cache_mode_of(bool direct, bool no_flush, bool write_through);

/* The valid names, for messages: "writeback, writethrough, ...". */
const char *cache_mode_names(void);

#endif
