/* SPDX-License-Identifier: BSD-3-Clause */
/* Zeroing and discarding by changing L2 entries: whole clusters, or whole subclusters in images
 * that have them.
 *
 * A cluster that keeps its place and becomes zero may have its bytes punched before the entry
 * is durable, because the punched bytes read as zeroes as well.  That isn't true of encrypted
 * clusters, whose bytes in the file would have to decrypt to zeroes; they are never punched. */
#include <errno.h>

#include "base/checked.h"
#include "qcow2/internal.h"

/* How an entry is to be changed. */
struct new_entry {
    bool keep;   /* not at all */
    bool let_go; /* the old entry's clusters lose a reference */
    uint64_t entry, bitmap;
};

/* Does a cluster of this kind already read as zeroes, and take no more space than `how`
 * allows? */
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

/* Finds the new entry of a whole cluster.  0, or -ENOTSUP when the format can't express it. */
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
    /* The cluster is freed; the backing file must not become visible in its stead. */
    change->let_go = c->kind != CL_NONE;
    change->entry = holes_show ? L2_ZERO : 0;
    return holes_show && !v3 ? -ENOTSUP : 0;
}

/* The same for the subclusters in `mask`. */
static int zeroed_subclusters(const struct qcow2 *q, const struct cluster *c, uint32_t mask,
                              enum zero_how how, struct new_entry *change)
{
    bool all = mask == ALL_SUBCLUSTERS, keeps_place = cluster_has_place(c);

    /* The entry of a compressed cluster has no bits for its subclusters. */
    if (c->kind == CL_COMPRESSED && !all) {
        *change = (struct new_entry){.keep = how == ZERO_DISCARD};
        return change->keep ? 0 : -ENOTSUP;
    }
    uint32_t allocated = c->allocated & ~mask;
    uint32_t zero =
        node_holes_may_show(q->node) || how == ZERO_KEEP ? c->zero | mask : c->zero & ~mask;
    /* A cluster that keeps its place without data in it must own that place. */
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

/* Advances *at from `off` to the first cluster whose entry has to change.  Needs no lock on the
 * tables: the caller has locked the guest range. */
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

/* META, which is released while pages are loaded: changes the entries of [*at, end) and advances
 * *at, up to the first error.  *had_place: set when a changed cluster could be written in place
 * before. */
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
            /* For each entry again, as META may have been released to load its page. */
            if (dirty_mark_needs_barrier(&q->mark))
                mcache_strict(q->node->mc);
            mapping_store(&q->live, page, start, change.entry, change.bitmap);
            if (change.let_go)
                qcow2_let_go(q, &c);
            /* A later write can get the same place again: a concurrent write in place must
             * notice that it lost it meanwhile. */
            if (c.kind == CL_DATA && (!change.let_go || q->geo.external)) {
                node_took_place(q->node);
                *had_place = true;
            }
        }
        *at = next;
    }
    return 0;
}

/* Punches data whose cluster isn't freed, so that nothing else gives its space back:
 * subclusters, and clusters of an external data file. */
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
    if (q->geo.external) /* zeroes behind the disk's end would make the file longer */
        end = MIN(end, q->node->size);
    for (; off < end; off += ext.length) {
        int err = mapping_map(&q->live, off, end - off, &ext);
        if (err)
            return err;
        /* A whole cluster in the image file is punched later, when it is freed. */
        if (!q->geo.external && is_aligned(off, cluster_size(q)) &&
            ext.length >= cluster_size(q))
            ext.length = align_down(ext.length, cluster_size(q));
        else
            (void)!punch_extent(&ext, how);
    }
    return 0;
}

/* An external data file with the raw bit must have the right content whatever the tables say,
 * so zeroes go to the file, too.  A trim that would have to write them is -ENOTSUP; then
 * neither file nor tables are changed. */
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

/* Zeroes the part of the range that lies in one L2 table.
 *
 * A write in place takes no lock.  When one reached a raw data file after the zeroes and before
 * the entries changed, readers of the image get zeroes while the file has the written bytes; so
 * the file is zeroed again.  A write in place that comes later notices that the cluster lost
 * its place, and waits for the range. */
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

/* Does `at`, an end of a range of subclusters, lie inside a compressed cluster? */
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
    /* Version 2 has no zero flag: clusters can only be freed, and only without a backing file. */
    uint64_t end = MIN(off + len, node->size);
    while (off < end) {
        struct extent ext;
        if (node_holes_may_show(node) || mapping_map(&q->live, off, end - off, &ext))
            return false;
        off += ext.length;
    }
    return true;
}
