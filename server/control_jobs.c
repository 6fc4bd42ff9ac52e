/* SPDX-License-Identifier: BSD-3-Clause */
/* Commands that start jobs, ask for them and tell them what to do. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "common/json_text.h"
#include "control_cmds.h"
#include "control_target.h"
#include "export_table.h"
#include "jobs/commit.h"
#include "jobs/manager.h"
#include "jobs/mirror.h"
#include "storage/nbd_uri.h"

/* ---- whom jobs drain and move over: users of the export ---- */

/* Given back by the event of the job's end. */
static struct node *take_reference(void *opaque)
{
    return export_take_reference(opaque);
}

static void begin_drain(void *opaque)
{
    export_begin_drain(opaque);
}

static void end_drain(void *opaque)
{
    export_end_drain(opaque);
}

static int replace_served(void *opaque, struct node *target, struct diag *diag)
{
    return export_replace(opaque, target, diag);
}

static int replace_backing(void *opaque, struct node *layer, struct node *below,
                           struct diag *diag)
{
    return export_replace_backing(opaque, layer, below, diag);
}

static int check_changes(void *opaque, struct diag *diag)
{
    return export_check_changes(opaque, diag);
}

static void downgrade_lock(void *opaque, struct node *layer)
{
    export_downgrade_lock(opaque, layer);
}

static struct mirror_pivot pivot_of(struct served_export *exp)
{
    return (struct mirror_pivot){.take_reference = take_reference,
                                 .begin_drain = begin_drain,
                                 .end_drain = end_drain,
                                 .replace = replace_served,
                                 .replace_backing = replace_backing,
                                 .check_changes = check_changes,
                                 .downgrade_lock = downgrade_lock,
                                 .opaque = exp};
}

/* ---- who is there ---- */

/* A copy of all jobs' infos, to be freed; NULL when memory is short. */
static struct job_info *look_at_jobs(struct control_context *ctx, size_t *n)
{
    struct job_info *infos = NULL;
    size_t room = 0;

    /* Only this thread starts jobs: there can't be more the second time. */
    while ((*n = job_query(ctx->jobs, infos, room)) > room || !infos) {
        free(infos);
        room = *n + 1;
        infos = calloc(room, sizeof *infos);
        if (!infos)
            return NULL;
    }
    return infos;
}

/* Among jobs on the export (but for the one of the id) the first that is in the way.  type:
 * only jobs of this kind are, and who replaces the disk. */
static const struct job_info *find_rival(const struct job_info *infos, size_t n,
                                         const void *exp, const char *id, const char *type)
{
    for (size_t i = 0; infos && i < n; i++)
        if (infos[i].owner == exp && strcmp(infos[i].id, id) != 0 &&
            infos[i].state != JOB_CONCLUDED &&
            (!type || infos[i].completing || strcmp(infos[i].type, type) == 0))
            return &infos[i];
    return NULL;
}

static bool refuse_rival(const struct job_info *rival, struct control_error *error)
{
    if (rival)
        control_fail(error, CLASS_GENERIC,
                     "job '%s' uses the disk, too: it has to end before", rival->id);
    return rival;
}

/* Who replaces a disk's node or its layers must be alone with it: no other job may run on
 * the export, nor be started from the moment that it was told to.  type: see find_rival. */
static bool may_start(struct control_context *ctx, const struct served_export *exp,
                      const char *type, struct control_error *error)
{
    size_t n;
    CLEANUP_FREE struct job_info *infos = look_at_jobs(ctx, &n);

    return !refuse_rival(find_rival(infos, n, exp, "", type), error);
}

/* The same for a job that runs already. */
static bool may_complete(struct control_context *ctx, const char *id,
                         struct control_error *error)
{
    size_t n;
    CLEANUP_FREE struct job_info *infos = look_at_jobs(ctx, &n);

    for (size_t i = 0; infos && i < n; i++)
        if (strcmp(infos[i].id, id) == 0)
            return !refuse_rival(find_rival(infos, n, infos[i].owner, id, NULL), error);
    return true; /* there is no such job, as the verb will say */
}

/* ---- starting ---- */

static const char *const formats[] = {"qcow2", "qed", "raw", NULL};
static const char *const modes[] = {"existing", "absolute-paths", NULL};
static const char *const syncs[] = {[MIRROR_FULL] = "full",
                                    [MIRROR_TOP] = "top",
                                    [MIRROR_NONE] = "none",
                                    [MIRROR_INCREMENTAL] = "incremental",
                                    NULL};
static const char *const copy_modes[] = {
    [MIRROR_BACKGROUND] = "background", [MIRROR_WRITE_BLOCKING] = "write-blocking", NULL};
