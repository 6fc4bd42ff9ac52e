/* SPDX-License-Identifier: BSD-3-Clause */
/* Growing the virtual size, in three steps: a larger L1 table if needed; zeroes over everything
 * behind the old end that wouldn't read as zeroes; the new size in the header. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "base/bytes.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "qcow2/internal.h"

/* Writes the present L1 entries, followed by zeroes, to the clusters at `host`. */
static int write_table(struct qcow2 *q, const _Atomic uint64_t *l1, uint32_t n,
                       uint64_t host)
{
    uint64_t bytes = align_up((uint64_t)n * 8, cluster_size(q));
    CLEANUP_FREE uint8_t *raw = calloc(1, bytes);

    if (!raw)
        return -ENOMEM;
    for (uint32_t i = 0; i < n; i++)
        store_be64(raw + (size_t)i * 8, atomic_load(&l1[i]));
    return storage_write(q->node->file, raw, host, bytes, 0);
}

int qcow2_point_header(struct qcow2 *q, const struct qcow2_header *h,
                       int (*write)(struct storage *st, const struct qcow2_header *h))
{
    int err = write(q->node->file, h);

    if (err)
        mcache_poison(q->node->mc);
    return err ? err : node_barrier(q->node);
}

static int switch_l1(struct qcow2 *q, uint32_t l1_size, uint64_t host)
{
    LOCK_GUARD(&q->header_lock);
    struct qcow2_header h = q->header;

    h.l1_size = l1_size;
    h.l1_table_offset = host;
    int err = qcow2_point_header(q, &h, qcow2_header_write_l1);
    if (err)
        return err;
    q->header.l1_size = h.l1_size;
    q->header.l1_table_offset = h.l1_table_offset;
    return 0;
}

/* Moves the L1 table to `host`; `l1` becomes the array in memory.  Each step is durable before
 * the next: everything that the table points to and its refcounts; the table; the header. */
static int move_l1(struct qcow2 *q, _Atomic uint64_t *l1, uint32_t l1_size, uint64_t host)
{
    int err = mcache_commit(q->node->mc, MC_COMMIT_EVERYTHING);
    if (err)
        return err;
    for (uint32_t i = 0; i < q->live.l1_size; i++)
        atomic_init(&l1[i], atomic_load(&q->live.l1[i]));
    err = write_table(q, l1, l1_size, host);
    if (err)
        return err;
    err = node_barrier(q->node);
    return err ? err : switch_l1(q, l1_size, host);
}

static int grow_l1(struct qcow2 *q, uint32_t l1_size)
{
    uint64_t clusters = div_round_up((uint64_t)l1_size * 8, cluster_size(q)), host = 0;
    uint64_t old_offset = atomic_load(&q->live.l1_offset);
    uint64_t old_clusters = div_round_up((uint64_t)q->live.l1_size * 8, cluster_size(q));
    CLEANUP_FREE _Atomic uint64_t *l1 = calloc(l1_size, sizeof *l1);
    if (!l1)
        return -ENOMEM;

    int err = alloc_table(&q->alloc, clusters, &host);
    if (!err)
        err = move_l1(q, l1, l1_size, host);
    if (!err) {
        err = mapping_set_l1(&q->live, l1, l1_size, host);
        if (err) /* the header points to a table that isn't in use here */
            mcache_poison(q->node->mc);
    }
    LOCK_GUARD(mcache_meta(q->node->mc));
    if (err) {
        /* Not if the header may point to it already. */
        if (host && !mcache_health(q->node->mc))
            alloc_unlink(&q->alloc, host, clusters);
        return err;
    }
    l1 = NULL;
    alloc_note_metadata(&q->alloc, host, clusters);
    if (old_clusters)
        alloc_unlink(&q->alloc, old_offset, old_clusters);
    return 0;
}

/* Makes an external data file as long as the disk.  Bytes that it has behind the old end were not
 * part of the disk: with the raw bit, when the file is read by itself, they are zeroed. */
