/* SPDX-License-Identifier: BSD-3-Clause */
/* Write zeroes and trim: whole clusters by metadata, parts of a cluster by punching or
 * writing. */
#include <errno.h>

#include "base/checked.h"
#include "base/no_space.h"
#include "block/coded.h"
#include "block/engine.h"

/* Splits a range into whole (sub)clusters and the parts at its ends. */
static struct split split_clusters(const struct node *node, uint64_t off, uint64_t len)
{
    uint64_t end = off + len;
    /* Bytes beyond the virtual size belong to nothing, so the last cluster counts as whole. */
    uint64_t whole = end == node->size ? align_up(end, node->subcluster_size) : end;
    struct split s = split_range(off, whole - off, node->subcluster_size);

    /* No whole cluster: all is head, even if it lies in two clusters. */
    if (s.first >= s.last)
        s.first = s.last = s.end = end;
    return s;
}

/* Is it a hole that may show something: the backing file now, or the one that the image names
 * or is about to name when it is opened again? */
static bool may_show(const struct node *node, const struct extent *ext, uint64_t off)
{
    if (ext->kind == EXTENT_BACKING) {
        const struct node *below = node->backing;
        return node->expects_backing || (below && off < below->size);
    }
    return ext->kind == EXTENT_ZERO && !ext->allocated && !node->backing &&
           node_holes_may_show(node);
}

/* Does the chain read as zeroes there, as far as the mapping tells without reading data? */
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

/* Zeroes a part of one subcluster that may be a hole; its cluster is locked.  If all of the
 * subcluster reads as zeroes then, it becomes a zero (sub)cluster, which takes no space,
 * instead of being written. */
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
        /* Not if the backing file is left out now, or is about to be named: what the hole will
         * show is unknown. */
        if (node->backing && !node->expects_backing && shows_zeroes(node, off, end))
            return 0;
    }
    return engine_write_zeroes(node, off, end - off, true);
}

/* A range within one cluster. */
static int zero_hole(struct node *node, uint64_t off, uint64_t end, enum zero_how how)
{
    uint64_t start = align_down(off, node->cluster_size);

    RANGE_LOCK_GUARD(&node->ranges, start, start + node->cluster_size);
    return zero_part_of_hole(node, off, end, how);
}

/* Can it be zeroed or punched at its place in the file? */
static bool is_zeroed_in_place(const struct node *node, const struct extent *ext)
{
    return ext->kind == EXTENT_DATA && ext->writable && node->host_zeroes_show;
}

/* Zeroes a range that reads as zeroes already in a raw external data file, which can be read
 * without the image: after a crash it may have data there that was never linked. */
static int zero_alone(struct node *node, uint64_t off, uint64_t len, enum zero_how how)
{
    if (!node->data_alone || !node->host_zeroes_show)
        return 0;
    RANGE_LOCK_GUARD(&node->ranges, align_down(off, node->cluster_size),
                     align_up(off + len, node->cluster_size));
    return storage_zero(node->data, off, len, how == ZERO_UNMAP ? STORAGE_MAY_UNMAP : 0);
}

/* A part of a cluster, or of two. */
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

/* Zeroes clusters for which the format has no entry, by writing zero bytes if necessary.
 * lasting: they must go on reading as zeroes under another backing file.  The guest range is
 * locked. */
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
    /* Without clusters there is no mapping to protect, and without a cipher no sector that is
     * rewritten as a whole. */
    if (!node_can(node, DRIVER_CLUSTERS) && !node->cipher)
        return zero_clusters_locked(node, off, end, how, false);
    RANGE_LOCK_GUARD(&node->ranges, align_down(off, unit), align_up(end, unit));
    return zero_clusters_locked(node, off, end, how, false);
}

/* Does all of the range read as zeroes, as far as the mapping tells? */
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
    if (means_no_space(err) && engine_make_room(node, flags))
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
