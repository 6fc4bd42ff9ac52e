/* SPDX-License-Identifier: BSD-3-Clause */
/* Write zeroes and trim: whole clusters by metadata, parts of a cluster by punching or
 * writing. */
#include <errno.h>

#include "base/checked.h"
#include "block/coded.h"
#include "block/engine.h"

/* Whole clusters, or whole parts of them where they have parts, and what is beside. */
static struct split split_clusters(const struct node *node, uint64_t off, uint64_t len)
{
    uint64_t end = off + len;
    /* What lies beyond the virtual size is nobody's. */
    uint64_t whole = end == node->size ? align_up(end, node->subcluster_size) : end;
    struct split s = split_range(off, whole - off, node->subcluster_size);

    if (s.first >= s.last) /* no whole cluster: one part, even if of two */
        s.first = s.last = s.end = end;
    return s;
}

/* Is it a hole, through which something may be seen, now or when the image is opened with
 * its backing file again, or with the one that it is about to name? */
static bool may_show(const struct node *node, const struct extent *ext, uint64_t off)
{
    if (ext->kind == EXTENT_BACKING) {
        const struct node *below = node->backing;
        return node->expects_backing || (below && off < below->size);
    }
    return ext->kind == EXTENT_ZERO && !ext->allocated && !node->backing &&
           node_holes_may_show(node);
}

/* Do the layers together show zeroes, as far as that is known without reading? */
static bool shows_zeroes(struct node *node, uint64_t off, uint64_t end)
{
    while (off < end) {
        struct block_status st;
        if (engine_status(node, off, end - off, &st) != 0 || !st.zero)
            return false;
        off += st.length;
    }
    return true;
}

/* Part of a hole, of one subcluster; its cluster is locked.  When all of it will read as zeroes
 * it becomes a zero (sub)cluster, which takes no space, rather than one of zero bytes. */
static int zero_part_of_hole(struct node *node, uint64_t off, uint64_t end,
                             enum zero_how how)
{
    uint64_t start = align_down(off, node->subcluster_size), done = 0;
    uint64_t stop = MIN(start + node->subcluster_size, node->size);
    struct extent ext;

    int err = node->driver->map(node, start, stop - start, &ext);
    if (err)
        return err;
    bool is_hole =
        !extent_is_data(ext.kind) && !ext.allocated && ext.length == stop - start;
    if (is_hole && shows_zeroes(node, start, off) && shows_zeroes(node, end, stop)) {
        err = node->driver->zero(node, start, node->subcluster_size, how, &done);
        if (err != -ENOTSUP)
            return err;
        /* With the backing file set aside, or another to come, what the hole will show isn't
         * known. */
        if (node->backing && !node->expects_backing && shows_zeroes(node, off, end))
            return 0;
    }
    return engine_write_zeroes(node, off, end - off, true);
}

/* Within one cluster. */
static int zero_hole(struct node *node, uint64_t off, uint64_t end, enum zero_how how)
{
    uint64_t start = align_down(off, node->cluster_size);

    RANGE_LOCK_GUARD(&node->ranges, start, start + node->cluster_size);
    return zero_part_of_hole(node, off, end, how);
}

/* Can it be zeroed, or punched, where it lies in the file? */
static bool is_zeroed_in_place(const struct node *node, const struct extent *ext)
{
    return ext->kind == EXTENT_DATA && ext->writable && node->host_zeroes_show;
}

/* What reads as zeroes already, but may be something else in a data file that is also read
 * without the image: after a crash it may have what was never linked. */
static int zero_alone(struct node *node, uint64_t off, uint64_t len, enum zero_how how)
{
    if (!node->data_alone || !node->host_zeroes_show)
        return 0;
    RANGE_LOCK_GUARD(&node->ranges, align_down(off, node->cluster_size),
                     align_up(off + len, node->cluster_size));
    return storage_zero(node->data, off, len, how == ZERO_UNMAP ? STORAGE_MAY_UNMAP : 0);
}

/* Part of a cluster (or of two). */
static int zero_part(struct node *node, uint64_t off, uint64_t end, enum zero_how how)
{
    while (off < end) {
        struct extent ext;
        int err = node->driver->map(node, off, end - off, &ext);
        if (err)
            return err;
        bool in_place = is_zeroed_in_place(node, &ext);
        if (how == ZERO_DISCARD) {
            if (in_place)
                err = storage_discard(ext.file, ext.host_offset, ext.length);
        } else if (in_place) {
            err = storage_zero(ext.file, ext.host_offset, ext.length,
                               how == ZERO_UNMAP ? STORAGE_MAY_UNMAP : 0);
        } else if (extent_is_data(ext.kind)) {
            err = engine_write_zeroes(node, off, ext.length, false);
        } else if (may_show(node, &ext, off)) {
            ext.length = MIN(ext.length, align_up(off + 1, node->subcluster_size) - off);
            err = zero_hole(node, off, off + ext.length, how);
        } else {
            err = zero_alone(node, off, ext.length, how);
        }
        if (err)
            return err;
        off += ext.length;
    }
    return 0;
}

/* What the format can't express: zeroes in the file, at least; lasting: whatever the holes will
 * show.  Guest range locked. */
