/* Growth: a longer file, new refcount blocks, a larger refcount table. */
#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "base/bytes.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "base/log.h"
#include "qcow2/internal.h"

/* Growth lock: how far the image can reach, at least to `wanted` if at all.  A device may
 * have grown since it was looked at: it is asked before there is said to be no space. */
static uint64_t reach(struct alloc *a, uint64_t wanted)
{
    struct storage *st = a->q->node->file;
    uint64_t end = atomic_load(&a->file_end), size;

    if (!st->fixed_size)
        return UINT64_MAX;
    if (wanted > end && storage_size(st, &size) == 0) {
        end = MAX(end, align_down(size, cluster_size(a->q)));
        atomic_store_explicit(&a->file_end, end, memory_order_release);
    }
    return end;
}

/* Makes the file reach new_end, all zeroes from its present end on.  Growth lock. */
static int extend_file(struct alloc *a, uint64_t new_end)
{
    struct storage *st = a->q->node->file;

    if (new_end > reach(a, new_end))
        return -ENOSPC;
    if (new_end <= atomic_load(&a->file_end))
        return 0;
    if (new_end > INT64_MAX)
        return -EFBIG;
    int err = storage_truncate(st, new_end);
    if (err)
        return err;
    a->grown = true;
    atomic_store_explicit(&a->file_end, new_end, memory_order_release);
    return 0;
}

/* META: the clusters that are left in the tail; they become free like unlinked ones. */
static void abandon_tail(struct alloc *a)
{
    uint64_t left = (a->tail.end - a->tail.next) >> a->q->cluster_bits;

    if (left)
        alloc_unlink(a, a->tail.next, left);
    a->tail.next = a->tail.end;
}

/* Growth lock: how many clusters from `first` on, at most n and in one page of refcounts,
 * are in use (`used`) or not, by their count or as metadata.  Beyond the end of the file
 * that means: tables of a file that was cut short point there. */
static int count_run(struct alloc *a, uint64_t first, uint64_t n, bool used, uint64_t *run)
{
    struct qcow2 *q = a->q;
    bool counted = refcount_block_offset(&q->refs, refcount_block_of(&q->refs, first)) != 0;

    n = MIN(n, refcount_run_in_page(&q->refs, first));
    int err = counted ? refcount_lock_page(&q->refs, first) : 0;
    if (err)
        return err;
    if (!counted)
        lock_acquire(mcache_meta(q->node->mc));
    for (*run = 0; *run < n; ++*run) {
        uint64_t c = first + *run;
        bool in_use =
            (counted && refcount_get(&q->refs, c) != 0) || meta_set_has(&q->metadata, c);
        if (in_use != used)
            break;
    }
    lock_release(mcache_meta(q->node->mc));
    return 0;
}

/* Growth lock: the tail ends where clusters begin that nobody uses. */
static int pass_over_used(struct alloc *a)
{
    struct qcow2 *q = a->q;

    for (;;) {
        uint64_t n, at = a->tail.end >> q->cluster_bits;
        int err = count_run(a, at, UINT64_MAX, true, &n);
        if (err || n == 0)
            return err;
        LOCK_GUARD(mcache_meta(q->node->mc));
        abandon_tail(a);
        a->tail.next = a->tail.end = (at + n) << q->cluster_bits;
    }
}

/* Sets the refcounts of clusters from *at on to 1, up to `end`, the end of a page or the
 * first that is in use, and hands them to the tail.  block_here: `*at` is the place of the
 * refcount block that covers it. */
static int publish_page(struct alloc *a, uint64_t *at, uint64_t end, bool block_here)
{
    struct qcow2 *q = a->q;
    struct refcounts *refs = &q->refs;
    uint64_t first = *at, n = 0;

    int err = block_here
                  ? refcount_table_load_for_store(refs, refcount_block_of(refs, first))
                  : 0;
    if (!err)
        err = count_run(a, first, end - first, false, &n);
    if (!err && n > 0)
        err = refcount_lock_page_for_store(refs, first);
    if (err || n == 0)
        return err;
    /* A new block's own page comes before the table entry that points to it. */
    for (uint64_t c = first; c < first + n; c++)
        refcount_set(refs, c, 1, block_here ? MC_PRE : MC_LEAF);
    if (block_here) {
        qcow2_note_metadata(q, first << q->cluster_bits, 1);
        refcount_table_store(refs, refcount_block_of(refs, first),
                             first << q->cluster_bits);
        assert(a->tail.next == a->tail.end);
        a->tail.next += cluster_size(q);
    }
    tail_publish(&a->tail, (first + n) << q->cluster_bits);
    lock_release(mcache_meta(q->node->mc));
    *at += n;
    return 0;
}

/* [*at, end) as far as it isn't in use; the new block, if any, is at *at. */
static int publish(struct alloc *a, uint64_t at, uint64_t end, bool block_here)
{
    for (uint64_t before = UINT64_MAX; at < end && at != before; block_here = false) {
        before = at;
        int err = publish_page(a, &at, end, block_here);
        if (err)
            return err;
    }
    return 0;
}

