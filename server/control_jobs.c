/* SPDX-License-Identifier: BSD-3-Clause */
/* Commands that ask for jobs and tell them what to do. */
#include "control_jobs.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "common/json_text.h"
#include "jobs/manager.h"

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

bool control_may_start_job(struct control_context *ctx, const struct served_export *exp,
                           const char *type, struct control_error *error)
{
    size_t n;
    CLEANUP_FREE struct job_info *infos = look_at_jobs(ctx, &n);

    return !refuse_rival(find_rival(infos, n, exp, "", type), error);
}

/* control_may_start_job for one that runs already. */
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
