/* SPDX-License-Identifier: BSD-3-Clause */
/* A node through which an internal snapshot is read: a mapping of its own over the same file and
 * refcounts.  The snapshot's tables don't change while it is open: nobody stores to a shared
 * table, and the snapshot can't be removed before it is closed.  So its pages are cached and
 * read without locks, like those of the live disk, in the same pool. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "base/log.h"
#include "qcow2/internal.h"

struct snapshot_view {
    struct qcow2_mapping mapping;
};

static struct snapshot_view *view_of(const struct node *snapshot)
{
    return snapshot->state;
}

static int map_snapshot(struct node *snapshot, uint64_t off, uint64_t len,
                        struct extent *out)
{
    int err = mapping_map(&view_of(snapshot)->mapping, off, len, out);

    out->writable = false;
    return err;
}

/* The driver of such nodes, which are only ever looked up. */
static const struct driver snapshot_driver = {.name = "qcow2", .map = map_snapshot};

int qcow2_snapshots(struct node *node, struct snapshot_list *out)
{
    struct qcow2 *q = qcow2_of(node);
    LOCK_GUARD(&q->header_lock);

    return qcow2_copy_snapshots(q, out);
}

/* Finds the snapshot, and keeps it from being removed until let_go. */
static int hold_snapshot(struct qcow2 *q, uint64_t key, struct qcow2_snapshot *out)
{
    LOCK_GUARD(&q->header_lock);
    struct qcow2_snapshot *s = qcow2_snapshot_of(q, key);

    if (!s || s->going)
        return -ENOENT;
    s->users++;
    *out = *s;
    return 0;
}

static void let_go(struct qcow2 *q, uint64_t key)
{
    LOCK_GUARD(&q->header_lock);
    struct qcow2_snapshot *s = qcow2_snapshot_of(q, key);

    if (s)
        s->users--;
}

/* Reads the part of the L1 table that maps the disk, not the VM state behind it. */
static int read_tables(struct snapshot_view *view, struct node *snapshot,
                       const struct qcow2_snapshot *s, struct diag *diag)
{
    uint64_t entries = geometry_l1_entries(&view->mapping.geo, s->disk_size);

    if (s->disk_size > INT64_MAX || entries > s->l1_size)
        return diag_set(diag, EINVAL,
                        "%s: its L1 table has %" PRIu32 " entries, its %" PRIu64
                        " bytes need %" PRIu64,
                        snapshot->filename, s->l1_size, s->disk_size, entries);
    int err = mapping_read_l1(&view->mapping, s->l1_offset, (uint32_t)entries);
    return err ? diag_errno(diag, -err, "%s: reading its L1 table", snapshot->filename) : 0;
}

static void free_view(struct snapshot_view *view)
{
    mapping_destroy(&view->mapping);
    free(view);
}

int qcow2_open_snapshot(struct node *snapshot, struct diag *diag)
{
    struct qcow2 *q = qcow2_of(snapshot->snapshot_of);
    struct snapshot_view *view = calloc(1, sizeof *view);
    struct qcow2_snapshot s;

    if (!view)
        return diag_errno(diag, ENOMEM, "%s", snapshot->filename);
    mapping_init(&view->mapping, q, snapshot->filename);
    int err = hold_snapshot(q, snapshot->snapshot_key, &s);
    if (err) {
        free_view(view);
        return diag_set(diag, -err, "%s: was just removed", snapshot->filename);
    }
    err = read_tables(view, snapshot, &s, diag);
    if (err) {
        let_go(q, s.key);
        free_view(view);
        return err;
    }
    snapshot->state = view;
    snapshot->size = s.disk_size;
    snapshot->driver = &snapshot_driver;
    return 0;
}

void qcow2_close_snapshot(struct node *snapshot)
{
    free_view(view_of(snapshot));
    let_go(qcow2_of(snapshot->snapshot_of), snapshot->snapshot_key);
}
