/* SPDX-License-Identifier: BSD-3-Clause */
/* A frozen point as a node: reads come from the disk or from the store, piece by piece.  The
 * node has no file. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/fence.h"
#include "block/frozen_internal.h"

/* The largest range, in bytes, for one read or status call on the disk or the store. */
#define LONGEST_RUN (16u << 20)

/* ---- an empty storage, for a node without a file ---- */

static int empty_pread(struct storage *st, void *buf, uint64_t off, uint64_t len)
{
    (void)st;
    (void)off;
    memset(buf, 0, len);
    return 0;
}

static int empty_pwritev(struct storage *st, const struct iovec *iov, int count,
                         uint64_t off, unsigned flags)
{
    (void)st;
    (void)iov;
    (void)count;
    (void)off;
    (void)flags;
    return -EROFS;
}

static int empty_flush(struct storage *st)
{
    (void)st;
    return 0;
}

static int empty_size(struct storage *st, uint64_t *bytes)
{
    (void)st;
    *bytes = 0;
    return 0;
}

static int empty_truncate(struct storage *st, uint64_t bytes)
{
    (void)st;
    (void)bytes;
    return -EROFS;
}

static void empty_close(struct storage *st)
{
    free(st);
}

static const struct storage_ops empty_ops = {
    .pread = empty_pread,
    .pwritev = empty_pwritev,
    .flush = empty_flush,
    .size = empty_size,
    .truncate = empty_truncate,
    .close = empty_close,
};

static struct storage *empty_storage_new(const char *name)
{
    struct storage *st = calloc(1, sizeof *st);
    char *copy = strdup(name);

    if (!st || !copy) {
        free(st);
        free(copy);
        return NULL;
    }
    st->ops = &empty_ops;
    st->name = copy;
    st->align = 1;
    st->fixed_size = st->read_only = true;
    return st;
}

/* ---- reading ---- */

/* The length of the run at the start of the range whose granules all are (or are not) saved; in
 * whole granules, 0 if the first isn't. */
static uint64_t run_of(const struct frozen_point *point, uint64_t off, uint64_t len,
                       bool saved)
{
    uint64_t end = off + len, g = off / FROZEN_GRANULE;

    while (g * FROZEN_GRANULE < end && frozen_is_saved(point, g) == saved)
        g++;
    return MIN(MAX(g * FROZEN_GRANULE, off), end) - off;
}

/* After a read from the disk: how many of the bytes read, from the start on, are certainly
 * those of the point. */
static uint64_t still_unchanged(const struct frozen_point *point, uint64_t off,
                                uint64_t len)
{
    full_fence();
    return run_of(point, off, len, false);
}

/* Once the point was given up, data that was read until now may be wrong. */
static int check_point(const struct frozen_point *point)
{
    return atomic_load(&point->error) ? -EIO : 0;
}

static int frozen_read(struct node *node, void *buf, uint64_t off, uint64_t len)
{
    const struct frozen_point *point = node->state;
    int err = check_point(point);

    while (len > 0 && !err) {
        bool saved = frozen_is_saved(point, off / FROZEN_GRANULE);
        uint64_t n = run_of(point, off, MIN(len, LONGEST_RUN), saved);
        err = block_read(saved ? point->setup.store : point->source, buf, off, n);
        if (!saved && !err)
            n = still_unchanged(point, off, n);
        buf = (char *)buf + n;
        off += n;
        len -= n;
    }
    return err ? err : check_point(point);
}

/* The status of the first run.  *st->present: of a range that wasn't saved, does the disk's top
 * layer have it? */
static int look_at_run(const struct frozen_point *point, uint64_t off, uint64_t len,
                       struct block_status *st)
{
    for (;;) {
        bool saved = frozen_is_saved(point, off / FROZEN_GRANULE);
        uint64_t n = run_of(point, off, len, saved);
        if (n == 0) /* saved meanwhile */
            continue;
        int err = block_status(saved ? point->setup.store : point->source, off, n, st);
        if (err)
            return err;
        if (saved) {
            st->present = true;
            return 0;
        }
        st->present &= st->depth == 0;
        st->length = still_unchanged(point, off, st->length);
        if (st->length > 0)
            return 0;
    }
}

static int frozen_map(struct node *node, uint64_t off, uint64_t len, struct extent *out)
{
    const struct frozen_point *point = node->state;
    struct block_status st;

    int err = check_point(point);
    if (!err)
        err = look_at_run(point, off, MIN(len, LONGEST_RUN), &st);
    if (!err)
        err = check_point(point);
    if (err)
        return err;
    *out = (struct extent){
        .kind = st.zero ? EXTENT_ZERO : EXTENT_ELSEWHERE,
        .allocated = st.present,
        .length = st.length,
    };
    return 0;
}

/* ---- the node ---- */

int frozen_open_nothing(struct node *node, struct diag *diag)
{
    node->cluster_size = 1;
    node->mc = mcache_new(node->ctx->pool, &node->ctx->gate, node->file, NULL, NULL);
    return node->mc ? 0 : diag_errno(diag, ENOMEM, "%s", node->filename);
}

int frozen_close_nothing(struct node *node)
{
    (void)node;
    return 0;
}

/* Not in the table of drivers: no file is opened with this one. */
static const struct driver frozen_driver = {
    .name = "frozen",
    .open = frozen_open_nothing,
    .close = frozen_close_nothing,
    .map = frozen_map,
    .read = frozen_read,
};

int frozen_open_driver(struct block_context *ctx, const struct driver *driver,
                       const struct node *disk, struct node **out, struct diag *diag)
{
    const struct node_options options = {.lock_off = true};
    struct storage *st = empty_storage_new(disk->filename);

    if (!st)
        return diag_errno(diag, ENOMEM, "%s", disk->filename);
    int err = node_open(ctx, driver, st, disk->filename, &options, out, diag);
    if (!err)
        (*out)->size = disk->size;
    return err;
}

int frozen_node_open(struct frozen_point *point, struct diag *diag)
{
    int err = frozen_open_driver(&point->ctx, &frozen_driver, point->setup.source,
                                 &point->node, diag);
    if (!err)
        point->node->state = point;
    return err;
}
