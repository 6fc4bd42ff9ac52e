/* SPDX-License-Identifier: BSD-3-Clause */
/* Deleting a snapshot where there is no space for new tables: the list changes alone, and what
 * the snapshot had loses its references in two steps behind it.
 *
 * When the list is without it, all that it had is leaked, as after a crash.  Then
 *   what is nobody else's, and what several others have, is let go of the usual way, which
 *     needs no space, and makes some: no copied flag depends on it;
 *   what one other has is left, as an *orphan* reference: the disk's entry gets its copied flag
 *     when the count becomes 1, and both in one write of the header.  So it takes new tables,
 *     for which there is space by then: another change does that (SNAPSHOT_TIDY), the next one
 *     of any kind, or the end.
 *
 * The list without its last snapshot is the present one, and one fewer in the header.  Any other
 * needs a new table: in a cluster that was taken before space ran out, or in the space of
 * zeroes behind the end of L1 tables, which nobody reads. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "base/checked.h"
#include "base/log.h"
#include "qcow2/snapshot/change.h"

/* No filesystem's blocks are smaller without being made of these. */
#define BLOCK 4096u

/* ---- the list ---- */

/* Behind the disk's L1 table, or the i-th snapshot's. */
static void punch_behind(struct qcow2 *q, uint32_t i)
{
    bool live = i == q->n_snapshots;
    uint64_t offset = live ? atomic_load(&q->live.l1_offset) : q->snapshots[i].l1_offset;
    uint64_t bytes = 8ull * (live ? q->live.l1_size : q->snapshots[i].l1_size);
    uint64_t start = align_up(offset + bytes, BLOCK);
    uint64_t end = align_up(offset + bytes, cluster_size(q));

    if (bytes && start < end)
        storage_discard(q->node->file, start, end - start);
}

static int write_table(struct snapshot_change_state *state, uint64_t host)
{
    return storage_write(state->q->node->file, state->table, host, state->table_bytes, 0);
}

/* In what was taken already, whose clusters may have their blocks; where it can't be written is
 * not used. */
static int place_table(struct snapshot_change_state *state, uint64_t n, uint64_t *host)
{
    int err;

    do {
        err = change_take_table(state, n, host);
        if (err)
            return err;
        err = write_table(state, *host);
        if (err)
            change_leave(state, *host, n);
    } while (err == -ENOSPC && n == 1 && state->spare.n > 0);
    return err;
}

static int write_where_it_goes(struct snapshot_change_state *state)
{
    struct qcow2 *q = state->q;
    uint64_t n = change_clusters_of(q, state->table_bytes), host;

    int err = place_table(state, n, &host);
    /* One after the other: what isn't needed now may be when the next one is deleted. */
    for (uint32_t i = 0; err == -ENOSPC && i <= q->n_snapshots; i++) {
        if (!q->node->options.discard_ignore)
            punch_behind(q, i);
        err = place_table(state, n, &host);
    }
    state->header.snapshots_offset = host;
    return err ? diag_errno(
                     state->diag, -err,
                     "%s: writing the snapshot table without it (only the last of the "
                     "list needs no space for that)",
                     q->node->filename)
               : 0;
}

static int write_list(struct snapshot_change_state *state)
{
    struct qcow2 *q = state->q;
    uint32_t index = (uint32_t)(qcow2_snapshot_of(q, state->key) - q->snapshots);
    uint64_t old = change_clusters_of(q, q->snapshot_bytes);

    int err = change_remove_entry(state, index);
    if (err)
        return err;
    state->header.nb_snapshots--;
    if (index < state->header.nb_snapshots) {
        change_leave(state, q->header.snapshots_offset, old);
        return write_where_it_goes(state);
    }
    uint64_t rest = change_clusters_of(q, state->table_bytes);
    change_leave(state, q->header.snapshots_offset + (rest << q->geo.cluster_bits),
                 old - rest);
    return 0;
}

/* ---- references ---- */

static void add_references(struct qcow2 *q, struct run_list *list, uint64_t cluster,
                           uint64_t n)
{
    while (n-- > 0)
        run_list_add(&q->alloc, list, (struct run){.first = cluster, .n = 1});
}

/* Those that the snapshot had, and those that were orphans before it. */
static void sort_references(struct snapshot_change_state *state)
{
    const struct shift *s = &state->shift;

    for (uint64_t c = 0; c < s->n_clusters; c++)
        if (s->down.bytes[c])
            add_references(s->q, bit_test(s->single, c) ? &state->orphans : &state->left, c,
                           counts_get(&s->down, c));
}

/* Would the disk lose what it needs?  Its count is less than what refers to it then. */
static int check_disk(struct snapshot_change_state *state)
{
    bool changed = false;

    state->only_judge = true;
    int err = change_disk_tables(state, &changed);
    state->only_judge = false;
    return err;
}

/* What was done for the change that there was no space for. */
static void start_again(struct snapshot_change_state *state)
{
    free(state->counts);
    free(state->table);
    state->counts = NULL;
    state->table = NULL;
    state->table_bytes = 0;
    state->completes = false; /* which would need space */
    state->l1_host = 0;
    state->header = state->q->header;
    state->left.n = 0;
    state->spare.n = 0;
    for (size_t i = 0; i < state->taken.n; i++)
        run_list_add(&state->q->alloc, &state->spare, state->taken.runs[i]);
}

int change_list_alone(struct snapshot_change_state *state)
{
    start_again(state);
    int err = check_disk(state);
    if (!err)
        err = write_list(state);
    if (!err)
        sort_references(state);
    return err;
}

/* ---- orphans ---- */

int change_plan_orphans(struct snapshot_change_state *state)
{
    struct qcow2 *q = state->q;
    int err = 0;

    for (size_t i = 0; !err && i < q->orphans.n; i++)
        err = shift_clusters(&state->shift, q->orphans.runs[i].first << q->geo.cluster_bits,
                             q->orphans.runs[i].n, false);
    return err;
}

void change_set_orphans(struct snapshot_change_state *state)
{
    free(state->q->orphans.runs);
    state->q->orphans = state->orphans;
    state->orphans = (struct run_list){0};
}

void qcow2_tidy_at_end(struct qcow2 *q)
{
    const struct snapshot_request request = {.kind = SNAPSHOT_TIDY};
    uint64_t clusters = 0;
    struct diag diag;

    for (size_t i = 0; i < q->orphans.n; i++)
        clusters += q->orphans.runs[i].n;
    if (clusters > 0 && !mcache_health(q->node->mc) &&
        node_change_snapshot(q->node, &request, NULL, &diag))
        log_warning("%s: up to %" PRIu64 " clusters of a deleted snapshot leak, until qimg "
                    "check -r leaks",
                    diag.text, clusters);
}
