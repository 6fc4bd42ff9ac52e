/* SPDX-License-Identifier: BSD-3-Clause */
/* Preparing a change: writes all new structures to new places in the file. */
#include "qcow2/snapshot/change.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "base/no_space.h"

/* Writes a table of 64-bit words at `host`, padded with zeroes to the end of its last cluster. */
static int write_words(struct snapshot_change_state *state, const uint64_t *words,
                       uint64_t n, uint64_t host)
{
    struct qcow2 *q = state->q;
    uint64_t bytes = align_up(n * 8, cluster_size(q));
    CLEANUP_FREE uint8_t *raw = calloc(1, bytes + 1);

    if (!raw)
        return diag_errno(state->diag, ENOMEM, "%s", q->node->filename);
    for (uint64_t i = 0; i < n; i++)
        store_be64(raw + i * 8, words[i]);
    int err = storage_write(q->node->file, raw, host, bytes, 0);
    return err ? diag_errno(state->diag, -err, "%s: writing a table", q->node->filename)
               : 0;
}

/* ---- L1 tables ---- */

static uint64_t *new_words(struct snapshot_change_state *state, uint64_t n)
{
    uint64_t *words = calloc(n + 1, sizeof *words);

    if (!words)
        diag_errno(state->diag, ENOMEM, "%s", state->q->node->filename);
    return words;
}

/* A copy of the disk's present L1 table. */
static uint64_t *copy_live_l1(struct snapshot_change_state *state)
{
    const struct qcow2_mapping *m = &state->q->live;
    uint64_t *l1 = new_words(state, m->l1_size);

    for (uint32_t i = 0; l1 && i < m->l1_size; i++)
        l1[i] = atomic_load(&m->l1[i]);
    return l1;
}

static uint64_t *read_l1(struct snapshot_change_state *state,
                         const struct qcow2_snapshot *s)
{
    const struct node *node = state->q->node;
    CLEANUP_FREE uint64_t *l1 = new_words(state, s->l1_size);

    if (!l1)
        return NULL;
    int err = storage_read(node->file, l1, s->l1_offset, (uint64_t)s->l1_size * 8);
    if (err) {
        diag_errno(state->diag, -err, "%s: reading the L1 table of snapshot '%s'",
                   node->filename, s->name);
        return NULL;
    }
    for (uint32_t i = 0; i < s->l1_size; i++)
        l1[i] = load_be64(&l1[i]);
    return TAKE(&l1);
}

/* ---- the references that each kind of change adds and removes ---- */

static int plan_create(struct snapshot_change_state *state)
{
    state->l1 = copy_live_l1(state);
    state->made_l1 = copy_live_l1(state);
    state->l1_size = state->q->live.l1_size;
    return state->l1 && state->made_l1
               ? shift_tables(&state->shift, state->l1, state->l1_size, true, true)
               : -ENOMEM;
}

static int plan_delete(struct snapshot_change_state *state, const struct qcow2_snapshot *s)
{
    CLEANUP_FREE uint64_t *theirs = read_l1(state, s);

    state->l1 = copy_live_l1(state);
    state->l1_size = state->q->live.l1_size;
    state->removed_l1 = s->l1_size ? s->l1_offset : 0;
    if (!theirs || !state->l1)
        return -state->diag->err;
    int err = shift_tables(&state->shift, theirs, s->l1_size, false, false);
    return err ? err
               : shift_clusters(&state->shift, s->l1_offset,
                                change_clusters_of(state->q, (uint64_t)s->l1_size * 8),
                                false);
}

static int plan_apply(struct snapshot_change_state *state, const struct qcow2_snapshot *s)
{
    struct qcow2 *q = state->q;
    CLEANUP_FREE uint64_t *mine = copy_live_l1(state);

    if (s->disk_size > INT64_MAX || geometry_l1_entries(&q->geo, s->disk_size) > s->l1_size)
        return diag_set(state->diag, EINVAL,
                        "%s: snapshot '%s': its L1 table is too small for its %" PRIu64
                        " bytes",
                        q->node->filename, s->name, s->disk_size);
    state->l1 = read_l1(state, s);
    state->l1_size = s->l1_size;
    state->header.size = s->disk_size;
    if (!mine || !state->l1)
        return -state->diag->err;
    int err = shift_tables(&state->shift, mine, q->live.l1_size, true, false);
    return err ? err : shift_tables(&state->shift, state->l1, state->l1_size, false, true);
}

