/* SPDX-License-Identifier: BSD-3-Clause */
/* Views of the points of backup jobs (sync=none), by job id.  If there is a bitmap, block status
 * tells what it said at the point, not where there is data.  The bitmap is one of the disk's that
 * the job was given, or, for "JOB/bitmap/NAME", one of the job's target. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "block/dirty_bitmap.h"
#include "block/frozen_point.h"
#include "block/node.h"
#include "view.h"

#define DESCRIPTION "the disk as it was when the backup job began"

struct point_view {
    struct frozen_point *point;
    struct dirty_bitmap *copy;          /* of one of the target's bitmaps; NULL: none */
    const struct dirty_bitmap *changed; /* `copy`, or the job's bitmap; NULL: none */
};

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

#define BITMAP "/bitmap/"

static int find_point(struct point_view *v, struct node *node, const char *job,
                      struct diag *diag)
{
    v->point = frozen_find(node, job);
    if (v->point)
        return 0;
    return diag_set(diag, ENOENT,
                    "%s: backup '%.200s': there is no such job with a point to be read",
                    node->filename, job);
}

/* name: "JOB" or "JOB/bitmap/NAME".  No job id contains a slash. */
static int find_both(struct point_view *v, struct node *node, const char *name,
                     struct diag *diag)
{
    const char *slash = strstr(name, BITMAP);
    CLEANUP_FREE char *job = slash ? strndup(name, (size_t)(slash - name)) : strdup(name);

    if (!job)
        return diag_errno(diag, ENOMEM, "backup '%.200s'", name);
    int err = find_point(v, node, job, diag);
    if (err)
        return err;
    v->changed = frozen_changed(v->point);
    if (!slash)
        return 0;
    v->changed = v->copy = frozen_copy_bitmap(v->point, slash + strlen(BITMAP), diag);
    return v->copy ? 0 : -diag->err;
}

static void free_point_view(struct point_view *v)
{
    dirty_bitmap_free(v->copy);
    frozen_put(v->point);
    free(v);
}

static int open_point(struct view *view, const char *name, struct diag *diag)
{
    struct point_view *v = calloc(1, sizeof *v);

    if (!v)
        return diag_errno(diag, ENOMEM, "backup '%.200s'", name);
    int err = find_both(v, view->node, name, diag);
    if (err) {
        free_point_view(v);
        return err;
    }
    view->state = v;
    view->size = frozen_node(v->point)->size;
    if (asprintf(&view->description, "%s%s", DESCRIPTION,
                 v->changed ? ", with what a bitmap said was changed" : "") < 0)
        view->description = NULL;
    return 0;
}

static void close_point(struct view *view)
{
    free_point_view(view->state);
}

static int read_point(struct view *view, void *buf, uint64_t off, uint64_t len)
{
    const struct point_view *v = view->state;

    return block_read(frozen_node(v->point), buf, off, len);
}

/* Dirty ranges are data.  Clean ones are reported as neither data nor zero: the client isn't
 * supposed to read them. */
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
    const struct point_view *v = view->state;
    struct block_status st;

    if (v->changed) {
        *out = status_by_bitmap(v->changed, off, len);
        return 0;
    }
    int err = block_status(frozen_node(v->point), off, len, &st);
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
