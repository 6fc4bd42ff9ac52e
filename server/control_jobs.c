/* SPDX-License-Identifier: BSD-3-Clause */
/* Commands that list jobs, and that control them. */
#include "control_jobs.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "common/json_text.h"
#include "jobs/manager.h"
#include "jobs/mirror.h"

/* ---- jobs that exclude each other ---- */

/* A copy of all jobs' infos, which the caller frees; NULL when memory is short. */
static struct job_info *look_at_jobs(struct control_context *ctx, size_t *n)
{
    struct job_info *infos = NULL;
    size_t room = 0;

    /* More jobs may have started since: repeats until all fit. */
    while ((*n = job_query(ctx->jobs, infos, room)) > room || !infos) {
        free(infos);
        room = *n + 1;
        infos = calloc(room, sizeof *infos);
        if (!infos)
            return NULL;
    }
    return infos;
}

/* Does a job of that type take images below the active one out of the chain? */
static bool takes_images_out(const char *type)
{
    return strcmp(type, "commit") == 0 || strcmp(type, "stream") == 0;
}

/* Does this job keep one of that type from starting?  A commit needs the chain for itself;
 * streams run one at a time; and a job that is about to replace the disk must have ended. */
static bool keeps_from_starting(const struct job_info *job, const char *type)
{
    return job->completing || strcmp(job->type, "commit") == 0 ||
           strcmp(type, "commit") == 0 ||
           (takes_images_out(job->type) && takes_images_out(type));
}

/* Does this job keep another one from completing, that is, from replacing the disk?  Mirrors
 * and backups don't: they move to the new node. */
static bool keeps_from_completing(const struct job_info *job, const char *type)
{
    (void)type; /* any job that completes replaces the disk */
    return job->completing || job->state == JOB_CREATED || takes_images_out(job->type);
}

/* The first job on the export, except the one called `id`, that is in the way. */
static const struct job_info *find_rival(const struct job_info *infos, size_t n,
                                         const void *exp, const char *id, const char *type,
                                         bool (*is_in_the_way)(const struct job_info *job,
                                                               const char *type))
{
    for (size_t i = 0; infos && i < n; i++)
        if (infos[i].owner == exp && strcmp(infos[i].id, id) != 0 &&
            infos[i].state != JOB_CONCLUDED && is_in_the_way(&infos[i], type))
            return &infos[i];
    return NULL;
}

static const struct job_info *find_job(const struct job_info *infos, size_t n,
                                       const char *id)
{
    for (size_t i = 0; infos && i < n; i++)
        if (strcmp(infos[i].id, id) == 0)
            return &infos[i];
    return NULL;
}

bool control_may_start_job(struct control_context *ctx, const struct served_export *exp,
                           const char *type, struct control_error *error)
{
    size_t n;
    CLEANUP_FREE struct job_info *infos = look_at_jobs(ctx, &n);

    const struct job_info *rival = find_rival(infos, n, exp, "", type, keeps_from_starting);
    if (rival)
        control_fail(error, CLASS_GENERIC,
                     "job '%s' uses the disk, too: it has to end before", rival->id);
    return !rival;
}

/* As control_may_start_job, for the completion of a running job.  Tools know the words of this
 * message. */
static bool may_complete(struct control_context *ctx, const char *id,
                         struct control_error *error)
{
    size_t n;
    CLEANUP_FREE struct job_info *infos = look_at_jobs(ctx, &n);

    const struct job_info *self = find_job(infos, n, id);
    const struct job_info *rival =
        self ? find_rival(infos, n, self->owner, id, self->type, keeps_from_completing)
             : NULL; /* the verb itself will fail */
    if (rival)
        control_fail(
            error, CLASS_GENERIC,
            "The active block job '%s' cannot be completed: job '%s' uses the disk, "
            "too: it has to end before",
            id, rival->id);
    return !rival;
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

    if (strcmp(info->type, "mirror") == 0)
        json_object_set_new(object, "actively-synced", json_boolean(info->actively_synced));
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
                         bool block_jobs_only,
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
        if (!block_jobs_only || !infos[i].of_no_disk)
            json_array_append_new(list, describe_job(&infos[i]));
    return list;
}

static json_t *query_block_jobs(struct control_context *ctx, const json_t *args,
                                struct control_error *error)
{
    (void)args;
    return list_jobs(ctx, error, true, block_job_info);
}

static json_t *query_jobs(struct control_context *ctx, const json_t *args,
                          struct control_error *error)
{
    (void)args;
    return list_jobs(ctx, error, false, job_info);
}

/* ---- verbs ----
 *
 * Most commands have two forms, as in QEMU: block-job-VERB, mostly with `device`, and job-VERB
 * with `id`.  A job that doesn't exist has an error class of its own in the first form only.
 * The first form doesn't see jobs that belong to no disk. */

