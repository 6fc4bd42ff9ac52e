/* SPDX-License-Identifier: BSD-3-Clause */
/* Views of internal snapshots.  A snapshot is a node of its own, which the engine reads
 * like any other. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "base/cleanup.h"
#include "base/size.h"
#include "block/node.h"
#include "view.h"

/* "snapshot of 2026-01-31 12:00:00, 1073741824 bytes, VM state 1.5 GiB" */
static char *describe(const struct snapshot_info *s)
{
    char date[32] = "", vm_state[48] = "", *text;
    time_t when = s->date_sec;
    struct tm tm;

    if (localtime_r(&when, &tm))
        strftime(date, sizeof date, "%Y-%m-%d %H:%M:%S", &tm);
    if (s->vm_state_bytes)
        snprintf(vm_state, sizeof vm_state, ", %" PRIu64 " bytes of VM state",
                 s->vm_state_bytes);
    return asprintf(&text, "snapshot of %s, %" PRIu64 " bytes%s", date, s->disk_size,
                    vm_state) < 0
               ? NULL
               : text;
}

static int list_snapshots(struct node *node, view_tell *tell, void *opaque)
{
    CLEANUP_SNAPSHOT_LIST struct snapshot_list list = {0};
    int err = node_snapshots(node, &list);

    for (size_t i = 0; !err && i < list.n; i++) {
        const char *name = snapshot_export_name(&list, i);
        CLEANUP_FREE char *description = describe(&list.list[i]);
        if (name)
            err = tell(opaque, name, description);
    }
    return err;
}

/* NULL when it can't be found out. */
static char *describe_by_key(struct node *node, uint64_t key)
{
    CLEANUP_SNAPSHOT_LIST struct snapshot_list list = {0};
    int err = node_snapshots(node, &list);

    for (size_t i = 0; !err && i < list.n; i++)
        if (list.list[i].key == key)
            return describe(&list.list[i]);
    return NULL;
}

static int open_snapshot(struct view *view, const char *name, struct diag *diag)
{
    struct node *snapshot;

    int err = node_open_snapshot(view->node, name, &snapshot, diag);
    if (err)
        return err;
    view->state = snapshot;
    view->size = snapshot->size;
    view->description = describe_by_key(view->node, snapshot->snapshot_key);
    return 0;
}

static void close_snapshot(struct view *view)
{
    node_close_snapshot(view->state);
}

static int read_snapshot(struct view *view, void *buf, uint64_t off, uint64_t len)
{
    return block_read(view->state, buf, off, len);
}

static int snapshot_status(struct view *view, uint64_t off, uint64_t len,
                           struct view_status *out)
{
    struct block_status st;

    int err = block_status(view->state, off, len, &st);
    if (!err)
        *out = (struct view_status){.length = st.length, .data = st.data, .zero = st.zero};
    return err;
}

static int cache_snapshot(struct view *view, uint64_t off, uint64_t len)
{
    return block_cache(view->state, off, len);
}

const struct view_kind view_of_snapshot = {
    .name = "snapshot",
    .list = list_snapshots,
    .open = open_snapshot,
    .close = close_snapshot,
    .read = read_snapshot,
    .status = snapshot_status,
    .cache = cache_snapshot,
};
