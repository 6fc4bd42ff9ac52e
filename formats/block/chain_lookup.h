/* SPDX-License-Identifier: BSD-3-Clause */
/* Finds the layer of a chain that has a range.  A layer is asked for what the layers above it
 * don't have: one by one, or all frozen layers at once (merged_map.h).
 *
 * Threads: any, inside the gate.  Private to this folder. */
#ifndef BLOCK_CHAIN_LOOKUP_H
#define BLOCK_CHAIN_LOOKUP_H

#include "base/checked.h"
#include "block/node.h"

/* As chain_look_up, for the layers below `top`, which doesn't have the first ext->length bytes. */
int chain_look_below(struct node *top, uint64_t off, struct extent *ext,
                     struct node **layer, unsigned *depth) MUST_USE;

/* Finds the first run of the range: *ext describes ext->length bytes of *layer, and isn't
 * EXTENT_BACKING.  *depth layers lie above *layer, which may be a shared layer's node instead
 * of the chain's own (shared_layer.h).  What no layer has is ZERO and not allocated, in the
 * last layer that was asked. */
static inline int chain_look_up(struct node *top, uint64_t off, uint64_t len,
                                struct extent *ext, struct node **layer, unsigned *depth)
{
    *layer = top;
    *depth = 0;
    if (UNLIKELY(off >= top->size)) { /* the part of the last cluster beyond the end */
        *ext = (struct extent){.kind = EXTENT_ZERO, .length = len};
        return 0;
    }
    int err = top->driver->map(top, off, MIN(len, top->size - off), ext);
    if (err || LIKELY(ext->kind != EXTENT_BACKING))
        return err;
    return chain_look_below(top, off, ext, layer, depth);
}

#endif
