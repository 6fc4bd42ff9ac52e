/* SPDX-License-Identifier: BSD-3-Clause */
/* Creates dirty bitmaps before a crash and judges them after it; see bitmaps.h. */
#include "bitmaps.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>

#include "block/node.h"
#include "stamp.h"

const struct kept_bitmap kept_bitmaps[] = {
    {"fine", "512", false},
    {"coarse", "65536", false},
    {"frozen", "4096", true},
};
const unsigned kept_bitmaps_count = sizeof kept_bitmaps / sizeof kept_bitmaps[0];

static int add(struct node *node, const char *name, uint64_t granularity)
{
    const struct bitmap_params params = {
        .name = name, .granularity = granularity, .persistent = true};
    struct dirty_bitmap *bitmap;
    struct diag diag;

    int err = node_bitmap_create(node, &params, &bitmap, &diag);
    return err ? err : node_bitmaps_keep(node, &diag);
}

int kept_bitmaps_begin(struct node *node)
{
    struct diag diag;

    for (unsigned i = 0; i < kept_bitmaps_count; i++) {
        const char *name = kept_bitmaps[i].name;
        struct dirty_bitmap *bitmap = node_bitmap_find(node, name);
        if (bitmap && !dirty_bitmap_inconsistent(bitmap))
            continue;
        int err = bitmap ? node_bitmap_remove(node, name, &diag) : 0;
        if (!err)
            err = add(node, name, i == 0 ? 512 : 65536);
        if (err)
            return err;
    }
    return 0;
}

int kept_bitmaps_shuffle(struct node *node)
{
    struct diag diag;

    if (!node_bitmap_find(node, "other"))
        return add(node, "other", 4096);
    int err = node_bitmap_remove(node, "other", &diag);
    return err ? err : node_bitmaps_keep(node, &diag);
}

/* Does the bitmap, which claims to be consistent, cover every changed sector? */
static bool judge_one(const struct dirty_bitmap *bitmap, const uint32_t *before,
                      const uint32_t *now, uint64_t n_sectors, char *why, size_t size)
{
    for (uint64_t i = 0; i < n_sectors; i++)
        if (now[i] != before[i] && !dirty_bitmap_get(bitmap, i * SECTOR_BYTES)) {
            snprintf(why, size,
                     "bitmap '%s' is believed, and sector %" PRIu64 " of version %" PRIu32
                     " was version %" PRIu32 " before",
                     dirty_bitmap_name(bitmap), i, now[i], before[i]);
            return false;
        }
    return true;
}

bool kept_bitmaps_judge(struct node *node, const uint32_t *before, const uint32_t *now,
                        uint64_t n_sectors, char *why, size_t size)
{
    for (unsigned i = 0; i < kept_bitmaps_count; i++) {
        const struct kept_bitmap *kept = &kept_bitmaps[i];
        struct dirty_bitmap *bitmap = node_bitmap_find(node, kept->name);
        bool believed = bitmap && !dirty_bitmap_inconsistent(bitmap);
        if (kept->frozen && (!believed || dirty_bitmap_count(bitmap) != 0)) {
            snprintf(why, size, "bitmap '%s' is not as it was", kept->name);
            return false;
        }
        if (!kept->frozen && believed &&
            !judge_one(bitmap, before, now, n_sectors, why, size))
            return false;
    }
    return true;
}
