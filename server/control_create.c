/* SPDX-License-Identifier: BSD-3-Clause */
/* blockdev-create: a job that belongs to no disk, on whose thread an image is created.
 * What can be checked without touching a file fails at once; everything else becomes the
 * job's error. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "block/driver.h"
#include "control_cmds.h"
#include "control_nodes.h"
#include "creation_file.h"
#include "jobs/manager.h"
#include "node_table.h"
#include "storage/protocol.h"

#define SECTOR 512u

/* ---- tables ---- */

static const char *const file_preallocations[] = {"off", "falloc", "full", NULL};
static const char *const preallocations[] = {"off", "metadata", "falloc", "full", NULL};
static const char *const versions[] = {"v2", "v3", NULL};
static const char *const compressions[] = {"zlib", "zstd", NULL};
static const char *const formats[] = {"qcow2", "qed", "raw", NULL};

static const struct control_arg file_options[] = {
    {"filename", STRING, true},
    {"size", SIZE, true},
    {"preallocation", WORDS(file_preallocations), false},
    {"nocow", BOOL, false},
    {"extent-size-hint", SIZE, false},
    {0},
};

static const struct control_arg qcow2_options[] = {
    {"file", &control_node_reference, true},
    {"data-file", &control_node_reference, false},
    {"data-file-raw", BOOL, false},
    {"extended-l2", BOOL, false},
    {"size", SIZE, true},
    {"version", WORDS(versions), false},
    {"backing-file", STRING, false},
    {"backing-fmt", WORDS(formats), false},
    {"cluster-size", SIZE, false},
    {"preallocation", WORDS(preallocations), false},
    {"lazy-refcounts", BOOL, false},
    {"refcount-bits", SIZE, false},
    {"compression-type", WORDS(compressions), false},
    {0},
};

static const struct control_arg qed_options[] = {
    {"file", &control_node_reference, true},
    {"size", SIZE, true},
    {"backing-file", STRING, false},
    {"backing-fmt", WORDS(formats), false},
    {"cluster-size", SIZE, false},
    {"table-size", SIZE, false},
    {0},
};

static const struct control_variant file_driver = {"file", OBJECT(file_options)},
                                    qcow2_driver = {"qcow2", OBJECT(qcow2_options)},
                                    qed_driver = {"qed", OBJECT(qed_options)};
static const struct control_variant *const drivers[] = {&file_driver, &qcow2_driver,
                                                        &qed_driver, NULL};
static const struct control_arg common_options[] = {{"driver", TAG, true}, {0}};

static const struct control_arg create_args[] = {
    {"job-id", STRING, true},
    {"options", UNION(common_options, "driver", drivers), true},
    {0},
};

/* QMP's option names and the formats' own (qemu-img's). */
static const struct {
    const char *name, *key;
} format_options[] = {
    {"cluster-size", "cluster_size"},
    {"compression-type", "compression_type"},
    {"data-file-raw", "data_file_raw"},
    {"extended-l2", "extended_l2"},
    {"lazy-refcounts", "lazy_refcounts"},
    {"preallocation", "preallocation"},
    {"refcount-bits", "refcount_bits"},
    {"table-size", "table_size"},
    {"version", "compat"},
};

/* ---- what is asked for ---- */

struct creation {
    struct export_table *exports;
    json_t *args; /* a copy; `request` points to its strings */
    const struct driver *driver;
    struct create_request request;
    struct create_option options[ARRAY_LEN(format_options)];
    char values[ARRAY_LEN(format_options)][24];
    /* held, so that nobody else uses them; NULL: a file by name */
    struct added_node *file, *data_file;
    _Atomic bool give_up;
};

static void leave_nodes(struct creation *creation)
{
    added_node_leave(TAKE(&creation->file));
    added_node_leave(TAKE(&creation->data_file));
}

static void free_creation(void *state)
{
    struct creation *creation = state;

    leave_nodes(creation);
    json_decref(creation->args);
    free(creation);
}

/* In the form of the formats' options. */
static void print_value(const json_t *value, char *out, size_t size)
{
    if (json_is_string(value))
        snprintf(out, size, "%s", json_string_value(value));
    else if (json_is_boolean(value))
        snprintf(out, size, "%s", json_is_true(value) ? "on" : "off");
    else
        snprintf(out, size, "%" JSON_INTEGER_FORMAT, json_integer_value(value));
}

static void fill_options(struct creation *creation)
{
    size_t n = 0;

    for (size_t i = 0; i < ARRAY_LEN(format_options); i++) {
        const json_t *value = json_object_get(creation->args, format_options[i].name);
        if (!value)
            continue;
        print_value(value, creation->values[n], sizeof creation->values[n]);
        creation->options[n] =
            (struct create_option){format_options[i].key, creation->values[n]};
        n++;
    }
    creation->request.options = creation->options;
    creation->request.n_options = n;
}

