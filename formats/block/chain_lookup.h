/* SPDX-License-Identifier: BSD-3-Clause */
/* Which layer of a chain has a range.  A layer is asked for what the ones above it have nothing
 * of: one by one, or all frozen ones at once (merged_map.h).
 *
 * Threads: any, inside the gate.  Private to this folder. */
#ifndef BLOCK_CHAIN_LOOKUP_H
#define BLOCK_CHAIN_LOOKUP_H

#include "base/checked.h"
#include "block/node.h"

/* As chain_look_up, below `top`, which has nothing of the first ext->length bytes. */
int chain_look_below(struct node *top, uint64_t off, struct extent *ext,
                     struct node **layer, unsigned *depth) MUST_USE;

/* The first run of the range: how *layer has it, ext->length bytes long; not EXTENT_BACKING.
 * *layer has what is open, and may not be the chain's own node (shared_layer.h); *depth layers
 * lie above it.  What no layer has is zero, and not allocated, in the last that was asked. */
static inline int chain_look_up(struct node *top, uint64_t off, uint64_t len,
                                struct extent *ext, struct node **layer, unsigned *depth)
{
    *layer = top;
    *depth = 0;
    if (UNLIKELY(off >= top->size)) { /* the rest of its last cluster */
        *ext = (struct extent){.kind = EXTENT_ZERO, .length = len};
        return 0;
    }
    int err = top->driver->map(top, off, MIN(len, top->size - off), ext);
    if (err || LIKELY(ext->kind != EXTENT_BACKING))
        return err;
    return chain_look_below(top, off, ext, layer, depth);
}

#endif
