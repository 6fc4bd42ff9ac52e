/* SPDX-License-Identifier: BSD-3-Clause */
/* Taking clusters.
 *
 * Where one comes from decides what it costs.  A cluster that was freed needs its count set
 * to 1, and that count durable before anything durable points to it: one more barrier for
 * the flush that follows.  A cluster of the tail has had its count since the file grew, and
 * reads as zeroes.  Freed ones are taken first all the same, or files would only grow.
 *
 * What earlier sessions freed isn't known when an image is opened, and reading all counts
 * could take minutes.  So each allocation looks at one more page of them (scan_page), until
 * all were seen; a device that is full goes on looking before it says so. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "base/checked.h"
#include "base/log.h"
#include "qcow2/alloc/alloc.h"

int alloc_open(struct alloc *a, const struct alloc_image *image, struct diag *diag)
{
    uint64_t size;

    *a = (struct alloc){
        .node = image->node, .cluster_bits = image->cluster_bits, .image = *image};
    lock_init(&a->pack, RANK_PACK);
    lock_init(&a->growth, RANK_GROWTH);
    alloc_reclaim_init(a);
    int err = storage_size(a->node->file, &size);
    if (err)
        return diag_errno(diag, -err, "%s: size", a->node->filename);
    if (size > INT64_MAX - alloc_cluster_size(a))
        return diag_set(diag, EFBIG, "%s: a file of %" PRIu64 " bytes", a->node->filename,
                        size);
    atomic_init(&a->file_end, align_up(size, alloc_cluster_size(a)));
    return 0;
}

int alloc_open_refcounts(struct alloc *a, struct diag *diag)
{
    return refcounts_open(&a->refs, a, diag);
}

bool alloc_inside_file_now(struct alloc *a, uint64_t offset, uint64_t len)
{
    uint64_t size;

    if (alloc_inside_file(a, offset, len))
        return true;
    if (a->node->active || storage_size(a->node->file, &size) ||
        size > INT64_MAX - alloc_cluster_size(a))
        return false;
    atomic_store(&a->file_end, align_up(size, alloc_cluster_size(a)));
    return alloc_inside_file(a, offset, len);
}

/* On a store of fixed size the tail is what no refcount block covers yet. */
static uint64_t first_uncovered(struct alloc *a, uint64_t n_clusters)
{
    struct refcounts *refs = &a->refs;
    uint64_t block = atomic_load(&refs->table)->n_entries;

    while (block > 0 && refcount_block_offset(refs, block - 1) == 0)
        block--;
    return MIN(n_clusters, block << refs->block_bits);
}

int alloc_activate(struct alloc *a, struct diag *diag)
{
    uint64_t size;

    int err = storage_size(a->node->file, &size);
    if (err)
        return diag_errno(diag, -err, "%s: size", a->node->filename);
    uint64_t end = align_up(size, alloc_cluster_size(a));
    if (a->node->file->fixed_size) {
        uint64_t n = size >> a->cluster_bits;
        uint64_t first = first_uncovered(a, n), start = first << a->cluster_bits;
        if (meta_set_end(&a->metadata) > first)
            return diag_set(diag, EINVAL,
                            "%s: refcount table: metadata lies behind offset %" PRIu64
                            ", which no refcount block covers",
                            a->node->filename, start);
        tail_init(&a->tail, (uint32_t)alloc_cluster_size(a), start, start);
        a->tail.fresh_from = UINT64_MAX;
        atomic_store(&a->file_end, n << a->cluster_bits);
    } else {
        tail_init(&a->tail, (uint32_t)alloc_cluster_size(a), end, end);
        atomic_store(&a->file_end, end);
    }
    a->scan_next = 0;
    atomic_store(&a->scanned, false);
    /* Past the table's reach there are no counts, however large a sparse file is. */
    a->scan_end = MIN(a->tail.next >> a->cluster_bits,
                      atomic_load(&a->refs.table)->n_entries << a->refs.block_bits);
    return 0;
}

