/* SPDX-License-Identifier: BSD-3-Clause */
/* The last step of freeing: refcounts are decremented, holes punched, clusters become free.
 *
 * A scattered trim can free a hundred thousand runs of clusters, and the filesystem can take
 * 0.1 ms to punch each.  So this is done in slices, and never while a flush waits.  The runs
 * that one group unlinked form a batch, which gets the gate's stamp when the group is durable.
 * Once the gate says that no request can see the batch any more, its runs move to `passed`.  A
 * thread with the reclaim lock then handles a slice of them: mostly the housekeeper, but also
 * an allocation that found no free cluster, and the closing of the image. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "base/log.h"
#include "block/cluster_cache.h"
#include "qcow2/alloc/alloc.h"

/* The runs in a slice: the most holes that a thread in need of a cluster, or of the reclaim lock,
 * waits for. */
#define SLICE_RUNS 16

/* A batch: the runs that one group unlinked, durably. */
struct retired {
    struct list link;
    struct run_list runs;
    uint64_t stamp; /* the gate's */
};

void alloc_retire(struct alloc *a)
{
    struct node *node = a->node;
    struct retired *batch = calloc(1, sizeof *batch);

    lock_assert_held(mcache_meta(node->mc));
    if (!batch) {
        log_error("%s: out of memory: clusters that were let go of leak", node->filename);
        a->frozen.n = 0;
        return;
    }
    batch->stamp = gate_stamp(&node->ctx->gate);
    run_list_move(a, &a->frozen, &batch->runs);
    list_append(&a->retired, &batch->link);
    atomic_store(&a->reclaimable, true);
    /* This advances the gate's epoch if it can.  Here is a good place, as a committing thread is
     * not inside the gate; an allocation that finds nothing free later is, and can't wait for
     * itself. */
    (void)gate_passed(&node->ctx->gate, batch->stamp);
    background_start(&a->background);
}

static int compare_runs(const void *a, const void *b)
{
    const struct run *x = a, *y = b;

    return x->first < y->first ? -1 : x->first > y->first;
}

/* Sorts the runs by offset and joins adjacent ones, because punching takes the filesystem about
 * as long for one cluster as for a thousand.  A cluster that lost two references remains in two
 * runs. */
static void join_runs(struct run_list *list)
{
    size_t n = 0;

    qsort(list->runs, list->n, sizeof *list->runs, compare_runs);
    for (size_t i = 1; i < list->n; i++) {
        struct run *last = &list->runs[n];
        if (last->first + last->n == list->runs[i].first)
            last->n += list->runs[i].n;
        else
            list->runs[++n] = list->runs[i];
    }
    list->n = n + 1;
}

/* META. */
static void note_progress(struct alloc *a)
{
    atomic_store(&a->reclaimable, a->reclaiming || !list_empty(&a->retired));
}

/* Reclaim lock, with `passed` empty: moves the batches there that no request can see any more.
 * Their clusters count as in use until their refcount is 0. */
static void take_passed(struct alloc *a)
{
    struct gate *gate = &a->node->ctx->gate;

    a->done = a->passed.n = 0;
    {
        LOCK_GUARD(mcache_meta(a->node->mc));
        LIST_FOR_EACH_SAFE (pos, &a->retired) {
            struct retired *batch = CONTAINER_OF(pos, struct retired, link);
            if (!gate_passed(gate, batch->stamp))
                break;
            list_remove(&batch->link);
            run_list_move(a, &batch->runs, &a->passed);
            free(batch->runs.runs);
            free(batch);
        }
        a->reclaiming = a->passed.n > 0;
        note_progress(a);
    }
    if (a->passed.n > 0)
        join_runs(&a->passed);
}

/* Adds free clusters to the list, except those that scan_page has yet to look at. */
static void add_free(struct alloc *a, uint64_t first, uint64_t n)
{
    for (uint64_t c = first; c < first + n; c++)
        if (c < a->scan_next || c >= a->scan_end)
            run_list_add(a, &a->free, (struct run){.first = c, .n = 1});
}

static bool may_punch(const struct alloc *a)
{
    const struct node *node = a->node;

    return !node->options.discard_ignore &&
           (a->punch_until_ns == 0 ||
            housekeeper_now(node->ctx->housekeeper) < a->punch_until_ns);
}

/* META: are compressed clusters being packed into one of these clusters? */
static bool is_packed(const struct alloc *a, uint64_t first, uint64_t n)
{
    return a->pack_end && (a->pack_end - 1) >> a->cluster_bits >= first &&
           (a->pack_end - 1) >> a->cluster_bits < first + n;
}

/* Drops decoded clusters from the cache whose compressed bytes lay there: they would be taken for
 * what is written there next. */
static void forget_decoded(struct alloc *a, uint64_t first, uint64_t n)
{
    struct cluster_key key = {.owner = a->node, .bytes = (uint32_t)alloc_cluster_size(a)};

    for (uint64_t c = first; c < first + n; c++) {
        key.place = c << a->cluster_bits;
        cluster_cache_forget(a->node->ctx->clusters, &key);
    }
}

