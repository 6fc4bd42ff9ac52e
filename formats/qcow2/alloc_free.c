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

/* META: moves the first n runs of a list behind those of another; without a copy when that
 * is empty and it's all of them, for there can be very many. */
static void run_list_move(struct alloc *a, struct run_list *from, size_t n,
                          struct run_list *to)
{
    if (to->n == 0 && n == from->n) {
        struct run_list empty = *to;
        *to = *from;
        *from = empty;
        return;
    }
    for (size_t i = 0; i < n; i++)
        run_list_add(a, to, from->runs[i]);
    for (size_t rest = n; rest < from->n; rest++)
        from->runs[rest - n] = from->runs[rest];
    from->n -= n;
}

void alloc_frozen(struct alloc *a)
{
    tail_frozen(&a->tail);
    /* After a failed commit `frozen` still holds the runs of the group before. */
    run_list_move(a, &a->unlinked, a->unlinked.n, &a->frozen);
}

void alloc_durable(struct alloc *a)
{
    struct gate *gate = &a->q->node->ctx->gate;

    tail_durable(&a->tail, a->q->node);
    {
        LOCK_GUARD(mcache_meta(a->q->node->mc));
        uint64_t stamp = gate_stamp(gate);
        for (size_t i = 0; i < a->frozen.n; i++)
            a->frozen.runs[i].stamp = stamp;
        run_list_move(a, &a->frozen, a->frozen.n, &a->retired);
    }
    alloc_reclaim(a);
}

/* Moves the retired runs that nobody can see any more to `out`. */
static void take_passed(struct alloc *a, struct run_list *out)
{
    struct gate *gate = &a->q->node->ctx->gate;
    LOCK_GUARD(mcache_meta(a->q->node->mc));
    size_t n = 0;

    while (n < a->retired.n && gate_passed(gate, a->retired.runs[n].stamp))
        n++;
    run_list_move(a, &a->retired, n, out);
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

static int compare_runs(const void *a, const void *b)
{
    const struct run *x = a, *y = b;

    return x->first < y->first ? -1 : x->first > y->first;
}

/* In the order of the file, with neighbours as one run, however they were let go of: a hole
 * costs the filesystem as much for one cluster as for a thousand.  A cluster that lost two
 * references stays in two runs. */
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

void alloc_reclaim(struct alloc *a)
{
    struct qcow2 *q = a->q;
    struct run_list passed = {0};

    take_passed(a, &passed);
    if (passed.n == 0)
        return;
    join_runs(&passed);
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

bool alloc_has_unlinked(struct alloc *a)
{
    LOCK_GUARD(mcache_meta(a->q->node->mc));
    return a->unlinked.n || a->frozen.n || a->retired.n;
}

int alloc_settle(struct alloc *a)
{
    int err = mcache_commit(a->q->node->mc, MC_COMMIT_EVERYTHING);

    while (!err && alloc_has_unlinked(a)) {
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