enum verb_form { BLOCK_JOB, JOB };

static json_t *reply_to_verb(enum verb_form form, int err, struct control_error *error)
{
    if (err == 0)
        return json_object();
    if (err != -ENOENT)
        return control_fail_diag(error, CLASS_GENERIC);
    return form == BLOCK_JOB ? control_fail_diag(error, CLASS_NOT_ACTIVE)
                             : control_fail(error, CLASS_GENERIC, "Job not found");
}

/* Does this form of the command see the job?  False with the error set. */
static bool form_fits(struct control_context *ctx, enum verb_form form, const char *id,
                      struct control_error *error)
{
    size_t n;
    CLEANUP_FREE struct job_info *infos = form == BLOCK_JOB ? look_at_jobs(ctx, &n) : NULL;

    const struct job_info *job = infos ? find_job(infos, n, id) : NULL;
    if (job && job->of_no_disk)
        control_fail(error, CLASS_NOT_ACTIVE, "Block job '%s' not found", id);
    return !job || !job->of_no_disk;
}

/* NULL with the error set.  The parameter is QEMU's `id`, or `device`, which older clients use. */
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

static json_t *run_verb(struct control_context *ctx, enum verb_form form,
                        const json_t *args, struct control_error *error,
                        int (*verb)(struct job_manager *manager, const char *id,
                                    struct diag *diag))
{
    const char *id = id_of(args, error);

    return id && form_fits(ctx, form, id, error)
               ? reply_to_verb(form, verb(ctx->jobs, id, &error->diag), error)
               : NULL;
}

static json_t *block_job_pause(struct control_context *ctx, const json_t *args,
                               struct control_error *error)
{
    return run_verb(ctx, BLOCK_JOB, args, error, job_pause);
}

static json_t *pause_job(struct control_context *ctx, const json_t *args,
                         struct control_error *error)
{
    return run_verb(ctx, JOB, args, error, job_pause);
}

static json_t *block_job_resume(struct control_context *ctx, const json_t *args,
                                struct control_error *error)
{
    return run_verb(ctx, BLOCK_JOB, args, error, job_resume);
}

static json_t *resume_job(struct control_context *ctx, const json_t *args,
                          struct control_error *error)
{
    return run_verb(ctx, JOB, args, error, job_resume);
}

static json_t *block_job_finalize(struct control_context *ctx, const json_t *args,
                                  struct control_error *error)
{
    return run_verb(ctx, BLOCK_JOB, args, error, job_finalize);
}

static json_t *finalize_job(struct control_context *ctx, const json_t *args,
                            struct control_error *error)
{
    return run_verb(ctx, JOB, args, error, job_finalize);
}

static json_t *block_job_dismiss(struct control_context *ctx, const json_t *args,
                                 struct control_error *error)
{
    return run_verb(ctx, BLOCK_JOB, args, error, job_dismiss);
}

static json_t *dismiss_job(struct control_context *ctx, const json_t *args,
                           struct control_error *error)
{
    return run_verb(ctx, JOB, args, error, job_dismiss);
}

static json_t *block_job_cancel(struct control_context *ctx, const json_t *args,
                                struct control_error *error)
{
    const char *id = arg_text(args, "device");

    if (!form_fits(ctx, BLOCK_JOB, id, error))
        return NULL;
    return reply_to_verb(
        BLOCK_JOB, job_cancel(ctx->jobs, id, arg_bool(args, "force", false), &error->diag),
        error);
}

/* Always by force, as in QEMU: only block-job-cancel ends a mirror so that the target is a
 * consistent copy. */
static json_t *cancel_job(struct control_context *ctx, const json_t *args,
                          struct control_error *error)
{
    return reply_to_verb(
        JOB, job_cancel(ctx->jobs, arg_text(args, "id"), true, &error->diag), error);
}

static json_t *block_job_set_speed(struct control_context *ctx, const json_t *args,
                                   struct control_error *error)
{
    const char *id = arg_text(args, "device");

    if (!form_fits(ctx, BLOCK_JOB, id, error))
        return NULL;
    return reply_to_verb(
        BLOCK_JOB, job_set_speed(ctx->jobs, id, arg_size(args, "speed", 0), &error->diag),
        error);
}

static json_t *complete_if_alone(struct control_context *ctx, enum verb_form form,
                                 const char *id, struct control_error *error)
{
    return form_fits(ctx, form, id, error) && may_complete(ctx, id, error)
               ? reply_to_verb(form, job_complete(ctx->jobs, id, &error->diag), error)
               : NULL;
}

static json_t *block_job_complete(struct control_context *ctx, const json_t *args,
                                  struct control_error *error)
{
    return complete_if_alone(ctx, BLOCK_JOB, arg_text(args, "device"), error);
}

