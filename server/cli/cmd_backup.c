/* SPDX-License-Identifier: BSD-3-Clause */
/* `qimg backup`: backs up a running disk into a folder, fully or incrementally.
 *
 * At each point a new bitmap is created on the server, named after the folder and the
 * point; it records the changes from then on.  The bitmap of the previous point tells what
 * to copy, and is removed when the new point is complete and durable.  So wherever a backup
 * is interrupted, the last point in the folder has its bitmap, and the next backup
 * continues from there.  If the server has no such bitmap any more, or the disk's size has
 * changed, a full backup is made. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <jansson.h>

#include "backup_folder.h"
#include "base/cleanup.h"
#include "base/path.h"
#include "block/create.h"
#include "block/driver.h"
#include "cli.h"
#include "interrupt.h"
#include "job_watch.h"
#include "qmp_client.h"
#include "size.h"

/* How long to wait for the job of an interrupted backup to end. */
#define LEFTOVER_JOB_S 60

enum {
    OPT_CONTROL = CLI_OWN_OPTIONS,
    OPT_DEVICE,
    OPT_KEEP,
    OPT_LIST,
    OPT_VERIFY,
    OPT_SPEED,
    OPT_FULL
};

static const struct cli_option options[] = {
    {OPT_CONTROL, "control", "PATH", "the server's control socket"},
    {OPT_DEVICE, "device", "NAME", "the disk's name at the server"},
    {OPT_KEEP, "keep", "N", "fold the oldest points, so that N are left"},
    {OPT_FULL, "full", NULL, "copy all, not only what has changed"},
    {'c', NULL, NULL, "store clusters compressed"},
    {OPT_SPEED, "speed", "SIZE", "bytes a second at most"},
    {OPT_LIST, "list", NULL, "list the points of the folder"},
    {OPT_VERIFY, "verify", NULL, "check the files of the folder"},
    {CLI_OUTPUT, "output", "human|json", "how --list and the progress are printed"},
    {'q', NULL, NULL, "print nothing but errors"},
    {0},
};

struct backup_args {
    const char *control, *device;
    uint64_t keep, speed; /* 0: not given */
    bool list, verify, full, compress, quiet;
    enum cli_output output;
};

/* One run of the command. */
struct backup_run {
    const struct backup_args *args;
    struct backup_folder *folder;
    struct qmp qmp;
    char device[256];
    uint64_t size;
    char job[64];
    char point[POINT_NAME_MAX];
    /* the point to continue from, whose bitmap exists; NULL: full backup */
    const struct backup_point *last;
};

/* ---- options ---- */

static int take_keep(struct backup_args *args)
{
    char *end;

    errno = 0;
    unsigned long n = strtoul(optarg, &end, 10);
    if (errno || *end || end == optarg || *optarg == '-' || n == 0)
        return cli_usage_error("--keep=%s: must be a number from 1 on", optarg);
    args->keep = n;
    return CLI_OK;
}

static int take_option(void *opaque, int option)
{
    struct backup_args *args = opaque;

    switch (option) {
    case OPT_CONTROL:
        args->control = optarg;
        break;
    case OPT_DEVICE:
        args->device = optarg;
        break;
    case OPT_KEEP:
        return take_keep(args);
    case OPT_SPEED:
        return size_parse_argument("speed", optarg, &args->speed);
    case OPT_LIST:
        args->list = true;
        break;
    case OPT_VERIFY:
        args->verify = true;
        break;
    case OPT_FULL:
        args->full = true;
        break;
    case 'c':
        args->compress = true;
        break;
    case 'q':
        args->quiet = true;
        break;
    default:
        return cli_parse_output(optarg, &args->output);
    }
    return CLI_OK;
}

/* ---- the server ---- */

/* Runs a command whose failure doesn't matter. */
static int ask_if_possible(struct backup_run *run, const char *command, json_t *args)
{
    json_t *value, *refusal;
    int code = qmp_try(&run->qmp, command, args, &value, &refusal);

    json_decref(value);
    json_decref(refusal);
    return code;
}

