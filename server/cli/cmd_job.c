/* SPDX-License-Identifier: BSD-3-Clause */
/* `qimg job`: verbs for the control socket. */
#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jansson.h>

#include "base/cleanup.h"
#include "base/path.h"
#include "base/words.h"
#include "cli.h"
#include "job_watch.h"
#include "qmp_client.h"
#include "size.h"
#include "storage/nbd_uri.h"
#include "storage/rbd_name.h"

enum {
    OPT_CONTROL = CLI_LONG_ONLY,
    OPT_OUTPUT,
    OPT_WATCH,
    OPT_FORCE,
    OPT_JOB_ID,
    OPT_DEVICE,
    OPT_FORMAT,
    OPT_MODE,
    OPT_SYNC,
    OPT_BITMAP,
    OPT_COPY_MODE,
    OPT_GRANULARITY,
    OPT_BUF_SIZE,
    OPT_NO_UNMAP,
    OPT_ON_SOURCE_ERROR,
    OPT_ON_TARGET_ERROR,
    OPT_TOP,
    OPT_BASE,
    OPT_ON_ERROR,
    OPT_SPEED,
    OPT_MANUAL_FINALIZE,
    OPT_MANUAL_DISMISS,
};

static const struct cli_option options[] = {
    {OPT_CONTROL, "control", "PATH", "the server's control socket; must be given"},
    {OPT_OUTPUT, "output", "human|json", "how list and watch print"},
    {OPT_WATCH, "watch", NULL, "mirror, commit, stream: watch the job to its end"},
    {OPT_FORCE, "force", NULL, "cancel: abandon a job that is ready, too"},
    {OPT_JOB_ID, "job-id", "ID", "mirror, commit, stream: the job's name"},
    {OPT_DEVICE, "device", "NAME", "mirror, commit, stream: the disk's name at the server"},
    {OPT_FORMAT, "format", "FMT", "mirror: the target's format (default raw)"},
    {OPT_MODE, "mode", "MODE", "mirror: existing or absolute-paths (make it)"},
    {OPT_SYNC, "sync", "WHAT", "mirror: full (default), top, none, incremental"},
    {OPT_BITMAP, "bitmap", "NAME", "mirror: copy what this bitmap says"},
    {OPT_COPY_MODE, "copy-mode", "MODE", "mirror: background or write-blocking"},
    {OPT_GRANULARITY, "granularity", "SIZE", "mirror: the unit of dirty tracking"},
    {OPT_BUF_SIZE, "buf-size", "SIZE", "mirror: bytes in flight at most"},
    {OPT_NO_UNMAP, "no-unmap", NULL, "mirror: write zeroes without making holes"},
    {OPT_ON_SOURCE_ERROR, "on-source-error", "DO", "mirror: report, ignore, enospc, stop"},
    {OPT_ON_TARGET_ERROR, "on-target-error", "DO", "mirror: report, ignore, enospc, stop"},
    {OPT_TOP, "top", "FILE", "commit: the topmost image to fold (default the active)"},
    {OPT_BASE, "base", "FILE",
     "commit: fold into it (default the lowest); stream: what stays below"},
    {OPT_ON_ERROR, "on-error", "DO", "commit, stream: report, ignore, enospc, stop"},
    {OPT_SPEED, "speed", "SIZE", "mirror, commit, stream: bytes a second at most"},
    {OPT_MANUAL_FINALIZE, "manual-finalize", NULL,
     "mirror, commit, stream: wait for finalize"},
    {OPT_MANUAL_DISMISS, "manual-dismiss", NULL,
     "mirror, commit, stream: stay until dismiss"},
    {0},
};

struct job_args {
    const char *control, *verb;
    enum cli_output output;
    bool watch;
    json_t *args; /* arguments of the QMP command */
    char **operands;
    int n_operands;
};

/* ---- options ---- */

static int set_text(json_t *args, const char *key, const char *text)
{
    json_t *value = json_string(text);

    return value && json_object_set_new(args, key, value) == 0
               ? CLI_OK
               : cli_error("'%s' is not UTF-8 text", text);
}

