/* SPDX-License-Identifier: BSD-3-Clause */
/* Allocating clusters.
 *
 * The cost of a cluster depends on where it comes from.  For a freed cluster the refcount must
 * be set to 1, and be durable before anything durable points to the cluster: that is one more
 * barrier for the next flush.  A cluster of the tail got its refcount when the file grew, and
 * reads as zeroes.  Freed clusters are preferred all the same, or files would only grow.
 *
 * When an image is opened it isn't known which clusters are free, and reading all refcounts
 * could take minutes.  So each allocation looks at one more page of refcounts (scan_page) until
 * all have been seen.  Before an allocation fails with ENOSPC, the rest is scanned. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "base/checked.h"
#include "base/log.h"
#include "base/no_space.h"
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

/* On a store of fixed size the tail begins behind all clusters that have a refcount block. */
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
    /* What the refcount table doesn't cover has no refcounts, however large a sparse file is. */
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

/* Removes free clusters from the list whose page of refcounts can't be read: they leak, and the
 * allocation goes on with others. */
static void forget_unreadable(struct alloc *a, uint64_t cluster, int err)
{
    struct refcounts *refs = &a->refs;
    uint64_t page_end = cluster + refcount_run_in_page(refs, cluster), lost = 0;

    {
        LOCK_GUARD(mcache_meta(a->node->mc));
        struct run *run = a->free.n ? &a->free.runs[a->free.n - 1] : NULL;
        if (!run || run->first != cluster) /* another thread was faster */
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

/* META: takes clusters from the run that was freed last; its page of refcounts can be stored
 * to. */
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

/* META: takes clusters that are available at once: from the run that was freed last, else, if
 * from_tail, from the tail.  *n is 0 when there are none.  Then *page_of is a cluster whose
 * refcount must be loaded first, or UINT64_MAX. */
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

/* The same, loading pages of refcounts as needed. */
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
        if (means_no_space(err))
            return err;
        if (err)
            forget_unreadable(a, page_of, err);
    }
}

/* META, with the page loaded: adds the free clusters of [first, first+n) to the free list.  A
 * cluster that holds metadata although its refcount is 0 must not be overwritten, and is left
 * out. */
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

/* Looks for free clusters in one more page of the refcounts that the image was opened with;
 * false when all have been seen. */
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
    /* Blocks that don't exist are skipped: clusters there have no refcount that could be set. */
    while (at < end && refcount_block_offset(refs, refcount_block_of(refs, at)) == 0)
        at = (refcount_block_of(refs, at) + 1) << refs->block_bits;
    bool readable = at < end && refcount_lock_page(refs, at) == 0;
    if (!readable)
        lock_acquire(meta);
    /* Another thread may have scanned it meanwhile. */
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
        /* On a full device the only clusters left are free ones that weren't scanned yet, and
         * those that are still being freed. */
        if (means_no_space(err) && (scan_page(a) || alloc_reclaim(a) > 0))
            continue;
        if (err)
            return err;
    }
}

void alloc_hold(struct alloc *a, bool on)
{
    LOCK_GUARD(&a->growth); /* no thread is growing the file now */
    atomic_store(&a->held, on);
}

int alloc_replace_counts(struct alloc *a, struct refcount_table *table)
{
    LOCK_GUARD(&a->growth);
    int err = refcounts_change_table(&a->refs, table);
    if (!err)
        mcmap_forget(a->refs.block_map);
    return err;
}
