/* SPDX-License-Identifier: BSD-3-Clause */
/* Commands for internal snapshots.  They run on the lane, one after the other. */
#include "control_snapshots.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/cleanup.h"
#include "base/log.h"
#include "common/image_info_json.h"
#include "control_image_types.h"
#include "export_snapshot.h"
#include "export_table.h"

/* By the device's or the node's name, as in QEMU. */
static struct served_export *find_device(struct control_context *ctx, const json_t *args,
                                         struct control_error *error)
{
    const char *name = arg_text(args, "device");
    struct served_export *exp = control_look_for_disk(ctx, name);

    if (!exp)
        control_fail(error, CLASS_GENERIC,
                     "Cannot find device='%.200s' nor node-name='%.200s'", name, name);
    return exp;
}

/* ---- creating one ---- */

static const struct control_arg snapshot_args[] = {
    {"device", STRING, true},
    {"name", STRING, true},
    {0},
};

/* 0 or -errno with diag; -EEXIST: a snapshot has that name.  Ids don't count: a client
 * chooses names only. */
static int check_name(struct served_export *exp, const char *name, struct diag *diag)
{
    CLEANUP_SNAPSHOT_LIST struct snapshot_list list = {0};
    EXPORT_USE(use, export_enter(exp));

    if (!*name)
        return diag_set(diag, EINVAL, "Name is empty");
    if (node_snapshots(use.node, &list))
        return diag_errno(diag, ENOMEM, "%s", use.node->filename);
    for (size_t i = 0; i < list.n; i++)
        if (strcmp(list.list[i].name, name) == 0)
            return diag_set(diag, EEXIST,
                            "Snapshot with name '%.200s' already exists on device '%s'",
                            name, exp->node_name);
    return 0;
}

static struct snapshot_request make_request(const json_t *args)
{
    struct timespec now;

    clock_gettime(CLOCK_REALTIME, &now);
    return (struct snapshot_request){
        .kind = SNAPSHOT_CREATE,
        .name = arg_text(args, "name"),
        .date_sec = (uint32_t)now.tv_sec,
        .date_nsec = (uint32_t)now.tv_nsec,
        .ahead = true,
    };
}

/* Can the image have such a snapshot?  False with the error set. */
static bool judge_request(struct served_export *exp, const struct snapshot_request *request,
                          struct control_error *error)
{
    if (export_check_snapshots(exp, &error->diag) == 0 &&
        check_name(exp, request->name, &error->diag) == 0)
        return true;
    control_fail_diag(error, CLASS_GENERIC);
    return false;
}

static json_t *snapshot_internal(struct control_context *ctx, const json_t *args,
                                 struct control_error *error)
{
    const struct snapshot_request request = make_request(args);
    CLEANUP_EXPORT struct served_export *exp = find_device(ctx, args, error);

    if (!exp || !judge_request(exp, &request, error))
        return NULL;
    return export_change_snapshot(exp, &request, NULL, &error->diag)
               ? control_fail_diag(error, CLASS_GENERIC)
               : json_object();
}

/* ---- creating one in a transaction ---- */

static bool open_snapshot_action(struct transaction_action *action,
                                 struct control_error *error)
{
    const struct snapshot_request request = make_request(action->args);
    struct export_snapshot *snapshot = calloc(1, sizeof *snapshot);

    action->state = snapshot;
    if (!snapshot) {
        control_fail(error, CLASS_GENERIC, "out of memory");
        return false;
    }
    if (!judge_request(action->exp, &request, error))
        return false;
    unsigned own = transaction_count_jobs(action->transaction, action->exp);
    if (export_begin_snapshot(action->exp, own, &request, snapshot, &error->diag) == 0)
        return true;
    control_fail_diag(error, CLASS_GENERIC);
    return false;
}

static bool prepare_snapshot_action(struct transaction_action *action,
                                    struct control_error *error)
{
    if (export_prepare_snapshot(action->state, &error->diag) == 0)
        return true;
    control_fail_diag(error, CLASS_GENERIC);
    return false;
}

static void commit_snapshot_action(struct transaction_action *action)
{
    export_commit_snapshot(action->state);
}

static void abort_snapshot_action(struct transaction_action *action)
{
    export_abort_snapshot(action->state);
}

static void finish_snapshot_action(struct transaction_action *action, bool committed)
{
    struct diag diag = {0};

    if (action->state && export_finish_snapshot(action->state, committed, &diag))
        log_error("%s", diag.text);
    free(action->state);
}

const struct transaction_kind snapshot_internal_kind = {
    .variant = {"blockdev-snapshot-internal-sync", ACTION(snapshot_args)},
    .export_arg = "device",
    .prepares_last = true,
    .open = open_snapshot_action,
    .prepare = prepare_snapshot_action,
    .commit = commit_snapshot_action,
    .abort = abort_snapshot_action,
    .finish = finish_snapshot_action,
};

/* ---- deleting one ---- */

static json_t *not_found(struct served_export *exp, const struct snapshot_request *request,
                         struct control_error *error)
{
    return control_fail(
        error, CLASS_GENERIC,
        "Snapshot with id '%.200s' and name '%.200s' does not exist on device '%s'",
        request->id ? request->id : "null", request->name ? request->name : "null",
        exp->node_name);
}

static json_t *delete_internal(struct control_context *ctx, const json_t *args,
                               struct control_error *error)
{
    const struct snapshot_request request = {
        .kind = SNAPSHOT_DELETE,
        .id = arg_text(args, "id"),
        .name = arg_text(args, "name"),
    };
    struct snapshot_info info;
    CLEANUP_EXPORT struct served_export *exp = find_device(ctx, args, error);

    if (!exp)
        return NULL;
    if (!request.id && !request.name)
        return control_fail(error, CLASS_GENERIC, "Name or id must be provided");
    int err = export_change_snapshot(exp, &request, &info, &error->diag);
    if (err == -ENOENT)
        return not_found(exp, &request, error);
    if (err)
        return control_fail_diag(error, CLASS_GENERIC);
    json_t *result = snapshot_info_json(&info);
    snapshot_info_free(&info);
    return result;
}

/* ---- the table ---- */

static const struct control_arg delete_args[] = {
    {"device", STRING, true},
    {"id", STRING, false},
    {"name", STRING, false},
    {0},
};

const struct control_command control_snapshot_commands[] = {
    {"blockdev-snapshot-internal-sync", OBJECT(snapshot_args), NULL, snapshot_internal},
    {"blockdev-snapshot-delete-internal-sync", OBJECT(delete_args), &control_snapshot_info,
     delete_internal},
    {0},
};