/* Extends within the reach of one refcount block, which is made when it isn't there. Growth
 * lock; the tail is used up when a block is to be made, and nobody uses what comes next. */
static int extend(struct alloc *a, uint64_t clusters)
{
    struct qcow2 *q = a->q;
    struct refcounts *refs = &q->refs;
    uint64_t at = a->tail.end >> q->cluster_bits, block = refcount_block_of(refs, at);
    bool block_here = refcount_block_offset(refs, block) == 0;

    if (block_here && atomic_load(&atomic_load(&refs->table)->words[block]) != 0)
        return -EIO; /* an entry that can't be right; said when it was met */

    uint64_t end;
    {
        LOCK_GUARD(mcache_meta(q->node->mc));
        end = tail_next_end(&a->tail, (clusters + block_here) << q->cluster_bits);
    }
    end = MIN(end, reach(a, end));
    end = MIN(end >> q->cluster_bits, (block + 1) << refs->block_bits);
    /* A file that ends one cluster before a block's reach does leaves room for the block
     * only: then the next call goes on behind it. */
    bool at_reach = end == (block + 1) << refs->block_bits;
    if (end <= at || (end <= at + block_here && !at_reach))
        return -ENOSPC;
    int err = extend_file(a, end << q->cluster_bits);
    if (!err && block_here) {
        if (q->node->file->fixed_size)
            err = storage_zero(q->node->file, at << q->cluster_bits, cluster_size(q), 0);
        atomic_store(&refs->pending_index, block);
        atomic_store(&refs->pending_offset, at << q->cluster_bits);
    }
    if (!err)
        err = publish(a, at, end, block_here);
    atomic_store(&refs->pending_offset, 0);
    return err;
}

/* ---- a larger refcount table ---- */

/* The new table and the blocks that cover its area, all at the end of the file. */
struct table_plan {
    uint64_t start;                 /* first cluster of the area */
    uint64_t n_entries;             /* of the new table */
    uint64_t table_clusters;        /* come first */
    uint64_t first_block, n_blocks; /* come next */
};

static int plan_table_at(struct alloc *a, uint64_t start, struct table_plan *plan)
{
    struct qcow2 *q = a->q;
    struct refcounts *refs = &q->refs;
    uint64_t per_cluster = cluster_size(q) / 8;

    plan->start = start;
    plan->first_block = refcount_block_of(refs, plan->start);
    uint64_t twice = MIN(atomic_load(&refs->table)->n_entries * 2, MAX_RT_BYTES / 8);
    uint64_t wanted = MAX(twice, plan->first_block + 2);
    for (;;) {
        if (wanted > MAX_RT_BYTES / 8)
            return -EFBIG;
        plan->table_clusters = div_round_up(wanted, per_cluster);
        plan->n_entries = plan->table_clusters * per_cluster;
        plan->n_blocks = 1;
        while (refcount_block_of(refs, plan->start + plan->table_clusters + plan->n_blocks -
                                           1) >= plan->first_block + plan->n_blocks)
            plan->n_blocks++;
        if (plan->first_block + plan->n_blocks <= plan->n_entries)
            break;
        wanted = plan->first_block + plan->n_blocks;
    }
    return plan->n_entries * 8 <= MAX_RT_BYTES ? 0 : -EFBIG;
}

static uint64_t plan_end(const struct table_plan *plan)
{
    return plan->start + plan->table_clusters + plan->n_blocks;
}

/* At the tail's end, or behind metadata that is known to lie there. */
static int plan_table(struct alloc *a, struct table_plan *plan)
{
    const struct meta_set *metadata = &a->q->metadata;
    uint64_t start = a->tail.end >> a->q->cluster_bits;

    int err = plan_table_at(a, start, plan);
    if (err || !meta_set_has_any(metadata, start, plan_end(plan) - start))
        return err;
    return plan_table_at(a, meta_set_end(metadata), plan);
}

static int write_blocks(struct alloc *a, const struct table_plan *plan)
{
    struct qcow2 *q = a->q;
    struct refcounts *refs = &q->refs;
    CLEANUP_FREE uint8_t *block = malloc(cluster_size(q));
    if (!block)
        return -ENOMEM;

    for (uint64_t i = 0; i < plan->n_blocks; i++) {
        uint64_t covers = (plan->first_block + i) << refs->block_bits;
        memset(block, 0, cluster_size(q));
        for (uint64_t c = MAX(plan->start, covers);
             c < MIN(plan_end(plan), covers + (1ull << refs->block_bits)); c++)
            refcount_pack(refs->order, block, c - covers, 1);
        uint64_t place = plan->start + plan->table_clusters + i;
        int err = storage_write(q->node->file, block, cluster_size(q),
                                place << q->cluster_bits, 0);
        if (err)
            return err;
    }
    return 0;
}

