/* SPDX-License-Identifier: BSD-3-Clause */
/* Views of the points of backups (sync=none), by the ids of their jobs.  With a bitmap clients
 * are told what it said at the point, in place of where there is data. */
#include <errno.h>
#include <stdio.h>

#include "base/cleanup.h"
#include "block/dirty_bitmap.h"
#include "block/frozen_point.h"
#include "block/node.h"
#include "view.h"

#define DESCRIPTION "the disk as it was when the backup job began"

struct telling {
    view_tell *tell;
    void *opaque;
};

static int tell_of_point(void *opaque, const char *name)
{
    const struct telling *t = opaque;

    return t->tell(t->opaque, name, DESCRIPTION);
}

static int list_points(struct node *node, view_tell *tell, void *opaque)
{
    struct telling t = {.tell = tell, .opaque = opaque};

    return frozen_each(node, tell_of_point, &t);
}

static int open_point(struct view *view, const char *name, struct diag *diag)
{
    struct frozen_point *point = frozen_find(view->node, name);

    if (!point)
        return diag_set(diag, ENOENT,
                        "backup '%.200s': there is no such job with a point to be read",
                        name);
    view->state = point;
    view->size = frozen_node(point)->size;
    if (asprintf(&view->description, "%s%s", DESCRIPTION,
                 frozen_changed(point) ? ", with what a bitmap said was changed" : "") < 0)
        view->description = NULL;
    return 0;
}

static void close_point(struct view *view)
{
    frozen_put(view->state);
}

static int read_point(struct view *view, void *buf, uint64_t off, uint64_t len)
{
    return block_read(frozen_node(view->state), buf, off, len);
}

/* Dirty is data; what is clean isn't asked for, and may be anything. */
static struct view_status status_by_bitmap(const struct dirty_bitmap *bitmap, uint64_t off,
                                           uint64_t len)
{
    uint64_t dirty, n;

    if (!dirty_bitmap_next(bitmap, off, &dirty, &n) || dirty >= off + len)
        return (struct view_status){.length = len};
    if (dirty > off)
        return (struct view_status){.length = dirty - off};
    return (struct view_status){.length = n < len ? n : len, .data = true};
}

static int point_status(struct view *view, uint64_t off, uint64_t len,
                        struct view_status *out)
{
    const struct dirty_bitmap *changed = frozen_changed(view->state);
    struct block_status st;

    if (changed) {
        *out = status_by_bitmap(changed, off, len);
        return 0;
    }
    int err = block_status(frozen_node(view->state), off, len, &st);
    if (!err)
        *out = (struct view_status){.length = st.length, .data = st.data, .zero = st.zero};
    return err;
}

const struct view_kind view_of_backup = {
    .name = "backup",
    .list = list_points,
    .open = open_point,
    .close = close_point,
    .read = read_point,
    .status = point_status,
};