/* Decrements the refcounts of at most n clusters from `first` on, within one page of refcounts;
 * *done: of how many.  Refcounts are decremented under the reclaim lock only, so a value that
 * was read under META is still an upper bound after META was released. */
static int drop_references(struct alloc *a, uint64_t first, uint64_t n, uint64_t *done)
{
    struct lock *meta = mcache_meta(a->node->mc);

    /* Only to read: on a full filesystem the page may get its blocks only after the punch. */
    int err = refcount_lock_page(&a->refs, first);
    if (err)
        return err;
    bool last = refcount_get(&a->refs, first) == 1;
    uint64_t same = 1;
    while (same < n && (refcount_get(&a->refs, first + same) == 1) == last)
        same++;
    if (last && is_packed(a, first, same))
        alloc_end_packing(a);
    lock_release(meta);
    if (last)
        forget_decoded(a, first, same);

    /* Punched before the refcount becomes 0, so that nobody can allocate the cluster earlier. */
    if (last && may_punch(a))
        storage_discard(a->node->file, first << a->cluster_bits, same << a->cluster_bits);

    err = refcount_lock_page_for_store(&a->refs, first);
    if (err)
        return err;
    for (uint64_t c = first; c < first + same; c++) {
        uint64_t now = refcount_get(&a->refs, c);
        if (now == 0)
            log_error("%s: cluster at %" PRIu64 " was in use with a refcount of 0",
                      a->node->filename, c << a->cluster_bits);
        else
            refcount_set(&a->refs, c, now - 1, MC_LEAF);
        if (last)
            meta_set_remove(&a->metadata, c);
    }
    if (last)
        add_free(a, first, same);
    lock_release(meta);
    *done = same;
    return 0;
}

/* Handles one run, page by page.  Clusters whose refcounts can't be read leak. */
static void drop_run(struct alloc *a, struct run run)
{

    while (run.n > 0) {
        uint64_t n = MIN(run.n, refcount_run_in_page(&a->refs, run.first)), done = n;
        int err = drop_references(a, run.first, n, &done);
        if (err)
            log_error("%s: refcount of the cluster at %" PRIu64
                      " can't be read (errno %d): %" PRIu64 " clusters leak",
                      a->node->filename, run.first << a->cluster_bits, -err, n);
        run.first += done;
        run.n -= done;
    }
}

/* Reclaim lock. */
static size_t reclaim_slice(struct alloc *a)
{
    struct gate *gate = &a->node->ctx->gate;
    size_t n = 0;

    if (a->paused)
        return 0;
    if (a->done == a->passed.n)
        take_passed(a);
    gate_ticket ticket = gate_enter(gate);
    while (n < SLICE_RUNS && a->done < a->passed.n) {
        drop_run(a, a->passed.runs[a->done++]);
        n++;
    }
    gate_leave(gate, ticket);
    if (a->passed.n > 0 && a->done == a->passed.n) {
        free(a->passed.runs);
        a->passed = (struct run_list){0};
        a->done = 0;
        LOCK_GUARD(mcache_meta(a->node->mc));
        a->reclaiming = false;
        note_progress(a);
    }
    return n;
}

size_t alloc_reclaim(struct alloc *a)
{
    if (alloc_is_idle(a))
        return 0;
    LOCK_GUARD(&a->reclaim);
    return reclaim_slice(a);
}

size_t alloc_try_reclaim(struct alloc *a)
{
    if (alloc_is_idle(a) || !lock_try_acquire(&a->reclaim))
        return 0;
    size_t n = reclaim_slice(a);
    lock_release(&a->reclaim);
    return n;
}

static size_t reclaim_in_background(void *owner)
{
    return alloc_reclaim(owner);
}

static bool nothing_to_reclaim(void *owner)
{
    return alloc_is_idle(owner);
}

void alloc_pause_reclaim(struct alloc *a)
{
    LOCK_GUARD(&a->reclaim);
    a->paused = true;
}

void alloc_resume_reclaim(struct alloc *a)
{
    {
        LOCK_GUARD(&a->reclaim);
        a->paused = false;
    }
    if (!alloc_is_idle(a))
        background_start(&a->background);
}

void alloc_reclaim_init(struct alloc *a)
{
    list_init(&a->retired);
    lock_init(&a->reclaim, RANK_RECLAIM);
    background_init(&a->background, a->node->ctx->housekeeper, reclaim_in_background,
                    nothing_to_reclaim, a);
}

void alloc_reclaim_end(struct alloc *a)
{
    background_stop(&a->background);
    LIST_FOR_EACH_SAFE (pos, &a->retired) {
        struct retired *batch = CONTAINER_OF(pos, struct retired, link);
        free(batch->runs.runs);
        free(batch);
    }
    free(a->passed.runs);
    lock_destroy(&a->reclaim);
}
