/* SPDX-License-Identifier: BSD-3-Clause */
/* A new snapshot table, at the end of the file, where entries have too little or too much
 * extra data, or names with a NUL inside, which becomes a '?'.  The old one stays as it is
 * until the header points to the new one. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "qcow2/check/check.h"

#define ENTRY_FIXED     40
#define MIN_EXTRA_BYTES 16
#define MAX_EXTRA_BYTES 1024

static uint32_t new_extra_bytes(const struct check_snapshot *s)
{
    return MIN(MAX(s->extra_bytes, MIN_EXTRA_BYTES), MAX_EXTRA_BYTES);
}

/* Where the name ends. */
static uint64_t new_end(const struct check_snapshot *s)
{
    return ENTRY_FIXED + new_extra_bytes(s) + s->id_bytes + s->name_bytes;
}

static uint64_t new_length(const struct check_snapshot *s)
{
    return align_up(new_end(s), 8);
}

/* The extra data that version 3 asks for: sizes of the VM state and of the disk. */
static void add_extra(const struct check *c, uint8_t *entry, uint32_t have)
{
    if (have < 8)
        store_be64(entry + ENTRY_FIXED, load_be32(entry + 32));
    if (have < MIN_EXTRA_BYTES)
        store_be64(entry + ENTRY_FIXED + 8, c->in.h.size);
}

static int copy_entry(struct check *c, const struct check_snapshot *s, uint8_t *out)
{
    uint32_t have = MIN(s->extra_bytes, MAX_EXTRA_BYTES), extra = new_extra_bytes(s);

    int err = storage_read(c->in.st, out, s->entry_offset, ENTRY_FIXED + have);
    if (!err)
        err = storage_read(c->in.st, out + ENTRY_FIXED + extra,
                           s->entry_offset + ENTRY_FIXED + s->extra_bytes,
                           (uint64_t)s->id_bytes + s->name_bytes);
    if (err)
        return diag_errno(c->in.diag, -err, "%s: reading the snapshot table",
                          c->in.st->name);
    for (uint8_t *p = out + ENTRY_FIXED + extra; p < out + new_end(s); p++)
        if (*p == 0)
            *p = '?';
    add_extra(c, out, have);
    store_be32(out + 36, extra);
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

int qrepair_snapshots(struct check *c)
{
    uint64_t bytes = 0, at = 0, offset;
    int err = 0;

    for (uint32_t i = 0; i < c->pass.n_snapshots; i++)
        bytes += new_length(&c->pass.snapshots[i]);
    CLEANUP_FREE uint8_t *table = calloc(1, align_up(bytes, c->in.cluster_size));
    if (!table)
        return diag_errno(c->in.diag, ENOMEM, "%s: a new snapshot table", c->in.st->name);
    for (uint32_t i = 0; !err && i < c->pass.n_snapshots; i++) {
        err = copy_entry(c, &c->pass.snapshots[i], table + at);
        at += new_length(&c->pass.snapshots[i]);
    }
    if (!err)
        err = qrepair_room(c, div_round_up(bytes, c->in.cluster_size),
                           c->pass.found.image_end_offset >> c->in.h.cluster_bits, &offset);
    if (err)
        return err;
    qcheck_say(c, "the snapshot table is written anew, at offset %" PRIu64, offset);
    err = qrepair_write(c, table, offset, align_up(bytes, c->in.cluster_size),
                        "snapshot table");
    if (!err)
        err = qrepair_flush(c);
    if (!err)
        err = switch_header(c, offset);
    return err ? err : qrepair_resized(c);
}
