/* SPDX-License-Identifier: BSD-3-Clause */
/* Writes a new snapshot table at the end of the file, if entries have too little or too much extra
 * data, or names with a NUL inside, which becomes a '?'.  The old table and its refcounts stay
 * unchanged until the header points to the new one, which gets its refcounts before. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "qcow2/check/check.h"
#include "qcow2/snapshot_entry.h"

/* A new entry with its variable parts. */
struct new_entry {
    struct snapshot_entry entry;
    uint8_t extra[MAX_SNAPSHOT_EXTRA];
    uint8_t names[2 * UINT16_MAX]; /* the id, then the name */
};

static uint32_t new_extra_bytes(const struct check_snapshot *s)
{
    return s->extra_bytes < MIN_SNAPSHOT_EXTRA
               ? (uint32_t)sizeof(struct qcow2_disk_snapshot_extra)
               : MIN(s->extra_bytes, MAX_SNAPSHOT_EXTRA);
}

static uint64_t new_length(const struct check_snapshot *s)
{
    const struct snapshot_entry entry = {.extra_bytes = new_extra_bytes(s),
                                         .id_bytes = s->id_bytes,
                                         .name_bytes = s->name_bytes};

    return snapshot_entry_length(&entry);
}

static int read_bytes(struct check *c, void *out, uint64_t off, uint64_t n)
{
    int err = storage_read(c->in.st, out, off, n);

    return err ? diag_errno(c->in.diag, -err, "%s: reading the snapshot table",
                            c->in.st->name)
               : 0;
}

/* Reads the entry again, because empty_snapshot may have changed it; its lengths are as the check
 * found them. */
static int read_parts(struct check *c, const struct check_snapshot *s,
                      struct new_entry *new)
{
    uint8_t fixed[SNAPSHOT_ENTRY_FIXED];
    uint64_t names_bytes = (uint64_t)s->id_bytes + s->name_bytes;

    memset(new->extra, 0, sizeof new->extra);
    int err = read_bytes(c, fixed, s->entry_offset, sizeof fixed);
    if (err)
        return err;
    snapshot_entry_parse_fixed(fixed, &new->entry);
    err = read_bytes(c, new->extra, s->entry_offset + sizeof fixed,
                     MIN(s->extra_bytes, MAX_SNAPSHOT_EXTRA));
    if (err)
        return err;
    return read_bytes(c, new->names, s->entry_offset + s->bytes - names_bytes, names_bytes);
}

static int rewrite_entry(struct check *c, const struct check_snapshot *s,
                         struct new_entry *new, uint8_t *out)
{
    struct snapshot_entry *entry = &new->entry;

    int err = read_parts(c, s, new);
    if (err)
        return err;
    for (uint8_t *p = new->names; p < new->names + s->id_bytes + s->name_bytes; p++)
        if (*p == 0)
            *p = '?';
    entry->disk_size = c->in.h.size; /* unless the extra data has it */
    snapshot_entry_parse_extra(new->extra, MIN(s->extra_bytes, MAX_SNAPSHOT_EXTRA), entry);
    entry->extra_bytes = new_extra_bytes(s);
    entry->id = new->names;
    entry->id_bytes = s->id_bytes;
    entry->name = new->names + s->id_bytes;
    entry->name_bytes = s->name_bytes;
    snapshot_entry_serialise(entry, out);
    return 0;
}

/* Fills `table` with all entries. */
static int fill_table(struct check *c, uint8_t *table)
{
    CLEANUP_FREE struct new_entry *new = malloc(sizeof *new);

    if (!new)
        return diag_errno(c->in.diag, ENOMEM, "%s: a new snapshot table", c->in.st->name);
    for (uint32_t i = 0; i < c->pass.n_snapshots; i++) {
        int err = rewrite_entry(c, &c->pass.snapshots[i], new, table);
        if (err)
            return err;
        table += new_length(&c->pass.snapshots[i]);
    }
    return 0;
}

static int switch_header(struct check *c, uint64_t offset)
{
    c->in.h.snapshots_offset = offset;
    int err = qcow2_header_write_snapshots(c->in.st, &c->in.h);
    if (err)
        return diag_errno(c->in.diag, -err, "%s: writing snapshots_offset", c->in.st->name);
    return qrepair_flush(c);
}

static int write_table(struct check *c, const uint8_t *table, uint64_t offset,
                       uint64_t bytes)
{
    int err = qrepair_write(c, table, offset, bytes, "snapshot table");
    if (!err)
        err = qrepair_flush(c);
    if (!err)
        err = qrepair_resized(c);
    c->repair.new_snapshots = offset;
    c->repair.new_snapshot_bytes = bytes;
    return err;
}

/* Gives the clusters of the new table their refcounts, beside those of the old one. */
static int count_table(struct check *c)
{
    int err = qcheck_pass(c, true);
    if (!err && !c->pass.found.check_errors)
        err = qrepair_counts(c);
    return err ? err : qrepair_flush(c);
}

/* Writes the new table, and last the header; until that is durable the old table is the valid
 * one. */
static int replace_table(struct check *c, const uint8_t *table, uint64_t offset,
                         uint64_t bytes)
{
    int err = write_table(c, table, offset, bytes);
    if (!err)
        err = count_table(c);
    if (!err && !c->pass.found.check_errors)
        err = switch_header(c, offset);
    c->repair.new_snapshot_bytes = 0;
    return err ? err : qcheck_pass(c, true);
}

static bool is_readable(struct check *c, uint64_t bytes)
{
    if (bytes <= MAX_SNAPSHOT_BYTES)
        return true;
    qcheck_say(c,
               "the snapshot table stays as it is: another would take %" PRIu64
               " bytes, over %u",
               bytes, MAX_SNAPSHOT_BYTES);
    return false;
}

int qrepair_snapshots(struct check *c)
{
    uint64_t bytes = 0, offset;

    for (uint32_t i = 0; i < c->pass.n_snapshots; i++)
        bytes += new_length(&c->pass.snapshots[i]);
    if (!c->pass.rewrites || !is_readable(c, bytes))
        return 0;
    CLEANUP_FREE uint8_t *table = calloc(1, align_up(bytes, c->in.cluster_size));
    if (!table)
        return diag_errno(c->in.diag, ENOMEM, "%s: a new snapshot table", c->in.st->name);
    int err = fill_table(c, table);
    if (err)
        return err;
    err = qrepair_room(c, div_round_up(bytes, c->in.cluster_size),
                       c->pass.found.image_end_offset >> c->in.h.cluster_bits, &offset);
    if (err)
        return err;
    qcheck_say(c, "the snapshot table is written anew, at offset %" PRIu64, offset);
    return replace_table(c, table, offset, align_up(bytes, c->in.cluster_size));
}
