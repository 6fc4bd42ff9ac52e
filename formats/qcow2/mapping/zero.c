/* SPDX-License-Identifier: BSD-3-Clause */
/* Zeroing and discarding in the tables: whole clusters, or whole subclusters where there are
 * such.
 *
 * What stays in its place and reads as zeroes from now on may have its bytes punched at once:
 * until the entry says so durably they read as zeroes, too.  That isn't so where the guest's
 * zeroes are not the file's (encryption): there nothing is punched. */
#include <errno.h>

#include "base/checked.h"
#include "qcow2/internal.h"

/* What becomes of an entry. */
struct new_entry {
    bool keep; /* it stays as it is */
    bool let_go;
    uint64_t entry, bitmap;
};

/* Does what is such already read as zeroes, with no more space than `how` asks for? */
static bool stays_as_it_is(const struct qcow2 *q, enum cluster_kind kind, enum zero_how how)
{
    switch (kind) {
    case CL_NONE:
        return !node_holes_may_show(q->node);
    case CL_ZERO:
        return true;
    case CL_ZERO_ALLOCATED:
        return how == ZERO_KEEP;
    default:
        return false;
    }
}

/* 0, or -ENOTSUP when the format can't say it. */
static int zeroed_cluster(const struct qcow2 *q, const struct cluster *c, enum zero_how how,
                          struct new_entry *change)
{
    bool v3 = q->header.version >= 3, holes_show = node_holes_may_show(q->node);

    *change = (struct new_entry){.keep = stays_as_it_is(q, c->kind, how)};
    if (change->keep)
        return 0;
    if (how == ZERO_KEEP && c->kind == CL_DATA && c->copied) {
        change->entry = c->host | L2_COPIED | L2_ZERO;
        return v3 ? 0 : -ENOTSUP;
    }
    /* The cluster is let go of; what lies below must not shine through. */
    change->let_go = c->kind != CL_NONE;
    change->entry = holes_show ? L2_ZERO : 0;
    return holes_show && !v3 ? -ENOTSUP : 0;
}

/* The same of the subclusters of `mask`. */
static int zeroed_subclusters(const struct qcow2 *q, const struct cluster *c, uint32_t mask,
                              enum zero_how how, struct new_entry *change)
{
    bool all = mask == ALL_SUBCLUSTERS, keeps_place = cluster_has_place(c);

    /* Part of a compressed cluster can't be said to be zero. */
    if (c->kind == CL_COMPRESSED && !all) {
        *change = (struct new_entry){.keep = how == ZERO_DISCARD};
        return change->keep ? 0 : -ENOTSUP;
    }
    uint32_t allocated = c->allocated & ~mask;
    uint32_t zero =
        node_holes_may_show(q->node) || how == ZERO_KEEP ? c->zero | mask : c->zero & ~mask;
    /* Zeroes that keep a place need one of their own. */
    if (how == ZERO_KEEP ? !c->copied && !allocated : !allocated)
        keeps_place = false;
    *change = (struct new_entry){
        .let_go = c->kind == CL_COMPRESSED || (cluster_has_place(c) && !keeps_place),
        .entry = keeps_place ? c->host | (c->copied ? L2_COPIED : 0) : 0,
        .bitmap = l2_extended_bitmap(allocated, zero),
    };
    change->keep = !change->let_go && allocated == c->allocated && zero == c->zero;
    return 0;
}

static int zeroed_entry(const struct qcow2 *q, const struct cluster *c, uint64_t start,
                        uint64_t off, uint64_t end, enum zero_how how,
                        struct new_entry *change)
{
    return q->geo.word_bits
               ? zeroed_subclusters(q, c, l2_subclusters_of(&q->geo, start, off, end), how,
                                    change)
               : zeroed_cluster(q, c, how, change);
}

/* Handles what comes from `off` on as long as its entries stay as they are; stops at the
 * first that has to change.  Without a lock: the guest range is. */
static int skip_kept(struct qcow2 *q, uint64_t off, uint64_t end, enum zero_how how,
                     uint64_t *at)
{
    for (*at = off; *at < end;) {
        struct extent ext;
        int err = mapping_map(&q->live, *at, end - *at, &ext);
        if (err)
            return err;
        enum cluster_kind kind = extent_is_data(ext.kind) ? CL_DATA
                                 : !ext.allocated         ? CL_NONE
                                 : ext.file               ? CL_ZERO_ALLOCATED
                                                          : CL_ZERO;
        if (!stays_as_it_is(q, kind, how))
            return 0;
        *at += ext.length;
    }
    return 0;
}

/* META, released while pages are loaded: changes entries until one can't be; *at moves on.
 * *had_place: one of them could be written in place before. */
static int change_entries(struct qcow2 *q, uint64_t *at, uint64_t end, enum zero_how how,
                          bool *had_place)
{
    while (*at < end) {
        uint64_t start = align_down(*at, cluster_size(q));
        uint64_t next = MIN(end, start + cluster_size(q));
        struct mc_page *page;
        struct cluster c;
        struct new_entry change;
        int err = mapping_lock_l2_page(&q->live, *at, &page);
        if (err)
            return err;
        err = mapping_decode_at(&q->live, page, *at, &c);
        if (err)
            return err;
        err = zeroed_entry(q, &c, start, *at, next, how, &change);
        if (err)
            return err;
        if (!change.keep) {
            /* With each entry, for META was released if a page had to be loaded. */
            if (dirty_mark_needs_barrier(&q->mark))
                mcache_strict(q->node->mc);
            mapping_store(&q->live, page, start, change.entry, change.bitmap);
            if (change.let_go)
                qcow2_let_go(q, &c);
            /* It can get that place back: the place stays its own, or is always the same. */
            if (c.kind == CL_DATA && (!change.let_go || q->geo.external)) {
                node_took_place(q->node);
                *had_place = true;
            }
        }
        *at = next;
    }
    return 0;
}

