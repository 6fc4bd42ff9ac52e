/* SPDX-License-Identifier: BSD-3-Clause */
/* blockdev-backup and drive-backup: commands, and actions of a transaction. */
#include "control_backup.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "control_jobs.h"
#include "control_start.h"
#include "control_target.h"
#include "control_transaction.h"
#include "export_table.h"
#include "jobs/backup.h"
#include "jobs/manager.h"
#include "node_table.h"
#include "plugin_config.h"
#include "storage/nbd_uri.h"

enum { SYNC_FULL, SYNC_TOP, SYNC_NONE, SYNC_BITMAP, SYNC_INCREMENTAL };
static const char *const syncs[] = {"full", "top", "none", "bitmap", "incremental", NULL};

static const char *const bitmap_modes[] = {[BACKUP_ON_SUCCESS] = "on-success",
                                           [BACKUP_NEVER] = "never",
                                           [BACKUP_ALWAYS] = "always",
                                           NULL};

enum { BREAK_GUEST_WRITE, BREAK_SNAPSHOT };
static const char *const cbw_errors[] = {"break-guest-write", "break-snapshot", NULL};

static const char *const formats[] = {"qcow2", "qed", "raw", NULL};
enum { FORMAT_RAW = 2 };
static const char *const modes[] = {"existing", "absolute-paths", NULL};
enum { MODE_EXISTING, MODE_ABSOLUTE_PATHS };

/* Seconds.  With on-cbw-error=break-snapshot clients' writes don't wait longer than this
 * for the target, unless the client chose another time. */
#define GIVE_UP_AFTER 10u
#define LONGEST_WAIT  (24u * 3600)
/* How long to wait for a target that is slow to close. */
#define END_WAIT_MS 5000u

static const struct control_arg perf_args[] = {
    {"use-copy-range", BOOL, false},
    {"max-workers", SIZE, false},
    {"max-chunk", SIZE, false},
    {"min-cluster-size", SIZE, false},
    {0},
};

/* ---- the target, opened by the job ---- */

static struct target_request *new_request(const struct control_context *ctx,
                                          const json_t *args)
{
    const char *name = arg_text(args, "target");
    struct target_request *request = calloc(1, sizeof *request);
    char *target = strdup(strncmp(name, "file:", 5) == 0 ? name + 5 : name);

    if (!request || !target) {
        free(request);
        free(target);
        return NULL;
    }
    request->references = ctx->config->references;
    request->target = target;
    request->apart = true;
    return request;
}

/* The target is an added node, or an existing image whose format is guessed. */
static void fill_for_node(struct target_request *request, struct control_context *ctx,
                          const struct served_export *exp, const json_t *args)
{
    request->disk_name = exp->node_name;
    request->added = node_table_find(&ctx->nodes, arg_text(args, "target"));
    request->existing = true;
}

/* The target is an NBD export, whose contents are raw, or a file, which is created unless
 * mode=existing. */
static void fill_for_file(struct target_request *request, const json_t *args)
{
    if (arg_is_given(args, "format") || nbd_uri_is_one(request->target))
        request->format = formats[arg_word(args, "format", formats, FORMAT_RAW)];
    request->existing = arg_word(args, "mode", modes, MODE_ABSOLUTE_PATHS) == MODE_EXISTING;
    request->with_backing = arg_word(args, "sync", syncs, SYNC_FULL) == SYNC_TOP;
}

static struct mirror_opener opener_of(struct control_context *ctx,
                                      const struct served_export *exp, const json_t *args,
                                      bool by_node)
{
    struct target_request *request = new_request(ctx, args);

    if (!request)
        return (struct mirror_opener){0};
    if (by_node)
        fill_for_node(request, ctx, exp, args);
    else
        fill_for_file(request, args);
    return control_opener(request);
}

/* ---- checking ---- */

static bool perf_makes_sense(const json_t *perf, struct control_error *error)
{
    uint64_t workers = arg_size(perf, "max-workers", 1);
    if (workers >= 1 && workers <= INT32_MAX)
        return true;
    control_fail(error, CLASS_GENERIC, "x-perf: max-workers must be from 1 to %d",
                 INT32_MAX);
    return false;
}