static int find_job(struct backup_run *run, bool *found)
{
    json_t *jobs, *job;
    size_t i;
    int code = qmp_command(&run->qmp, "query-block-jobs", NULL, &jobs);

    *found = false;
    json_array_foreach (jobs, i, job) {
        const char *id = json_string_value(json_object_get(job, "device"));
        *found |= id && strcmp(id, run->job) == 0;
    }
    json_decref(jobs);
    return code;
}

/* Cancels the job of an interrupted backup of this folder. */
static int end_leftover_job(struct backup_run *run)
{
    for (unsigned tenths = 0; tenths < LEFTOVER_JOB_S * 10; tenths++) {
        bool found;
        int code = find_job(run, &found);
        if (code != CLI_OK || !found)
            return code;
        code = ask_if_possible(run, "block-job-cancel",
                               json_pack("{s:s,s:b}", "device", run->job, "force", 1));
        if (code != CLI_OK)
            return code;
        nanosleep(&(struct timespec){.tv_nsec = 100000000}, NULL);
    }
    return cli_error("job '%s', of a backup that was interrupted, doesn't end", run->job);
}

static char *bitmap_of(const struct backup_run *run, const char *point)
{
    char *name;

    return asprintf(&name, "qimg-backup-%s-%s", run->folder->id, point) < 0 ? NULL : name;
}

static int remove_bitmap(struct backup_run *run, const char *name)
{
    return ask_if_possible(run, "block-dirty-bitmap-remove",
                           json_pack("{s:s,s:s}", "node", run->device, "name", name));
}

static bool bitmap_is_usable(const json_t *bitmap)
{
    return json_is_true(json_object_get(bitmap, "recording")) &&
           !json_is_true(json_object_get(bitmap, "inconsistent")) &&
           !json_is_true(json_object_get(bitmap, "busy"));
}

/* Looks for the bitmap of the folder's last point.  All other bitmaps of this folder are
 * left over, and removed. */
static int look_at_bitmaps(struct backup_run *run, const json_t *bitmaps)
{
    const struct backup_folder *folder = run->folder;
    const struct backup_point *last =
        folder->n_points ? &folder->points[folder->n_points - 1] : NULL;
    CLEANUP_FREE char *prefix = bitmap_of(run, "");
    CLEANUP_FREE char *wanted = bitmap_of(run, last ? last->name : "none");
    json_t *bitmap;
    size_t i;

    if (!prefix || !wanted)
        return cli_error("out of memory");
    json_array_foreach (bitmaps, i, bitmap) {
        const char *name = json_string_value(json_object_get(bitmap, "name"));
        if (!name || strncmp(name, prefix, strlen(prefix)) != 0)
            continue;
        if (strcmp(name, wanted) == 0 && bitmap_is_usable(bitmap))
            run->last = last;
        else if (remove_bitmap(run, name) != CLI_OK)
            return CLI_FAILED;
    }
    return CLI_OK;
}

static int read_device(struct backup_run *run, const json_t *device)
{
    const json_t *inserted = json_object_get(device, "inserted");
    const json_t *image = json_object_get(inserted, "image");
    const json_t *size = json_object_get(image, "virtual-size");

    if (!json_is_integer(size))
        return cli_error("the server doesn't tell the disk's size");
    snprintf(run->device, sizeof run->device, "%s",
             json_string_value(json_object_get(device, "device")));
    run->size = (uint64_t)json_integer_value(size);
    return look_at_bitmaps(run, json_object_get(inserted, "dirty-bitmaps"));
}

static int look_at_disk(struct backup_run *run)
{
    json_t *disk;
    int code = qmp_find_disk(&run->qmp, run->args->device, &disk);

    if (code == CLI_OK)
        code = read_device(run, disk);
    json_decref(disk);
    return code;
}

