/* SPDX-License-Identifier: BSD-3-Clause */
/* The disk's L2 tables, with the copied flags that go with the new refcounts.
 *
 * A table with a changed flag is copied, and the disk uses the copy.  The old table then belongs to
 * a snapshot, or to nobody; copied flags in it have no meaning (qcow2.rst: they are only
 * accurate in tables reached from the active L1 table).  A table with dirty pages is copied, too,
 * and a second time for a snapshot that is being created. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "base/bytes.h"
#include "base/cleanup.h"
#include "qcow2/snapshot/change.h"

/* The disk refers to a cluster that would be freed: its refcount is lower than the number of
 * references. */
static int refuse_count(const struct shift *s, uint64_t host)
{
    return diag_set(s->diag, EIO,
                    "%s: refcount of the cluster at %" PRIu64
                    ": less than what refers to it: the image must be checked (qimg check)",
                    s->q->node->filename, host);
}

/* Clears all flags: a new snapshot shares every cluster with the disk. */
static bool clear_flags(const struct qcow2 *q, uint8_t *table)
{
    uint32_t step = 1u << q->geo.word_bits;
    bool changed = false;

    for (uint64_t i = 0; i < cluster_size(q) / 8; i += step) {
        changed |= table[i * 8] & L2_COPIED >> 56;
        table[i * 8] &= (uint8_t) ~(L2_COPIED >> 56);
    }
    return changed;
}

/* Sets the flags in a table as the new refcounts need them; *changed: set if any differed. */
static int set_flags(const struct shift *s, uint8_t *table, bool *changed)
{
    const struct qcow2 *q = s->q;
    uint32_t step = 1u << q->geo.word_bits;

    *changed = false;

    for (uint64_t i = 0; i < cluster_size(q) / 8; i += step) {
        uint64_t entry = load_be64(table + i * 8), host = entry & L2_OFFSET;
        struct cluster c;
        (void)l2_any_decode(&q->geo, entry, 0, &c);
        if (c.kind == CL_COMPRESSED && shift_frees(s, c.host, c.compressed_bytes))
            return refuse_count(s, c.host);
        if (c.kind == CL_COMPRESSED || host == 0)
            continue;
        if (shift_frees(s, host, 1))
            return refuse_count(s, host);
        bool old = entry & L2_COPIED, now = shift_flag(s, host, old);
        if (now == old)
            continue;
        store_be64(table + i * 8, entry ^ L2_COPIED);
        *changed = true;
    }
    return 0;
}

/* Writes a copy of a table, and makes *entry point to it instead of the old one. */
static int copy_table(struct snapshot_change_state *state, const uint8_t *table,
                      uint64_t *entry)
{
    struct qcow2 *q = state->q;
    uint64_t host;

    if (state->only_judge)
        return 0;
    int err = change_take_cluster(state, &host);
    if (err)
        return err;
    err = storage_write(q->node->file, table, host, cluster_size(q), 0);
    if (err)
        return diag_errno(state->diag, -err, "%s: writing an L2 table", q->node->filename);
    run_list_add(
        &q->alloc, &state->left,
        (struct run){.first = (*entry & L1_OFFSET) >> q->geo.cluster_bits, .n = 1});
    *entry = host | L1_COPIED;
    return 0;
}

int change_disk_tables(struct snapshot_change_state *state, bool *changed)
{
    struct shift *s = &state->shift;
    CLEANUP_FREE uint8_t *table = malloc(cluster_size(s->q));

    if (!table)
        return diag_errno(state->diag, ENOMEM, "%s", s->q->node->filename);
    for (uint32_t i = 0; i < state->l1_size; i++) {
        uint64_t *entry = &state->l1[i], old = *entry, offset = old & L1_OFFSET;
        if (offset == 0)
            continue;
        bool differs = false, unwritten = false;
        bool live = state->change->kind != SNAPSHOT_APPLY;
        int err = shift_read_table(s, i, old, live, table, &unwritten);
        if (!err && state->change->kind == SNAPSHOT_CREATE)
            differs = clear_flags(s->q, table);
        else if (!err)
            err = shift_frees(s, offset, 1) ? refuse_count(s, offset)
                                            : set_flags(s, table, &differs);
        /* The old table in the file lacks the dirty pages, which the snapshot needs, too. */
        if (!err && unwritten && state->made_l1)
            err = copy_table(state, table, &state->made_l1[i]);
        if (!err && (differs || unwritten))
            err = copy_table(state, table, entry);
        else if (!err)
            *entry = offset | (shift_flag(s, offset, old & L1_COPIED) ? L1_COPIED : 0);
        if (err)
            return err;
        *changed |= *entry != old;
    }
    return 0;
}
