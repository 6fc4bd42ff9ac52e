/* SPDX-License-Identifier: BSD-3-Clause */
/* Checking the snapshot table, and collecting the L1 tables to be walked. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "qcow2/check/check.h"
#include "qcow2/snapshot_entry.h"

#define MAX_TABLE_BYTES (64u << 20)

static int read_entry(struct check *c, uint64_t offset, struct check_snapshot *s)
{
    uint8_t raw[SNAPSHOT_ENTRY_FIXED];
    struct snapshot_entry entry;

    int err = storage_read(c->in.st, raw, offset, sizeof raw);
    if (err)
        return diag_errno(c->in.diag, -err, "%s: reading the snapshot table",
                          c->in.st->name);
    snapshot_entry_parse_fixed(raw, &entry);
    *s = (struct check_snapshot){
        .entry_offset = offset,
        .bytes = snapshot_entry_end(&entry),
        .l1_offset = entry.l1_offset,
        .l1_size = entry.l1_size,
        .id_bytes = entry.id_bytes,
        .name_bytes = entry.name_bytes,
        .extra_bytes = entry.extra_bytes,
    };
    return 0;
}

static void mark_odd(struct check *c, struct check_snapshot *s)
{
    c->pass.odd_snapshots += !s->odd;
    s->odd = true;
}

static void odd_snapshot(struct check *c, uint32_t index, const char *what)
{
    qcheck_impossible(c, 1, "snapshot table entry %" PRIu32 ": %s", index, what);
    mark_odd(c, &c->pass.snapshots[index]);
}

/* Reports a fault that is mended by writing the entry anew, with another length or name. */
static void odd_entry(struct check *c, uint32_t index, const char *what)
{
    odd_snapshot(c, index, what);
    c->pass.rewrites++;
}

/* Reports names with a NUL inside, which programs would read as shorter ones.  Not if the entry is
 * damaged otherwise: its repair moves the names. */
static int check_names(struct check *c, uint32_t index)
{
    struct check_snapshot *s = &c->pass.snapshots[index];
    uint8_t names[2 * UINT16_MAX];
    size_t n = (size_t)s->id_bytes + s->name_bytes;
    uint64_t at = s->entry_offset + s->bytes - n;

    if (s->extra_wrong || !range_inside(at, n, c->in.file_size))
        return 0; /* a table that is too long is reported later */
    int err = storage_read(c->in.st, names, at, n);
    if (err)
        return diag_errno(c->in.diag, -err, "%s: reading the snapshot table",
                          c->in.st->name);
    if (!memchr(names, 0, n))
        return 0;
    odd_entry(c, index, "a NUL byte is in the id or the name");
    return 0;
}

/* Checks an entry by itself. */
static void check_snapshot(struct check *c, uint32_t index)
{
    struct check_snapshot *s = &c->pass.snapshots[index];

    s->extra_wrong = s->extra_bytes > MAX_SNAPSHOT_EXTRA ||
                     (c->in.h.version >= 3 && s->extra_bytes < MIN_SNAPSHOT_EXTRA);
    if (s->extra_wrong)
        odd_entry(c, index,
                  s->extra_bytes < MIN_SNAPSHOT_EXTRA ? "too little extra data"
                                                      : "too much extra data");
    if (s->l1_size > MAX_L1_BYTES / 8)
        s->fault = "its L1 table is too large";
    else if (!is_aligned(s->l1_offset, c->in.cluster_size) || s->l1_offset > INT64_MAX / 2)
        s->fault = "its L1 table is not cluster aligned";
}

static int read_table(struct check *c)
{
    uint64_t at = 0;
    bool inside;

    c->pass.n_snapshots = c->in.h.nb_snapshots;
    c->pass.snapshots = calloc(c->pass.n_snapshots + 1u, sizeof *c->pass.snapshots);
    if (!c->pass.snapshots)
        return diag_errno(c->in.diag, ENOMEM, "%s: snapshot table", c->in.st->name);
    for (uint32_t i = 0; i < c->pass.n_snapshots; i++) {
        struct check_snapshot *s = &c->pass.snapshots[i];
        at = align_up(at, 8);
        int err = read_entry(c, c->in.h.snapshots_offset + at, s);
        if (err)
            return err;
        at += s->bytes;
        if (at > MAX_TABLE_BYTES)
            return diag_set(c->in.diag, EFBIG,
                            "%s: snapshot table: its first %" PRIu32
                            " entries take over %u bytes",
                            c->in.st->name, i + 1, MAX_TABLE_BYTES);
        check_snapshot(c, i);
        err = check_names(c, i);
        if (err)
            return err;
    }
    c->pass.snapshot_bytes = at;
    if (qcheck_any(c, c->pass.meta, c->in.h.snapshots_offset, at))
        c->pass.hopeless =
            "the header says that the snapshot table overlaps other metadata";
    int err =
        qcheck_add_meta(c, c->in.h.snapshots_offset, at, 1, "snapshot table", &inside);
    if (!inside)
        c->pass.hopeless = "the snapshot table lies past the end of the file";
    return err;
}

/* ---- the L1 tables ---- */

static uint32_t entries_in_file(const struct check *c, uint64_t offset, uint32_t n)
{
    if (offset >= c->in.file_size)
        return 0;
    return (uint32_t)MIN(n, div_round_up(c->in.file_size - offset, 8));
}