static int zero_by_writing(struct node *node, uint64_t off, uint64_t end, enum zero_how how,
                           bool lasting, uint64_t *done)
{
    struct extent ext;
    uint64_t len = MIN(end, node->size) - off;

    int err = node->driver->map(node, off, len, &ext);
    if (err)
        return err;
    *done = align_up(ext.length, node->subcluster_size);
    if (!lasting && !extent_is_data(ext.kind) && !may_show(node, &ext, off))
        return 0;
    if (is_zeroed_in_place(node, &ext))
        return storage_zero(ext.file, ext.host_offset, ext.length,
                            how == ZERO_UNMAP ? STORAGE_MAY_UNMAP : 0);
    return engine_write_zeroes(node, off, ext.length, true);
}

static int zero_clusters_locked(struct node *node, uint64_t off, uint64_t end,
                                enum zero_how how, bool lasting)
{
    while (off < end) {
        uint64_t done = 0;
        int err = node->driver->zero(node, off, end - off, how, &done);
        off += done;
        if (err == -ENOTSUP) {
            if (how == ZERO_DISCARD)
                return 0;
            err = zero_by_writing(node, off, end, how, lasting, &done);
            off += err ? 0 : done;
        }
        if (err)
            return err;
    }
    return 0;
}

int engine_zero_locked(struct node *node, uint64_t off, uint64_t len)
{
    struct split s = split_clusters(node, off, len);
    int err = 0;

    if (s.start < s.first)
        err = engine_write_zeroes(node, s.start, s.first - s.start, true);
    if (!err && s.first < s.last)
        err = zero_clusters_locked(node, s.first, s.last, ZERO_UNMAP, true);
    if (!err && s.last < s.end)
        err = engine_write_zeroes(node, s.last, s.end - s.last, true);
    return err;
}

static int zero_clusters(struct node *node, uint64_t off, uint64_t end, enum zero_how how)
{
    uint64_t unit = MAX(node->cluster_size, CRYPT_SECTOR);

    if (off >= end)
        return 0;
    /* No mapping to protect, nor what else a sector has that is written as a whole. */
    if (!node_can(node, DRIVER_CLUSTERS) && !node->cipher)
        return zero_clusters_locked(node, off, end, how, false);
    RANGE_LOCK_GUARD(&node->ranges, align_down(off, unit), align_up(end, unit));
    return zero_clusters_locked(node, off, end, how, false);
}

/* Does all of the range read as zeroes without a look at data? */
static bool reads_zero(struct node *node, uint64_t off, uint64_t end)
{
    while (off < end) {
        struct extent ext;
        if (node->driver->map(node, off, end - off, &ext))
            return false;
        if (extent_is_data(ext.kind) || may_show(node, &ext, off))
            return false;
        off += ext.length;
    }
    return true;
}

static bool zero_is_fast(struct node *node, const struct split *s)
{
    return reads_zero(node, s->start, s->first) && reads_zero(node, s->last, s->end) &&
           (s->first >= s->last ||
            node->driver->zero_is_fast(node, s->first, s->last - s->first));
}

static int zero_range(struct node *node, uint64_t off, uint64_t len, enum zero_how how,
                      bool fast)
{
    struct split s = split_clusters(node, off, len);

    if (fast && !zero_is_fast(node, &s))
        return -ENOTSUP;
    int err = zero_part(node, s.start, s.first, how);
    if (err)
        return err;
    err = zero_clusters(node, s.first, s.last, how);
    return err ? err : zero_part(node, s.last, s.end, how);
}

static int zero_once(struct node *node, uint64_t off, uint64_t len, enum zero_how how,
                     unsigned flags)
{
    struct engine_change change = {
        .what = {.kind = how == ZERO_DISCARD ? CHANGE_DISCARD : CHANGE_ZERO,
                 .flags = flags,
                 .off = off,
                 .len = len}};

    int err = engine_start_write(node, &change);
    if (!err)
        err = zero_range(node, off, len, how, flags & BLOCK_FAST);
    return engine_finish_write(node, &change, err,
                               (flags & BLOCK_FUA) || node->options.cache->write_through);
}

static int zero_request(struct node *node, uint64_t off, uint64_t len, enum zero_how how,
                        unsigned flags)
{
    int err = engine_admit_change(node, off, len);
    if (err || len == 0)
        return err;

    err = zero_once(node, off, len, how, flags);
    if (err == -ENOSPC && engine_make_room(node, flags))
        err = zero_once(node, off, len, how, flags);
    return err;
}

int block_zero(struct node *node, uint64_t off, uint64_t len, unsigned flags)
{
    bool unmap = (flags & BLOCK_MAY_UNMAP) && !node->options.discard_ignore;

    return zero_request(node, off, len, unmap ? ZERO_UNMAP : ZERO_KEEP, flags);
}

int block_discard(struct node *node, uint64_t off, uint64_t len, unsigned flags)
{
    if (node->options.discard_ignore)
        return node_check_range(node, off, len);
    return zero_request(node, off, len, ZERO_DISCARD, flags & (BLOCK_FUA | BLOCK_INSIDE));
}
