/* SPDX-License-Identifier: BSD-3-Clause */
/* The snapshot table: read and checked at open. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "base/foreign_text.h"
#include "qcow2/internal.h"

static int refuse_entry(struct qcow2 *q, uint32_t index, const char *why, struct diag *diag)
{
    return diag_set(diag, EINVAL, "%s: snapshot table entry %" PRIu32 ": %s",
                    q->node->filename, index, why);
}

/* Checks an entry and stores it in q->snapshots[index]. */
static int take_entry(struct qcow2 *q, uint32_t index, const struct snapshot_entry *e,
                      struct diag *diag)
{
    struct qcow2_snapshot *s = &q->snapshots[index];
    uint64_t l1_bytes = (uint64_t)e->l1_size * 8;

    if (!is_aligned(e->l1_offset, cluster_size(q)))
        return refuse_entry(q, index, "its L1 table is not cluster aligned", diag);
    /* The place of an empty table has no meaning. */
    if (l1_bytes > MAX_L1_BYTES ||
        (l1_bytes && !alloc_inside_file(&q->alloc, e->l1_offset, l1_bytes)))
        return refuse_entry(q, index, "its L1 table lies outside the file", diag);
    *s = (struct qcow2_snapshot){
        .key = ++q->last_snapshot_key,
        .l1_offset = e->l1_offset,
        .l1_size = e->l1_size,
        .disk_size = e->extra_bytes >= MIN_SNAPSHOT_EXTRA ? e->disk_size : q->header.size,
        .date_sec = e->date_sec,
        .date_nsec = e->date_nsec,
        .vm_clock_ns = e->vm_clock_ns,
        .vm_state_bytes = e->vm_state_bytes,
        .icount = e->icount,
        .incomplete = e->extra_bytes < MIN_SNAPSHOT_EXTRA,
    };
    int err = foreign_text_copy(&s->id, e->id, e->id_bytes, diag,
                                "%s: snapshot table entry %" PRIu32 ": the id",
                                q->node->filename, index);
    if (err)
        return err;
    return foreign_text_copy(&s->name, e->name, e->name_bytes, diag,
                             "%s: snapshot table entry %" PRIu32 ": the name",
                             q->node->filename, index);
}

/* Parses the table's n bytes. */
static int parse_table(struct qcow2 *q, const uint8_t *table, size_t n, struct diag *diag)
{
    size_t at = 0;

    for (uint32_t i = 0; i < q->header.nb_snapshots; i++) {
        struct snapshot_entry entry;
        if (snapshot_entry_parse(table + at, n - at, &entry))
            return refuse_entry(q, i, "reaches past the end of the table", diag);
        int err = take_entry(q, i, &entry, diag);
        q->n_snapshots = i + 1;
        if (err)
            return err;
        q->snapshot_bytes = at + snapshot_entry_end(&entry);
        at = MIN(n, at + (size_t)snapshot_entry_length(&entry));
    }
    return 0;
}

static int refuse_table(struct qcow2 *q, int err, struct diag *diag)
{
    return diag_errno(diag, -err, "%s: reading the snapshot table", q->node->filename);
}

/* Reads as many bytes as the table can have at most: its length isn't recorded. */
static int read_table(struct qcow2 *q, uint8_t **table, size_t *n, struct diag *diag)
{
    uint64_t file_size, offset = q->header.snapshots_offset;

    int err = storage_size(q->node->file, &file_size);
    if (err)
        return refuse_table(q, err, diag);
    *n = offset <= file_size ? (size_t)MIN(file_size - offset, MAX_SNAPSHOT_BYTES) : 0;
    *table = malloc(*n + 1);
    if (!*table)
        return refuse_table(q, -ENOMEM, diag);
    err = storage_read(q->node->file, *table, offset, *n);
    return err ? refuse_table(q, err, diag) : 0;
}

int qcow2_read_snapshots(struct qcow2 *q, struct diag *diag)
{
    CLEANUP_FREE uint8_t *table = NULL;
    size_t n = 0;

    if (q->header.nb_snapshots == 0)
        return 0;
    /* At most MAX_SNAPSHOTS, as the header was checked. */
    q->snapshots = calloc(q->header.nb_snapshots, sizeof *q->snapshots);
    if (!q->snapshots)
        return diag_errno(diag, ENOMEM, "%s", q->node->filename);
    int err = read_table(q, &table, &n, diag);
    return err ? err : parse_table(q, table, n, diag);
}

void qcow2_free_snapshots(struct qcow2 *q)
{
    for (uint32_t i = 0; i < q->n_snapshots; i++) {
        free(q->snapshots[i].id);
        free(q->snapshots[i].name);
    }
    free(q->snapshots);
}

struct qcow2_snapshot *qcow2_snapshot_of(struct qcow2 *q, uint64_t key)
{
    for (uint32_t i = 0; i < q->n_snapshots; i++)
        if (q->snapshots[i].key == key)
            return &q->snapshots[i];
    return NULL;
}

int qcow2_copy_snapshot(const struct qcow2_snapshot *from, struct snapshot_info *to)
{
    *to = (struct snapshot_info){
        .key = from->key,
        .vm_state_bytes = from->vm_state_bytes,
        .disk_size = from->disk_size,
        .date_sec = from->date_sec,
        .date_nsec = from->date_nsec,
        .vm_clock_ns = from->vm_clock_ns,
        .has_icount = from->icount != SNAPSHOT_NO_ICOUNT,
    };
    if (to->has_icount)
        to->icount = from->icount;
    return image_info_copy(&to->id, from->id) || image_info_copy(&to->name, from->name)
               ? -ENOMEM
               : 0;
}

int qcow2_copy_snapshots(const struct qcow2 *q, struct snapshot_list *out)
{
    int err = 0;

    *out = (struct snapshot_list){0};
    if (q->n_snapshots == 0)
        return 0;
    out->list = calloc(q->n_snapshots, sizeof *out->list);
    if (!out->list)
        return -ENOMEM;
    for (uint32_t i = 0; !err && i < q->n_snapshots; i++) {
        err = qcow2_copy_snapshot(&q->snapshots[i], &out->list[i]);
        out->n = i + 1;
    }
    return err;
}
