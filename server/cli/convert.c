/* SPDX-License-Identifier: BSD-3-Clause */
/* Converts: copies the sources, concatenated, into the target. */
#include "convert.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "block/cache_mode.h"
#include "convert_bitmaps.h"
#include "copy_disk.h"
#include "image.h"
#include "interrupt.h"
#include "progress.h"
#include "snapshot_arg.h"
#include "target.h"

#define SECTOR 512

struct conversion {
    struct convert_args *args;
    struct image *images; /* n_open of them are open */
    size_t n_open;
    struct node **nodes; /* the nodes that are read; ends with NULL */
    uint64_t size;       /* of all sources, each rounded up to sectors */
    struct target target;
};

/* ---- the sources ---- */

static int open_source(struct conversion *c, const char *filename)
{
    const struct convert_args *args = c->args;
    const struct chain_options chain = {
        .read_only = true,
        .node = {.lock_off = args->source.share, .cache = args->source_cache},
    };
    struct cli_image given = args->source;

    given.filename = filename;
    int code = image_open_given(&c->images[c->n_open], &given, &chain);
    if (code != CLI_OK)
        return code;
    c->nodes[c->n_open] = c->images[c->n_open].node;
    if (add_overflows(c->size, align_up(c->nodes[c->n_open]->size, SECTOR), &c->size) ||
        c->size > INT64_MAX)
        code = cli_error("%s: together the sources are too large", filename);
    c->n_open++;
    return code;
}

static int open_sources(struct conversion *c)
{
    struct convert_args *args = c->args;
    int code = CLI_OK;

    c->images = calloc(args->n_sources, sizeof *c->images);
    c->nodes = calloc(args->n_sources + 1, sizeof(struct node *));
    if (!c->images || !c->nodes)
        return cli_error("out of memory");
    for (size_t i = 0; i < args->n_sources && code == CLI_OK; i++)
        code = open_source(c, args->sources[i]);
    return code;
}

static int close_sources(struct conversion *c, int code)
{
    if (c->n_open > 0 && c->nodes[0])
        snapshot_arg_close(c->images[0].node, c->nodes[0]);
    while (c->n_open > 0)
        if (image_close(&c->images[--c->n_open]) != CLI_OK)
            code = CLI_FAILED;
    free(c->images);
    free(c->nodes);
    return code;
}

/* ---- the target ---- */

static int check_backing(const struct convert_args *args)
{
    const char *name = options_get(&args->list, "backing_file");
    const char *format = options_get(&args->list, "backing_fmt");
    struct diag diag = {0};

    if (!name)
        return format ? cli_error("%s: Backing format cannot be used without backing file",
                                  args->target)
                      : CLI_OK;
    if (!driver_can(args->driver, DRIVER_BACKING))
        return cli_error("%s: Backing file not supported for file format '%s'",
                         args->target, args->driver->name);
    if (args->n_sources > 1)
        return cli_error(CONVERT_ONE_SOURCE);
    if (!format)
        return cli_error("Use of backing file requires explicit backing format");
    if (!driver_find_recorded(format))
        return create_format_unknown("Unknown backing format", format);
    return reference_check_recorded(args->target, name, &diag) < 0 ? cli_diag(&diag)
                                                                   : CLI_OK;
}

/* Preallocated clusters have their place already, so compressed ones can't be packed. */
static int check_compression(const struct convert_args *args)
{
    const char *mode = options_get(&args->list, "preallocation");

    return args->compress && mode && strcmp(mode, "off") != 0
               ? cli_error("Compression and preallocation not supported at the same time")
               : CLI_OK;
}

/* A new target is as large as the sources, whatever -o says (as in qemu-img). */
static int settle_size(struct conversion *c, uint64_t *size)
{
    char text[32];

    *size = c->size;
    snprintf(text, sizeof text, "%" PRIu64, c->size);
    return options_set(&c->args->list, "size", text);
}

static int make_target(struct conversion *c, struct target_request *request)
{
    struct convert_args *args = c->args;
    CLEANUP_FREE struct create_option *options = NULL;
    struct create_request create = {0};

    if (args->existing)
        return target_open(&c->target, request);
    if (check_backing(args) != CLI_OK || check_compression(args) != CLI_OK ||
        create_options_check(args->driver, &args->list, args->target) != CLI_OK ||
        settle_size(c, &create.size) != CLI_OK ||
        create_options_request(args->driver, &args->list, args->target,
                               &args->source.secrets, &create, &options) != CLI_OK)
        return CLI_FAILED;
    request->create = &create;
    return target_open(&c->target, request);
}

static int check_target(const struct conversion *c)
{
    if (c->target.image.node->size < c->size)
        return cli_error("output file is smaller than input file");
    return c->args->bitmaps
               ? convert_bitmaps_check_target(c->images[0].node, c->target.image.node)
               : CLI_OK;
}

static int open_target(struct conversion *c)
{
    struct convert_args *args = c->args;
    struct target_request request = {.filename = args->target,
                                     .format = args->driver,
                                     .cache = args->cache,
                                     .compress = args->compress,
                                     .sources = c->nodes};
    struct cli_image given = {
        .filename = args->target, .image_opts = true, .secrets = args->source.secrets};

    if (args->compress && args->driver && !args->driver->reserve_compressed)
        return cli_error("Compression not supported for this file format");
    int code = args->target_image_opts ? target_open_given(&c->target, &given, &request)
                                       : make_target(c, &request);
    if (code != CLI_OK)
        return code;
    code = check_target(c);
    if (code == CLI_OK)
        return CLI_OK;
    c->target.untouched = args->existing;
    return target_finish(&c->target, false, code);
}