static const char *const on_errors[] = {[JOB_REPORT] = "report",
                                        [JOB_IGNORE] = "ignore",
                                        [JOB_ENOSPC] = "enospc",
                                        [JOB_STOP] = "stop",
                                        NULL};

enum { MODE_EXISTING, MODE_ABSOLUTE_PATHS };
enum { FORMAT_RAW = 2 };

static struct job_params job_params_of(const json_t *args, struct served_export *exp,
                                       uint64_t ticket)
{
    const char *id = arg_text(args, "job-id");

    return (struct job_params){
        .id = id ? id : arg_text(args, "device"),
        .speed = arg_size(args, "speed", 0),
        .owner = exp,
        .ticket = ticket,
        .manual_finalize = !arg_bool(args, "auto-finalize", true),
        .manual_dismiss = !arg_bool(args, "auto-dismiss", true),
    };
}

static enum job_on_error on_error_of(const json_t *args, const char *key)
{
    return (enum job_on_error)arg_word(args, key, on_errors, JOB_REPORT);
}

/* The opener's: its own copy of what the command said. */
static int open_target(void *opaque, struct node *source, const _Atomic bool *give_up,
                       struct node **target, struct diag *diag)
{
    struct target_request *request = opaque;

    request->source = source;
    request->give_up = give_up;
    return control_open_target(request, target, diag);
}

static void free_request(void *opaque)
{
    struct target_request *request = opaque;

    free(request->target);
    free(request);
}

static struct mirror_opener opener_of(const json_t *args)
{
    struct target_request *request = calloc(1, sizeof *request);
    const char *name = arg_text(args, "target");
    char *target = strdup(strncmp(name, "file:", 5) == 0 ? name + 5 : name);

    if (!request || !target) {
        free(request);
        free(target);
        return (struct mirror_opener){0};
    }
    *request = (struct target_request){
        .target = target,
        .format = formats[arg_word(args, "format", formats, FORMAT_RAW)],
        .existing = arg_word(args, "mode", modes, MODE_ABSOLUTE_PATHS) == MODE_EXISTING,
        .with_backing = arg_word(args, "sync", syncs, MIRROR_FULL) == MIRROR_TOP,
    };
    return (struct mirror_opener){
        .open = open_target, .free = free_request, .opaque = request};
}

static int start_mirror(struct control_context *ctx, struct served_export *exp,
                        const json_t *args, uint64_t ticket, struct diag *diag)
{
    struct mirror_params params = {
        .job = job_params_of(args, exp, ticket),
        .opener = opener_of(args),
        .sync = (enum mirror_sync)arg_word(args, "sync", syncs, MIRROR_FULL),
        .bitmap = arg_text(args, "bitmap"),
        .copy_mode = (enum mirror_copy_mode)arg_word(args, "copy-mode", copy_modes,
                                                     MIRROR_BACKGROUND),
        .on_source_error = on_error_of(args, "on-source-error"),
        .on_target_error = on_error_of(args, "on-target-error"),
        .granularity = arg_size(args, "granularity", 0),
        .buf_size = arg_size(args, "buf-size", 0),
        .unmap = arg_bool(args, "unmap", true),
        .pivot = pivot_of(exp),
    };

    return params.opener.open ? mirror_start(ctx->jobs, &params, diag)
                              : diag_errno(diag, ENOMEM, "job '%s'", params.job.id);
}

/* What can be said before a target is opened, or even made. */
static bool mirror_makes_sense(const struct served_export *exp, const json_t *args,
                               struct control_error *error)
{
    unsigned sync = arg_word(args, "sync", syncs, MIRROR_FULL);
    const char *replaces = arg_text(args, "replaces");

    if (replaces && strcmp(replaces, exp->node_name) != 0)
        control_fail(error, CLASS_GENERIC, "Failed to find node with node-name='%.200s'",
                     replaces);
    else if ((sync == MIRROR_INCREMENTAL) != arg_is_given(args, "bitmap"))
        control_fail(error, CLASS_GENERIC,
                     "'bitmap' goes with sync=incremental, and that with 'bitmap'");
    else if (sync == MIRROR_NONE && !nbd_uri_is_one(arg_text(args, "target")) &&
             arg_word(args, "mode", modes, MODE_ABSOLUTE_PATHS) == MODE_ABSOLUTE_PATHS)
        control_fail(error, CLASS_GENERIC,
                     "sync=none to a file needs mode=existing: a file on top of the disk "
                     "that is in use can't be made");
    else
        return true;
    return false;
}

