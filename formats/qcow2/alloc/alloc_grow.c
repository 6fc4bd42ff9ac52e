/* SPDX-License-Identifier: BSD-3-Clause */
/* Growth: makes the file longer, and creates refcount blocks for the new clusters.
 *
 * A step adds more clusters than are asked for, the tail, and sets all their refcounts to 1 at
 * once.  As soon as those are durable, allocations from the tail need no barrier of their own.
 * Clusters of the tail that are left when the image is closed are given back; after a crash
 * they are leaked.
 *
 * A step stays within the range of one refcount block.  If that block doesn't exist yet, the
 * first cluster of the step becomes it, and the block counts itself.  Clusters behind the end
 * of the file that are referenced already are skipped: a file that was truncated has tables
 * that point there. */
#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "base/bytes.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "base/log.h"
#include "base/no_space.h"
#include "qcow2/alloc/alloc.h"

/* Growth lock: the largest end that the image can have.  When `wanted` lies behind it, a
 * device's size is read again, as it may have grown. */
static uint64_t reachable_end(struct alloc *a, uint64_t wanted)
{
    struct storage *st = a->node->file;
    uint64_t end = atomic_load(&a->file_end), size;

    if (!st->fixed_size)
        return UINT64_MAX;
    if (wanted > end && storage_size(st, &size) == 0) {
        end = MAX(end, align_down(size, alloc_cluster_size(a)));
        atomic_store_explicit(&a->file_end, end, memory_order_release);
    }
    return end;
}

int alloc_extend_file(struct alloc *a, uint64_t new_end)
{
    struct storage *st = a->node->file;

    if (new_end > reachable_end(a, new_end))
        return -ENOSPC;
    if (new_end <= atomic_load(&a->file_end))
        return 0;
    if (new_end > INT64_MAX)
        return -EFBIG;
    int err = storage_truncate(st, new_end);
    if (err)
        return err;
    storage_expect_pieces(st, atomic_load(&a->file_end),
                          new_end - atomic_load(&a->file_end));
    a->grown = true;
    atomic_store_explicit(&a->file_end, new_end, memory_order_release);
    return 0;
}

void alloc_abandon_tail(struct alloc *a)
{
    uint64_t left = (a->tail.end - a->tail.next) >> a->cluster_bits;

    if (left)
        alloc_unlink(a, a->tail.next, left);
    a->tail.next = a->tail.end;
}

/* Clusters behind the end of the file can be in use, too: tables of a truncated file point
 * there. */
int alloc_count_run(struct alloc *a, uint64_t first, uint64_t n, bool used, uint64_t *run)
{
    bool counted = refcount_block_offset(&a->refs, refcount_block_of(&a->refs, first)) != 0;

    n = MIN(n, refcount_run_in_page(&a->refs, first));
    int err = counted ? refcount_lock_page(&a->refs, first) : 0;
    if (err)
        return err;
    if (!counted)
        lock_acquire(mcache_meta(a->node->mc));
    for (*run = 0; *run < n; ++*run) {
        uint64_t c = first + *run;
        bool in_use =
            (counted && refcount_get(&a->refs, c) != 0) || meta_set_has(&a->metadata, c);
        if (in_use != used)
            break;
    }
    lock_release(mcache_meta(a->node->mc));
    return 0;
}

/* Growth lock: moves the end of the tail behind clusters that are in use. */
static int pass_over_used(struct alloc *a)
{

    for (;;) {
        uint64_t n, at = a->tail.end >> a->cluster_bits;
        int err = alloc_count_run(a, at, UINT64_MAX, true, &n);
        if (err || n == 0)
            return err;
        LOCK_GUARD(mcache_meta(a->node->mc));
        alloc_abandon_tail(a);
        a->tail.next = a->tail.end = (at + n) << a->cluster_bits;
    }
}

/* Sets refcounts to 1, from *at on up to `end`, the end of the page, or the first cluster in use,
 * and adds those clusters to the tail.  block_here: the refcount block itself lies at *at. */
static int publish_page(struct alloc *a, uint64_t *at, uint64_t end, bool block_here)
{
    struct refcounts *refs = &a->refs;
    uint64_t first = *at, n = 0;

    int err = block_here
                  ? refcount_table_load_for_store(refs, refcount_block_of(refs, first))
                  : 0;
    if (!err)
        err = alloc_count_run(a, first, end - first, false, &n);
    if (!err && n > 0)
        err = refcount_lock_page_for_store(refs, first);
    if (err || n == 0)
        return err;
    /* The page of a new block must be durable before the table entry that points to it. */
    for (uint64_t c = first; c < first + n; c++)
        refcount_set(refs, c, 1, block_here ? MC_PRE : MC_LEAF);
    if (block_here) {
        alloc_note_metadata(a, first << a->cluster_bits, 1);
        refcount_table_store(refs, refcount_block_of(refs, first),
                             first << a->cluster_bits);
        assert(a->tail.next == a->tail.end);
        a->tail.next += alloc_cluster_size(a);
    }
    tail_publish(&a->tail, (first + n) << a->cluster_bits);
    lock_release(mcache_meta(a->node->mc));
    *at += n;
    return 0;
}

