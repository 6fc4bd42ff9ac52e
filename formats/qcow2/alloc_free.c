/* Letting go of clusters, and the clean end. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "base/log.h"
#include "qcow2/internal.h"

void alloc_unlink(struct alloc *a, uint64_t host, uint64_t n)
{
    lock_assert_held(mcache_meta(a->q->node->mc));
    run_list_add(a, &a->unlinked,
                 (struct run){.first = host >> a->q->cluster_bits, .n = n});
}

void alloc_frozen(struct alloc *a)
{
    tail_frozen(&a->tail);
    /* After a failed commit `frozen` still holds the runs of the group before. */
    for (size_t i = 0; i < a->unlinked.n; i++)
        run_list_add(a, &a->frozen, a->unlinked.runs[i]);
    a->unlinked.n = 0;
}

void alloc_durable(struct alloc *a)
{
    struct gate *gate = &a->q->node->ctx->gate;

    tail_durable(&a->tail, a->q->node);
    {
        LOCK_GUARD(mcache_meta(a->q->node->mc));
        uint64_t stamp = gate_stamp(gate);
        for (size_t i = 0; i < a->frozen.n; i++) {
            a->frozen.runs[i].stamp = stamp;
            run_list_add(a, &a->retired, a->frozen.runs[i]);
        }
        a->frozen.n = 0;
    }
    alloc_reclaim(a);
}

/* Moves the retired runs that nobody can see any more to `out`. */
static void take_passed(struct alloc *a, struct run_list *out)
{
    struct gate *gate = &a->q->node->ctx->gate;
    LOCK_GUARD(mcache_meta(a->q->node->mc));
    size_t i = 0;

    while (i < a->retired.n && gate_passed(gate, a->retired.runs[i].stamp))
        run_list_add(a, out, a->retired.runs[i++]);
    for (size_t rest = i; rest < a->retired.n; rest++)
        a->retired.runs[rest - i] = a->retired.runs[rest];
    a->retired.n -= i;
}

/* Adds free clusters to the list, except those that the scan will still come to. */
static void add_free(struct alloc *a, uint64_t first, uint64_t n)
{
    for (uint64_t c = first; c < first + n; c++)
        if (c < a->scan_next || c >= a->scan_end)
            run_list_add(a, &a->free, (struct run){.first = c, .n = 1});
}

/* Clusters from `first` on, at most n and in one refcount page, lose one reference each;
 * *done: how many.  Only we take references away, so what was seen under META stays true
 * outside it. */
static int drop_references(struct alloc *a, uint64_t first, uint64_t n, uint64_t *done)
{
    struct qcow2 *q = a->q;
    struct lock *meta = mcache_meta(q->node->mc);

    int err = refcount_lock_page(&q->refs, first);
    if (err)
        return err;
    bool last = refcount_get(&q->refs, first) == 1;
    uint64_t same = 1;
    while (same < n && (refcount_get(&q->refs, first + same) == 1) == last)
        same++;
    lock_release(meta);

    /* Punched while its count still says it is in use: nobody can take it before. */
    if (last && !q->node->options.discard_ignore)
        storage_discard(q->node->file, first << q->cluster_bits, same << q->cluster_bits);

    err = refcount_lock_page(&q->refs, first);
    if (err)
        return err;
    for (uint64_t c = first; c < first + same; c++) {
        uint64_t now = refcount_get(&q->refs, c);
        if (now == 0)
            log_error("%s: cluster at %" PRIu64 " was in use with a refcount of 0",
                      q->node->filename, c << q->cluster_bits);
        else
            refcount_set(&q->refs, c, now - 1, MC_LEAF);
        if (last)
            meta_set_remove(&q->metadata, c);
    }
    if (last)
        add_free(a, first, same);
    lock_release(meta);
    *done = same;
    return 0;
}

/* One run, page by page; what can't be read leaks. */
static void drop_run(struct alloc *a, struct run run)
{
    struct qcow2 *q = a->q;

    while (run.n > 0) {
        uint64_t n = MIN(run.n, refcount_run_in_page(&q->refs, run.first)), done = n;
        int err = drop_references(a, run.first, n, &done);
        if (err)
            log_error("%s: refcount of the cluster at %" PRIu64
                      " can't be read (errno %d): %" PRIu64 " clusters leak",
                      q->node->filename, run.first << q->cluster_bits, -err, n);
        run.first += done;
        run.n -= done;
    }
}

void alloc_reclaim(struct alloc *a)
{
    struct qcow2 *q = a->q;
    struct run_list passed = {0};

    take_passed(a, &passed);
    if (passed.n == 0)
        return;
    gate_ticket ticket = gate_enter(&q->node->ctx->gate);
    for (size_t i = 0; i < passed.n; i++)
        drop_run(a, passed.runs[i]);
    gate_leave(&q->node->ctx->gate, ticket);
    free(passed.runs);
}

/* Refcounts of the tail that was not used go back to 0. */
static int give_back_tail(struct alloc *a)
{
    struct qcow2 *q = a->q;
    uint64_t at = a->tail.next >> q->cluster_bits, end = a->tail.end >> q->cluster_bits;

    while (at < end) {
        uint64_t n = MIN(end - at, refcount_run_in_page(&q->refs, at));
        int err = refcount_lock_page(&q->refs, at);
        if (err)
            return err;
        for (uint64_t c = at; c < at + n; c++)
            refcount_set(&q->refs, c, 0, MC_LEAF);
        lock_release(mcache_meta(q->node->mc));
        at += n;
    }
    return 0;
}

static bool anything_unlinked(struct alloc *a)
{
    LOCK_GUARD(mcache_meta(a->q->node->mc));
    return a->unlinked.n || a->frozen.n || a->retired.n;
}

int alloc_settle(struct alloc *a)
{
    int err = mcache_commit(a->q->node->mc, MC_COMMIT_EVERYTHING);

    while (!err && anything_unlinked(a)) {
        err = mcache_commit(a->q->node->mc, MC_COMMIT_EVERYTHING);
        alloc_reclaim(a);
    }
    return err ? err : give_back_tail(a);
}

int alloc_trim_file(struct alloc *a)
{
    if (!a->grown || a->q->node->file->fixed_size)
        return 0;
    return storage_truncate(a->q->node->file, a->tail.next);
}
