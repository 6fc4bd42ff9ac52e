/* SPDX-License-Identifier: BSD-3-Clause */
/* Deleting a snapshot when there is no space for new tables: at first only the snapshot table
 * changes, and the snapshot's references are removed afterwards, in two steps.
 *
 * Once the snapshot isn't in the table any more, all its references are leaked, as after a crash.
 * Then
 *   - clusters that nothing else refers to, and clusters with several other references, are
 *     unlinked the usual way.  That needs no space and frees some, and no copied flag depends on
 *     it;
 *   - for clusters with one other reference the snapshot's reference remains as an *orphan*.  When
 *     their refcount becomes 1 the disk's entry must get the copied flag, with the same write of
 *     the header.  That needs new tables, for which there is space by then.  Another change
 *     (SNAPSHOT_TIDY), the next change of any kind, or the closing of the image does it.
 *
 * To remove the last snapshot from the table, the number in the header is decremented.  Any other
 * removal needs a new table, which goes to a cluster that was allocated before space ran out, or
 * gets the space of zeroes behind the end of L1 tables, which nobody reads. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "base/checked.h"
#include "base/log.h"
#include "base/no_space.h"
#include "qcow2/snapshot/change.h"

/* A multiple of most filesystems' block sizes. */
#define BLOCK 4096u

/* ---- the list ---- */

/* Punches the unused end of the L1 table of snapshot i, or of the disk for i == n_snapshots. */
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

/* Finds a place for the new table among clusters that were allocated already, because their blocks
 * may exist, too.  Places that can't be written to are skipped. */
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
    } while (means_no_space(err) && n == 1 && state->spare.n > 0);
    return err;
}

static int write_where_it_goes(struct snapshot_change_state *state)
{
    struct qcow2 *q = state->q;
    uint64_t n = change_clusters_of(q, state->table_bytes), host;

    int err = place_table(state, n, &host);
    /* One table after the other, to keep some for the next deletion. */
    for (uint32_t i = 0; means_no_space(err) && i <= q->n_snapshots; i++) {
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

/* Divides the references of the snapshot, and earlier orphans, into those that are unlinked and
 * those that remain as orphans. */
static void sort_references(struct snapshot_change_state *state)
{
    const struct shift *s = &state->shift;

    for (uint64_t c = 0; c < s->n_clusters; c++)
        if (s->down.bytes[c])
            add_references(s->q, bit_test(s->single, c) ? &state->orphans : &state->left, c,
                           counts_get(&s->down, c));
}

/* Refuses the deletion if the disk refers to a cluster that would be freed: its refcount is lower
 * than the number of references. */
static int check_disk(struct snapshot_change_state *state)
{
    bool changed = false;

    state->only_judge = true;
    int err = change_disk_tables(state, &changed);
    state->only_judge = false;
    return err;
}

/* Undoes what was prepared for the usual way, for which there was no space. */
static void start_again(struct snapshot_change_state *state)
{
    free(state->counts);
    free(state->table);
    state->counts = NULL;
    state->table = NULL;
    state->table_bytes = 0;
    state->completes = false; /* it would need space */
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