/* ---- copying ---- */

/* From which layer of the source on the target's backing file has the data: if the backing
 * file is one of the source's layers, from that one.  Otherwise, as the user promises equal
 * contents, from the first backing file on. */
static unsigned depth_of_backing(const struct node *source, const struct node *target)
{
    unsigned depth = 1;

    if (!target->backing)
        return 0;
    for (const struct node *node = source->backing; node; node = node->backing, depth++)
        if (storage_is_same(node->file, target->backing->file))
            return depth;
    return 1;
}

static struct copy_how how_to_copy(const struct conversion *c, struct node *source,
                                   uint64_t start)
{
    const struct convert_args *args = c->args;
    struct node *target = c->target.image.node;
    bool is_zero = c->target.is_zero || args->target_is_zero;
    uint32_t unit = is_zero ? args->sparse : MAX(args->sparse, target->subcluster_size);

    if (args->compress)
        unit = target->cluster_size;
    return (struct copy_how){
        .source = source,
        .target = target,
        .target_start = start,
        .unmap = true,
        .zero_unit = args->sparse && !args->offload ? unit : 0,
        .write_zeroes = args->sparse == 0,
        .offload = args->offload,
        .align = args->compress ? target->cluster_size : 1,
        .target_is_zero = is_zero,
        .expect = c->target.has_no_blocks,
        .target_zero_from = target->backing ? target->backing->size : 0,
        .depth =
            args->existing && !args->backing_file ? 0 : depth_of_backing(source, target),
        .target_has_data = args->existing,
    };
}

/* Zeroes what a raw source lacks of its last sector. */
static int zero_tail(struct conversion *c, uint64_t end, uint64_t rounded)
{
    if (end == rounded || c->target.is_zero || c->args->target_is_zero)
        return CLI_OK;
    int err = block_zero(c->target.image.node, end, rounded - end, BLOCK_MAY_UNMAP);
    return err ? cli_error("error while writing at byte %" PRIu64 ": %s", end,
                           strerror(-err))
               : CLI_OK;
}

static int copy_sources(struct conversion *c)
{
    const struct convert_args *args = c->args;
    uint64_t start = 0;
    int code = CLI_OK;

    for (size_t i = 0; i < args->n_sources && code == CLI_OK; i++) {
        struct node *source = c->nodes[i];
        uint64_t rounded = align_up(source->size, SECTOR);
        const struct copy_disk copy = {
            .how = how_to_copy(c, source, start),
            .length = source->size,
            .threads = args->threads,
            .speed = args->speed,
            .salvage = args->salvage,
            .quiet = args->quiet,
            .done_before = start,
            .total = c->size,
        };
        code = copy_disk(&copy);
        if (code == CLI_OK)
            code = zero_tail(c, start + source->size, start + rounded);
        start += rounded;
    }
    return code;
}

/* With a cache mode that flushes, everything is durable when the command ends. */
static int flush_target(struct conversion *c)
{
    int err = block_flush(c->target.image.node);

    return err ? cli_error("%s: cannot be flushed: %s", c->args->target, strerror(-err))
               : CLI_OK;
}

static int copy_to_target(struct conversion *c)
{
    progress_begin(c->args->progress && !c->args->quiet);
    int code = copy_sources(c);
    if (code == CLI_OK)
        code = flush_target(c);
    progress_end(code == CLI_OK);
    if (code == CLI_OK && c->args->bitmaps)
        code = convert_bitmaps(c->images[0].node, c->target.image.node, c->args->target);
    return target_finish(&c->target, code == CLI_OK, code);
}

/* With -l the snapshot is read instead of the image, of which there must be one. */
static int open_snapshot(struct conversion *c)
{
    const struct convert_args *args = c->args;

    if (args->snapshot && args->n_sources > 1)
        return cli_error("No support for concatenating multiple snapshot");
    int code = snapshot_arg_open(c->images[0].node, args->snapshot, &c->nodes[0]);
    if (code == CLI_OK && args->snapshot)
        c->size = align_up(c->nodes[0]->size, SECTOR);
    return code;
}

/* Bitmaps are copied from the image, even if a snapshot's disk is. */
static int load_bitmaps(struct conversion *c)
{
    const struct convert_args *args = c->args;

    if (!args->bitmaps)
        return CLI_OK;
    if (args->n_sources > 1)
        return cli_error("Copying bitmaps only possible with single source");
    return convert_bitmaps_load(c->images[0].node, args->skip_broken_bitmaps);
}

int convert(struct convert_args *args)
{
    struct conversion c = {.args = args};

    int code = open_sources(&c);
    if (code == CLI_OK && args->opened)
        code = args->opened(args->opaque);
    if (code == CLI_OK)
        code = open_snapshot(&c);
    if (code == CLI_OK)
        code = load_bitmaps(&c);
    interrupt_catch();
    if (code == CLI_OK)
        code = open_target(&c);
    if (code == CLI_OK)
        code = copy_to_target(&c);
    code = close_sources(&c, code);
    interrupt_die();
    return code;
}
