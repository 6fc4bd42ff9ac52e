/* SPDX-License-Identifier: BSD-3-Clause */
/* The steps of a change: begin, commit, abort and finish (prepare.c has prepare). */
#include "qcow2/snapshot/change.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/cleanup.h"

/* ---- the new entry ---- */

static uint64_t next_id(const struct qcow2 *q)
{
    uint64_t most = 0;

    for (uint32_t i = 0; i < q->n_snapshots; i++) {
        uint64_t id = strtoul(q->snapshots[i].id, NULL, 10);
        if (id < UINT64_MAX) /* ids of other programs may be any text */
            most = MAX(most, id);
    }
    return most + 1;
}

/* Fills in state->made, but for the place of its L1 table. */
static int describe_made(struct snapshot_change_state *state,
                         const struct snapshot_request *request)
{
    struct qcow2 *q = state->q;
    struct qcow2_snapshot *made = &state->made;

    if (q->n_snapshots >= MAX_SNAPSHOTS)
        return diag_set(state->diag, EFBIG, "%s: has %d snapshots, and can't have more",
                        q->node->filename, MAX_SNAPSHOTS);
    *made = (struct qcow2_snapshot){
        .key = ++q->last_snapshot_key,
        .l1_size = q->live.l1_size,
        .disk_size = q->header.size,
        .date_sec = request->date_sec,
        .date_nsec = request->date_nsec,
        .icount = SNAPSHOT_NO_ICOUNT,
        .name = strdup(request->name),
    };
    if (asprintf(&made->id, "%" PRIu64, next_id(q)) < 0)
        made->id = NULL;
    return made->name && made->id
               ? 0
               : diag_errno(state->diag, ENOMEM, "%s", q->node->filename);
}

/* ---- begin ---- */

/* Under header_lock: the snapshot that the request means; NULL: none. */
static struct qcow2_snapshot *find_requested(struct qcow2 *q,
                                             const struct snapshot_request *r)
{
    for (uint32_t i = 0; i < q->n_snapshots; i++) {
        struct qcow2_snapshot *s = &q->snapshots[i];
        if ((!r->id || strcmp(s->id, r->id) == 0) &&
            (!r->name || strcmp(s->name, r->name) == 0))
            return s;
    }
    return NULL;
}

static int choose(struct snapshot_change_state *state,
                  const struct snapshot_request *request)
{
    struct qcow2 *q = state->q;
    LOCK_GUARD(&q->header_lock);
    struct qcow2_snapshot *s = find_requested(q, request);

    if (!s)
        return diag_set(state->diag, ENOENT, "%s: there is no snapshot '%.200s'",
                        q->node->filename, request->name ? request->name : request->id);
    if (request->kind == SNAPSHOT_DELETE && s->users)
        return diag_set(state->diag, EBUSY,
                        "%s: snapshot '%.200s': a client reads it, so it can't be removed",
                        q->node->filename, s->name);
    state->key = s->key;
    s->going = request->kind == SNAPSHOT_DELETE;
    return qcow2_copy_snapshot(s, &state->change->info)
               ? diag_errno(state->diag, ENOMEM, "%s", q->node->filename)
               : 0;
}

/* Makes room in the list for one more snapshot, so that nothing can fail after the commit. */
static int make_room(struct snapshot_change_state *state)
{
    struct qcow2 *q = state->q;
    LOCK_GUARD(&q->header_lock);
    struct qcow2_snapshot *list =
        realloc(q->snapshots, (q->n_snapshots + 1u) * sizeof *list);

    if (!list)
        return diag_errno(state->diag, ENOMEM, "%s", q->node->filename);
    q->snapshots = list;
    return qcow2_copy_snapshot(&state->made, &state->change->info)
               ? diag_errno(state->diag, ENOMEM, "%s", q->node->filename)
               : 0;
}

static void free_state(struct snapshot_change_state *state)
{
    shift_free(&state->shift);
    free(state->l1);
    free(state->made_l1);
    free(state->counts);
    free(state->table);
    free(state->made.id);
    free(state->made.name);
    free(state->taken.runs);
    free(state->spare.runs);
    free(state->left.runs);
    free(state->orphans.runs);
    free(state);
}

/* Frees the new clusters of a change that didn't happen. */
static void forget_change(struct snapshot_change_state *state)
{
    struct qcow2 *q = state->q;

    {
        LOCK_GUARD(&q->header_lock);
        struct qcow2_snapshot *s = qcow2_snapshot_of(q, state->key);
        if (s)
            s->going = false;
    }
    change_unlink(q, &state->taken);
    node_wrote(q->node);
}

static bool has_incomplete(const struct qcow2 *q)
{
    for (uint32_t i = 0; i < q->n_snapshots; i++)
        if (q->snapshots[i].incomplete)
            return true;
    return false;
}

static int begin(struct snapshot_change_state *state,
                 const struct snapshot_request *request)
{
    struct qcow2 *q = state->q;

    if (q->geo.external)
        return diag_set(state->diag, ENOTSUP,
                        "%s: its data lies in another file: it can't have snapshots",
                        q->node->filename);
    if (request->kind == SNAPSHOT_TIDY)
        return q->orphans.n
                   ? 0
                   : diag_set(state->diag, ENOENT, "%s: no snapshot has left anything",
                              q->node->filename);
    if (request->kind == SNAPSHOT_COMPLETE)
        return has_incomplete(q)
                   ? 0
                   : diag_set(state->diag, ENOENT, "%s: its snapshots are described well",
                              q->node->filename);
    if (request->kind != SNAPSHOT_CREATE)
        return choose(state, request);
    int err = describe_made(state, request);
    if (!err)
        err = make_room(state);
    return err || !request->ahead ? err : change_reserve(state);
}