static int start_commit(struct control_context *ctx, struct served_export *exp,
                        const json_t *args, uint64_t ticket, struct diag *diag)
{
    const struct commit_params params = {
        .job = job_params_of(args, exp, ticket),
        .top = arg_text(args, "top"),
        .base = arg_text(args, "base"),
        .on_error = on_error_of(args, "on-error"),
        .pivot = pivot_of(exp),
    };

    return commit_start(ctx->jobs, &params, diag);
}

/* Starts a job on the export, which stays while the job runs: the event of its end gives it
 * back. */
static json_t *start_job(struct control_context *ctx, struct served_export *exp,
                         const json_t *args, struct control_error *error,
                         int (*start)(struct control_context *ctx,
                                      struct served_export *exp, const json_t *args,
                                      uint64_t ticket, struct diag *diag))
{
    uint64_t ticket = control_ticket(ctx);

    if (!export_begin_job(exp))
        return control_fail(error, CLASS_DEVICE, "Cannot find device '%.200s'",
                            arg_text(args, "device"));
    if (start(ctx, exp, args, ticket, &error->diag) == 0)
        return control_await(ctx, ticket);
    export_end_job(exp);
    return control_fail_diag(error, CLASS_GENERIC);
}

static json_t *drive_mirror(struct control_context *ctx, const json_t *args,
                            struct control_error *error)
{
    CLEANUP_EXPORT struct served_export *exp =
        control_find_device(ctx, arg_text(args, "device"), error);

    if (!exp || !mirror_makes_sense(exp, args, error) ||
        !may_start(ctx, exp, "commit", error))
        return NULL;
    return start_job(ctx, exp, args, error, start_mirror);
}

static json_t *block_commit(struct control_context *ctx, const json_t *args,
                            struct control_error *error)
{
    CLEANUP_EXPORT struct served_export *exp =
        control_find_device(ctx, arg_text(args, "device"), error);

    if (!exp || !may_start(ctx, exp, NULL, error))
        return NULL;
    return start_job(ctx, exp, args, error, start_commit);
}

/* ---- looking ---- */

static void add_error(json_t *object, const struct job_info *info)
{
    if (info->error[0])
        json_object_set_new(object, "error", json_from_text(info->error));
}

static json_t *block_job_info(const struct job_info *info)
{
    json_t *object = json_pack(
        "{s:s,s:s,s:I,s:I,s:b,s:b,s:I,s:s,s:b,s:s,s:b,s:b}", "type", info->type, "device",
        info->id, "len", (json_int_t)info->len, "offset", (json_int_t)info->offset, "busy",
        info->busy, "paused", info->paused, "speed", (json_int_t)info->speed, "io-status",
        info->io_status, "ready", info->ready, "status", job_state_name(info->state),
        "auto-finalize", info->auto_finalize, "auto-dismiss", info->auto_dismiss);

    add_error(object, info);
    return object;
}

static json_t *job_info(const struct job_info *info)
{
    json_t *object =
        json_pack("{s:s,s:s,s:s,s:I,s:I}", "id", info->id, "type", info->type, "status",
                  job_state_name(info->state), "current-progress", (json_int_t)info->offset,
                  "total-progress", (json_int_t)info->len);

    add_error(object, info);
    return object;
}

static json_t *list_jobs(struct control_context *ctx, struct control_error *error,
                         json_t *(*describe_job)(const struct job_info *))
{
    size_t n;
    CLEANUP_FREE struct job_info *infos = look_at_jobs(ctx, &n);
    json_t *list = json_array();

    if (!infos) {
        json_decref(list);
        return control_fail(error, CLASS_GENERIC, "out of memory");
    }
    for (size_t i = 0; i < n; i++)
        json_array_append_new(list, describe_job(&infos[i]));
    return list;
}

static json_t *query_block_jobs(struct control_context *ctx, const json_t *args,
                                struct control_error *error)
{
    (void)args;
    return list_jobs(ctx, error, block_job_info);
}

static json_t *query_jobs(struct control_context *ctx, const json_t *args,
                          struct control_error *error)
{
    (void)args;
    return list_jobs(ctx, error, job_info);
}

/* ---- verbs ---- */

static json_t *reply_to_verb(int err, struct control_error *error)
{
    if (err == 0)
        return json_object();
    return control_fail_diag(error, err == -ENOENT ? CLASS_NOT_ACTIVE : CLASS_GENERIC);
}

static json_t *job_cancel_command(struct control_context *ctx, const json_t *args,
                                  struct control_error *error)
{
    return reply_to_verb(job_cancel(ctx->jobs, arg_text(args, "device"),
                                    arg_bool(args, "force", false), &error->diag),
                         error);
}

static json_t *job_pause_command(struct control_context *ctx, const json_t *args,
                                 struct control_error *error)
{
    return reply_to_verb(job_pause(ctx->jobs, arg_text(args, "device"), &error->diag),
                         error);
}

