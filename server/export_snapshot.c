/* SPDX-License-Identifier: BSD-3-Clause */
/* Snapshots of an export. */
#include "export_snapshot.h"

#include <errno.h>
#include <string.h>

#include "base/log.h"

/* It is writable already, or can be made so. */
static int make_writable(struct served_export *exp, struct diag *diag)
{
    int err = export_check_changes(exp, diag);

    return err ? err : export_make_writable(exp, diag);
}

static int check_format(struct served_export *exp, struct diag *diag)
{
    EXPORT_USE(use, export_enter(exp));

    if (!node_can(use.node, DRIVER_SNAPSHOTS))
        return diag_set(
            diag, ENOTSUP,
            "Block format '%s' used by device '%s' does not support internal snapshots",
            node_format(use.node), exp->node_name);
    return use.node->can_write
               ? 0
               : diag_set(diag, EROFS, "Device '%s' is read only", exp->node_name);
}

int export_check_snapshots(struct served_export *exp, struct diag *diag)
{
    int err = check_format(exp, diag);

    return err ? err : make_writable(exp, diag);
}

int export_prepare_snapshot(struct served_export *exp,
                            const struct snapshot_request *request,
                            struct export_snapshot *out, struct diag *diag)
{
    struct node *node;

    *out = (struct export_snapshot){.exp = exp};
    int err = export_claim(exp, &node, diag);
    if (err)
        return err;
    err = node_prepare_snapshot(node, request, &out->change, diag);
    if (err)
        export_end_claim(exp);
    return err;
}

int export_commit_snapshot(struct export_snapshot *snapshot, struct diag *diag)
{
    int err = node_commit_snapshot(snapshot->change, diag);

    export_end_claim(snapshot->exp);
    return err;
}

void export_abort_snapshot(struct export_snapshot *snapshot)
{
    node_abort_snapshot(snapshot->change);
    export_end_claim(snapshot->exp);
}

static int change_drained(struct served_export *exp, const struct snapshot_request *request,
                          struct snapshot_info *info, struct diag *diag)
{
    struct export_snapshot snapshot;

    int err = export_prepare_snapshot(exp, request, &snapshot, diag);
    if (err)
        return err;
    struct snapshot_info told = snapshot.change->info;
    snapshot.change->info = (struct snapshot_info){0};
    err = export_commit_snapshot(&snapshot, diag);
    if (err || !info)
        snapshot_info_free(&told);
    else
        *info = told;
    return err;
}

/* Most of what is dirty is written before anybody waits for it; afterwards what the change
 * has left becomes free. */
static void commit_now(struct served_export *exp)
{
    EXPORT_USE(use, export_enter(exp));
    int err = block_flush(use.node);

    if (err)
        log_error("%s: flushing: %s", use.node->filename, strerror(-err));
}

int export_change_snapshot(struct served_export *exp,
                           const struct snapshot_request *request,
                           struct snapshot_info *info, struct diag *diag)
{
    int err = export_check_snapshots(exp, diag);
    if (err)
        return err;
    commit_now(exp);
    export_begin_drain(exp);
    err = change_drained(exp, request, info, diag);
    export_end_drain(exp);
    if (!err)
        commit_now(exp);
    return err;
}