/* How long to wait until requests that may still read unlinked clusters have left the gate.  They
 * leave soon, unless they wait for an NBD server. */
#define LEAVE_WAIT_MS 2000

/* Frees unlinked clusters before a change.  Until they are freed their refcounts are too high, so
 * that a narrow refcount could overflow, and their space isn't available.  Failures are ignored:
 * if the room is needed, a later step fails. */
static void drop_references(struct qcow2 *q)
{
    struct alloc *a = &q->alloc;

    if (!alloc_has_unlinked(a) || mcache_commit(q->node->mc, MC_COMMIT) != 0)
        return;
    (void)!gate_wait_for(&q->node->ctx->gate, LEAVE_WAIT_MS);
    while (alloc_reclaim(a) > 0)
        ;
}

int qcow2_begin_snapshot(struct snapshot_change *change,
                         const struct snapshot_request *request, struct diag *diag)
{
    struct qcow2 *q = qcow2_of(change->node);
    struct snapshot_change_state *state = calloc(1, sizeof *state);

    if (!state)
        return diag_errno(diag, ENOMEM, "%s", q->node->filename);
    *state = (struct snapshot_change_state){.q = q, .diag = diag, .change = change};
    change->state = state;
    if (q->geo.refcount_order < 4 || request->kind == SNAPSHOT_TIDY)
        drop_references(q);
    alloc_pause_reclaim(&q->alloc);
    int err = begin(state, request);
    if (err) {
        forget_change(state);
        alloc_resume_reclaim(&q->alloc);
        free_state(state);
    }
    return err;
}

/* ---- commit ---- */

static int point_header(struct snapshot_change_state *state)
{
    struct qcow2 *q = state->q;
    const struct qcow2_header *new = &state->header;
    LOCK_GUARD(&q->header_lock);
    struct qcow2_header h = q->header;

    h.size = new->size;
    h.l1_size = new->l1_size;
    h.l1_table_offset = new->l1_table_offset;
    h.refcount_table_offset = new->refcount_table_offset;
    h.refcount_table_clusters = new->refcount_table_clusters;
    h.nb_snapshots = new->nb_snapshots;
    h.snapshots_offset = new->nb_snapshots ? new->snapshots_offset : 0;
    int err = qcow2_point_header(q, &h, qcow2_header_write_tables);
    if (err)
        return err;
    /* Only the fields that changed: other threads read the rest without a lock. */
    q->header.size = h.size;
    q->header.l1_size = h.l1_size;
    q->header.l1_table_offset = h.l1_table_offset;
    q->header.refcount_table_offset = h.refcount_table_offset;
    q->header.refcount_table_clusters = h.refcount_table_clusters;
    q->header.nb_snapshots = h.nb_snapshots;
    q->header.snapshots_offset = h.snapshots_offset;
    return 0;
}

/* Makes the prepared structures durable, and then the header point to them. */
static int put_into_image(struct snapshot_change_state *state)
{
    int err = node_barrier(state->q->node);

    return err ? err : point_header(state);
}

static void settle(struct snapshot_change_state *state)
{
    state->result = put_into_image(state);
    if (state->result)
        mcache_poison(state->q->node->mc);
    else
        change_use_list(state);
    state->settled = true;
}

int qcow2_settle_snapshot(void *owner)
{
    struct qcow2 *q = owner;
    struct snapshot_change_state *state = atomic_exchange(&q->unsettled, NULL);

    if (LIKELY(!state))
        return 0;
    settle(state);
    return state->result;
}

static void use_tables(struct snapshot_change_state *state)
{
    int err = change_use_tables(state);

    if (err) { /* memory is ahead of the file, and must not be written */
        mcache_poison(state->q->node->mc);
        state->result = err;
        state->settled = true;
    }
}

void qcow2_commit_snapshot(struct snapshot_change *change)
{
    struct snapshot_change_state *state = change->state;
    struct qcow2 *q = state->q;

    change_leave_spare(state);
    mcache_hold(q->node->mc);
    if (change->kind == SNAPSHOT_CREATE) {
        use_tables(state);
        if (!state->settled)
            atomic_store(&q->unsettled, state);
    } else {
        settle(state);
        if (!state->result)
            use_tables(state);
    }
    if (!state->result)
        change_set_orphans(state);
    mcache_note_write(q->node->mc);
    mcache_release(q->node->mc);
    change_end_hold(state);
}

/* ---- finish ---- */

int qcow2_finish_snapshot(struct snapshot_change *change, bool committed, struct diag *diag)
{
    struct snapshot_change_state *state = change->state;
    struct qcow2 *q = state->q;
    int err = 0;

    if (committed) {
        err = mcache_commit(q->node->mc, MC_COMMIT);
        /* A cache that refuses commits doesn't settle the change any more.  But a commit that began
         * before may do so; mcache_hold waits for its end. */
        mcache_hold(q->node->mc);
        bool never = atomic_exchange(&q->unsettled, NULL);
        mcache_release(q->node->mc);
        if (never)
            state->result = err;
        err = state->result ? state->result : err;
    } else {
        forget_change(state);
    }
    alloc_resume_reclaim(&q->alloc);
    free_state(state);
    return err ? diag_errno(diag, -err, "%s: writing the image", q->node->filename) : 0;
}
