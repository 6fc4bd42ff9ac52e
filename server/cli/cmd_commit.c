/* SPDX-License-Identifier: BSD-3-Clause */
/* `qimg commit`.
 *
 * The base is opened a second time, for writing, while the layers above it are read; data that
 * only the base has isn't copied.  The image is emptied when the base is durable, so that it
 * always reads the same. */
#include <errno.h>
#include <getopt.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#include "base/cleanup.h"
#include "block/cache_mode.h"
#include "cli.h"
#include "copy_disk.h"
#include "image.h"
#include "interrupt.h"
#include "progress.h"

static const struct cli_option options[] = {
    {'f', "format", "FMT", "the image's format; by default told from its content"},
    {'b', "base", "BASE", "commit to this one of the chain, and leave the image as it is"},
    {'d', "drop", NULL, "leave the image as it is; else it is emptied"},
    {'r', "rate-limit", "RATE", "move so many bytes per second at most"},
    {'t', "cache", "CACHE", "how the images are written: writeback, none, ..."},
    {CLI_IMAGE_OPTS, "image-opts", NULL, "the filename is driver=...,file.filename=..."},
    CLI_OBJECT_OPTION,
    {'p', "progress", NULL, "show progress"},
    {'q', "quiet", NULL, "print nothing but errors"},
    {0},
};

struct commit_args {
    struct cli_image image;
    const char *base;
    uint64_t speed;
    const struct cache_mode *cache;
    bool drop, progress, quiet;
};

/* Does the name mean the layer below `above`?  It may be the backing name in `above`, or a path
 * to the file. */
static bool means_layer(const char *name, const struct node *above)
{
    CLEANUP_FREE char *joined = reference_join(above->filename, name);

    return (above->backing_name && strcmp(name, above->backing_name) == 0) ||
           strcmp(name, above->backing->filename) == 0 ||
           node_is_called(above->backing, name) ||
           (joined && node_is_called(above->backing, joined));
}

/* Snapshots of these layers would change, as they share the base's data. */
static int check_snapshots(struct node *top, const struct node *base)
{
    struct diag diag = {0};

    for (struct node *layer = top; layer != base; layer = layer->backing)
        if (node_check_no_snapshots(layer, &diag))
            return cli_diag(&diag);
    return CLI_OK;
}

/* Finds the layer to commit to, and its depth. */
static int find_base(const struct commit_args *args, struct node *top, struct node **base,
                     unsigned *depth)
{
    if (!top->backing)
        return cli_error("%s: Image does not have a backing file", top->filename);
    *depth = 1;
    for (const struct node *above = top; above->backing; above = above->backing) {
        if (!args->base || means_layer(args->base, above)) {
            *base = above->backing;
            return CLI_OK;
        }
        ++*depth;
    }
    return cli_error("Did not find '%s' in the backing chain of '%s'", args->base,
                     top->filename);
}

/* Opens the base again, writable, above the same layers, and grows it if necessary.  Its first
 * instance holds the lock. */
static int open_base(const struct commit_args *args, struct node *top, struct node *base,
                     struct node **out, struct diag *diag)
{
    CLEANUP_REFERENCE struct reference below = {0};
    const struct chain_options chain = {
        .format = node_format(base),
        .protocol = node_protocol(base),
        .named = &below,
        .keys_of = top,
        .node = {.cache = args->cache, .lock_off = !node_locks_apart(base)},
    };

    int err = node_is_remote(base)
                  ? diag_set(diag, ENOTSUP,
                             "%s: is an NBD export: a commit writes to local "
                             "files only",
                             base->filename)
                  : node_lock_for_writing(base, diag);
    if (err)
        return err;
    err = chain_describe_below(base, &below);
    if (err)
        return diag_errno(diag, -err, "%s", base->filename);
    err = chain_open(top->ctx, node_location(base), &chain, out, diag);
    if (err)
        return err;
    node_note_writer(top, base);
    err = node_activate(*out, diag);
    if (!err && (*out)->size < top->size)
        err = node_grow(*out, top->size, diag);
    if (err)
        node_close(*out);
    return err;
}

static int copy_to_base(const struct commit_args *args, struct node *top,
                        struct node *target, unsigned depth)
{
    const struct copy_disk copy = {
        .how = {.source = top, .target = target, .unmap = true, .align = 1, .depth = depth},
        .length = top->size,
        .speed = args->speed,
        .total = top->size,
    };

    int code = copy_disk(&copy);
    if (code != CLI_OK)
        return code;
    int err = block_flush(target);
    return err ? cli_error("%s: cannot be flushed: %s", target->filename, strerror(-err))
               : CLI_OK;
}

static int empty_image(struct node *top)
{
    struct diag diag = {0};

    int err = node_make_empty(top, &diag);
    return err && err != -ENOTSUP ? cli_diag(&diag) : CLI_OK;
}

static int commit_to(const struct commit_args *args, struct node *top, struct node *base,
                     unsigned depth)
{
    struct node *target;
    struct diag diag = {0};

    if (open_base(args, top, base, &target, &diag) < 0)
        return cli_diag(&diag);
    int code = copy_to_base(args, top, target, depth);
    int err = node_close(target);
    if (err && code == CLI_OK)
        code = cli_error("%s: closing it: %s", base->filename, strerror(-err));
    if (code != CLI_OK) {
        cli_error("%s: has a part of the changes; %s is as it was", base->filename,
                  top->filename);
        return code;
    }
    return args->base || args->drop ? CLI_OK : empty_image(top);
}

static int commit_given(const struct commit_args *args)
{
    const struct chain_options chain = {.node = {.cache = args->cache}};
    struct image image;
    struct node *base = NULL;
    struct diag diag = {0};
    unsigned depth = 0;

    int code = image_open_given(&image, &args->image, &chain);
    if (code != CLI_OK)
        return code;
    interrupt_catch();
    progress_begin(args->progress && !args->quiet);
    code = find_base(args, image.node, &base, &depth);
    if (code == CLI_OK)
        code = check_snapshots(image.node, base);
    if (code == CLI_OK && node_activate(image.node, &diag) < 0)
        code = cli_diag(&diag);
    if (code == CLI_OK)
        code = commit_to(args, image.node, base, depth);
    if (image_close(&image) != CLI_OK)
        code = CLI_FAILED;
    progress_end(code == CLI_OK);
    interrupt_die();
    if (code == CLI_OK && !args->quiet)
        puts("Image committed.");
    return code;
}

static int take_option(void *opaque, int option)
{
    struct commit_args *args = opaque;

    switch (option) {
    case 'b':
        args->base = optarg;
        break;
    case 'd':
        args->drop = true;
        break;
    case 'r':
        return cli_parse_rate(optarg, &args->speed);
    case 't':
        return cli_parse_cache("cache", optarg, &args->cache);
    case 'p':
        args->progress = true;
        break;
    case 'q':
        args->quiet = true;
        break;
    default:
        return cli_take_image_option(&args->image, option);
    }
    return CLI_OK;
}

static int run_commit_command(const struct cli_command *self, int argc, char **argv)
{
    struct commit_args args = {.cache = cache_mode_find("writeback")};
    int code = cli_take_image(self, argc, argv, take_option, &args, &args.image);

    if (code == CLI_GO_ON)
        code = commit_given(&args);
    cli_free_image(&args.image);
    return code;
}

const struct cli_command commit_command = {
    .name = "commit",
    .operands = "filename",
    .summary = "Write what an image has into its backing file.",
    .options = options,
    .run = run_commit_command,
};
