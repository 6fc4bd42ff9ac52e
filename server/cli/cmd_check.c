/* SPDX-License-Identifier: BSD-3-Clause */
/* `qimg check`. */
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jansson.h>

#include "base/cleanup.h"
#include "base/plain_text.h"
#include "block/cache_mode.h"
#include "block/chain.h"
#include "cli.h"
#include "common/json_text.h"
#include "image.h"
#include "image_opts.h"
#include "progress.h"
#include "storage/protocol.h"

/* Exit codes, as in qemu-img. */
#define CHECK_CORRUPT     2
#define CHECK_LEAKS       3
#define CHECK_UNSUPPORTED 63

/* How many findings of a pass are printed; all are counted. */
#define MAX_MESSAGES 100000

static const struct cli_option options[] = {
    CLI_IMAGE_OPTIONS,
    {'r', "repair", "leaks|all", "free leaked clusters, or repair everything"},
    {'p', "progress", NULL, "show progress"},
    {'T', "cache", "CACHE", "how the image is read: writeback, none, ..."},
    {'q', "quiet", NULL, "print nothing but errors"},
    {0},
};

struct check_args {
    struct cli_image image;
    enum check_repair repair;
    const struct cache_mode *cache; /* NULL: the default */
    bool progress, quiet;
};

/* The image that is checked, and the state of the output. */
struct checked {
    const struct check_args *args;
    struct storage *file;
    const struct driver *driver;
    uint64_t messages;
};

/* ---- while it runs ---- */

static void show_progress(void *opaque, uint64_t done, uint64_t total)
{
    (void)opaque;
    progress_report(done, total);
}

static void show_message(void *opaque, const char *text)
{
    struct checked *image = opaque;

    if (image->messages++ < MAX_MESSAGES) {
        CLEANUP_FREE char *plain = plain_text_copy(text);
        fprintf(stderr, "%s\n", plain ? plain : "");
    } else if (image->messages == MAX_MESSAGES + 1)
        fputs("(more of this is only counted)\n", stderr);
}

/* ---- results ---- */

static void print_human(const struct check_result *r)
{
    if (!r->corruptions && !r->leaks && !r->check_errors)
        puts("No errors were found on the image.");
    if (r->corruptions)
        printf("\n%" PRIu64 " errors were found on the image.\n"
               "Data may be corrupted, or further writes to the image may corrupt it.\n",
               r->corruptions);
    if (r->leaks)
        printf("\n%" PRIu64 " leaked clusters were found on the image.\n"
               "This means waste of disk space, but no harm to data.\n",
               r->leaks);
    if (r->check_errors)
        printf("\n%" PRIu64 " internal errors have occurred during the check.\n",
               r->check_errors);
    if (r->total_clusters && r->allocated_clusters) {
        double allocated = (double)r->allocated_clusters;
        printf("%" PRIu64 "/%" PRIu64
               " = %0.2f%% allocated, %0.2f%% fragmented, %0.2f%% compressed clusters\n",
               r->allocated_clusters, r->total_clusters,
               allocated * 100.0 / (double)r->total_clusters,
               (double)r->fragmented_clusters * 100.0 / allocated,
               (double)r->compressed_clusters * 100.0 / allocated);
    }
    if (r->image_end_offset)
        printf("Image end offset: %" PRIu64 "\n", r->image_end_offset);
}

/* As in qemu-img, a count of 0 is left out. */
static void add_count(json_t *object, const char *key, uint64_t value)
{
    if (value)
        json_object_set_new(object, key, json_integer((json_int_t)value));
}

static int print_json(const struct checked *image, const struct check_result *r)
{
    json_t *object = json_object();

    add_count(object, "image-end-offset", r->image_end_offset);
    add_count(object, "total-clusters", r->total_clusters);
    json_object_set_new(object, "check-errors", json_integer((json_int_t)r->check_errors));
    add_count(object, "corruptions", r->corruptions);
    add_count(object, "corruptions-fixed", r->corruptions_fixed);
    add_count(object, "leaks", r->leaks);
    add_count(object, "leaks-fixed", r->leaks_fixed);
    add_count(object, "fragmented-clusters", r->fragmented_clusters);
    add_count(object, "compressed-clusters", r->compressed_clusters);
    add_count(object, "allocated-clusters", r->allocated_clusters);
    json_object_set_new(object, "filename", json_from_text(image->args->image.filename));
    json_object_set_new(object, "format", json_string(image->driver->name));
    char *text = json_dumps(object, JSON_INDENT(4));
    json_decref(object);
    if (!text)
        return cli_error("out of memory");
    puts(text);
    free(text);
    return CLI_OK;
}

static int print_result(const struct checked *image, const struct check_result *result)
{
    if (image->args->image.output == OUTPUT_JSON && print_json(image, result) != CLI_OK)
        return CLI_FAILED;
    if (image->args->image.output == OUTPUT_HUMAN && !image->args->quiet)
        print_human(result);
    if (result->check_errors)
        return cli_error("Check failed");
    if (result->corruptions)
        return CHECK_CORRUPT;
    return result->leaks ? CHECK_LEAKS : CLI_OK;
}

/* ---- the check ---- */