/* SNAPSHOT_TIDY: only the orphans. */
static int plan_none(struct snapshot_change_state *state)
{
    state->l1 = copy_live_l1(state);
    state->l1_size = state->q->live.l1_size;
    return state->l1 ? 0 : -ENOMEM;
}

static int plan_counts(struct snapshot_change_state *state, const struct qcow2_snapshot *s)
{
    switch (state->change->kind) {
    case SNAPSHOT_CREATE:
        return plan_create(state);
    case SNAPSHOT_DELETE:
        return plan_delete(state, s);
    case SNAPSHOT_APPLY:
        return plan_apply(state, s);
    case SNAPSHOT_TIDY:
    case SNAPSHOT_COMPLETE:
        return plan_none(state);
    }
    return -EINVAL;
}

static int write_made_l1(struct snapshot_change_state *state)
{
    uint32_t n = state->made.l1_size;

    for (uint32_t i = 0; i < n; i++)
        state->made_l1[i] &= L1_OFFSET;
    int err = change_take_table(state, change_clusters_of(state->q, (uint64_t)n * 8),
                                &state->made.l1_offset);
    return err ? err : write_words(state, state->made_l1, n, state->made.l1_offset);
}

static bool is_l1_unwritten(struct qcow2 *q)
{
    uint32_t per_page = mcmap_words_per_page(q->live.l1_map);
    LOCK_GUARD(mcache_meta(q->node->mc));

    return mcmap_has_unwritten(q->live.l1_map, 0, div_round_up(q->live.l1_size, per_page));
}

/* Writes the disk's tables that change. */
static int write_disk_tables(struct snapshot_change_state *state)
{
    struct qcow2 *q = state->q;
    bool changed = state->change->kind == SNAPSHOT_APPLY || is_l1_unwritten(q);

    int err = change_disk_tables(state, &changed);
    if (err || !changed)
        return err;
    change_leave(state, atomic_load(&q->live.l1_offset),
                 change_clusters_of(q, (uint64_t)q->live.l1_size * 8));
    err = change_take_table(state, change_clusters_of(q, (uint64_t)state->l1_size * 8),
                            &state->l1_host);
    if (err)
        return err;
    if (state->l1_size == 0) /* the place of an empty table has no meaning */
        state->l1_host = atomic_load(&q->live.l1_offset);
    state->header.l1_table_offset = state->l1_host;
    state->header.l1_size = state->l1_size;
    return state->l1_size ? write_words(state, state->l1, state->l1_size, state->l1_host)
                          : 0;
}

/* ---- the snapshot table ---- */

static int add_made(struct snapshot_change_state *state)
{
    const struct qcow2_snapshot *made = &state->made;
    const struct snapshot_entry entry = {
        .l1_offset = made->l1_offset,
        .l1_size = made->l1_size,
        .id_bytes = (uint16_t)strlen(made->id),
        .name_bytes = (uint16_t)strlen(made->name),
        .date_sec = made->date_sec,
        .date_nsec = made->date_nsec,
        .extra_bytes = sizeof(struct qcow2_disk_snapshot_extra),
        .disk_size = made->disk_size,
        .icount = made->icount,
        .id = (const uint8_t *)made->id,
        .name = (const uint8_t *)made->name,
    };

    state->header.nb_snapshots++;
    return change_add_entry(state, &entry);
}

static int remove_entry(struct snapshot_change_state *state)
{
    struct qcow2 *q = state->q;

    state->header.nb_snapshots--;
    return change_remove_entry(state,
                               (uint32_t)(qcow2_snapshot_of(q, state->key) - q->snapshots));
}

static int write_snapshot_table(struct snapshot_change_state *state)
{
    struct qcow2 *q = state->q;
    enum snapshot_kind kind = state->change->kind;

    if (kind == SNAPSHOT_APPLY || kind == SNAPSHOT_TIDY)
        return 0;
    state->completes = q->header.version >= 3 || kind == SNAPSHOT_COMPLETE;
    int err = kind == SNAPSHOT_CREATE   ? add_made(state)
              : kind == SNAPSHOT_DELETE ? remove_entry(state)
                                        : change_keep_entries(state);
    if (!err)
        err = change_take_table(state, change_clusters_of(q, state->table_bytes),
                                &state->header.snapshots_offset);
    if (err)
        return err;
    change_leave(state, q->header.snapshots_offset,
                 change_clusters_of(q, q->snapshot_bytes));
    err = storage_write(q->node->file, state->table, state->header.snapshots_offset,
                        state->table_bytes, 0);
    return err ? diag_errno(state->diag, -err, "%s: writing the snapshot table",
                            q->node->filename)
               : 0;
}

