/* SPDX-License-Identifier: BSD-3-Clause */
/* Views of dirty bitmaps.  Reads return the live disk's data.  Block status reports dirty
 * ranges as data and clean ones as holes of unknown contents.  While a client has the view
 * open, nobody can change or remove the bitmap, but an enabled bitmap goes on recording writes. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>

#include "base/cleanup.h"
#include "block/node.h"
#include "view.h"

/* "dirty bitmap of 65536-byte granules, 1310720 bytes dirty" */
static char *describe(const struct dirty_bitmap *bitmap)
{
    char *text;

    return asprintf(&text,
                    "dirty bitmap of %" PRIu64 "-byte granules, %" PRIu64 " bytes dirty",
                    dirty_bitmap_granularity(bitmap), dirty_bitmap_count(bitmap)) < 0
               ? NULL
               : text;
}

struct listing {
    view_tell *tell;
    void *opaque;
    int result; /* of the last `tell` */
};

static void tell_of_bitmap(struct dirty_bitmap *bitmap, void *opaque)
{
    struct listing *listing = opaque;

    if (listing->result || dirty_bitmap_inconsistent(bitmap))
        return;
    CLEANUP_FREE char *description = describe(bitmap);
    listing->result =
        listing->tell(listing->opaque, dirty_bitmap_name(bitmap), description);
}

static int list_bitmaps(struct node *node, view_tell *tell, void *opaque)
{
    struct listing listing = {.tell = tell, .opaque = opaque};

    node_bitmap_each(node, tell_of_bitmap, &listing);
    return listing.result;
}

static int open_bitmap(struct view *view, const char *name, struct diag *diag)
{
    struct diag why;
    struct dirty_bitmap *bitmap = node_bitmap_share(view->node, name, &why);

    if (!bitmap)
        return diag_set(diag, why.err, "%s: %s", view->node->filename, why.text);
    view->state = bitmap;
    view->size = dirty_bitmap_size(bitmap);
    view->description = describe(bitmap);
    return 0;
}

static void close_bitmap(struct view *view)
{
    dirty_bitmap_unshare(view->state);
}

static int read_live_disk(struct view *view, void *buf, uint64_t off, uint64_t len)
{
    return block_read(view->node, buf, off, len);
}

static int bitmap_status(struct view *view, uint64_t off, uint64_t len,
                         struct view_status *out)
{
    const struct dirty_bitmap *bitmap = view->state;
    uint64_t start, run;

    bool any = dirty_bitmap_next(bitmap, off, &start, &run);
    /* Checked after the look-up: a bitmap that has just become inconsistent may show ranges as
     * clean that aren't. */
    if (dirty_bitmap_inconsistent(bitmap))
        return -EIO;
    bool dirty = any && start == off;
    uint64_t n = dirty ? run : any ? start - off : len;
    *out = (struct view_status){.length = n < len ? n : len, .data = dirty};
    return 0;
}

static int cache_live_disk(struct view *view, uint64_t off, uint64_t len)
{
    return block_cache(view->node, off, len);
}

const struct view_kind view_of_bitmap = {
    .name = "bitmap",
    .list = list_bitmaps,
    .open = open_bitmap,
    .close = close_bitmap,
    .read = read_live_disk,
    .status = bitmap_status,
    .cache = cache_live_disk,
};