static bool bitmap_makes_sense(const json_t *args, struct control_error *error)
{
    unsigned sync = arg_word(args, "sync", syncs, SYNC_FULL);
    bool given = arg_is_given(args, "bitmap"), has_mode = arg_is_given(args, "bitmap-mode");
    unsigned mode = arg_word(args, "bitmap-mode", bitmap_modes, BACKUP_ON_SUCCESS);

    if (!given && has_mode)
        control_fail(error, CLASS_GENERIC, "'bitmap-mode' goes with 'bitmap'");
    else if (!given && (sync == SYNC_BITMAP || sync == SYNC_INCREMENTAL))
        control_fail(error, CLASS_GENERIC, "sync=%s needs 'bitmap'", syncs[sync]);
    else if (given && sync == SYNC_BITMAP && !has_mode)
        control_fail(error, CLASS_GENERIC, "sync=bitmap needs 'bitmap-mode'");
    else if (sync == SYNC_INCREMENTAL && mode != BACKUP_ON_SUCCESS)
        control_fail(error, CLASS_GENERIC,
                     "sync=incremental has bitmap-mode=on-success; sync=bitmap has others");
    else if (given && (sync == SYNC_FULL || sync == SYNC_TOP) && mode == BACKUP_NEVER)
        control_fail(error, CLASS_GENERIC,
                     "bitmap-mode=never with sync=%s: the bitmap would be of no use",
                     syncs[sync]);
    else if (given && sync == SYNC_NONE && has_mode && mode != BACKUP_NEVER)
        control_fail(error, CLASS_GENERIC,
                     "sync=none doesn't change the bitmap: bitmap-mode can only be never");
    else
        return true;
    return false;
}

static bool backup_makes_sense(const json_t *args, struct control_error *error)
{
    if (arg_size(args, "cbw-timeout", 0) > LONGEST_WAIT) {
        control_fail(error, CLASS_GENERIC, "cbw-timeout: at most %u seconds", LONGEST_WAIT);
        return false;
    }
    return bitmap_makes_sense(args, error) &&
           perf_makes_sense(json_object_get(args, "x-perf"), error);
}

/* ---- starting ---- */

static enum backup_sync sync_of(const json_t *args)
{
    switch (arg_word(args, "sync", syncs, SYNC_FULL)) {
    case SYNC_TOP:
        return BACKUP_TOP;
    case SYNC_NONE:
        return BACKUP_NONE;
    case SYNC_BITMAP:
    case SYNC_INCREMENTAL:
        return BACKUP_BITMAP;
    default:
        return BACKUP_FULL;
    }
}

static struct backup_params backup_params_of(struct control_context *ctx,
                                             struct served_export *exp, const json_t *args,
                                             bool by_node, uint64_t ticket)
{
    const json_t *perf = json_object_get(args, "x-perf");
    bool give_up =
        arg_word(args, "on-cbw-error", cbw_errors, BREAK_GUEST_WRITE) == BREAK_SNAPSHOT;
    uint64_t seconds = arg_size(args, "cbw-timeout", give_up ? GIVE_UP_AFTER : 0);

    return (struct backup_params){
        .job = job_params_of(args, exp, ticket),
        .opener = opener_of(ctx, exp, args, by_node),
        .sync = sync_of(args),
        .bitmap = arg_text(args, "bitmap"),
        .bitmap_mode = (enum backup_bitmap_mode)arg_word(args, "bitmap-mode", bitmap_modes,
                                                         BACKUP_ON_SUCCESS),
        .compress = arg_bool(args, "compress", false),
        .on_source_error = on_error_of(args, "on-source-error"),
        .on_target_error = on_error_of(args, "on-target-error"),
        .give_up = give_up,
        .save_timeout_ms = (unsigned)seconds * 1000,
        .max_workers = (unsigned)arg_size(perf, "max-workers", 0),
        .max_chunk = arg_size(perf, "max-chunk", 0),
        .pivot = pivot_of(exp),
    };
}

