/* SPDX-License-Identifier: BSD-3-Clause */
/* Internal snapshots of an export. */
#include "export_snapshot.h"

#include <errno.h>

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

    return err ? err : export_open_for_changes(exp, diag);
}

int export_begin_snapshot(struct served_export *exp, unsigned own,
                          const struct snapshot_request *request,
                          struct export_snapshot *out, struct diag *diag)
{
    struct node *node;

    *out = (struct export_snapshot){.exp = exp};
    int err = export_claim(exp, own, &node, diag);
    if (err)
        return err;
    err = node_begin_snapshot(node, request, &out->change, diag);
    /* Twice: the first flush takes long, and more becomes dirty meanwhile; little is left
     * for the flush within the drain. */
    for (unsigned i = 0; !err && i < 2; i++)
        err = export_flush(exp, diag);
    if (err && out->change) {
        struct diag ignored;
        (void)!export_finish_snapshot(out, false, &ignored);
    } else if (err) {
        export_end_claim(exp);
    }
    return err;
}

int export_prepare_snapshot(struct export_snapshot *snapshot, struct diag *diag)
{
    return node_prepare_snapshot(snapshot->change, diag);
}

void export_commit_snapshot(struct export_snapshot *snapshot)
{
    node_commit_snapshot(snapshot->change);
}

void export_abort_snapshot(struct export_snapshot *snapshot)
{
    node_abort_snapshot(snapshot->change);
}

int export_finish_snapshot(struct export_snapshot *snapshot, bool committed,
                           struct diag *diag)
{
    if (!snapshot->change)
        return 0;
    int err = node_finish_snapshot(snapshot->change, committed, diag);

    snapshot->change = NULL;
    export_end_claim(snapshot->exp);
    return err;
}

static int change_drained(struct export_snapshot *snapshot, struct diag *diag)
{
    export_begin_drain(snapshot->exp);
    int err = export_prepare_snapshot(snapshot, diag);
    if (!err)
        export_commit_snapshot(snapshot);
    export_end_drain(snapshot->exp);
    return err;
}

static int change_once(struct served_export *exp, const struct snapshot_request *request,
                       struct snapshot_info *info, struct diag *diag)
{
    struct export_snapshot snapshot;
    struct diag ignored;

    int err = export_begin_snapshot(exp, 0, request, &snapshot, diag);
    if (err)
        return err;
    struct snapshot_info told = snapshot_change_take_info(snapshot.change);
    err = change_drained(&snapshot, diag);
    if (err)
        (void)!export_finish_snapshot(&snapshot, false, &ignored);
    else
        err = export_finish_snapshot(&snapshot, true, diag);
    if (err || !info)
        snapshot_info_free(&told);
    else
        *info = told;
    return err;
}

int export_change_snapshot(struct served_export *exp,
                           const struct snapshot_request *request,
                           struct snapshot_info *info, struct diag *diag)
{
    const struct snapshot_request tidy = {.kind = SNAPSHOT_TIDY};
    struct diag ignored;

    int err = export_check_snapshots(exp, diag);
    if (!err)
        err = change_once(exp, request, info, diag);
    if (!err && request->kind == SNAPSHOT_DELETE)
        /* else the next change or the closing does it */
        (void)!change_once(exp, &tidy, NULL, &ignored);
    return err;
}
