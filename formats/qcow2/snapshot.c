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

/* An entry: fixed part, extra data, id, name; padded to 8 bytes. */
#define ENTRY_FIXED 40

static int bad_entry(struct qcow2 *q, uint32_t index, const char *why, struct diag *diag)
{
    return diag_set(diag, EINVAL, "%s: snapshot table entry %" PRIu32 ": %s",
                    q->node->filename, index, why);
}

/* Parses the entry at `e`, of which n bytes are there; *len is its length. */
static int parse_entry(struct qcow2 *q, uint32_t index, const uint8_t *e, size_t n,
                       size_t *len, struct diag *diag)
{
    struct qcow2_snapshot *s = &q->snapshots[index];

    if (n < ENTRY_FIXED)
        return bad_entry(q, index, "reaches past the end of the table", diag);
    uint32_t extra = load_be32(e + 36);
    uint16_t id_len = load_be16(e + 12), name_len = load_be16(e + 14);
    uint64_t whole = ENTRY_FIXED + (uint64_t)extra + id_len + name_len;
    if (whole > n)
        return bad_entry(q, index, "reaches past the end of the table", diag);
    *len = (size_t)whole;

    s->l1_offset = load_be64(e);
    s->l1_size = load_be32(e + 8);
    if (!is_aligned(s->l1_offset, cluster_size(q)))
        return bad_entry(q, index, "its L1 table is not cluster aligned", diag);
    uint64_t l1_bytes = (uint64_t)s->l1_size * 8;
    /* Where a table without entries lies means nothing. */
    if (l1_bytes > MAX_L1_BYTES ||
        (l1_bytes && !alloc_inside_file(&q->alloc, s->l1_offset, l1_bytes)))
        return bad_entry(q, index, "its L1 table lies outside the file", diag);
    s->date_sec = load_be32(e + 16);
    s->date_nsec = load_be32(e + 20);
    s->vm_clock_ns = load_be64(e + 24);
    s->vm_state_bytes = extra >= 8 ? load_be64(e + ENTRY_FIXED) : load_be32(e + 32);
    s->icount = extra >= 24 ? load_be64(e + ENTRY_FIXED + 16) : UINT64_MAX;
    int err = foreign_text_copy(&s->id, e + ENTRY_FIXED + extra, id_len, diag,
                                "%s: snapshot table entry %" PRIu32 ": the id",
                                q->node->filename, index);
    return err ? err
               : foreign_text_copy(&s->name, e + ENTRY_FIXED + extra + id_len, name_len,
                                   diag, "%s: snapshot table entry %" PRIu32 ": the name",
                                   q->node->filename, index);
}

/* As much of the table as there can be: its length isn't recorded. */
static int read_table(struct qcow2 *q, uint8_t **table, size_t *n, struct diag *diag)
{
    uint64_t file_size, offset = q->header.snapshots_offset;

    int err = storage_size(q->node->file, &file_size);
    if (!err && offset <= file_size) {
        *n = (size_t)MIN(file_size - offset, MAX_SNAPSHOT_BYTES);
        *table = malloc(*n + 1);
        err = *table ? storage_read(q->node->file, *table, offset, *n) : -ENOMEM;
    }
    return err ? diag_errno(diag, -err, "%s: reading the snapshot table", q->node->filename)
               : 0;
}

int qcow2_read_snapshots(struct qcow2 *q, struct diag *diag)
{
    CLEANUP_FREE uint8_t *table = NULL;
    size_t n = 0, at = 0;

    if (q->header.nb_snapshots == 0)
        return 0;
    /* At most MAX_SNAPSHOTS: the header was checked. */
    q->snapshots = calloc(q->header.nb_snapshots, sizeof *q->snapshots);
    if (!q->snapshots)
        return diag_errno(diag, ENOMEM, "%s", q->node->filename);
    int err = read_table(q, &table, &n, diag);
    for (uint32_t i = 0; !err && i < q->header.nb_snapshots; i++) {
        size_t len = 0;
        q->n_snapshots = i + 1;
        err = parse_entry(q, i, table + at, n - at, &len, diag);
        q->snapshot_bytes = at + len;
        at = MIN(n, (size_t)align_up(at + len, 8));
    }
    return err;
}

void qcow2_free_snapshots(struct qcow2 *q)
{
    for (uint32_t i = 0; i < q->n_snapshots; i++) {
        free(q->snapshots[i].id);
        free(q->snapshots[i].name);
    }
    free(q->snapshots);
}

static json_t *json_text(const char *text)
{
    json_t *value = json_string(text);

    return value ? value : json_string("?"); /* not UTF-8 */
}

static json_t *describe(const struct qcow2_snapshot *s)
{
    json_t *object = json_object();

    json_object_set_new(object, "id", json_text(s->id));
    json_object_set_new(object, "name", json_text(s->name));
    json_object_set_new(object, "vm-state-size",
                        json_integer((json_int_t)s->vm_state_bytes));
    json_object_set_new(object, "date-sec", json_integer(s->date_sec));
    json_object_set_new(object, "date-nsec", json_integer(s->date_nsec));
    json_object_set_new(object, "vm-clock-sec",
                        json_integer((json_int_t)(s->vm_clock_ns / 1000000000u)));
    json_object_set_new(object, "vm-clock-nsec",
                        json_integer((json_int_t)(s->vm_clock_ns % 1000000000u)));
    if (s->icount != UINT64_MAX)
        json_object_set_new(object, "icount", json_integer((json_int_t)s->icount));
    return object;
}

void qcow2_list_snapshots(struct qcow2 *q, json_t *object)
{
    json_t *list = json_array();

    for (uint32_t i = 0; i < q->n_snapshots; i++)
        json_array_append_new(list, describe(&q->snapshots[i]));
    json_object_set_new(object, "snapshots", list);
}
