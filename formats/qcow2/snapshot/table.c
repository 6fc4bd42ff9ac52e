/* SPDX-License-Identifier: BSD-3-Clause */
/* The new snapshot table, with one entry more or fewer.  The other entries are copied with all
 * their extra data, known or not; entries that lack fields which version 3 requires can get
 * them. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "qcow2/snapshot/change.h"

static int no_memory(const struct snapshot_change_state *state)
{
    return diag_errno(state->diag, ENOMEM, "%s", state->q->node->filename);
}

/* The table could be parsed when the image was opened, so it has changed since. */
static int refuse_changed(const struct snapshot_change_state *state)
{
    return diag_set(state->diag, EIO, "%s: the snapshot table has changed",
                    state->q->node->filename);
}

/* Adds the fields that version 3 requires, with the values that were parsed or defaulted. */
static void complete_entry(const struct qcow2_snapshot *s, struct snapshot_entry *entry)
{
    entry->extra_bytes = sizeof(struct qcow2_disk_snapshot_extra);
    entry->extra = NULL;
    entry->disk_size = s->disk_size;
}

/* Copies the table's entries to `out`, which has room for the added fields. */
static int complete_entries(struct snapshot_change_state *state, uint8_t *out)
{
    struct qcow2 *q = state->q;
    size_t at = 0, end = 0;

    for (uint32_t i = 0; i < q->n_snapshots; i++) {
        struct snapshot_entry entry;
        if (snapshot_entry_parse(state->table + at, state->table_bytes - at, &entry))
            return refuse_changed(state);
        at += (size_t)snapshot_entry_length(&entry);
        if (q->snapshots[i].incomplete)
            complete_entry(&q->snapshots[i], &entry);
        snapshot_entry_serialise(&entry, out + end);
        end += (size_t)snapshot_entry_length(&entry);
    }
    free(state->table);
    state->table = out;
    state->table_bytes = end;
    return 0;
}

/* By how much the entries grow at most, with padding. */
static size_t room_to_complete(const struct snapshot_change_state *state)
{
    return state->completes ? state->q->n_snapshots *
                                  align_up(sizeof(struct qcow2_disk_snapshot_extra), 8)
                            : 0;
}

static int complete_present(struct snapshot_change_state *state, size_t room)
{
    CLEANUP_FREE uint8_t *table = calloc(room, 1);
    int err = table ? complete_entries(state, table) : no_memory(state);

    if (!err)
        table = NULL;
    return err;
}

/* Reads the present table, with room for `more` bytes behind it. */
static int read_present(struct snapshot_change_state *state, size_t more)
{
    struct qcow2 *q = state->q;
    size_t n = (size_t)align_up(q->snapshot_bytes, 8);
    size_t room = n + room_to_complete(state) + more + 1;

    state->table = calloc(room, 1);
    if (!state->table)
        return no_memory(state);
    state->table_bytes = n;
    int err = storage_read(q->node->file, state->table, q->header.snapshots_offset,
                           q->snapshot_bytes);
    if (err)
        return diag_errno(state->diag, -err, "%s: reading the snapshot table",
                          q->node->filename);
    return state->completes ? complete_present(state, room) : 0;
}

static int refuse_long(const struct snapshot_change_state *state)
{
    return diag_set(state->diag, EFBIG, "%s: the snapshot table would take over %u bytes",
                    state->q->node->filename, MAX_SNAPSHOT_BYTES);
}

int change_keep_entries(struct snapshot_change_state *state)
{
    int err = read_present(state, 0);

    return err || state->table_bytes <= MAX_SNAPSHOT_BYTES ? err : refuse_long(state);
}

int change_add_entry(struct snapshot_change_state *state,
                     const struct snapshot_entry *entry)
{
    size_t more = (size_t)snapshot_entry_length(entry);

    int err = read_present(state, more);
    if (err)
        return err;
    if (state->table_bytes + more > MAX_SNAPSHOT_BYTES)
        return refuse_long(state);
    snapshot_entry_serialise(entry, state->table + state->table_bytes);
    state->table_bytes += more;
    return 0;
}

static int remove_entry(struct snapshot_change_state *state, uint32_t index)
{
    size_t at = 0, length = 0;

    int err = read_present(state, 0);
    for (uint32_t i = 0; !err && i <= index; i++) {
        struct snapshot_entry entry;
        at += length;
        err = snapshot_entry_parse(state->table + at, state->table_bytes - at, &entry);
        length = (size_t)snapshot_entry_length(&entry);
    }
    if (err)
        return refuse_changed(state);
    memmove(state->table + at, state->table + at + length,
            state->table_bytes - at - length);
    state->table_bytes -= length;
    return 0;
}

int change_remove_entry(struct snapshot_change_state *state, uint32_t index)
{
    int err = remove_entry(state, index);

    if (err || state->table_bytes <= MAX_SNAPSHOT_BYTES)
        return err;
    /* With the added fields the table would be over the limit: they are left out. */
    free(state->table);
    state->table = NULL;
    state->completes = false;
    return remove_entry(state, index);
}