/* An overlay needs a backing file of the same size. */
static int judge_last_point(struct backup_run *run)
{
    struct backup_point_info info;

    if (!run->last || run->args->full) {
        run->last = NULL;
        return CLI_OK;
    }
    int code = backup_point_look(run->folder, run->last, &info);
    if (code != CLI_OK)
        return code;
    free(info.below);
    if (info.size != run->size)
        run->last = NULL;
    return CLI_OK;
}

/* ---- the backup ---- */

static int make_file(const struct backup_run *run, const char *path)
{
    char below[POINT_NAME_MAX + 16] = "";
    struct diag diag = {0};

    if (run->last)
        snprintf(below, sizeof below, "%s.qcow2", run->last->name);
    const struct create_request request = {
        .filename = path,
        .size = run->size,
        .exact_size = true,
        .backing_file = run->last ? below : NULL,
        .backing_format = run->last ? "qcow2" : NULL,
    };
    return create_image(driver_find("qcow2"), &request, &diag) ? cli_diag(&diag) : CLI_OK;
}

static json_t *backup_action(const struct backup_run *run, const char *path)
{
    json_t *data =
        json_pack("{s:s,s:s,s:s,s:s,s:s,s:s,s:s,s:b}", "job-id", run->job, "device",
                  run->device, "target", path, "format", "qcow2", "mode", "existing",
                  "sync", run->last ? "bitmap" : "full", "on-cbw-error", "break-snapshot",
                  "compress", run->args->compress);

    if (run->last) {
        CLEANUP_FREE char *bitmap = bitmap_of(run, run->last->name);
        json_object_set_new(data, "bitmap", json_string(bitmap ? bitmap : ""));
        json_object_set_new(data, "bitmap-mode", json_string("never"));
    }
    if (run->args->speed)
        json_object_set_new(data, "speed", json_integer((json_int_t)run->args->speed));
    return json_pack("{s:s,s:o}", "type", "drive-backup", "data", data);
}

/* Starts the job together with the bitmap that begins at the same point.  persistent: the
 * image stores the bitmap, if it can. */
static int try_transaction(struct backup_run *run, const char *path, const char *bitmap,
                           bool persistent, json_t **refusal)
{
    json_t *value;
    json_t *add =
        json_pack("{s:s,s:{s:s,s:s,s:b}}", "type", "block-dirty-bitmap-add", "data", "node",
                  run->device, "name", bitmap, "persistent", persistent);
    json_t *args = json_pack("{s:[o,o]}", "actions", add, backup_action(run, path));
    int code = qmp_try(&run->qmp, "transaction", args, &value, refusal);

    json_decref(value);
    return code;
}

static int start_job(struct backup_run *run, const char *path, const char *bitmap)
{
    json_t *refusal = NULL;

    int code = try_transaction(run, path, bitmap, true, &refusal);
    if (code == CLI_OK && refusal) {
        json_decref(refusal);
        code = try_transaction(run, path, bitmap, false, &refusal);
    }
    if (code == CLI_OK && refusal)
        code = cli_error("%s", json_string_value(json_object_get(refusal, "desc")));
    json_decref(refusal);
    return code;
}

static int watch(struct backup_run *run)
{
    const struct job_watching how = {
        .output = run->args->output, .quiet = run->args->quiet, .is_owner = true};

    return job_watch(&run->qmp, run->job, &how);
}

static int complete_point(struct backup_run *run)
{
    char part[POINT_NAME_MAX + 16], file[POINT_NAME_MAX + 16];

    snprintf(part, sizeof part, "%s.qcow2.part", run->point);
    snprintf(file, sizeof file, "%s.qcow2", run->point);
    int code = backup_folder_rename(run->folder, part, file);
    if (code != CLI_OK)
        return code;
    /* The old bitmap isn't needed any more. */
    CLEANUP_FREE char *old = run->last ? bitmap_of(run, run->last->name) : NULL;
    return old ? remove_bitmap(run, old) : CLI_OK;
}

