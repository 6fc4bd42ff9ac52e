/* SPDX-License-Identifier: BSD-3-Clause */
/* Shortens the file of an image that was made smaller, to the end of its last used cluster.
 *
 * Refcount blocks stand in the way: each lies at the beginning of the range that it covers.  So
 * blocks that count nothing but themselves are removed, from the last one on, as well as blocks
 * anywhere that count nothing at all:
 *   1. all refcounts are written to the file;
 *   2. the blocks are removed from the refcount table, durably;
 *   3. if a removed block was counted by another block, its refcount there is set to 0.
 * After a crash before 2 nothing has changed, after one before 3 clusters are leaked.  Blocks in
 * the middle of the file that count only themselves stay: the clusters that they cover are used
 * again later. */
#include <errno.h>
#include <stdlib.h>

#include "qcow2/alloc/alloc.h"

/* Growth lock: does the block count any cluster in use other than `own`, its own place? */
static int counts_others(struct alloc *a, uint64_t block, uint64_t own, bool *others)
{
    uint64_t at = block << a->refs.block_bits, end = (block + 1) << a->refs.block_bits;

    for (*others = false; at < end && !*others;) {
        uint64_t n;
        int err = alloc_count_run(a, at, end - at, false, &n);
        if (err)
            return err;
        if (n == 0 && at != own)
            *others = true;
        at += n == 0 ? 1 : n;
    }
    return 0;
}

static int take_from_table(struct alloc *a, uint64_t block)
{
    int err = refcount_table_load_for_store(&a->refs, block);
    if (err)
        return err;
    LOCK_GUARD(mcache_meta(a->node->mc));
    refcount_table_store(&a->refs, block, 0);
    return 0;
}

/* Growth lock: steps 1 and 2 without the commit; adds the places of the removed blocks to
 * `dropped`. */
static int take_blocks(struct alloc *a, struct run_list *dropped)
{
    uint64_t block = atomic_load(&a->refs.table)->n_entries;
    bool last = true;

    while (block-- > 0) {
        uint64_t own = refcount_block_offset(&a->refs, block) >> a->cluster_bits;
        bool others;
        if (own == 0)
            continue;
        int err = counts_others(a, block, own, &others);
        if (err)
            return err;
        last = last && !others;
        if (others || (!last && refcount_block_of(&a->refs, own) == block))
            continue;
        if (dropped->n == 0)
            err = mcache_commit(a->node->mc, MC_COMMIT_EVERYTHING);
        if (!err)
            err = take_from_table(a, block);
        if (err)
            return err;
        run_list_add(a, dropped, (struct run){.first = own, .n = 1});
    }
    return 0;
}

/* Forgets the cached pages of removed blocks. */
static void forget_blocks(struct alloc *a)
{
    mcache_hold(a->node->mc);
    mcmap_forget(a->refs.block_map);
    mcache_release(a->node->mc);
}

/* Step 3. */
static int free_place(struct alloc *a, uint64_t cluster)
{
    int err = refcount_lock_page_for_store(&a->refs, cluster);

    if (err && err != -ENOENT)
        return err;
    if (err)
        lock_acquire(mcache_meta(a->node->mc)); /* no block covers it: it counted itself */
    else
        refcount_set(&a->refs, cluster, 0, MC_LEAF);
    meta_set_remove(&a->metadata, cluster);
    lock_release(mcache_meta(a->node->mc));
    if (!a->node->options.discard_ignore)
        storage_discard(a->node->file, cluster << a->cluster_bits, alloc_cluster_size(a));
    return 0;
}

static int free_places(struct alloc *a, const struct run_list *dropped)
{
    for (size_t i = 0; i < dropped->n; i++)
        for (uint64_t c = 0; c < dropped->runs[i].n; c++) {
            int err = free_place(a, dropped->runs[i].first + c);
            if (err)
                return err;
        }
    return 0;
}

int alloc_drop_empty_blocks(struct alloc *a)
{
    LOCK_GUARD(&a->growth);
    for (;;) {
        struct run_list dropped = {0};
        int err = take_blocks(a, &dropped);
        if (!err && dropped.n > 0)
            err = mcache_commit(a->node->mc, MC_COMMIT_EVERYTHING);
        if (!err && dropped.n > 0) {
            forget_blocks(a);
            err = free_places(a, &dropped);
        }
        bool more = dropped.n > 0; /* then other blocks may count nothing any more */
        free(dropped.runs);
        if (err || !more)
            return err;
    }
}

/* ---- the file ---- */

/* *used: is the cluster's refcount above 0, or does the cluster hold known metadata? */
static int is_in_use(struct alloc *a, uint64_t cluster, bool *used)
{
    int err = refcount_lock_page(&a->refs, cluster);

    if (err && err != -ENOENT)
        return err;
    if (err)
        lock_acquire(mcache_meta(a->node->mc));
    *used =
        meta_set_has(&a->metadata, cluster) || (!err && refcount_get(&a->refs, cluster));
    lock_release(mcache_meta(a->node->mc));
    return 0;
}

/* The end of the clusters in use that lie below `end`; both are cluster numbers. */
static int find_end(struct alloc *a, uint64_t *end)
{
    for (; *end > 1; --*end) {
        bool used;
        int err = is_in_use(a, *end - 1, &used);
        if (err || used)
            return err;
    }
    return 0;
}

/* Truncates the file behind the last cluster in use. */
static int cut_file(struct alloc *a)
{
    uint64_t end = MIN(a->tail.next, atomic_load(&a->file_end)) >> a->cluster_bits;

    int err = find_end(a, &end);
    return err ? err : storage_truncate(a->node->file, end << a->cluster_bits);
}

int alloc_trim_file(struct alloc *a)
{
    if (a->shrunk && !a->node->file->fixed_size)
        return cut_file(a);
    /* The tail may begin behind the end of the file, if growth skipped clusters in use and then
     * failed. */
    if (!a->grown || a->node->file->fixed_size || a->tail.next > atomic_load(&a->file_end))
        return 0;
    return storage_truncate(a->node->file, a->tail.next);
}