static int grow_data_file(struct qcow2 *q, uint64_t size)
{
    struct storage *data = q->node->data;
    bool raw = q->header.autoclear & AUTOCLEAR_DATA_RAW;
    uint64_t old = q->node->size, bytes;

    if (!q->geo.external || (data->fixed_size && !raw))
        return 0;
    int err = storage_size(data, &bytes);
    if (!err && raw && bytes > old)
        err = storage_zero(data, old, MIN(bytes, size) - old, STORAGE_MAY_UNMAP);
    if (!err && bytes < size)
        err = storage_truncate(data, size);
    if (err)
        return err;
    err = storage_flush(data);
    if (err)
        mcache_poison(q->node->mc);
    return err;
}

int qcow2_check_resize(const struct qcow2 *q, struct diag *diag)
{
    /* Version 2 doesn't record the disk size of a snapshot. */
    if (q->header.version < 3 && q->n_snapshots > 0)
        return diag_set(diag, ENOTSUP, "%s: Can't resize a v2 image which has snapshots",
                        q->node->filename);
    return 0;
}

int qcow2_write_size(struct qcow2 *q, uint64_t size)
{
    LOCK_GUARD(&q->header_lock);
    struct qcow2_header h = q->header;

    h.size = size;
    /* After a failure the header may have either size, so nothing may be written behind the
     * smaller one: qcow2_point_header ends writing then. */
    int err = qcow2_point_header(q, &h, qcow2_header_write_size);
    if (!err)
        q->header.size = q->node->size = size;
    return err;
}

/* Zeroes the part of [old, size) that wouldn't read as zeroes: the rest of the last cluster, and
 * what a backing file has there. */
static int zero_growth(struct node *node, uint64_t old, uint64_t size)
{
    uint64_t end = align_up(old, node->cluster_size);

    if (node->backing)
        end = MAX(end, node->backing->size);
    else if (node->backing_name) /* it isn't open, so its size is unknown */
        end = size;
    end = MIN(end, size);
    if (end == old)
        return 0;
    int err = block_zero(node, old, end - old, BLOCK_MAY_UNMAP);
    return err ? err : mcache_commit(node->mc, MC_COMMIT_EVERYTHING);
}

static int zero_and_write_size(struct qcow2 *q, uint64_t size)
{
    struct node *node = q->node;
    uint64_t old = node->size;

    node->size = size;
    int err = zero_growth(node, old, size);
    node->size = old;
    return err ? err : qcow2_write_size(q, size);
}

int qcow2_grow(struct node *node, uint64_t size, struct diag *diag)
{
    struct qcow2 *q = qcow2_of(node);
    uint64_t entries = geometry_l1_entries(&q->geo, size);

    if (size < node->size)
        return diag_set(diag, EINVAL,
                        "%s: %" PRIu64 " bytes are less than its size of %" PRIu64,
                        node->filename, size, node->size);
    if (size > INT64_MAX || entries * 8 > MAX_L1_BYTES)
        return diag_set(diag, EFBIG,
                        "%s: %" PRIu64 " bytes need an L1 table of over %u bytes",
                        node->filename, size, MAX_L1_BYTES);
    int err = qcow2_check_resize(q, diag);
    if (!err)
        err = qcow2_check_bitmaps_size(q, size, diag);
    if (err)
        return err;
    err = node_begin_change(node);
    if (!err) /* the stored bitmaps are of the old size */
        err = qcow2_mark_all_bitmaps_in_use(q);
    if (!err && entries > q->live.l1_size)
        err = grow_l1(q, (uint32_t)entries);
    if (!err)
        err = grow_data_file(q, size);
    if (!err)
        err = zero_and_write_size(q, size);
    return err ? diag_errno(diag, -err, "%s: growing to %" PRIu64 " bytes", node->filename,
                            size)
               : 0;
}