static int start_params(struct control_context *ctx, struct backup_params *params,
                        struct backup **held, struct diag *diag)
{
    if (!params->opener.open)
        return diag_errno(diag, ENOMEM, "job '%s'", params->job.id);
    return held ? backup_start_held(ctx->jobs, params, held, diag)
                : backup_start(ctx->jobs, params, diag);
}

static int start_blockdev(struct control_context *ctx, struct served_export *exp,
                          const json_t *args, uint64_t ticket, struct diag *diag)
{
    struct backup_params params = backup_params_of(ctx, exp, args, true, ticket);

    return start_params(ctx, &params, NULL, diag);
}

static int start_drive(struct control_context *ctx, struct served_export *exp,
                       const json_t *args, uint64_t ticket, struct diag *diag)
{
    struct backup_params params = backup_params_of(ctx, exp, args, false, ticket);

    return start_params(ctx, &params, NULL, diag);
}

/* ---- the commands ---- */

static bool may_start(struct control_context *ctx, const struct served_export *exp,
                      const json_t *args, struct control_error *error)
{
    return backup_makes_sense(args, error) &&
           control_may_start_job(ctx, exp, "backup", error);
}

static json_t *start_backup(struct control_context *ctx, const json_t *args,
                            struct control_error *error, start_job_fn *start)
{
    CLEANUP_EXPORT struct served_export *exp =
        control_find_device(ctx, arg_text(args, "device"), error);

    return exp && may_start(ctx, exp, args, error) ? start_job(ctx, exp, args, error, start)
                                                   : NULL;
}

static json_t *blockdev_backup(struct control_context *ctx, const json_t *args,
                               struct control_error *error)
{
    return start_backup(ctx, args, error, start_blockdev);
}

static json_t *drive_backup(struct control_context *ctx, const json_t *args,
                            struct control_error *error)
{
    return start_backup(ctx, args, error, start_drive);
}

/* ---- actions ---- */

struct backup_action {
    struct backup *backup;
    /* taken over from an earlier action that held it; NULL: none */
    struct dirty_bitmap *bitmap;
};

/* False: no job was started. */
static bool start_held(struct transaction_action *action, struct backup_action *state,
                       struct control_error *error)
{
    bool by_node = action->kind == &blockdev_backup_kind;

    if (!export_begin_job(action->exp)) {
        control_fail(error, CLASS_DEVICE, "Cannot find device '%.200s'",
                     arg_text(action->args, "device"));
        return false;
    }
    struct backup_params params =
        backup_params_of(action->ctx, action->exp, action->args, by_node, NO_TICKET);
    params.job.group = transaction_group(action->transaction);
    if (start_params(action->ctx, &params, &state->backup, &error->diag) == 0)
        return true;
    export_end_job(action->exp);
    control_fail_diag(error, CLASS_GENERIC);
    return false;
}

static bool open_backup(struct transaction_action *action, struct control_error *error)
{
    CLEANUP_FREE struct backup_action *state = calloc(1, sizeof *state);

    if (!state) {
        control_fail(error, CLASS_GENERIC, "out of memory");
        return false;
    }
    if (!may_start(action->ctx, action->exp, action->args, error) ||
        !start_held(action, state, error))
        return false;
    int err = backup_wait_until_open(state->backup, &error->diag);
    action->state = TAKE(&state);
    if (err)
        control_fail_diag(error, CLASS_GENERIC);
    return !err;
}

static struct node *target_called(const struct transaction_action *action, const char *name)
{
    const struct backup_action *state = action->state;
    struct node *target = state ? backup_target(state->backup) : NULL;

    return target && target->name && strcmp(target->name->text, name) == 0 ? target : NULL;
}

/* The job's bitmap, if an earlier action has made it or holds it. */
static struct dirty_bitmap *find_held_bitmap(const struct transaction_action *action)
{
    const char *name = arg_text(action->args, "bitmap");
    struct dirty_bitmap *bitmap = name ? node_bitmap_find(action->node, name) : NULL;

