/* SPDX-License-Identifier: BSD-3-Clause */
/* Applies a change to the state in memory. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/log.h"
#include "qcow2/snapshot/change.h"

/* META: updates the set of metadata clusters: adds those of new tables, removes those of old
 * ones. */
static void update_metadata(struct snapshot_change_state *state)
{
    struct qcow2 *q = state->q;
    struct alloc *a = &q->alloc;

    for (size_t i = 0; i < state->taken.n; i++)
        alloc_note_metadata(a, state->taken.runs[i].first << a->cluster_bits,
                            state->taken.runs[i].n);
    if (state->removed_l1)
        meta_set_remove_range(&a->metadata, state->removed_l1 >> a->cluster_bits);
}

/* Changes the disk's L1 table in memory, word by word.  Readers see an old entry or a new one, and
 * both lead to the same data. */
static void update_words(struct snapshot_change_state *state)
{
    struct qcow2_mapping *m = &state->q->live;
    LOCK_GUARD(mcache_meta(state->q->node->mc));

    for (uint32_t i = 0; i < m->l1_size; i++)
        atomic_store_explicit(&m->l1[i], state->l1[i], memory_order_release);
    atomic_store(&m->l1_offset, state->l1_host);
}

static int replace_l1(struct snapshot_change_state *state)
{
    struct qcow2 *q = state->q;
    CLEANUP_FREE _Atomic uint64_t *l1 = calloc(state->l1_size + 1u, sizeof *l1);

    if (!l1)
        return -ENOMEM;
    for (uint32_t i = 0; i < state->l1_size; i++)
        atomic_init(&l1[i], state->l1[i]);
    int err = mapping_set_l1(&q->live, l1, state->l1_size, state->l1_host);
    if (!err)
        l1 = NULL;
    return err;
}

static void spoil(struct dirty_bitmap *bitmap, void *opaque)
{
    const struct node *node = opaque;

    if (dirty_bitmap_size(bitmap) != node->size)
        dirty_bitmap_spoil(bitmap);
}

/* After a snapshot was applied: marks everything as dirty in all bitmaps. */
static void change_bitmaps(struct node *node)
{
    struct diag diag;
    LOCK_GUARD(&node->bitmaps.keep);

    if (node_bitmaps_resize(node, node->size, &diag)) {
        log_error("%s: bitmaps of the size before can't be used any more", diag.text);
        node_bitmap_each(node, spoil, node);
    }
    node_bitmaps_set_all(node);
}

static int update_disk(struct snapshot_change_state *state)
{
    struct qcow2 *q = state->q;

    if (!state->l1_host)
        return 0;
    if (state->change->kind == SNAPSHOT_APPLY) {
        q->node->size = state->header.size;
        change_bitmaps(q->node);
        return replace_l1(state);
    }
    update_words(state);
    mcmap_forget(q->live.l2_map);
    return 0;
}

int change_use_tables(struct snapshot_change_state *state)
{
    struct qcow2 *q = state->q;

    int err = state->counts ? alloc_replace_counts(&q->alloc, state->counts) : 0;
    if (err)
        return err;
    state->counts = NULL;
    err = update_disk(state);
    if (err)
        return err;
    LOCK_GUARD(mcache_meta(q->node->mc));
    update_metadata(state);
    return 0;
}

static void update_list(struct snapshot_change_state *state)
{
    struct qcow2 *q = state->q;
    LOCK_GUARD(&q->header_lock);

    if (state->change->kind == SNAPSHOT_APPLY || state->change->kind == SNAPSHOT_TIDY)
        return;
    q->snapshot_bytes = state->table_bytes;
    for (uint32_t i = 0; state->completes && i < q->n_snapshots; i++)
        q->snapshots[i].incomplete = false;
    if (state->change->kind == SNAPSHOT_COMPLETE)
        return;
    if (state->change->kind == SNAPSHOT_CREATE) {
        q->snapshots[q->n_snapshots++] = state->made;
        state->made.id = state->made.name = NULL;
        return;
    }
    struct qcow2_snapshot *s = qcow2_snapshot_of(q, state->key);
    free(s->id);
    free(s->name);
    q->n_snapshots--;
    memmove(s, s + 1, (size_t)(&q->snapshots[q->n_snapshots] - s) * sizeof *s);
}

void change_use_list(struct snapshot_change_state *state)
{
    update_list(state);
    change_unlink(state->q, &state->left);
    node_wrote(state->q->node);
}