static int set_size(json_t *args, const char *key, const char *text)
{
    uint64_t bytes;
    int code = size_parse_argument(key, text, &bytes);

    if (code == CLI_OK)
        json_object_set_new(args, key, json_integer((json_int_t)bytes));
    return code;
}

/* Makes a path absolute, as the server's working directory may be another one. */
static int set_path(json_t *args, const char *key, const char *path)
{
    CLEANUP_FREE char *full = path_absolute(path);

    return full ? set_text(args, key, full) : cli_error("%s: %s", path, strerror(errno));
}

/* Makes a relative conf= absolute, too. */
static int set_rbd_target(json_t *args, const char *target)
{
    CLEANUP_RBD_NAME struct rbd_name name = {0};
    struct diag diag = {0};

    if (rbd_name_parse(target, RBD_NAME_USER, &name, &diag))
        return cli_diag(&diag);
    CLEANUP_FREE char *text = rbd_name_print(&name);
    return text ? set_text(args, "target", text) : cli_error("out of memory");
}

/* A name with another protocol ("json:", "ssh:") isn't changed: the server refuses it. */
static int set_target_file(json_t *args, const char *target)
{
    const char *path = cli_local_name(target);
    bool is_path = path != target || target[strcspn(target, ":/")] != ':';

    return is_path ? set_path(args, "target", path) : set_text(args, "target", target);
}

/* target: an NBD URI, an RBD name or a path. */
static int set_target(json_t *args, const char *target)
{
    CLEANUP_NBD_URI struct nbd_uri uri = {0};
    struct diag diag = {0};

    if (rbd_name_is_one(target))
        return set_rbd_target(args, target);
    if (!nbd_uri_is_one(target))
        return set_target_file(args, target);
    if (nbd_uri_parse(target, NBD_URI_USER, &uri, &diag))
        return cli_diag(&diag);
    CLEANUP_FREE char *text = nbd_uri_print(&uri);
    return text ? set_text(args, "target", text) : cli_error("out of memory");
}

/* Options that become arguments of the QMP command. */
static int set_argument(json_t *args, int option, const char *value)
{
    const struct cli_option *o = options;

    while (o->value != option)
        o++;
    switch (option) {
    case OPT_GRANULARITY:
    case OPT_BUF_SIZE:
    case OPT_SPEED:
        return set_size(args, o->name, value);
    case OPT_TOP:
    case OPT_BASE:
        return set_path(args, o->name, value);
    case OPT_FORCE:
        return json_object_set_new(args, o->name, json_true());
    case OPT_NO_UNMAP:
        return json_object_set_new(args, "unmap", json_false());
    case OPT_MANUAL_FINALIZE:
        return json_object_set_new(args, "auto-finalize", json_false());
    case OPT_MANUAL_DISMISS:
        return json_object_set_new(args, "auto-dismiss", json_false());
    default:
        return set_text(args, o->name, value);
    }
}

static int take_option(void *opaque, int option)
{
    struct job_args *job = opaque;

    switch (option) {
    case OPT_CONTROL:
        job->control = optarg;
        break;
    case OPT_OUTPUT:
        return cli_parse_output(optarg, &job->output);
    case OPT_WATCH:
        job->watch = true;
        break;
    default:
        return set_argument(job->args, option, optarg);
    }
    return CLI_OK;
}

/* ---- verbs ---- */

/* Runs the command with job->args, which is taken. */
static int send_args(struct qmp *qmp, const char *command, struct job_args *job)
{
    json_t *value;
    int code = qmp_command(qmp, command, job->args, &value);

    job->args = NULL;
    json_decref(value);
    return code;
}

/* An entry of query-jobs in the form of query-block-jobs. */
static json_t *as_block_job(const json_t *job)
{
    static const char *const members[][2] = {
        {"type", "type"},          {"device", "id"},
        {"len", "total-progress"}, {"offset", "current-progress"},
        {"status", "status"},      {"error", "error"}};
    json_t *out = json_object();

    for (size_t i = 0; i < ARRAY_LEN(members); i++)
        if (json_object_get(job, members[i][1]))
            json_object_set(out, members[i][0], json_object_get(job, members[i][1]));
    return out;
}