    return bitmap && transaction_holds(action->transaction, bitmap) ? bitmap : NULL;
}

static bool freeze_backup(struct transaction_action *action, struct control_error *error)
{
    struct backup_action *state = action->state;

    state->bitmap = find_held_bitmap(action);
    if (backup_freeze(state->backup, state->bitmap, &error->diag)) {
        control_fail_diag(error, CLASS_GENERIC);
        return false;
    }
    /* From here on the job holds it; no later action may use it. */
    if (state->bitmap)
        transaction_forget(action->transaction, state->bitmap);
    return true;
}

/* At commit, because earlier actions have changed the bitmap. */
static void read_bitmap(struct transaction_action *action)
{
    struct backup_action *state = action->state;

    backup_read_bitmap(state->backup);
}

static void release_bitmap(void *bitmap)
{
    dirty_bitmap_release(bitmap);
}

static void thaw_backup(struct transaction_action *action)
{
    struct backup_action *state = action->state;
    struct control_error ignored;

    backup_thaw(state->backup, state->bitmap);
    if (state->bitmap &&
        !transaction_hold(action->transaction, state->bitmap, release_bitmap, &ignored))
        dirty_bitmap_release(state->bitmap);
}

/* Waits until a job of a failed transaction is gone, so that its id and its target are free
 * when the client gets the answer. */
static void wait_for_end(const struct transaction_action *action)
{
    const struct job_params job = job_params_of(action->args, action->exp, NO_TICKET);
    struct diag ignored;

    for (unsigned i = 0; i < END_WAIT_MS; i++) {
        if (job_check_id(action->ctx->jobs, job.id, &ignored) != -EEXIST)
            return;
        clock_nap_ns(1000000);
    }
}

static void decide_backup(struct transaction_action *action, bool committed)
{
    struct backup_action *state = action->state;

    if (!state)
        return;
    backup_decide(state->backup, committed);
    if (!committed)
        wait_for_end(action);
    free(state);
}

/* ---- the tables ---- */

#define COMMON_ARGS                                                                \
    {"job-id", STRING, false}, {"device", STRING, true}, {"target", STRING, true}, \
        {"sync", WORDS(syncs), true}, {"bitmap", STRING, false},                   \
        {"bitmap-mode", WORDS(bitmap_modes), false}, {"speed", SIZE, false},       \
        {"compress", BOOL, false}, {"on-source-error", WORDS(on_errors), false},   \
        {"on-target-error", WORDS(on_errors), false},                              \
        {"on-cbw-error", WORDS(cbw_errors), false}, {"cbw-timeout", SIZE, false},  \
        {"auto-finalize", BOOL, false}, {"auto-dismiss", BOOL, false},             \
        {"filter-node-name", STRING, false},                                       \
    {                                                                              \
        "x-perf", OBJECT(perf_args), false                                         \
    }

static const struct control_arg blockdev_args[] = {COMMON_ARGS, {0}};

static const struct control_arg drive_args[] = {
    COMMON_ARGS,
    {"format", WORDS(formats), false},
    {"mode", WORDS(modes), false},
    {0},
};

const struct transaction_kind blockdev_backup_kind = {
    .variant = {"blockdev-backup", ACTION(blockdev_args)},
    .export_arg = "device",
    .starts_job = true,
    .made = target_called,
    .open = open_backup,
    .prepare = freeze_backup,
    .commit = read_bitmap,
    .abort = thaw_backup,
    .finish = decide_backup,
};

const struct transaction_kind drive_backup_kind = {
    .variant = {"drive-backup", ACTION(drive_args)},
    .export_arg = "device",
    .starts_job = true,
    .made = target_called,
    .open = open_backup,
    .prepare = freeze_backup,
    .commit = read_bitmap,
    .abort = thaw_backup,
    .finish = decide_backup,
};

const struct control_command control_backup_commands[] = {
    {"blockdev-backup", OBJECT(blockdev_args), NULL, blockdev_backup},
    {"drive-backup", OBJECT(drive_args), NULL, drive_backup},
    {0},
};