static int run_check(struct checked *image, enum check_repair repair,
                     struct check_result *result)
{
    const struct check_options how = {
        .repair = repair,
        .progress = show_progress,
        .message = show_message,
        .opaque = image,
    };
    struct diag diag = {0};

    image->messages = 0;
    *result = (struct check_result){0};
    progress_begin(image->args->progress && !image->args->quiet);
    int rc = image->driver->check(image->file, &how, result, &diag);
    progress_end(rc == 0);
    return rc < 0 ? cli_diag(&diag) : CLI_OK;
}

static int check_and_report(struct checked *image)
{
    const struct check_args *args = image->args;
    struct check_result result;

    if (!driver_can(image->driver, DRIVER_CHECKS)) {
        cli_error("This image format does not support checks");
        return CHECK_UNSUPPORTED;
    }
    int code = run_check(image, args->repair, &result);
    if (code != CLI_OK)
        return code;
    if (result.corruptions_fixed || result.leaks_fixed) {
        struct check_result repaired = result;
        if (args->image.output == OUTPUT_HUMAN && !args->quiet)
            printf("The following inconsistencies were found and repaired:\n\n"
                   "    %" PRIu64 " leaked clusters\n"
                   "    %" PRIu64 " corruptions\n\n"
                   "Double checking the fixed image now...\n",
                   result.leaks_fixed, result.corruptions_fixed);
        code = run_check(image, REPAIR_NONE, &result);
        if (code != CLI_OK)
            return code;
        result.corruptions_fixed = repaired.corruptions_fixed;
        result.leaks_fixed = repaired.leaks_fixed;
    }
    return print_result(image, &result);
}

/* An unknown format is raw, which has nothing to check. */
static int find_driver(struct checked *image, struct diag *diag)
{
    int rc =
        chain_find_driver(image->file, image->args->image.format, &image->driver, diag);

    if (rc == -EINVAL && !image->args->image.format) {
        image->driver = driver_find("raw");
        return 0;
    }
    return rc;
}

static int open_and_check(const struct check_args *args, const struct reference *ref)
{
    const struct storage_open how = {.read_only = args->repair == REPAIR_NONE,
                                     .direct = args->cache && args->cache->direct};
    CLEANUP_STORAGE struct storage *file = NULL;
    struct checked image = {.args = args};
    struct diag diag = {0};

    int rc = ref->protocol->open(ref->path, &how, &file, &diag);
    if (rc == 0 && !args->image.share)
        rc = storage_lock(file, how.read_only ? STORAGE_READER : STORAGE_WRITER, &diag);
    image.file = file;
    if (rc == 0)
        rc = find_driver(&image, &diag);
    if (rc == 0)
        return check_and_report(&image);
    image_blame(ref->path, ref->protocol, &diag);
    if (rc == -EAGAIN && how.read_only)
        return cli_locked(&diag);
    cli_diag(&diag);
    return rc == -ENOTSUP && file && !args->image.format ? CHECK_UNSUPPORTED : CLI_FAILED;
}

/* The name or the options may contain the format. */
static int check_given(struct check_args *args)
{
    CLEANUP_IMAGE_OPTS struct image_opts opts = {0};
    CLEANUP_REFERENCE struct reference named = {0};
    const struct reference *ref = args->image.image_opts ? &opts.image : &named;

    int code = args->image.image_opts ? image_opts_parse(&args->image, &opts)
                                      : image_name_resolve(&args->image, &named);
    if (code != CLI_OK)
        return code;
    if (ref->format)
        args->image.format = ref->format;
    return open_and_check(args, ref);
}

/* ---- the command line ---- */

static int parse_repair(const char *word, enum check_repair *out)
{
    if (strcmp(word, "leaks") == 0)
        *out = REPAIR_LEAKS;
    else if (strcmp(word, "all") == 0)
        *out = REPAIR_ALL;
    else
        return cli_usage_error(
            "Unknown option value for -r (expecting 'leaks' or 'all'): %s", word);
    return CLI_OK;
}

static int take_option(void *opaque, int option)
{
    struct check_args *args = opaque;

    switch (option) {
    case 'r':
        return parse_repair(optarg, &args->repair);
    case 'p':
        args->progress = true;
        break;
    case 'q':
        args->quiet = true;
        break;
    case 'T':
        args->cache = cache_mode_find(optarg);
        if (!args->cache)
            return cli_usage_error("-T %s: must be %s", optarg, cache_mode_names());
        break;
    default:
        return cli_take_image_option(&args->image, option);
    }
    return CLI_OK;
}

static int run_check_command(const struct cli_command *self, int argc, char **argv)
{
    struct check_args args = {.image.output = OUTPUT_HUMAN};
    int code = cli_take_image(self, argc, argv, take_option, &args, &args.image);

    if (code == CLI_GO_ON && args.image.share && args.repair != REPAIR_NONE)
        code = cli_usage_error("--force-share/-U can't be used together with a repair");
    if (code == CLI_GO_ON)
        code = check_given(&args);
    cli_free_image(&args.image);
    return code;
}

const struct cli_command check_command = {
    .name = "check",
    .operands = "filename",
    .summary = "Look for errors in an image, and repair them.",
    .options = options,
    .run = run_check_command,
};
