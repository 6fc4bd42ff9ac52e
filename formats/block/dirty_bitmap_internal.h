/* SPDX-License-Identifier: BSD-3-Clause */
/* What a dirty bitmap consists of; private to this folder. */
#ifndef BLOCK_DIRTY_BITMAP_INTERNAL_H
#define BLOCK_DIRTY_BITMAP_INTERNAL_H

#include <stdatomic.h>

#include "block/dirty_bitmap.h"
#include "block/hbits.h"
#include "block/observer.h"

#define BITMAP_ALONE (-1)

struct dirty_bitmap {
    struct observer observer;
    char *name;
    uint64_t size;
    unsigned shift; /* log2 of the granularity */
    _Atomic bool enabled;
    _Atomic int users; /* BITMAP_ALONE, or how many share it */
    /* Set after bits have changed; the storer clears it before it looks at them. */
    _Atomic bool unsaved;
    _Atomic bool persistent;
    _Atomic bool inconsistent; /* there are no bits, or they aren't to be looked at */
    uint32_t slot;             /* the driver's */
    struct hbits bits;
    struct list link; /* struct dirty_bitmaps.list */
};

/* dirty_bitmap_resize in two steps, of which the second can't fail: room for its bits, to be
 * destroyed in any case; 0 or -ENOMEM.  Nobody looks at the bitmap while they move. */
int dirty_bitmap_make_room(const struct dirty_bitmap *bitmap, uint64_t size,
                           struct hbits *room) MUST_USE;
void dirty_bitmap_move_bits(struct dirty_bitmap *bitmap, uint64_t size, struct hbits *room);

#endif