void alloc_close(struct alloc *a)
{
    alloc_reclaim_end(a);
    free(a->free.runs);
    free(a->unlinked.runs);
    free(a->frozen.runs);
    refcounts_close(&a->refs);
    meta_set_free(&a->metadata);
    lock_destroy(&a->growth);
    lock_destroy(&a->pack);
}

void run_list_add(struct alloc *a, struct run_list *list, struct run run)
{
    struct run *last = list->n ? &list->runs[list->n - 1] : NULL;

    if (last && last->first + last->n == run.first) {
        last->n += run.n;
        return;
    }
    if (list->n == list->capacity) {
        size_t capacity = MAX(16, list->capacity * 2);
        struct run *runs = realloc(list->runs, capacity * sizeof *runs);
        if (!runs) {
            log_error("%s: out of memory: %" PRIu64 " clusters leak", a->node->filename,
                      run.n);
            return;
        }
        list->runs = runs;
        list->capacity = capacity;
    }
    list->runs[list->n++] = run;
}

void run_list_move(struct alloc *a, struct run_list *from, struct run_list *to)
{
    if (to->n == 0) {
        struct run_list empty = *to;
        *to = *from;
        *from = empty;
        return;
    }
    for (size_t i = 0; i < from->n; i++)
        run_list_add(a, to, from->runs[i]);
    from->n = 0;
}

bool alloc_settled(const struct alloc *a, uint64_t host_end)
{
    return tail_settled(&a->tail, host_end);
}

/* The free clusters of a page of refcounts that can't be read leak: there are others. */
static void forget_unreadable(struct alloc *a, uint64_t cluster, int err)
{
    struct refcounts *refs = &a->refs;
    uint64_t page_end = cluster + refcount_run_in_page(refs, cluster), lost = 0;

    {
        LOCK_GUARD(mcache_meta(a->node->mc));
        struct run *run = a->free.n ? &a->free.runs[a->free.n - 1] : NULL;
        if (!run || run->first != cluster) /* another was faster */
            return;
        lost = MIN(run->n, page_end - run->first);
        run->first += lost;
        run->n -= lost;
        if (run->n == 0)
            a->free.n--;
    }
    log_error("%s: refcount of the cluster at %" PRIu64
              " can't be read (errno %d): %" PRIu64 " clusters leak",
              a->node->filename, cluster << a->cluster_bits, -err, lost);
}

/* META: takes from the youngest free run, whose page of counts can be stored to. */
static uint64_t take_from_run(struct alloc *a, struct run *run, uint64_t max,
                              uint64_t *host)
{
    struct refcounts *refs = &a->refs;
    uint64_t n = MIN(MIN(max, run->n), refcount_run_in_page(refs, run->first));

    *host = run->first << a->cluster_bits;
    for (uint64_t i = 0; i < n; i++)
        refcount_set(refs, run->first + i, 1, MC_LEAF);
    run->first += n;
    run->n -= n;
    if (run->n == 0)
        a->free.n--;
    return n;
}

/* META: takes what is there: from the youngest free run, or else, unless there may be free
 * ones soon, from the tail.  *n is 0 when there is nothing; `page_of` is then a cluster whose
 * count has to be loaded first, or UINT64_MAX. */
static void take_present(struct alloc *a, uint64_t max, bool from_tail, uint64_t *host,
                         uint64_t *n, bool *fresh, uint64_t *page_of)
{
    *n = 0;
    *page_of = UINT64_MAX;
    if (a->free.n == 0) {
        if (from_tail)
            *n =
                tail_take(&a->tail, max << a->cluster_bits, host, fresh) >> a->cluster_bits;
        return;
    }
    struct run *run = &a->free.runs[a->free.n - 1];
    if (!refcount_storable(&a->refs, run->first)) {
        *page_of = run->first;
        return;
    }
    *fresh = false;
    *n = take_from_run(a, run, max, host);
}