static void fill_request(struct creation *creation)
{
    const json_t *args = creation->args;

    creation->request = (struct create_request){
        .size = arg_size(args, "size", 0),
        .exact_size = true,
        .backing_file = arg_text(args, "backing-file"),
        .backing_format = arg_text(args, "backing-fmt"),
        .hints = {.nocow = arg_bool(args, "nocow", false),
                  .extent_size_hint = (uint32_t)arg_size(args, "extent-size-hint", 0)},
        .give_up = &creation->give_up,
    };
    fill_options(creation);
}

/* The file to be created. */
static bool name_file(struct creation *creation, struct control_error *error)
{
    const char *name = arg_text(creation->args, "filename");

    /* Relative names would be relative to the server's working directory, which clients
     * don't know. */
    if (name[0] != '/') {
        control_fail(error, CLASS_GENERIC,
                     "filename: '%.200s' must be the absolute path of a file", name);
        return false;
    }
    creation->request.filename = name;
    return true;
}

static bool take_nodes(struct creation *creation, struct control_context *ctx,
                       struct control_error *error)
{
    const json_t *args = creation->args, *data = json_object_get(args, "data-file");

    creation->file = control_take_node(ctx, json_object_get(args, "file"), error);
    if (creation->file && data)
        creation->data_file = control_take_node(ctx, data, error);
    if (!creation->file || (data && !creation->data_file))
        return false;
    creation->request.filename = added_node_target(creation->file);
    creation->request.protocol = storage_protocol_called(creation->file->driver);
    creation->request.existing = true;
    if (data)
        creation->request.data_file = added_node_target(creation->data_file);
    return true;
}

/* Checks that QEMU makes for all formats, with its messages; the format checks everything
 * else. */
static bool makes_sense(const struct creation *creation, struct control_error *error)
{
    const struct create_request *request = &creation->request;

    if (creation->file && request->size % SECTOR != 0)
        control_fail(error, CLASS_GENERIC, "Image size must be a multiple of %u bytes",
                     SECTOR);
    else if (request->backing_format && !request->backing_file)
        control_fail(error, CLASS_GENERIC,
                     "Backing format cannot be used without backing file");
    else if (arg_size(creation->args, "extent-size-hint", 0) > UINT32_MAX)
        control_fail(error, CLASS_GENERIC, "Extent size hint is too large");
    else if (creation->driver->check_create(request, &error->diag))
        control_fail_diag(error, CLASS_GENERIC);
    else
        return true;
    return false;
}

static bool fill_creation(struct creation *creation, struct control_context *ctx,
                          struct control_error *error)
{
    const char *driver = arg_text(creation->args, "driver");
    bool is_file = strcmp(driver, "file") == 0;

    creation->driver = driver_find(is_file ? "raw" : driver);
    fill_request(creation);
    return (is_file ? name_file(creation, error) : take_nodes(creation, ctx, error)) &&
           makes_sense(creation, error);
}

/* NULL with the error set. */
static struct creation *new_creation(struct control_context *ctx, const json_t *options,
                                     struct control_error *error)
{
    struct creation *creation = calloc(1, sizeof *creation);
    json_t *args = json_deep_copy(options);

    if (!creation || !args) {
        free(creation);
        json_decref(args);
        control_fail(error, CLASS_GENERIC, "out of memory");
        return NULL;
    }
    creation->exports = ctx->exports;
    creation->args = args;
    if (fill_creation(creation, ctx, error))
        return creation;
    free_creation(creation);
    return NULL;
}

/* ---- the job ---- */

static int make_image(struct job *job, void *state, struct diag *diag)
{
    struct creation *creation = state;

    job_progress(job, 0, 1);
    int err = job_checkpoint(job, 0);
    if (!err)
        err = creation_make_file(creation->exports, creation->driver, &creation->request,
                                 diag);
    job_progress(job, 1, 0);
    return err;
}

static void give_up(struct job *job, void *state)
{
    struct creation *creation = state;

    (void)job;
    atomic_store(&creation->give_up, true);
}

/* The job exists until it is dismissed, but its nodes are free from now on. */
static int end_creation(struct job *job, void *state, bool success, struct diag *diag)
{
    (void)job;
    (void)success;
    (void)diag;
    leave_nodes(state);
    return 0;
}

static const struct job_ops creation_ops = {
    .type = "create",
    .of_no_disk = true,
    .run = make_image,
    .interrupt = give_up,
    .finish = end_creation,
    .free = free_creation,
};

static json_t *blockdev_create(struct control_context *ctx, const json_t *args,
                               struct control_error *error)
{
    struct creation *creation = new_creation(ctx, json_object_get(args, "options"), error);

    if (!creation)
        return NULL;
    const struct job_params params = {.id = arg_text(args, "job-id"),
                                      .ticket = control_ticket(ctx),
                                      .manual_dismiss = true};
    if (job_start(ctx->jobs, &creation_ops, creation, &params, &error->diag))
        return control_fail_diag(error, CLASS_GENERIC);
    return control_await(ctx, params.ticket);
}

const struct control_command control_create_commands[] = {
    {"blockdev-create", OBJECT(create_args), NULL, blockdev_create},
    {0},
};