static json_t *job_resume_command(struct control_context *ctx, const json_t *args,
                                  struct control_error *error)
{
    return reply_to_verb(job_resume(ctx->jobs, arg_text(args, "device"), &error->diag),
                         error);
}

static json_t *job_set_speed_command(struct control_context *ctx, const json_t *args,
                                     struct control_error *error)
{
    return reply_to_verb(job_set_speed(ctx->jobs, arg_text(args, "device"),
                                       arg_size(args, "speed", 0), &error->diag),
                         error);
}

static json_t *job_complete_command(struct control_context *ctx, const json_t *args,
                                    struct control_error *error)
{
    const char *id = arg_text(args, "device");

    return may_complete(ctx, id, error)
               ? reply_to_verb(job_complete(ctx->jobs, id, &error->diag), error)
               : NULL;
}

/* QMP calls the job `id` here, and `device` elsewhere: both are taken. */
static const char *id_of(const json_t *args, struct control_error *error)
{
    const char *id = arg_text(args, "id"), *device = arg_text(args, "device");

    if (!id == !device)
        control_fail(error, CLASS_GENERIC, "Parameter 'id' is %s",
                     id ? "the same as 'device': give one" : "missing");
    else
        return id ? id : device;
    return NULL;
}

static json_t *job_finalize_command(struct control_context *ctx, const json_t *args,
                                    struct control_error *error)
{
    const char *id = id_of(args, error);

    return id ? reply_to_verb(job_finalize(ctx->jobs, id, &error->diag), error) : NULL;
}

static json_t *job_dismiss_command(struct control_context *ctx, const json_t *args,
                                   struct control_error *error)
{
    const char *id = id_of(args, error);

    return id ? reply_to_verb(job_dismiss(ctx->jobs, id, &error->diag), error) : NULL;
}

/* ---- the table ---- */

static const struct control_arg mirror_args[] = {
    {"job-id", ARG_STRING, false, NULL},
    {"device", ARG_STRING, true, NULL},
    {"target", ARG_STRING, true, NULL},
    {"format", ARG_WORD, false, formats},
    {"mode", ARG_WORD, false, modes},
    {"sync", ARG_WORD, true, syncs},
    {"bitmap", ARG_STRING, false, NULL},
    {"speed", ARG_SIZE, false, NULL},
    {"granularity", ARG_SIZE, false, NULL},
    {"buf-size", ARG_SIZE, false, NULL},
    {"on-source-error", ARG_WORD, false, on_errors},
    {"on-target-error", ARG_WORD, false, on_errors},
    {"unmap", ARG_BOOL, false, NULL},
    {"copy-mode", ARG_WORD, false, copy_modes},
    {"replaces", ARG_STRING, false, NULL},
    {"auto-finalize", ARG_BOOL, false, NULL},
    {"auto-dismiss", ARG_BOOL, false, NULL},
    {0},
};

static const struct control_arg commit_args[] = {
    {"job-id", ARG_STRING, false, NULL},
    {"device", ARG_STRING, true, NULL},
    {"base", ARG_STRING, false, NULL},
    {"top", ARG_STRING, false, NULL},
    {"speed", ARG_SIZE, false, NULL},
    {"on-error", ARG_WORD, false, on_errors},
    {"auto-finalize", ARG_BOOL, false, NULL},
    {"auto-dismiss", ARG_BOOL, false, NULL},
    {0},
};

static const struct control_arg cancel_args[] = {
    {"device", ARG_STRING, true, NULL},
    {"force", ARG_BOOL, false, NULL},
    {0},
};

static const struct control_arg speed_args[] = {
    {"device", ARG_STRING, true, NULL},
    {"speed", ARG_SIZE, true, NULL},
    {0},
};

static const struct control_arg device_args[] = {{"device", ARG_STRING, true, NULL}, {0}};

static const struct control_arg id_args[] = {
    {"id", ARG_STRING, false, NULL},
    {"device", ARG_STRING, false, NULL},
    {0},
};

const struct control_command control_job_commands[] = {
    {"drive-mirror", mirror_args, drive_mirror},
    {"block-commit", commit_args, block_commit},
    {"query-block-jobs", NULL, query_block_jobs},
    {"query-jobs", NULL, query_jobs},
    {"block-job-cancel", cancel_args, job_cancel_command},
    {"block-job-complete", device_args, job_complete_command},
    {"block-job-pause", device_args, job_pause_command},
    {"block-job-resume", device_args, job_resume_command},
    {"block-job-set-speed", speed_args, job_set_speed_command},
    {"block-job-finalize", id_args, job_finalize_command},
    {"block-job-dismiss", id_args, job_dismiss_command},
    {0},
};