static int write_table(struct alloc *a, const struct refcount_table *table)
{
    CLEANUP_FREE uint8_t *raw = malloc(table->n_entries * 8);
    if (!raw)
        return -ENOMEM;
    for (uint64_t i = 0; i < table->n_entries; i++)
        store_be64(raw + i * 8, atomic_load(&table->words[i]));
    return storage_write(a->q->node->file, raw, table->n_entries * 8, table->offset, 0);
}

static int switch_header(struct qcow2 *q, const struct refcount_table *table)
{
    LOCK_GUARD(&q->header_lock);
    struct qcow2_header h = q->header;

    h.refcount_table_offset = table->offset;
    h.refcount_table_clusters = (uint32_t)(table->n_entries * 8 >> q->cluster_bits);
    int err = qcow2_header_write_refcount_table(q->node->file, &h);
    /* After a failure the header may name either table: neither may be written or cut off.
     */
    if (err)
        mcache_poison(q->node->mc);
    else
        err = node_barrier(q->node);
    /* The fields that can change, for others read the rest without a lock. */
    if (err)
        return err;
    /* The fields that changed: others read the rest meanwhile, without a lock. */
    q->header.refcount_table_offset = h.refcount_table_offset;
    q->header.refcount_table_clusters = h.refcount_table_clusters;
    return 0;
}

/* Step by step, each durable before the next: the area, then the header that points to it.
 */
static int write_area(struct alloc *a, const struct table_plan *plan,
                      struct refcount_table *table)
{
    int err = extend_file(a, plan_end(plan) << a->q->cluster_bits);
    if (!err)
        err = write_blocks(a, plan);
    if (!err)
        err = write_table(a, table);
    if (!err)
        err = node_barrier(a->q->node);
    if (!err)
        err = switch_header(a->q, table);
    return err;
}

/* Growth lock; the tail is used up, and lies beyond the present table's reach. */
static int grow_table(struct alloc *a)
{
    struct qcow2 *q = a->q;
    struct table_plan plan;

    /* Then no entry of the old table waits to be written, and none can be added. */
    int err = mcache_commit(q->node->mc, MC_COMMIT_EVERYTHING);
    if (!err)
        err = plan_table(a, &plan);
    if (err)
        return err;

    struct refcount_table *old = atomic_load(&q->refs.table);
    struct refcount_table *table =
        refcount_table_new(plan.start << q->cluster_bits, plan.n_entries);
    if (!table)
        return -ENOMEM;
    for (uint64_t i = 0; i < old->n_entries; i++)
        atomic_init(&table->words[i], atomic_load(&old->words[i]));
    for (uint64_t i = 0; i < plan.n_blocks; i++)
        atomic_init(&table->words[plan.first_block + i],
                    (plan.start + plan.table_clusters + i) << q->cluster_bits);
    err = write_area(a, &plan, table);
    if (!err) {
        err = refcounts_replace_table(&q->refs, table);
        if (err) /* the header names a table that we can't use */
            mcache_poison(q->node->mc);
    }
    if (err) {
        free(table);
        return err;
    }
    LOCK_GUARD(mcache_meta(q->node->mc));
    a->tail.next = a->tail.end = plan_end(&plan) << q->cluster_bits;
    qcow2_note_metadata(q, table->offset, plan.table_clusters + plan.n_blocks);
    alloc_unlink(a, old->offset, old->n_entries * 8 >> q->cluster_bits);
    return 0;
}

/* Growth lock. */
static int grow_locked(struct alloc *a, uint64_t clusters)
{
    struct refcounts *refs = &a->q->refs;

    int err = pass_over_used(a);
    if (err)
        return err;
    if (refcount_block_of(refs, a->tail.end >> a->q->cluster_bits) >=
        atomic_load(&refs->table)->n_entries) {
        err = grow_table(a);
        if (err)
            return err;
    }
    return extend(a, clusters);
}

int alloc_grow(struct alloc *a, uint64_t clusters)
{
    LOCK_GUARD(&a->growth);
    {
        LOCK_GUARD(mcache_meta(a->q->node->mc));
        if (a->tail.next < a->tail.end)
            return 0;
    }
    return grow_locked(a, clusters);
}

int alloc_table(struct alloc *a, uint64_t n, uint64_t *host)
{
    struct qcow2 *q = a->q;
    uint64_t bytes = n << q->cluster_bits;
    bool fresh;

    /* Every reach of a refcount block begins with the block itself. */
    if (n >= 1ull << q->refs.block_bits)
        return -EFBIG;
    LOCK_GUARD(&a->growth);
    for (;;) {
        {
            LOCK_GUARD(mcache_meta(q->node->mc));
            if (a->tail.end - a->tail.next >= bytes) {
                tail_take(&a->tail, bytes, host, &fresh);
                return 0;
            }
            /* A run across a block's reach would have the block's cluster in it. */
            uint64_t end = a->tail.end >> q->cluster_bits;
            if (refcount_block_offset(&q->refs, refcount_block_of(&q->refs, end)) == 0)
                abandon_tail(a);
        }
        int err = grow_locked(a, n);
        if (err)
            return err;
    }
}
