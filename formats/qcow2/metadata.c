/* SPDX-License-Identifier: BSD-3-Clause */
/* Fills the set of metadata clusters before an image is written to. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "base/checked.h"
#include "qcow2/internal.h"

struct collection {
    struct qcow2 *q;
    struct meta_set set;
    struct diag *diag;
};

static int refuse_shared_cluster(const struct collection *c, const char *what,
                                 uint64_t index, uint64_t cluster)
{
    return diag_set(c->diag, EINVAL,
                    "%s: %s %" PRIu64 ": the cluster at %" PRIu64
                    " also holds other metadata",
                    c->q->node->filename, what, index, cluster << c->q->geo.cluster_bits);
}

static uint64_t clusters_of(const struct qcow2 *q, uint64_t host, uint64_t bytes)
{
    return div_round_up((host & (cluster_size(q) - 1)) + bytes, cluster_size(q));
}

static int claim_range(struct collection *c, uint64_t host, uint64_t bytes,
                       const char *what, uint64_t index)
{
    uint64_t first = host >> c->q->geo.cluster_bits;

    for (uint64_t at = first; at < first + clusters_of(c->q, host, bytes); at++) {
        int err = meta_set_add(&c->set, at);
        if (err == -EEXIST)
            return refuse_shared_cluster(c, what, index, at);
        if (err)
            return diag_errno(c->diag, -err, "%s", c->q->node->filename);
    }
    return 0;
}

static int claim_refcounts(struct collection *c)
{
    struct qcow2 *q = c->q;
    const struct refcount_table *t = atomic_load(&q->alloc.refs.table);
    int err = claim_range(c, t->offset, t->n_entries * 8, "refcount table", 0);

    for (uint64_t b = 0; !err && b < t->n_entries; b++) {
        uint64_t offset = refcount_block_offset(&q->alloc.refs, b);
        if (offset)
            err = claim_range(c, offset, cluster_size(q), "refcount table entry", b);
    }
    return err;
}

/* Claims the L2 table of an L1 entry.  `shared` holds the tables of entries without the copied
 * flag.  Two such entries may point at the same table, because it is copied before it is
 * changed. */
static int claim_table(struct collection *c, struct meta_set *shared, uint32_t l1_index,
                       uint64_t entry)
{
    uint64_t offset = entry & L1_OFFSET;

    if (!(entry & L1_COPIED)) {
        int err = meta_set_add(shared, offset >> c->q->geo.cluster_bits);
        if (err == -EEXIST)
            return 0;
        if (err)
            return diag_errno(c->diag, -err, "%s", c->q->node->filename);
    }
    return claim_range(c, offset, cluster_size(c->q), "L1 entry", l1_index);
}

static int claim_tables(struct collection *c)
{
    struct qcow2 *q = c->q;
    struct meta_set shared = {NULL, NULL};
    int err = q->live.l1_size ? claim_range(c, atomic_load(&q->live.l1_offset),
                                            (uint64_t)q->live.l1_size * 8, "L1 table", 0)
                              : 0;

    for (uint32_t i = 0; !err && i < q->live.l1_size; i++) {
        uint64_t entry = atomic_load(&q->live.l1[i]);
        /* An impossible entry is reported when it is used. */
        if ((entry & L1_OFFSET) && is_aligned(entry & L1_OFFSET, cluster_size(q)))
            err = claim_table(c, &shared, i, entry);
    }
    meta_set_free(&shared);
    return err;
}

static int by_place(const void *a, const void *b)
{
    const struct meta_range *left = a, *right = b;

    return (left->first > right->first) - (left->first < right->first);
}

/* Claims the L1 tables of snapshots.  Their L2 tables may be shared with the disk, and are not
 * claimed.  The L1 tables are stored as ranges: in a sparse file they can be far longer than all
 * the data in it. */
static int claim_snapshots(struct collection *c)
{
    const struct qcow2 *q = c->q;
    struct meta_ranges *ranges;

    if (!q->n_snapshots)
        return 0;
    ranges = calloc(1, sizeof *ranges + q->n_snapshots * sizeof ranges->range[0]);
    if (!ranges)
        return diag_errno(c->diag, ENOMEM, "%s", q->node->filename);
    for (uint32_t i = 0; i < q->n_snapshots; i++) {
        uint64_t host = q->snapshots[i].l1_offset, size = q->snapshots[i].l1_size;
        uint64_t first = host >> q->geo.cluster_bits;
        if (size)
            ranges->range[ranges->n++] = (struct meta_range){
                .first = first, .end = first + clusters_of(q, host, size * 8), .index = i};
    }
    qsort(ranges->range, ranges->n, sizeof ranges->range[0], by_place);
    atomic_store(&c->set.ranges, ranges);
    for (size_t i = 1; i < ranges->n; i++)
        if (ranges->range[i].first < ranges->range[i - 1].end)
            return refuse_shared_cluster(c, "L1 table of snapshot", ranges->range[i].index,
                                         ranges->range[i].first);
    return claim_range(c, q->header.snapshots_offset, q->snapshot_bytes, "snapshot table",
                       0);
}

static int claim_everything(struct collection *c)
{
    const struct qcow2_header *h = &c->q->header;

    int err = claim_snapshots(c);
    if (err)
        return err;
    err = claim_range(c, 0, 1, "header", 0);
    if (!err && h->crypt_method == CRYPT_LUKS)
        err = claim_range(c, h->luks_offset, h->luks_bytes, "LUKS header", 0);
    if (err)
        return err;
    err = claim_refcounts(c);
    return err ? err : claim_tables(c);
}

int qcow2_collect_metadata(struct qcow2 *q, struct diag *diag)
{
    struct collection c = {.q = q, .diag = diag};

    if (!meta_set_is_empty(&q->alloc.metadata))
        return 0; /* collected before; a later step failed, which changed no metadata */
    int err = claim_everything(&c);
    if (!err)
        meta_set_move(&q->alloc.metadata, &c.set);
    meta_set_free(&c.set);
    return err;
}
