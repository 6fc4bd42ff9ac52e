/* SPDX-License-Identifier: BSD-3-Clause */
/* Clusters for the structures that a change writes. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "base/checked.h"
#include "qcow2/snapshot/change.h"

static int say_no_space(struct snapshot_change_state *state, int err)
{
    return diag_errno(state->diag, -err, "%s: finding space for tables",
                      state->q->node->filename);
}

static void note_taken(struct snapshot_change_state *state, uint64_t host, uint64_t n)
{
    struct alloc *a = &state->q->alloc;
    const struct run run = {.first = host >> a->cluster_bits, .n = n};

    run_list_add(a, &state->taken, run);
    run_list_add(a, &state->spare, run);
    state->late = true;
}

/* Takes n contiguous clusters from the beginning of the spare ones, or a single one from their
 * end. */
static bool take_spare(struct snapshot_change_state *state, uint64_t n, uint64_t *host)
{
    struct run_list *spare = &state->spare;
    uint32_t bits = state->q->alloc.cluster_bits;

    for (size_t i = 0; i < spare->n; i++) {
        struct run *run = &spare->runs[n > 1 ? i : spare->n - 1];
        if (run->n < n)
            continue;
        run->n -= n;
        *host = (n > 1 ? run->first : run->first + run->n) << bits;
        run->first += n > 1 ? n : 0;
        if (run->n == 0)
            *run = spare->runs[--spare->n];
        return true;
    }
    return false;
}

/* ---- allocating clusters ---- */

static int allocate_table(struct snapshot_change_state *state, uint64_t n)
{
    uint64_t host;

    int err = alloc_table(&state->q->alloc, n, &host);
    if (!err)
        note_taken(state, host, n);
    return err;
}

static int allocate_clusters(struct snapshot_change_state *state, uint64_t n)
{
    uint64_t host, got;
    bool fresh;

    for (; n > 0; n -= got) {
        int err = alloc_clusters(&state->q->alloc, n, &host, &got, &fresh);
        if (err)
            return err;
        note_taken(state, host, got);
    }
    return 0;
}

static int allocate(struct snapshot_change_state *state, uint64_t n)
{
    bool held = state->held;

    if (held)
        alloc_hold(&state->q->alloc, false);
    int err = n > 1 ? allocate_table(state, n) : allocate_clusters(state, 1);
    if (held)
        alloc_hold(&state->q->alloc, true);
    return err;
}

int change_take_table(struct snapshot_change_state *state, uint64_t n, uint64_t *host)
{
    *host = 0;
    if (n == 0 || take_spare(state, n, host))
        return 0;
    int err = allocate(state, n);
    if (err)
        return say_no_space(state, err);
    return take_spare(state, n, host) ? 0 : say_no_space(state, -ENOMEM);
}

int change_take_cluster(struct snapshot_change_state *state, uint64_t *host)
{
    return change_take_table(state, 1, host);
}

/* ---- reserving clusters in `begin` ---- */

/* An estimate of the L2 tables that have to be copied and the refcount blocks that change; all of
 * them will be read. */
static uint64_t single_clusters(const struct qcow2 *q)
{
    const struct refcount_table *t = atomic_load(&q->alloc.refs.table);
    struct storage *file = q->node->file;
    uint64_t n = 0;

    for (uint32_t i = 0; i < q->live.l1_size; i++) {
        uint64_t entry = atomic_load(&q->live.l1[i]);
        n += (entry & L1_COPIED) != 0;
        if (entry & L1_OFFSET)
            storage_prefetch(file, entry & L1_OFFSET, 1ull << q->geo.cluster_bits);
    }
    for (uint64_t b = 0; b < t->n_entries; b++) {
        uint64_t entry = atomic_load(&t->words[b]);
        n += entry != 0;
        if (entry)
            storage_prefetch(file, entry & RT_OFFSET, 1ull << q->geo.cluster_bits);
    }
    return n;
}

/* Allocates each table by itself: most take one cluster, which can be a freed one, so that the file
 * doesn't grow with each snapshot that is created and deleted. */
static int reserve_tables(struct snapshot_change_state *state, const uint64_t *clusters,
                          size_t n)
{
    int err = 0;

    for (size_t i = 0; !err && i < n; i++)
        if (clusters[i])
            err = allocate(state, clusters[i]);
    return err;
}

int change_reserve(struct snapshot_change_state *state)
{
    struct qcow2 *q = state->q;
    uint64_t l1 = change_clusters_of(q, (uint64_t)q->live.l1_size * 8);
    uint64_t counts =
        atomic_load(&q->alloc.refs.table)->n_entries * 8 >> q->geo.cluster_bits;
    const uint64_t tables[] = {
        l1, l1, counts, change_clusters_of(q, q->snapshot_bytes + 2 * SNAPSHOT_NAME_MAX)};

    /* Narrow refcounts can overflow, so nothing is allocated before they were checked. */
    if (q->geo.refcount_order < 3)
        return 0;
    int err = reserve_tables(state, tables, ARRAY_LEN(tables));
    if (!err)
        err = allocate_clusters(state, single_clusters(q) + 2);
    return err ? say_no_space(state, err) : 0;
}

/* ---- clusters that aren't used any more ---- */

void change_leave(struct snapshot_change_state *state, uint64_t host, uint64_t n)
{
    struct alloc *a = &state->q->alloc;

    if (n)
        run_list_add(a, &state->left,
                     (struct run){.first = host >> a->cluster_bits, .n = n});
}

void change_leave_spare(struct snapshot_change_state *state)
{
    for (size_t i = 0; i < state->spare.n; i++)
        run_list_add(&state->q->alloc, &state->left, state->spare.runs[i]);
    state->spare.n = 0;
}

void change_unlink(struct qcow2 *q, const struct run_list *runs)
{
    LOCK_GUARD(mcache_meta(q->node->mc));
    for (size_t i = 0; i < runs->n; i++)
        alloc_unlink(&q->alloc, runs->runs[i].first << q->geo.cluster_bits,
                     runs->runs[i].n);
}

/* ---- the allocator ---- */

void change_hold(struct snapshot_change_state *state)
{
    struct qcow2 *q = state->q;

    if (!state->held) {
        qcow2_pause_bitmaps(q);
        alloc_hold(&q->alloc, true);
    }
    state->held = true;
}

void change_end_hold(struct snapshot_change_state *state)
{
    if (state->held) {
        alloc_hold(&state->q->alloc, false);
        qcow2_resume_bitmaps(state->q);
    }
    state->held = false;
}
