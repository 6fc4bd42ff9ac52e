/* SPDX-License-Identifier: BSD-3-Clause */
/* The parts of a dirty bitmap; private to this folder. */
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
    _Atomic int users; /* BITMAP_ALONE: acquired; else the number of those who share it */
    /* Set after bits have changed; cleared by the storing thread before it reads them. */
    _Atomic bool unsaved;
    _Atomic bool persistent;
    _Atomic bool inconsistent; /* There are no bits, or they aren't valid. */
    uint32_t slot;             /* the driver's */
    struct hbits bits;
    struct list link; /* struct dirty_bitmaps.list */
};

/* dirty_bitmap_resize in two steps, of which the second can't fail.  The first allocates the
 * new bits in *room, which the caller destroys in any case; it returns 0 or -ENOMEM.  No thread
 * may use the bitmap during the second. */
int dirty_bitmap_make_room(const struct dirty_bitmap *bitmap, uint64_t size,
                           struct hbits *room) MUST_USE;
void dirty_bitmap_move_bits(struct dirty_bitmap *bitmap, uint64_t size, struct hbits *room);

#endif
