/* SPDX-License-Identifier: BSD-3-Clause */
/* The snapshot table with an entry more or less.  What the others say is taken as it is, with
 * extra data that nobody here knows. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "qcow2/snapshot/change.h"

/* The present table, with room for `more` bytes behind it. */
static int read_present(struct snapshot_change_state *state, size_t more)
{
    struct qcow2 *q = state->q;
    size_t n = (size_t)align_up(q->snapshot_bytes, 8);

    state->table = calloc(n + more + 1, 1);
    if (!state->table)
        return diag_errno(state->diag, ENOMEM, "%s", q->node->filename);
    state->table_bytes = n;
    int err = storage_read(q->node->file, state->table, q->header.snapshots_offset,
                           q->snapshot_bytes);
    return err ? diag_errno(state->diag, -err, "%s: reading the snapshot table",
                            q->node->filename)
               : 0;
}

int change_add_entry(struct snapshot_change_state *state,
                     const struct snapshot_entry *entry)
{
    size_t more = (size_t)snapshot_entry_length(entry);

    int err = read_present(state, more);
    if (err)
        return err;
    if (state->table_bytes + more > MAX_SNAPSHOT_BYTES)
        return diag_set(state->diag, EFBIG,
                        "%s: the snapshot table would take over %u bytes",
                        state->q->node->filename, MAX_SNAPSHOT_BYTES);
    snapshot_entry_serialise(entry, state->table + state->table_bytes);
    state->table_bytes += more;
    return 0;
}

int change_remove_entry(struct snapshot_change_state *state, uint32_t index)
{
    size_t at = 0, length = 0;

    int err = read_present(state, 0);
    for (uint32_t i = 0; !err && i <= index; i++) {
        struct snapshot_entry entry;
        at += length;
        err = snapshot_entry_parse(state->table + at, state->table_bytes - at, &entry);
        length = (size_t)snapshot_entry_length(&entry);
    }
    if (err) /* it was parsed when the image was opened */
        return diag_set(state->diag, EIO, "%s: the snapshot table has changed",
                        state->q->node->filename);
    memmove(state->table + at, state->table + at + length,
            state->table_bytes - at - length);
    state->table_bytes -= length;
    return 0;
}
