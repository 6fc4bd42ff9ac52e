/* SPDX-License-Identifier: BSD-3-Clause */
/* Looks for a range in the layers below one that doesn't have it. */
#include "block/chain_lookup.h"

#include "block/merged_map.h"

int chain_look_below(struct node *top, uint64_t off, struct extent *ext,
                     struct node **layer, unsigned *depth)
{
    for (*layer = top, *depth = 0;;) {
        struct node *below = (*layer)->backing;
        /* The layer below is shorter, or was removed after the look-up above (nothing of it
         * showed any more). */
        if (UNLIKELY(!below || off >= below->size)) {
            *ext = (struct extent){.kind = EXTENT_ZERO, .length = ext->length};
            return 0;
        }
        ext->length = MIN(ext->length, below->size - off);
        struct merged_map *merged = *layer == top ? merged_map_of(below) : NULL;
        unsigned number = 0;
        *layer = below;
        bool found =
            merged && merged_map_find(merged, off, ext->length, ext, &number, layer);
        *depth += 1 + number;
        if (found)
            return 0;
        uint64_t len = MIN(ext->length, (*layer)->size - off);
        int err = (*layer)->driver->map(*layer, off, len, ext);
        if (err || ext->kind != EXTENT_BACKING)
            return err;
    }
}
