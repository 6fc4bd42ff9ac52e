/* SPDX-License-Identifier: BSD-3-Clause */
/* Freezing a node stores its bitmaps; afterwards each bitmap tells whether it was stored. */
#include "bitmaps_store.h"

#include <string.h>

#include "block/dirty_bitmap.h"
#include "cli.h"

static bool is_lost(const struct dirty_bitmap *bitmap)
{
    return dirty_bitmap_persistent(bitmap) && !dirty_bitmap_inconsistent(bitmap) &&
           (dirty_bitmap_unsaved(bitmap) || dirty_bitmap_slot(bitmap) == BITMAP_NO_SLOT);
}

static void find_lost(struct dirty_bitmap *bitmap, void *opaque)
{
    const struct dirty_bitmap **lost = opaque;

    if (!*lost && is_lost(bitmap))
        *lost = bitmap;
}

int bitmaps_store(struct node *node, const char *filename)
{
    const struct dirty_bitmap *lost = NULL;
    int err = node_freeze(node);

    if (err)
        return cli_error("%s: its bitmaps could not be stored: %s", filename,
                         strerror(-err));
    node_bitmap_each(node, find_lost, &lost);
    return lost ? cli_error("%s: bitmap %s could not be stored", filename,
                            dirty_bitmap_name(lost))
                : CLI_OK;
}