/* ---- the refcounts ---- */

/* Includes blocks with dirty pages, so that they needn't be flushed before. */
static void include_unwritten(struct snapshot_change_state *state,
                              const struct refcount_table *present)
{
    struct refcounts *refs = &state->q->alloc.refs;
    LOCK_GUARD(mcache_meta(state->q->node->mc));

    for (uint64_t b = 0; b < present->n_entries; b++)
        if (atomic_load(&present->words[b]) && refcount_block_is_unwritten(refs, b))
            bit_set(state->shift.blocks, b);
}

static int take_blocks(struct snapshot_change_state *state,
                       const struct refcount_table *present, uint64_t *places)
{
    int err = 0;

    for (uint64_t b = 0; !err && b < present->n_entries; b++)
        if (bit_test(state->shift.blocks, b) && !places[b])
            err = change_take_cluster(state, &places[b]);
    return err;
}

/* Finds places for the refcount table and the blocks, and enters those in the table.  Allocating a
 * cluster that wasn't reserved can change another block, and lengthen the present table. */
static int take_counts(struct snapshot_change_state *state)
{
    struct alloc *a = &state->q->alloc;
    CLEANUP_FREE uint64_t *places = new_words(state, MAX_RT_BYTES / 8);
    const struct refcount_table *present;
    uint64_t host = 0, n = 0;
    int err = places ? 0 : -ENOMEM;

    do {
        state->late = false;
        present = atomic_load(&a->refs.table);
        include_unwritten(state, present);
        if (!err)
            err = take_blocks(state, present, places);
        if (!err && n != present->n_entries * 8 >> a->cluster_bits) {
            change_leave(state, host, n); /* the place is too short now */
            n = present->n_entries * 8 >> a->cluster_bits;
            err = change_take_table(state, n, &host);
        }
    } while (!err && (state->late || present != atomic_load(&a->refs.table)));
    if (err)
        return err;
    state->counts = refcount_table_new(host, present->n_entries);
    if (!state->counts)
        return diag_errno(state->diag, ENOMEM, "%s", a->node->filename);
    for (uint64_t b = 0; b < present->n_entries; b++)
        atomic_init(&state->counts->words[b], places[b]);
    state->header.refcount_table_offset = host;
    state->header.refcount_table_clusters = (uint32_t)n;
    return 0;
}

static int write_block(struct snapshot_change_state *state, uint64_t b, uint8_t *raw)
{
    struct qcow2 *q = state->q;

    int err = shift_block(&state->shift, b, raw, &state->left);
    if (err)
        return err;
    change_leave(state, refcount_block_offset(&q->alloc.refs, b), 1);
    err = storage_write(q->node->file, raw, atomic_load(&state->counts->words[b]),
                        cluster_size(q), 0);
    return err ? diag_errno(state->diag, -err, "%s: writing refcounts", q->node->filename)
               : 0;
}

/* Writes the blocks and the table; nothing is allocated any more. */
static int write_counts(struct snapshot_change_state *state)
{
    struct qcow2 *q = state->q;
    const struct refcount_table *present = atomic_load(&q->alloc.refs.table);
    struct refcount_table *counts = state->counts;
    CLEANUP_FREE uint8_t *raw = malloc(cluster_size(q));
    CLEANUP_FREE uint64_t *words = new_words(state, counts->n_entries);
    int err = raw && words ? 0 : diag_errno(state->diag, ENOMEM, "%s", q->node->filename);

    for (uint64_t b = 0; !err && b < counts->n_entries; b++) {
        if (atomic_load(&counts->words[b]))
            err = write_block(state, b, raw);
        else
            atomic_init(&counts->words[b], atomic_load(&present->words[b]));
        words[b] = atomic_load(&counts->words[b]);
    }
    if (err)
        return err;
    change_leave(state, present->offset, present->n_entries * 8 >> q->geo.cluster_bits);
    return write_words(state, words, counts->n_entries, counts->offset);
}

/* ---- refusing to free what the image needs ---- */

/* Would the change free a table that the image needs afterwards?  That can only be in a damaged
 * image, whose refcounts are lower than the number of references. */