/* All jobs: those on disks, then those of blockdev-create, which belong to no disk. */
static int query_jobs(struct qmp *qmp, json_t **jobs)
{
    json_t *all, *one;
    size_t i;

    int code = qmp_command(qmp, "query-block-jobs", NULL, jobs);
    if (code != CLI_OK)
        return code;
    code = qmp_command(qmp, "query-jobs", NULL, &all);
    if (code != CLI_OK) {
        json_decref(*jobs);
        return code;
    }
    json_array_foreach (all, i, one)
        if (strcmp(json_string_value(json_object_get(one, "type")), "create") == 0)
            json_array_append_new(*jobs, as_block_job(one));
    json_decref(all);
    return CLI_OK;
}

static int list_jobs(struct qmp *qmp, struct job_args *job, const char *command)
{
    json_t *jobs, *one;
    size_t i;
    int code = query_jobs(qmp, &jobs);

    (void)command;
    if (code != CLI_OK)
        return code;
    if (job->output == OUTPUT_JSON) {
        json_dumpf(jobs, stdout, JSON_INDENT(4));
        putchar('\n');
    } else {
        json_array_foreach (jobs, i, one) {
            job_print(one);
            putchar('\n');
        }
    }
    json_decref(jobs);
    return CLI_OK;
}

/* QMP's default format is raw, which wouldn't be what the name suggests. */
static int check_format(const json_t *args, const char *target)
{
    static const char *const others[] = {"qcow2", "qed"};
    const char *dot = strrchr(target, '.');

    for (size_t i = 0; dot && i < ARRAY_LEN(others); i++)
        if (strcmp(dot + 1, others[i]) == 0 && !json_object_get(args, "format") &&
            !nbd_uri_is_one(target))
            return cli_error("%s: without --format=%s it would be raw, which --format=raw "
                             "says, too",
                             target, others[i]);
    return CLI_OK;
}

/* Without --device: asks the server for the name of its only disk. */
static int set_device(struct qmp *qmp, json_t *args)
{
    json_t *disk;

    if (json_object_get(args, "device"))
        return CLI_OK;
    int code = qmp_find_disk(qmp, NULL, &disk);
    if (code == CLI_OK)
        json_object_set(args, "device", json_object_get(disk, "device"));
    json_decref(disk);
    return code;
}

/* Adds the target of `mirror`, which is the only operand of such a verb. */
static int add_target(struct job_args *job)
{
    const char *target = job->operands[0];
    int code = check_format(job->args, target);

    if (code != CLI_OK)
        return code;
    code = set_target(job->args, target);
    if (code != CLI_OK || json_object_get(job->args, "sync"))
        return code;
    return set_text(job->args, "sync", "full");
}

/* The job belongs to the server: it continues when watching ends. */
static int watch_until_end(struct qmp *qmp, const char *id, enum cli_output output)
{
    const struct job_watching how = {.output = output};

    return job_watch(qmp, id, &how);
}

/* mirror, commit, stream: starts a job, and watches it with --watch. */
static int start_job(struct qmp *qmp, struct job_args *job, const char *command)
{
    int code = set_device(qmp, job->args);

    if (code == CLI_OK && job->n_operands > 0)
        code = add_target(job);
    if (code != CLI_OK)
        return code;

    const json_t *name = json_object_get(job->args, "job-id");
    if (!name)
        name = json_object_get(job->args, "device");
    CLEANUP_FREE char *id = name ? strdup(json_string_value(name)) : NULL;
    if (!id)
        return cli_error("the server has no disk");
    code = send_args(qmp, command, job);
    return code == CLI_OK && job->watch ? watch_until_end(qmp, id, job->output) : code;
}