/* Adds the clusters of [at, end) to the tail, up to the first in use; a new block lies at `at`. */
static int publish_clusters(struct alloc *a, uint64_t at, uint64_t end, bool block_here)
{
    for (uint64_t before = UINT64_MAX; at < end && at != before; block_here = false) {
        before = at;
        int err = publish_page(a, &at, end, block_here);
        if (err)
            return err;
    }
    return 0;
}

/* Growth lock: extends the tail within the range of one refcount block, which is created if it
 * doesn't exist.  In that case the tail is used up, and the next cluster isn't in use. */
static int extend_tail(struct alloc *a, uint64_t clusters)
{
    struct refcounts *refs = &a->refs;
    uint64_t at = a->tail.end >> a->cluster_bits, block = refcount_block_of(refs, at);
    bool block_here = refcount_block_offset(refs, block) == 0;

    if (block_here && atomic_load(&atomic_load(&refs->table)->words[block]) != 0)
        return -EIO; /* an impossible entry; it was logged when it was found */

    uint64_t end;
    {
        LOCK_GUARD(mcache_meta(a->node->mc));
        end = tail_next_end(&a->tail, (clusters + block_here) << a->cluster_bits);
    }
    end = MIN(end, reachable_end(a, end));
    end = MIN(end >> a->cluster_bits, (block + 1) << refs->block_bits);
    /* When the file ends one cluster before the end of a block's range, only the block itself
     * fits: the next call then continues behind it. */
    bool at_reach = end == (block + 1) << refs->block_bits;
    if (end <= at || (end <= at + block_here && !at_reach))
        return -ENOSPC;
    uint64_t least = MIN(end, at + block_here + clusters);
    int err = alloc_extend_file(a, end << a->cluster_bits);
    /* A generous step may be too large for what a small one still fits. */
    if (means_no_space(err) && least < end) {
        end = least;
        err = alloc_extend_file(a, end << a->cluster_bits);
    }
    if (!err && block_here) {
        if (at << a->cluster_bits < a->tail.fresh_from)
            err = storage_zero(a->node->file, at << a->cluster_bits, alloc_cluster_size(a),
                               0);
        refs->tried_blocks = MAX(refs->tried_blocks, block + 1);
        atomic_store(&refs->pending_index, block);
        atomic_store(&refs->pending_offset, at << a->cluster_bits);
    }
    if (!err)
        err = publish_clusters(a, at, end, block_here);
    atomic_store(&refs->pending_offset, 0);
    return err;
}

/* Growth lock. */
static int grow_locked(struct alloc *a, uint64_t clusters)
{
    struct refcounts *refs = &a->refs;

    int err = pass_over_used(a);
    if (err)
        return err;
    if (refcount_block_of(refs, a->tail.end >> a->cluster_bits) >=
        atomic_load(&refs->table)->n_entries) {
        err = alloc_grow_refcount_table(a, 0);
        if (err)
            return err;
    }
    return extend_tail(a, clusters);
}

int alloc_grow(struct alloc *a, uint64_t clusters)
{
    LOCK_GUARD(&a->growth);
    {
        LOCK_GUARD(mcache_meta(a->node->mc));
        if (a->tail.next < a->tail.end)
            return 0;
    }
    return grow_locked(a, clusters);
}

int alloc_table(struct alloc *a, uint64_t n, uint64_t *host)
{
    uint64_t bytes = n << a->cluster_bits;
    bool fresh;

    LOCK_GUARD(&a->growth);
    if (atomic_load(&a->held))
        return -EBUSY;
    /* The range of each refcount block begins with the block itself. */
    if (n >= 1ull << a->refs.block_bits)
        return alloc_wide_table(a, n, host);
    for (;;) {
        {
            LOCK_GUARD(mcache_meta(a->node->mc));
            if (a->tail.end - a->tail.next >= bytes) {
                uint64_t taken = tail_take(&a->tail, bytes, host, &fresh), next;
                while (taken < bytes) /* fresh and used parts come one by one */
                    taken += tail_take(&a->tail, bytes - taken, &next, &fresh);
                return 0;
            }
            /* A run into the next block's range would include that block's cluster. */
            uint64_t end = a->tail.end >> a->cluster_bits;
            if (refcount_block_offset(&a->refs, refcount_block_of(&a->refs, end)) == 0)
                alloc_abandon_tail(a);
        }
        int err = grow_locked(a, n);
        if (err)
            return err;
    }
}
