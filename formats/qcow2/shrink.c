/* SPDX-License-Identifier: BSD-3-Clause */
/* Shrinking the virtual size, and emptying an image.
 *
 * Each step is durable before the next.  So a crash leaves a disk of the old or the new size,
 * with the bytes before the new end unchanged:
 *   1. the clusters behind the new end are freed; until step 2 they read as zeroes, or as the
 *      backing file's data;
 *   2. the header gets the new size;
 *   3. L2 tables behind the new end, which are empty by then, are freed.  The L1 table keeps its
 *      place and its length, which may be more than is needed.
 * The last cluster may reach past the new end; that part is zeroed when the disk grows. */
#include <errno.h>
#include <inttypes.h>

#include "base/checked.h"
#include "qcow2/internal.h"

/* META: empties one entry. */
static void cut_entry(struct qcow2 *q, struct mc_page *page, uint64_t guest,
                      const struct cluster *c)
{
    if (dirty_mark_needs_barrier(&q->mark))
        mcache_strict(q->node->mc);
    mapping_store(&q->live, page, guest, 0, 0);
    if (c->kind == CL_COMPRESSED || cluster_has_place(c))
        qcow2_let_go(q, c);
}

/* META, which is released while pages are loaded: empties the entries of [at, end), which are in
 * one table. */
static int cut_entries(struct qcow2 *q, uint64_t at, uint64_t end)
{
    for (; at < end; at += cluster_size(q)) {
        struct mc_page *page;
        struct cluster c;
        int err = mapping_lock_l2_page(&q->live, at, &page);
        if (!err)
            err = mapping_decode_at(&q->live, page, at, &c);
        if (err)
            return err;
        /* An extended entry without a place can have zero bits. */
        if (c.kind != CL_NONE || c.zero)
            cut_entry(q, page, at, &c);
    }
    return 0;
}

static int cut_in_table(struct qcow2 *q, uint64_t at, uint64_t end)
{
    uint32_t index = geometry_l1_index(&q->geo, at);

    if ((atomic_load(&q->live.l1[index]) & L1_OFFSET) == 0)
        return 0;
    qcow2_begin_change(q);
    int err = mapping_own_table(&q->live, index);
    LOCK_GUARD(mcache_meta(q->node->mc));
    if (!err)
        err = cut_entries(q, at, end);
    dirty_mark_end(&q->mark);
    return err;
}

int qcow2_cut_clusters(struct qcow2 *q, uint64_t start, uint64_t end)
{
    int err = 0;

    for (uint64_t at = start, next; !err && at < end; at = next) {
        next = MIN(end, geometry_table_end(&q->geo, at));
        gate_ticket ticket = gate_enter(&q->node->ctx->gate);
        err = cut_in_table(q, at, next);
        gate_leave(&q->node->ctx->gate, ticket);
        mcache_relieve(q->node->mc);
    }
    return qcow2_failed(q, err);
}

static int drop_table(struct qcow2 *q, uint32_t index)
{
    uint64_t entry = atomic_load(&q->live.l1[index]);

    if ((entry & L1_OFFSET) == 0)
        return 0;
    qcow2_begin_change(q);
    int err = mapping_drop_table(&q->live, index);
    {
        LOCK_GUARD(mcache_meta(q->node->mc));
        dirty_mark_end(&q->mark);
    }
    return err;
}

/* Forgets all cached L2 pages, which are clean.  The pages of freed tables have `has_place` set,
 * which wouldn't be true of a new table for the same guest range (invariant 10 of mcache.h). */
static void forget_pages(struct qcow2 *q)
{
    mcache_hold(q->node->mc);
    mcmap_forget(q->live.l2_map);
    mcache_release(q->node->mc);
}

static int drop_tables(struct qcow2 *q, uint32_t needed)
{
    gate_ticket ticket = gate_enter(&q->node->ctx->gate);
    int err = 0;

    for (uint32_t i = needed; !err && i < q->live.l1_size; i++)
        err = drop_table(q, i);
    gate_leave(&q->node->ctx->gate, ticket);
    if (!err)
        err = mcache_commit(q->node->mc, MC_COMMIT_EVERYTHING);
    forget_pages(q);
    return err;
}

/* Zeroes the freed part of an external data file with the raw bit, whose content must be right
 * without the tables, too. */
static int zero_raw_from(struct qcow2 *q, uint64_t off)
{
    struct node *node = q->node;

    if (!node->data_alone || !node->host_zeroes_show || off >= node->size)
        return 0;
    int err = storage_zero(node->data, off, node->size - off, STORAGE_MAY_UNMAP);
    return err ? err : storage_flush(node->data);
}

/* Makes the external data file as long as the disk. */
static int cut_data_file(struct qcow2 *q, uint64_t size)
{
    if (!q->geo.external || q->node->data->fixed_size)
        return 0;
    int err = storage_truncate(q->node->data, size);
    return err ? err : storage_flush(q->node->data);
}

int qcow2_make_empty(struct node *node, struct diag *diag)
{
    struct qcow2 *q = qcow2_of(node);

    int err = node_begin_change(node);
    if (!err)
        err = qcow2_cut_clusters(q, 0, align_up(node->size, cluster_size(q)));
    if (!err)
        err = mcache_commit(node->mc, MC_COMMIT_EVERYTHING);
    if (!err)
        err = drop_tables(q, 0);
    q->alloc.shrunk = true;
    return err ? diag_errno(diag, -err, "%s: emptying it", node->filename) : 0;
}

int qcow2_shrink(struct node *node, uint64_t size, struct diag *diag)
{
    struct qcow2 *q = qcow2_of(node);
    uint64_t cluster = cluster_size(q), old = node->size;

    int err = qcow2_check_resize(q, diag);
    if (err)
        return err;
    err = node_begin_change(node);
    if (!err) /* the stored bitmaps are of the old size */
        err = qcow2_mark_all_bitmaps_in_use(q);
    if (!err)
        err = zero_raw_from(q, align_up(size, cluster));
    if (!err)
        err = qcow2_cut_clusters(q, align_up(size, cluster), align_up(old, cluster));
    if (!err)
        err = mcache_commit(node->mc, MC_COMMIT_EVERYTHING);
    if (!err)
        err = qcow2_write_size(q, size);
    if (!err)
        err = drop_tables(q, (uint32_t)geometry_l1_entries(&q->geo, size));
    if (!err)
        err = cut_data_file(q, size);
    q->alloc.shrunk = true;
    return err ? diag_errno(diag, -err, "%s: shrinking to %" PRIu64 " bytes",
                            node->filename, size)
               : 0;
}