static bool frees_bitmap(const struct shift *s, const struct qcow2_bitmap *bitmap)
{
    if (shift_frees(s, bitmap->table_offset, bitmap->table_size * 8ull))
        return true;
    for (uint32_t i = 0; bitmap->table && i < bitmap->table_size; i++) {
        uint64_t bits = bitmap->table[i] & BT_OFFSET;
        if (bits && shift_frees(s, bits, cluster_size(s->q)))
            return true;
    }
    return false;
}

static bool frees_metadata(struct snapshot_change_state *state)
{
    struct qcow2 *q = state->q;
    const struct shift *s = &state->shift;
    const struct refcount_table *t = atomic_load(&q->alloc.refs.table);

    if (shift_frees(s, 0, cluster_size(q)) ||
        shift_frees(s, q->header.luks_offset, q->header.luks_bytes) ||
        shift_frees(s, t->offset, t->n_entries * 8) ||
        shift_frees(s, atomic_load(&q->live.l1_offset), (uint64_t)q->live.l1_size * 8) ||
        shift_frees(s, q->header.snapshots_offset, q->snapshot_bytes) ||
        shift_frees(s, q->header.bitmaps.directory_offset,
                    q->header.bitmaps.directory_bytes))
        return true;
    for (uint64_t b = 0; b < t->n_entries; b++) {
        uint64_t block = atomic_load(&t->words[b]) & RT_OFFSET;
        if (block && shift_frees(s, block, cluster_size(q)))
            return true;
    }
    for (uint32_t i = 0; i < q->bitmaps.n; i++)
        if (frees_bitmap(s, &q->bitmaps.entry[i]))
            return true;
    for (uint32_t i = 0; i < q->n_snapshots; i++) {
        const struct qcow2_snapshot *other = &q->snapshots[i];
        bool stays = other->key != state->key || state->change->kind != SNAPSHOT_DELETE;
        if (stays && shift_frees(s, other->l1_offset, (uint64_t)other->l1_size * 8))
            return true;
    }
    return false;
}

static int check_metadata(struct snapshot_change_state *state)
{
    return frees_metadata(state)
               ? diag_set(state->diag, EIO,
                          "%s: a table of the image is referred to as data: it must be "
                          "checked (qimg check)",
                          state->q->node->filename)
               : 0;
}

/* ---- prepare ---- */

static int write_everything(struct snapshot_change_state *state,
                            const struct qcow2_snapshot *s)
{
    int err = shift_init(&state->shift, state->q, state->diag);
    if (!err)
        err = plan_counts(state, s);
    if (!err)
        err = change_plan_orphans(state);
    if (!err)
        err = shift_judge(&state->shift);
    if (!err)
        err = check_metadata(state);
    if (!err)
        err = write_disk_tables(state);
    if (!err && state->change->kind == SNAPSHOT_CREATE)
        err = write_made_l1(state);
    if (!err)
        err = write_snapshot_table(state);
    if (!err)
        err = take_counts(state);
    return err ? err : write_counts(state);
}

/* Marks the bitmaps as in use, as applying a snapshot changes the disk, and maybe its size. */
static int prepare_bitmaps(struct snapshot_change_state *state,
                           const struct qcow2_snapshot *s)
{
    struct qcow2 *q = state->q;

    int err = qcow2_check_bitmaps_size(q, s->disk_size, state->diag);
    if (err)
        return err;
    err = node_begin_change(q->node);
    if (!err && s->disk_size != q->header.size)
        err = qcow2_mark_all_bitmaps_in_use(q); /* the stored ones are of the old size */
    return err ? diag_errno(state->diag, -err, "%s", q->node->filename) : 0;
}

int qcow2_prepare_snapshot(struct snapshot_change *change, struct diag *diag)
{
    struct snapshot_change_state *state = change->state;
    struct qcow2 *q = state->q;
    struct qcow2_snapshot s = {0};
    int err = 0;

    state->diag = state->shift.diag = diag;
    change_hold(state);
    state->header = q->header;
    state->made.l1_size = q->live.l1_size;
    state->made.disk_size = q->header.size;
    if (change->kind == SNAPSHOT_DELETE || change->kind == SNAPSHOT_APPLY)
        s = *qcow2_snapshot_of(q, state->key); /* only this change can remove it */
    if (change->kind == SNAPSHOT_APPLY)
        err = prepare_bitmaps(state, &s);
    if (!err)
        err = write_everything(state, &s);
    if (means_no_space(err) && change->kind == SNAPSHOT_DELETE)
        err = change_list_alone(state);
    if (err)
        change_end_hold(state);
    return err;
}

void qcow2_abort_snapshot(struct snapshot_change *change)
{
    change_end_hold(change->state);
}