static void list_l1(struct check *c, uint64_t offset, uint32_t n, struct check_snapshot *s)
{
    c->pass.l1s[c->pass.n_l1s++] = (struct check_l1){
        .offset = offset,
        .n = entries_in_file(c, offset, n),
        .weight = 1,
        .active = !s,
        .snapshot = s,
    };
}

static int by_place(const void *a, const void *b)
{
    const struct check_snapshot *x = *(struct check_snapshot *const *)a;
    const struct check_snapshot *y = *(struct check_snapshot *const *)b;

    if (x->l1_offset != y->l1_offset)
        return x->l1_offset < y->l1_offset ? -1 : 1;
    if (x->l1_size != y->l1_size)
        return x->l1_size < y->l1_size ? -1 : 1;
    return x->entry_offset < y->entry_offset ? -1 : x->entry_offset > y->entry_offset;
}

static bool same_l1(const struct check_snapshot *a, const struct check_snapshot *b)
{
    return a->l1_offset == b->l1_offset && a->l1_size == b->l1_size;
}

static uint64_t l1_end(const struct check_snapshot *s)
{
    return s->l1_offset + s->l1_size * 8ull;
}

/* Finds L1 tables with an impossible place, which aren't walked, so that no byte of the file is
 * read twice for different tables.  Of two that overlap the longer one is at fault. */
static void find_faults(struct check *c, struct check_snapshot **sorted)
{
    struct check_snapshot *last = NULL;

    for (uint32_t i = 0; i < c->pass.n_snapshots; i++) {
        struct check_snapshot *s = sorted[i];
        if (s->fault || s->l1_size == 0)
            continue;
        if (qcheck_past_end(c, s->l1_offset, s->l1_size * 8ull))
            s->fault = "its L1 table lies past the end of the file";
        else if (last && !same_l1(last, s) && s->l1_offset < l1_end(last)) {
            bool longer = last->l1_size > s->l1_size;
            (longer ? last : s)->fault = "its L1 table overlaps another one";
            last = longer ? s : last;
        } else {
            last = s;
        }
    }
    for (uint32_t i = 0; i < c->pass.n_snapshots; i++)
        if (sorted[i]->fault)
            odd_snapshot(c, (uint32_t)(sorted[i] - c->pass.snapshots), sorted[i]->fault);
}

/* Finds L1 tables that overlap other metadata.  They are walked all the same, as their references
 * count. */
static void find_overlaps(struct check *c)
{
    for (uint32_t i = 0; i < c->pass.n_snapshots; i++) {
        struct check_snapshot *s = &c->pass.snapshots[i];
        if (s->fault || !qcheck_any(c, c->pass.meta, s->l1_offset, s->l1_size * 8ull))
            continue;
        qcheck_impossible(
            c, 1, "snapshot table entry %" PRIu32 ": its L1 table overlaps other metadata",
            i);
        s->overlaps = true;
        mark_odd(c, s);
    }
}

static int take_l1(struct check *c, struct check_snapshot *s)
{
    struct check_l1 *last = &c->pass.l1s[c->pass.n_l1s - 1];
    bool inside;

    if (s->fault || s->l1_size == 0)
        return 0;
    if (last->snapshot && same_l1(last->snapshot, s))
        last->weight++;
    else
        list_l1(c, s->l1_offset, s->l1_size, s);
    return qcheck_add_range(c, s->l1_offset, s->l1_size * 8ull, 1, "snapshot's L1 table",
                            &inside);
}

int qcheck_snapshots(struct check *c)
{
    CLEANUP_FREE struct check_snapshot **sorted = NULL;
    bool inside;

    int err = c->in.h.nb_snapshots ? read_table(c) : 0;
    if (!err)
        err = qcheck_add_meta(c, c->repair.new_snapshots, c->repair.new_snapshot_bytes, 1,
                              "new snapshot table", &inside);
    if (err)
        return err;
    sorted = calloc(c->pass.n_snapshots + 1u, sizeof(struct check_snapshot *));
    c->pass.l1s = calloc(c->pass.n_snapshots + 1u, sizeof *c->pass.l1s);
    if (!c->pass.l1s || !sorted)
        return diag_errno(c->in.diag, ENOMEM, "%s: snapshots", c->in.st->name);
    list_l1(c, c->in.h.l1_table_offset, c->in.h.l1_size, NULL);
    for (uint32_t i = 0; i < c->pass.n_snapshots; i++)
        sorted[i] = &c->pass.snapshots[i];
    qsort(sorted, c->pass.n_snapshots, sizeof *sorted, by_place);
    find_faults(c, sorted);
    find_overlaps(c);
    for (uint32_t i = 0; !err && i < c->pass.n_snapshots; i++)
        err = take_l1(c, sorted[i]);
    for (uint32_t i = 1; i < c->pass.n_l1s; i++)
        qcheck_mark(c, c->pass.meta, c->pass.l1s[i].offset, c->pass.l1s[i].n * 8ull);
    c->pass.total = 0;
    for (uint32_t i = 0; i < c->pass.n_l1s; i++)
        c->pass.total += 3ull * c->pass.l1s[i].n;
    return err;
}
