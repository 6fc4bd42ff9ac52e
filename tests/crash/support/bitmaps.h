/* SPDX-License-Identifier: BSD-3-Clause */
/* Persistent dirty bitmaps in the image under test.  After a crash each one must either be
 * marked as inconsistent or cover every sector that changed. */
#ifndef CRASH_BITMAPS_H
#define CRASH_BITMAPS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct node;

/* A bitmap that qemu-img creates before the recording. */
struct kept_bitmap {
    const char *name, *granularity;
    bool frozen; /* it is disabled: it must always be there, consistent and clean */
};

extern const struct kept_bitmap kept_bitmaps[];
extern const unsigned kept_bitmaps_count;

/* At the beginning of a recording: replaces bitmaps that are missing or that an earlier crash
 * left inconsistent.  0 or -errno. */
int kept_bitmaps_begin(struct node *node);

/* Changes the set of bitmaps: adds one more, or removes it if it is there.  0 or -errno. */
int kept_bitmaps_shuffle(struct node *node);

/* before, now: the version of each sector when the recording began, and now.  The node must have
 * loaded its bitmaps.  False, with the reason in `why`, if a consistent bitmap says that a sector
 * is clean which has changed, or if a frozen bitmap isn't as it was. */
bool kept_bitmaps_judge(struct node *node, const uint32_t *before, const uint32_t *now,
                        uint64_t n_sectors, char *why, size_t size);

#endif