static int back_up(struct backup_run *run)
{
    CLEANUP_FREE char *absolute = path_absolute(run->folder->path);
    CLEANUP_FREE char *bitmap = bitmap_of(run, run->point);
    CLEANUP_FREE char *path = NULL;

    if (!absolute || !bitmap ||
        asprintf(&path, "%s/%s.qcow2.part", absolute, run->point) < 0)
        return cli_error("out of memory");
    /* From here on a signal doesn't kill at once: files, job and bitmap are removed first. */
    interrupt_catch();
    int code = make_file(run, path);
    if (code != CLI_OK)
        return code;
    code = start_job(run, path, bitmap);
    if (code == CLI_OK)
        code = watch(run);
    if (code == CLI_OK)
        return complete_point(run);
    unlink(path);
    (void)remove_bitmap(run, bitmap);
    return code;
}

static int say_what_was_done(const struct backup_run *run)
{
    if (!run->args->quiet && run->args->output == OUTPUT_HUMAN)
        printf("%s: %s\n", run->point,
               run->last ? "what has changed since the point before it" : "the whole disk");
    return CLI_OK;
}

static int back_up_with(struct backup_run *run)
{
    int code = look_at_disk(run);

    if (code == CLI_OK)
        code = judge_last_point(run);
    if (code == CLI_OK)
        code = back_up(run);
    return code == CLI_OK ? say_what_was_done(run) : code;
}

static int with_server(struct backup_run *run, int (*what)(struct backup_run *run))
{
    int code = qmp_open(&run->qmp, run->args->control);

    if (code != CLI_OK)
        return code;
    code = what(run);
    qmp_close(&run->qmp);
    return code;
}

static int back_up_to(struct backup_folder *folder, const struct backup_args *args)
{
    struct backup_run run = {.args = args, .folder = folder};

    int code = backup_fold_rest(folder, args->quiet);
    if (code != CLI_OK)
        return code;
    snprintf(run.job, sizeof run.job, "qimg-backup-%s", folder->id);
    backup_folder_next(folder, run.point);
    /* Two connections, so that the end event of the old job isn't taken for that of the new
     * one. */
    code = with_server(&run, end_leftover_job);
    if (code == CLI_OK)
        code = with_server(&run, back_up_with);
    if (code == CLI_OK)
        code = backup_folder_list(folder);
    /* Folding may be interrupted at any time: the next backup continues it. */
    interrupt_let_go();
    interrupt_die();
    return code == CLI_OK && args->keep ? backup_fold(folder, args->keep, args->quiet)
                                        : code;
}

/* ---- the command ---- */

static int check_words(const struct backup_args *args, int n_operands)
{
    if (n_operands != 1)
        return cli_usage_error("Expecting one folder");
    if (args->list && args->verify)
        return cli_usage_error("--list and --verify are two things to do");
    if ((args->list || args->verify) && (args->keep || args->control))
        return cli_usage_error("--list and --verify look at the folder alone");
    if (!args->list && !args->verify && !args->control)
        return cli_usage_error("Expecting --control=PATH, the server's control socket");
    return CLI_OK;
}

static int run_on_folder(const struct backup_args *args, const char *path)
{
    struct backup_folder folder;

    int code = backup_folder_open(&folder, path, !args->list && !args->verify);
    if (code != CLI_OK)
        return code;
    code = args->list     ? backup_list(&folder, args->output == OUTPUT_JSON)
           : args->verify ? backup_verify(&folder, args->quiet)
                          : back_up_to(&folder, args);
    backup_folder_close(&folder);
    interrupt_die();
    return code;
}

static int run_backup_command(const struct cli_command *self, int argc, char **argv)
{
    struct backup_args args = {0};

    int code = cli_take_options(self, argc, argv, take_option, &args);
    if (code != CLI_GO_ON)
        return code;
    code = check_words(&args, argc - optind);
    return code == CLI_OK ? run_on_folder(&args, argv[optind]) : code;
}

const struct cli_command backup_command = {
    .name = "backup",
    .operands = "--control=PATH DIR | --list DIR | --verify DIR",
    .summary = "Back up a running disk: all of it, then what has changed.",
    .options = options,
    .run = run_backup_command,
};