/* As take_present, with what has to be loaded for it. */
static int take_clusters(struct alloc *a, uint64_t max, bool from_tail, uint64_t *host,
                         uint64_t *n, bool *fresh)
{
    for (;;) {
        uint64_t page_of;
        {
            LOCK_GUARD(mcache_meta(a->node->mc));
            take_present(a, max, from_tail, host, n, fresh, &page_of);
        }
        if (page_of == UINT64_MAX)
            return 0;
        int err = refcount_load_for_store(&a->refs, page_of);
        if (err == -ENOSPC)
            return err;
        if (err)
            forget_unreadable(a, page_of, err);
    }
}

/* META, page present: adds the free clusters of [first, first+n) to the free list.  One
 * that holds metadata is free only by mistake: it must not be written over. */
static void collect_free(struct alloc *a, uint64_t first, uint64_t n)
{

    for (uint64_t c = first; c < first + n; c++) {
        if (refcount_get(&a->refs, c) != 0)
            continue;
        if (!meta_set_has(&a->metadata, c)) {
            run_list_add(a, &a->free, (struct run){.first = c, .n = 1});
            continue;
        }
        log_error("%s: the cluster at %" PRIu64 " holds metadata and has a refcount of 0",
                  a->node->filename, c << a->cluster_bits);
        alloc_met_corruption(a);
    }
}

/* Looks at one more page of refcounts from earlier sessions; false when all were seen. */
static bool scan_page(struct alloc *a)
{
    struct refcounts *refs = &a->refs;
    struct lock *meta = mcache_meta(a->node->mc);
    uint64_t at, end;

    if (LIKELY(atomic_load_explicit(&a->scanned, memory_order_relaxed)))
        return false;
    {
        LOCK_GUARD(meta);
        at = a->scan_next;
        end = a->scan_end;
        atomic_store(&a->scanned, at >= end);
    }
    if (at >= end)
        return false;
    /* Whole blocks that don't exist are skipped: clusters there have no count to set. */
    while (at < end && refcount_block_offset(refs, refcount_block_of(refs, at)) == 0)
        at = (refcount_block_of(refs, at) + 1) << refs->block_bits;
    bool readable = at < end && refcount_lock_page(refs, at) == 0;
    if (!readable)
        lock_acquire(meta);
    /* Somebody else may have scanned it meanwhile. */
    if (a->scan_next <= at) {
        uint64_t n = at < end ? MIN(end - at, refcount_run_in_page(refs, at)) : 0;
        if (readable)
            collect_free(a, at, n);
        a->scan_next = MIN(end, at + n);
    }
    lock_release(meta);
    return true;
}

int alloc_clusters(struct alloc *a, uint64_t max, uint64_t *host, uint64_t *n, bool *fresh)
{
    /* One page for each allocation: the cost is spread, and it ends. */
    scan_page(a);
    for (bool from_tail = alloc_is_idle(a);; from_tail = true) {
        int err = mcache_health(a->node->mc);
        if (!err && atomic_load(&a->held))
            err = -EBUSY;
        if (!err)
            err = take_clusters(a, max, from_tail, host, n, fresh);
        if (err || *n)
            return err;
        if (!from_tail) {
            (void)!alloc_try_reclaim(a);
            continue;
        }
        err = alloc_grow(a, max);
        /* On a full device, what an earlier session freed or this one let go of is all
         * there is. */
        if (err == -ENOSPC && (scan_page(a) || alloc_reclaim(a) > 0))
            continue;
        if (err)
            return err;
    }
}

void alloc_hold(struct alloc *a, bool on)
{
    LOCK_GUARD(&a->growth); /* who grows the file is done, or not yet at it */
    atomic_store(&a->held, on);
}

int alloc_replace_counts(struct alloc *a, struct refcount_table *table)
{
    LOCK_GUARD(&a->growth);
    int err = refcounts_replace_table(&a->refs, table);
    if (!err)
        mcmap_forget(a->refs.block_map);
    return err;
}