/* Bytes that stay in their place, which the tables can't tell the filesystem: those of
 * subclusters, and of an external data file. */
static int punch_extent(const struct extent *ext, enum zero_how how)
{
    if (ext->kind != EXTENT_DATA || !ext->writable)
        return 0;
    if (how == ZERO_DISCARD)
        return storage_discard(ext->file, ext->host_offset, ext->length);
    return storage_zero(ext->file, ext->host_offset, ext->length,
                        STORAGE_MAY_UNMAP | STORAGE_FAST);
}

static int punch_data(struct qcow2 *q, uint64_t off, uint64_t end, enum zero_how how)
{
    struct extent ext;

    if ((!q->geo.external && !q->geo.word_bits) || how == ZERO_KEEP ||
        q->node->options.discard_ignore)
        return 0;
    if (q->geo.external) /* zeroes behind the disk's end would make it longer */
        end = MIN(end, q->node->size);
    for (; off < end; off += ext.length) {
        int err = mapping_map(&q->live, off, end - off, &ext);
        if (err)
            return err;
        /* A whole cluster of the image is punched when it becomes free. */
        if (!q->geo.external && is_aligned(off, cluster_size(q)) &&
            ext.length >= cluster_size(q))
            ext.length = align_down(ext.length, cluster_size(q));
        else
            (void)!punch_extent(&ext, how);
    }
    return 0;
}

/* A raw data file reads as zeroes by itself, whatever the tables say.  A trim that would have
 * to write them is -ENOTSUP: file and tables stay as they are, and go on saying the same. */
static int zero_raw(struct qcow2 *q, uint64_t off, uint64_t end, enum zero_how how)
{
    uint64_t len = MIN(end, q->node->size) - off;

    if (!q->node->data_alone)
        return 0;
    return storage_zero(q->node->data, off, len,
                        how == ZERO_KEEP      ? 0
                        : how == ZERO_DISCARD ? STORAGE_MAY_UNMAP | STORAGE_FAST
                                              : STORAGE_MAY_UNMAP);
}

static int change_table(struct qcow2 *q, uint64_t *at, uint64_t end, enum zero_how how,
                        bool *had_place)
{
    qcow2_begin_change(q);
    int err = mapping_own_table(&q->live, geometry_l1_index(&q->geo, *at));
    LOCK_GUARD(mcache_meta(q->node->mc));
    if (!err)
        err = change_entries(q, at, end, how, had_place);
    dirty_mark_end(&q->mark);
    return err;
}

/* One L2 table's part of the range.
 *
 * Who writes in place locks nothing.  What he wrote to a raw data file after its zeroes and
 * before the entries changed is gone for who reads the image; so it gets zeroes once more.  Who
 * writes later still sees that the place was taken, and waits for the range. */
static int zero_in_table(struct qcow2 *q, uint64_t off, uint64_t end, enum zero_how how,
                         uint64_t *at)
{
    bool had_place = false;

    int err = zero_raw(q, off, end, how);
    if (!err)
        err = skip_kept(q, off, end, how, at);
    if (err || *at >= end)
        return err;
    err = punch_data(q, *at, end, how);
    if (err)
        return err;
    uint64_t start = *at;
    err = change_table(q, at, end, how, &had_place);
    int again = had_place && *at > start ? zero_raw(q, start, *at, how) : 0;
    return err ? err : again;
}

int qcow2_zero(struct node *node, uint64_t off, uint64_t len, enum zero_how how,
               uint64_t *done)
{
    struct qcow2 *q = qcow2_of(node);
    uint64_t at = off;
    int err = 0;

    while (!err && at < off + len) {
        uint64_t table_end = geometry_table_end(&q->geo, at);
        err = zero_in_table(q, at, MIN(off + len, table_end), how, &at);
    }
    *done = MIN(at - off, len);
    return qcow2_failed(q, err);
}

/* Does `at`, where a range of subclusters begins or ends, cut a compressed cluster in two? */
static bool cuts_compressed(struct qcow2 *q, uint64_t at)
{
    struct extent ext;

    return !is_aligned(at, cluster_size(q)) && at < q->node->size &&
           (mapping_map(&q->live, at, 1, &ext) || ext.kind == EXTENT_COMPRESSED);
}

bool qcow2_zero_is_fast(struct node *node, uint64_t off, uint64_t len)
{
    struct qcow2 *q = qcow2_of(node);

    if (q->header.version >= 3)
        return !cuts_compressed(q, off) && !cuts_compressed(q, off + len);
    /* Version 2 can only let go of clusters, and only where nothing lies below. */
    uint64_t end = MIN(off + len, node->size);
    while (off < end) {
        struct extent ext;
        if (node_holes_may_show(node) || mapping_map(&q->live, off, end - off, &ext))
            return false;
        off += ext.length;
    }
    return true;
}