static int tell_job(struct qmp *qmp, struct job_args *job, const char *command)
{
    bool any = strncmp(command, "job-", strlen("job-")) == 0;
    int code = set_text(job->args, any ? "id" : "device", job->operands[0]);

    return code == CLI_OK ? send_args(qmp, command, job) : code;
}

static int set_speed(struct qmp *qmp, struct job_args *job, const char *command)
{
    int code = set_size(job->args, "speed", job->operands[1]);

    return code == CLI_OK ? tell_job(qmp, job, command) : code;
}

static int watch_job(struct qmp *qmp, struct job_args *job, const char *command)
{
    (void)command;
    return watch_until_end(qmp, job->operands[0], job->output);
}

static const struct verb {
    const char *name, *operands;
    int n_operands;
    /* QMP command that takes the options as arguments; NULL: takes none */
    const char *command;
    int (*run)(struct qmp *qmp, struct job_args *job, const char *command);
} verbs[] = {
    {"list", "", 0, NULL, list_jobs},
    {"mirror", " TARGET", 1, "drive-mirror", start_job},
    {"commit", "", 0, "block-commit", start_job},
    {"stream", "", 0, "block-stream", start_job},
    {"pause", " ID", 1, "block-job-pause", tell_job},
    {"resume", " ID", 1, "block-job-resume", tell_job},
    {"speed", " ID SIZE", 2, "block-job-set-speed", set_speed},
    {"complete", " ID", 1, "block-job-complete", tell_job},
    {"cancel", " ID", 1, "block-job-cancel", tell_job},
    {"finalize", " ID", 1, "block-job-finalize", tell_job},
    {"dismiss", " ID", 1, "job-dismiss", tell_job},
    {"watch", " ID", 1, NULL, watch_job},
};

/* NULL after a complaint that lists the verbs. */
static const struct verb *find_verb(const char *word)
{
    const char *names[ARRAY_LEN(verbs)];
    struct words_hint hint;

    for (size_t i = 0; i < ARRAY_LEN(verbs); i++) {
        names[i] = verbs[i].name;
        if (word && strcmp(names[i], word) == 0)
            return &verbs[i];
    }
    const char *known = words_hint(&hint, word ? word : "", names, ARRAY_LEN(names));
    if (word)
        cli_usage_error("'%s' is nothing that can be done with a job: %s", word, known);
    else
        cli_usage_error("Expecting what to do with jobs: %s", known);
    return NULL;
}

static int run_verb(struct job_args *job)
{
    struct qmp qmp;

    const struct verb *verb = find_verb(job->verb);
    if (!verb)
        return CLI_FAILED;
    bool starts = verb->run == start_job;
    if ((job->watch && !starts) || (json_object_size(job->args) > 0 && !verb->command))
        return cli_usage_error("'%s' doesn't take these options", verb->name);
    if (job->n_operands != verb->n_operands)
        return cli_usage_error("Expecting: qimg job --control=PATH %s%s", verb->name,
                               verb->operands);
    if (!job->control)
        return cli_usage_error("Expecting --control=PATH, the server's control socket");
    int code = qmp_open(&qmp, job->control);
    if (code != CLI_OK)
        return code;
    code = verb->run(&qmp, job, verb->command);
    qmp_close(&qmp);
    return code;
}

static int run_job_command(const struct cli_command *self, int argc, char **argv)
{
    struct job_args job = {.args = json_object()};
    int code = cli_take_options(self, argc, argv, take_option, &job);

    if (code == CLI_GO_ON) {
        if (optind < argc)
            job.verb = argv[optind++];
        job.operands = argv + optind;
        job.n_operands = argc - optind;
        code = run_verb(&job);
    }
    json_decref(job.args);
    return code;
}

const struct cli_command job_command = {
    .name = "job",
    .operands =
        "list | mirror TARGET | commit | stream | watch ID | pause ID | resume ID | "
        "speed ID SIZE | complete ID | cancel ID | finalize ID | dismiss ID",
    .summary = "Drive the jobs of a running server.",
    .options = options,
    .run = run_job_command,
};