static json_t *complete_job(struct control_context *ctx, const json_t *args,
                            struct control_error *error)
{
    return complete_if_alone(ctx, JOB, arg_text(args, "id"), error);
}

static json_t *block_job_change(struct control_context *ctx, const json_t *args,
                                struct control_error *error)
{
    bool write_blocking = arg_word(args, "copy-mode", control_copy_modes,
                                   MIRROR_BACKGROUND) == MIRROR_WRITE_BLOCKING;

    const char *id = arg_text(args, "id");

    if (!form_fits(ctx, BLOCK_JOB, id, error))
        return NULL;
    return reply_to_verb(
        BLOCK_JOB,
        job_change(ctx->jobs, id, arg_text(args, "type"), write_blocking, &error->diag),
        error);
}

/* ---- the table ---- */

static const struct control_arg cancel_args[] = {
    {"device", STRING, true},
    {"force", BOOL, false},
    {0},
};

static const struct control_arg speed_args[] = {
    {"device", STRING, true},
    {"speed", SIZE, true},
    {0},
};

static const struct control_arg device_args[] = {{"device", STRING, true}, {0}};

static const struct control_arg id_args[] = {{"id", STRING, true}, {0}};

static const struct control_arg either_args[] = {
    {"id", STRING, false},
    {"device", STRING, false},
    {0},
};

static const struct control_arg change_args[] = {
    {"id", STRING, true}, {"type", TAG, true}, {0}};
static const struct control_arg mirror_change[] = {
    {"copy-mode", WORDS(control_copy_modes), true}, {0}};
static const struct control_variant changing_mirror = {"mirror", OBJECT(mirror_change)};
static const struct control_variant *const changing_types[] = {&changing_mirror, NULL};

const char *const control_job_types[] = {"mirror", "commit", "stream", "backup", NULL};
static const char *const all_job_types[] = {"mirror", "commit", "stream",
                                            "backup", "create", NULL};
static const char *const io_statuses[] = {"ok", "failed", "nospace", NULL};

static const struct control_arg mirror_members[] = {{"actively-synced", BOOL, true}, {0}};
static const struct control_variant mirror_info = {"mirror", OBJECT(mirror_members)},
                                    commit_info = {"commit", NULL},
                                    stream_info = {"stream", NULL},
                                    backup_info = {"backup", NULL};
static const struct control_variant *const block_job_types[] = {
    &mirror_info, &commit_info, &stream_info, &backup_info, NULL};

static const struct control_arg block_job_members[] = {
    {"type", TAG, true},           {"device", STRING, true},
    {"len", SIZE, true},           {"offset", SIZE, true},
    {"busy", BOOL, true},          {"paused", BOOL, true},
    {"speed", SIZE, true},         {"io-status", WORDS(io_statuses), true},
    {"ready", BOOL, true},         {"status", WORDS(job_state_names), true},
    {"auto-finalize", BOOL, true}, {"auto-dismiss", BOOL, true},
    {"error", STRING, false},      {0},
};

static const struct control_arg job_members[] = {
    {"id", STRING, true},
    {"type", WORDS(all_job_types), true},
    {"status", WORDS(job_state_names), true},
    {"current-progress", SIZE, true},
    {"total-progress", SIZE, true},
    {"error", STRING, false},
    {0},
};

const struct control_command control_job_commands[] = {
    {"query-block-jobs", NULL, LIST_OF(UNION(block_job_members, "type", block_job_types)),
     query_block_jobs},
    {"query-jobs", NULL, LIST_OF(OBJECT(job_members)), query_jobs},
    {"block-job-cancel", OBJECT(cancel_args), NULL, block_job_cancel},
    {"block-job-complete", OBJECT(device_args), NULL, block_job_complete},
    {"block-job-pause", OBJECT(device_args), NULL, block_job_pause},
    {"block-job-resume", OBJECT(device_args), NULL, block_job_resume},
    {"block-job-set-speed", OBJECT(speed_args), NULL, block_job_set_speed},
    {"block-job-finalize", OBJECT(either_args), NULL, block_job_finalize},
    {"block-job-dismiss", OBJECT(either_args), NULL, block_job_dismiss},
    {"block-job-change", UNION(change_args, "type", changing_types), NULL,
     block_job_change},
    {"job-cancel", OBJECT(id_args), NULL, cancel_job},
    {"job-complete", OBJECT(id_args), NULL, complete_job},
    {"job-pause", OBJECT(id_args), NULL, pause_job},
    {"job-resume", OBJECT(id_args), NULL, resume_job},
    {"job-finalize", OBJECT(id_args), NULL, finalize_job},
    {"job-dismiss", OBJECT(id_args), NULL, dismiss_job},
    {0},
};
