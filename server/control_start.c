/* SPDX-License-Identifier: BSD-3-Clause */
/* Commands that start jobs. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "control_chain.h"
#include "control_cmds.h"
#include "control_jobs.h"
#include "control_start.h"
#include "control_target.h"
#include "export_table.h"
#include "jobs/commit.h"
#include "jobs/mirror.h"
#include "jobs/stream.h"
#include "node_table.h"
#include "plugin_config.h"
#include "storage/nbd_uri.h"

/* ---- struct mirror_pivot: a job's view of the export ---- */

static struct node *take_seat(void *opaque, struct disk_seat *seat)
{
    return export_take_seat(opaque, seat);
}

static void set_seat(void *opaque, struct disk_seat *seat, enum disk_seat_state state)
{
    export_set_seat(opaque, seat, state);
}

static void catch_up(void *opaque, struct disk_seat *seat)
{
    export_catch_up(opaque, seat);
}

static void leave_seat(void *opaque, struct disk_seat *seat)
{
    export_leave_seat(opaque, seat);
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

static int check_layers(void *opaque, struct diag *diag)
{
    return export_check_layers(opaque, diag);
}

static void downgrade_lock(void *opaque, struct node *layer)
{
    export_downgrade_lock(opaque, layer);
}

static int make_writable(void *opaque, struct diag *diag)
{
    return export_make_writable(opaque, diag);
}

struct mirror_pivot pivot_of(struct served_export *exp)
{
    return (struct mirror_pivot){.take_seat = take_seat,
                                 .set_seat = set_seat,
                                 .caught_up = catch_up,
                                 .leave_seat = leave_seat,
                                 .begin_drain = begin_drain,
                                 .end_drain = end_drain,
                                 .replace = replace_served,
                                 .replace_backing = replace_backing,
                                 .check_layers = check_layers,
                                 .check_changes = check_changes,
                                 .downgrade_lock = downgrade_lock,
                                 .make_writable = make_writable,
                                 .opaque = exp};
}

/* ---- starting ---- */

static const char *const formats[] = {"qcow2", "qed", "raw", "nbd", NULL};
static const char *const modes[] = {"existing", "absolute-paths", NULL};
static const char *const syncs[] = {[MIRROR_FULL] = "full",
                                    [MIRROR_TOP] = "top",
                                    [MIRROR_NONE] = "none",
                                    [MIRROR_INCREMENTAL] = "incremental",
                                    NULL};
const char *const control_copy_modes[] = {
    [MIRROR_BACKGROUND] = "background", [MIRROR_WRITE_BLOCKING] = "write-blocking", NULL};
const char *const on_errors[] = {[JOB_REPORT] = "report",
                                 [JOB_IGNORE] = "ignore",
                                 [JOB_ENOSPC] = "enospc",
                                 [JOB_STOP] = "stop",
                                 NULL};

enum { MODE_EXISTING, MODE_ABSOLUTE_PATHS };
enum { FORMAT_RAW = 2, FORMAT_NBD };

struct job_params job_params_of(const json_t *args, struct served_export *exp,
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

enum job_on_error on_error_of(const json_t *args, const char *key)
{
    return (enum job_on_error)arg_word(args, key, on_errors, JOB_REPORT);
}

/* ---- targets ---- */

static int open_for_job(void *opaque, struct node *source, const _Atomic bool *give_up,
                        struct node **target, struct diag *diag)
{
    struct target_request *request = opaque;

    request->source = source;
    request->give_up = give_up;
    return control_open_target(request, target, diag);
}

static void free_request(void *opaque)
{
    control_target_request_free(opaque);
}

struct mirror_opener control_opener(struct target_request *request)
{
    return (struct mirror_opener){
        .open = open_for_job, .free = free_request, .opaque = request};
}

/* Proxmox says with the prefix "zeroinit:", or with a node of that driver, that the target reads
 * as zeroes. */
#define ZEROINIT "zeroinit:"

static bool is_zeroinit(const json_t *args)
{
    return strncmp(arg_text(args, "target"), ZEROINIT, strlen(ZEROINIT)) == 0;
}

static const char *target_name(const json_t *args)
{
    return arg_text(args, "target") + (is_zeroinit(args) ? strlen(ZEROINIT) : 0);
}

/* "nbd" isn't an image format: the contents of an NBD export are taken as raw. */
static const char *format_of(const json_t *args)
{
    unsigned format = arg_word(args, "format", formats, FORMAT_RAW);

    return formats[format == FORMAT_NBD ? FORMAT_RAW : format];
}

/* An opener for drive-mirror's target: a file, RBD image or NBD export by name. */
static struct mirror_opener opener_by_name(const struct control_context *ctx,
                                           const json_t *args)
{
    struct target_request *request = calloc(1, sizeof *request);
    const char *name = target_name(args);
    char *target = strdup(strncmp(name, "file:", 5) == 0 ? name + 5 : name);

    if (!request || !target) {
        free(request);
        free(target);
        return (struct mirror_opener){0};
    }
    *request = (struct target_request){
        .references = ctx->config->references,
        .target = target,
        .format = format_of(args),
        .existing = arg_word(args, "mode", modes, MODE_ABSOLUTE_PATHS) == MODE_EXISTING,
        .with_backing = arg_word(args, "sync", syncs, MIRROR_FULL) == MIRROR_TOP,
    };
    return control_opener(request);
}

/* An opener for blockdev-mirror's target, an added node, whose hold is taken over. */
static struct mirror_opener opener_of_node(struct control_context *ctx,
                                           struct added_node *target)
{
    struct target_request *request = calloc(1, sizeof *request);

    if (!request) {
        added_node_put(target);
        return (struct mirror_opener){0};
    }
    *request =
        (struct target_request){.added = target, .references = ctx->config->references};
    return control_opener(request);
}

static int start_mirror_to(struct control_context *ctx, struct served_export *exp,
                           const json_t *args, uint64_t ticket, struct mirror_opener opener,
                           bool zeroinit, struct diag *diag)
{
    const struct mirror_params params = {
        .job = job_params_of(args, exp, ticket),
        .opener = opener,
        .sync = (enum mirror_sync)arg_word(args, "sync", syncs, MIRROR_FULL),
        .bitmap = arg_text(args, "bitmap"),
        .copy_mode = (enum mirror_copy_mode)arg_word(args, "copy-mode", control_copy_modes,
                                                     MIRROR_BACKGROUND),
        .on_source_error = on_error_of(args, "on-source-error"),
        .on_target_error = on_error_of(args, "on-target-error"),
        .granularity = arg_size(args, "granularity", 0),
        .buf_size = arg_size(args, "buf-size", 0),
        .unmap = arg_bool(args, "unmap", true),
        .target_is_zero =
            arg_bool(args, "target-is-zero", false) ||
            (zeroinit && arg_word(args, "sync", syncs, MIRROR_FULL) == MIRROR_FULL),
        .pivot = pivot_of(exp),
    };

    return params.opener.open ? mirror_start(ctx->jobs, &params, diag)
                              : diag_errno(diag, ENOMEM, "job '%s'", params.job.id);
}

static int start_mirror(struct control_context *ctx, struct served_export *exp,
                        const json_t *args, uint64_t ticket, struct diag *diag)
{
    return start_mirror_to(ctx, exp, args, ticket, opener_by_name(ctx, args),
                           is_zeroinit(args), diag);
}

static int start_mirror_to_node(struct control_context *ctx, struct served_export *exp,
                                const json_t *args, uint64_t ticket, struct diag *diag)
{
    const char *name = arg_text(args, "target");
    struct added_node *target = node_table_find(&ctx->nodes, name);

    if (!target)
        return diag_set(diag, ENOENT, "Cannot find device='%.200s' nor node-name='%.200s'",
                        name, name);
    bool zeroinit = target->filtered;
    return start_mirror_to(ctx, exp, args, ticket, opener_of_node(ctx, target), zeroinit,
                           diag);
}

/* Checks that are possible before a target is opened or created. */
static bool mirror_makes_sense(struct served_export *exp, const json_t *args,
                               struct control_error *error)
{
    unsigned sync = arg_word(args, "sync", syncs, MIRROR_FULL);
    const char *replaces = arg_text(args, "replaces");

    if (replaces && strcmp(replaces, exp->node_name) != 0 &&
        !export_is_called(exp, replaces))
        control_fail(error, CLASS_GENERIC, "Failed to find node with node-name='%.200s'",
                     replaces);
    else if ((sync == MIRROR_INCREMENTAL) != arg_is_given(args, "bitmap"))
        control_fail(error, CLASS_GENERIC,
                     "'bitmap' goes with sync=incremental, and that with 'bitmap'");
    else if (arg_bool(args, "target-is-zero", false) && sync != MIRROR_FULL)
        control_fail(error, CLASS_GENERIC, "'target-is-zero' goes with sync=full");
    else
        return true;
    return false;
}

/* With sync=none the target would be a new file on top of the disk, which can't be created while
 * the disk is served. */
static bool target_can_be_made(const json_t *args, struct control_error *error)
{
    if (arg_word(args, "sync", syncs, MIRROR_FULL) != MIRROR_NONE ||
        nbd_uri_is_one(target_name(args)) ||
        arg_word(args, "mode", modes, MODE_ABSOLUTE_PATHS) != MODE_ABSOLUTE_PATHS)
        return true;
    control_fail(error, CLASS_GENERIC,
                 "sync=none to a file needs mode=existing: a file on top of the disk "
                 "that is in use can't be made");
    return false;
}

/* A layer is given by its file name or its node name.  *file: its file name, which the caller
 * frees; NULL if neither is given. */
static int find_layer(struct served_export *exp, const json_t *args, const char *by_file,
                      const char *by_node, char **file, struct diag *diag)
{
    struct control_error error = {.diag = {.err = 0}};

    if (arg_is_given(args, by_file) && arg_is_given(args, by_node))
        return diag_set(diag, EINVAL, "'%s' and '%s' are mutually exclusive", by_node,
                        by_file);
    if (arg_is_given(args, by_node))
        *file = control_layer_file(exp, arg_text(args, by_node), &error);
    else if (arg_is_given(args, by_file))
        *file = strdup(arg_text(args, by_file));
    else
        return 0;
    return *file ? 0 : diag_set(diag, ENOENT, "%s", error.diag.text);
}

static int start_commit(struct control_context *ctx, struct served_export *exp,
                        const json_t *args, uint64_t ticket, struct diag *diag)
{
    CLEANUP_FREE char *top = NULL, *base = NULL;
    int err = find_layer(exp, args, "top", "top-node", &top, diag);
    if (!err)
        err = find_layer(exp, args, "base", "base-node", &base, diag);
    if (err)
        return err;
    const struct commit_params params = {
        .job = job_params_of(args, exp, ticket),
        .top = top,
        .base = base,
        .backing_file = arg_text(args, "backing-file"),
        .on_error = on_error_of(args, "on-error"),
        .pivot = pivot_of(exp),
    };

    return commit_start(ctx->jobs, &params, diag);
}

static int start_stream(struct control_context *ctx, struct served_export *exp,
                        const json_t *args, uint64_t ticket, struct diag *diag)
{
    CLEANUP_FREE char *top = NULL, *base = NULL, *bottom = NULL;
    /* The disk's own name means the active layer, even if a lower node also has that name. */
    int err = strcmp(arg_text(args, "device"), exp->node_name) == 0
                  ? 0
                  : find_layer(exp, args, "", "device", &top, diag);
    if (!err)
        err = find_layer(exp, args, "base", "base-node", &base, diag);
    if (!err)
        err = find_layer(exp, args, "", "bottom", &bottom, diag);
    if (err)
        return err;
    if (base && bottom)
        return diag_set(diag, EINVAL,
                        "'base' and 'bottom' cannot be specified at the same time");
    const struct stream_params params = {
        .job = job_params_of(args, exp, ticket),
        .top = top,
        .base = base,
        .bottom = bottom,
        .backing_file = arg_text(args, "backing-file"),
        .on_error = on_error_of(args, "on-error"),
        .pivot = pivot_of(exp),
    };

    return stream_start(ctx->jobs, &params, diag);
}

json_t *start_job(struct control_context *ctx, struct served_export *exp,
                  const json_t *args, struct control_error *error, start_job_fn *start)
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

    if (!exp || !mirror_makes_sense(exp, args, error) || !target_can_be_made(args, error) ||
        !control_may_start_job(ctx, exp, "mirror", error))
        return NULL;
    return start_job(ctx, exp, args, error, start_mirror);
}

static json_t *blockdev_mirror(struct control_context *ctx, const json_t *args,
                               struct control_error *error)
{
    CLEANUP_EXPORT struct served_export *exp =
        control_find_device(ctx, arg_text(args, "device"), error);

    if (!exp || !mirror_makes_sense(exp, args, error) ||
        !control_may_start_job(ctx, exp, "mirror", error))
        return NULL;
    return start_job(ctx, exp, args, error, start_mirror_to_node);
}

static json_t *block_commit(struct control_context *ctx, const json_t *args,
                            struct control_error *error)
{
    CLEANUP_EXPORT struct served_export *exp =
        control_find_device(ctx, arg_text(args, "device"), error);

    if (!exp || !control_may_start_job(ctx, exp, "commit", error))
        return NULL;
    return start_job(ctx, exp, args, error, start_commit);
}

static json_t *block_stream(struct control_context *ctx, const json_t *args,
                            struct control_error *error)
{
    CLEANUP_EXPORT struct served_export *exp =
        control_find_layer(ctx, arg_text(args, "device"), error);

    if (!exp || !control_may_start_job(ctx, exp, "stream", error))
        return NULL;
    return start_job(ctx, exp, args, error, start_stream);
}

/* ---- the table ---- */

/* Arguments of both mirror commands. */
#define MIRROR_ARGS                                                                      \
    {"job-id", STRING, false}, {"device", STRING, true}, {"target", STRING, true},       \
        {"sync", WORDS(syncs), true}, {"bitmap", STRING, false}, {"speed", SIZE, false}, \
        {"granularity", SIZE, false}, {"buf-size", SIZE, false},                         \
        {"on-source-error", WORDS(on_errors), false},                                    \
        {"on-target-error", WORDS(on_errors), false}, {"unmap", BOOL, false},            \
        {"copy-mode", WORDS(control_copy_modes), false}, {"replaces", STRING, false},    \
        {"auto-finalize", BOOL, false}, {"auto-dismiss", BOOL, false},                   \
    {                                                                                    \
        "target-is-zero", BOOL, false                                                    \
    }

static const struct control_arg mirror_args[] = {
    MIRROR_ARGS,
    {"format", WORDS(formats), false},
    {"mode", WORDS(modes), false},
    {0},
};

static const struct control_arg node_mirror_args[] = {
    MIRROR_ARGS, {"filter-node-name", STRING, false}, {0}};

static const struct control_arg commit_args[] = {
    {"job-id", STRING, false},
    {"device", STRING, true},
    {"base", STRING, false},
    {"base-node", STRING, false},
    {"top", STRING, false},
    {"top-node", STRING, false},
    {"backing-file", STRING, false},
    {"backing-mask-protocol", BOOL, false},
    {"filter-node-name", STRING, false},
    {"speed", SIZE, false},
    {"on-error", WORDS(on_errors), false},
    {"auto-finalize", BOOL, false},
    {"auto-dismiss", BOOL, false},
    {0},
};

static const struct control_arg stream_args[] = {
    {"job-id", STRING, false},
    {"device", STRING, true},
    {"base", STRING, false},
    {"base-node", STRING, false},
    {"bottom", STRING, false},
    {"backing-file", STRING, false},
    {"backing-mask-protocol", BOOL, false},
    {"filter-node-name", STRING, false},
    {"speed", SIZE, false},
    {"on-error", WORDS(on_errors), false},
    {"auto-finalize", BOOL, false},
    {"auto-dismiss", BOOL, false},
    {0},
};

const struct control_command control_start_commands[] = {
    {"drive-mirror", OBJECT(mirror_args), NULL, drive_mirror},
    {"blockdev-mirror", OBJECT(node_mirror_args), NULL, blockdev_mirror},
    {"block-commit", OBJECT(commit_args), NULL, block_commit},
    {"block-stream", OBJECT(stream_args), NULL, block_stream},
    {0},
};
