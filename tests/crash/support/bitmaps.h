/* SPDX-License-Identifier: BSD-3-Clause */
/* Dirty bitmaps in the image under test: what they say after a crash is so, or not believed. */
#ifndef CRASH_BITMAPS_H
#define CRASH_BITMAPS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct node;

/* Those that qemu-img makes before the recording. */
struct kept_bitmap {
    const char *name, *granularity;
    bool frozen; /* it doesn't record: it is always there, right and clean */
};

extern const struct kept_bitmap kept_bitmaps[];
extern const unsigned kept_bitmaps_count;

/* When a recording begins: those that aren't consistent, after an earlier crash, are made anew.
 * 0 or -errno. */
int kept_bitmaps_begin(struct node *node);

/* Removes another one and adds it again, or adds it.  0 or -errno. */
int kept_bitmaps_shuffle(struct node *node);

/* The node has loaded them; versions of each sector, when the recording began and now.  False
 * with the reason: a bitmap that is believed has a sector as clean that isn't as it was. */
bool kept_bitmaps_judge(struct node *node, const uint32_t *before, const uint32_t *now,
                        uint64_t n_sectors, char *why, size_t size);

#endif
