/* SPDX-License-Identifier: BSD-3-Clause */
/* The end of an image that shrank: much of it was let go of, and the file ends where something
 * is still in use.
 *
 * What stands behind that are refcount blocks, each at the place where its reach began when the
 * file grew over it.  Those that count nothing but themselves go, from the last one on, and
 * wherever they stand those that count nothing at all:
 *   1. all counts are in the file;
 *   2. the table loses them, durably;
 *   3. one that another block counts loses that count.
 * A crash before 2 leaves all as it was, one before 3 a leak.  Blocks in between that count
 * themselves stay: what they count as free is found there again. */
#include <errno.h>
#include <stdlib.h>

#include "qcow2/alloc/alloc.h"

/* Growth lock: is any cluster in use that the block counts, other than its own place? */
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

/* Growth lock: steps 1 and 2, but for the commit; the places of the blocks into `dropped`. */
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

/* The pages of dropped blocks are gone for who reads the table. */
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
        lock_acquire(mcache_meta(a->node->mc)); /* it counted itself */
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
        bool more = dropped.n > 0; /* whose places were all that others counted */
        free(dropped.runs);
        if (err || !more)
            return err;
    }
}

/* ---- the file ---- */

/* Has it a count, or is it known to hold metadata, whatever its count says? */
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

/* Much of the image was let go of: the file ends where something is still in use. */
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
    /* The tail may begin behind the file: growth passed over clusters in use, and failed.
     */
    if (!a->grown || a->node->file->fixed_size || a->tail.next > atomic_load(&a->file_end))
        return 0;
    return storage_truncate(a->node->file, a->tail.next);
}
