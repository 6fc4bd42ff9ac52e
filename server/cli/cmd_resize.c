/* SPDX-License-Identifier: BSD-3-Clause */
/* `qimg resize`. */
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "base/log.h"
#include "base/size.h"
#include "cli.h"
#include "image.h"
#include "resize_prealloc.h"

#define SECTOR 512

enum { OPT_PREALLOCATION = CLI_OWN_OPTIONS, OPT_SHRINK };

static const struct cli_option options[] = {
    {'f', "format", "FMT", "the image's format; by default told from its content"},
    {OPT_PREALLOCATION, "preallocation", "MODE",
     "what of the new area to allocate: off, metadata, falloc or full"},
    {OPT_SHRINK, "shrink", NULL, "make it smaller; what lies behind the new end is lost"},
    {CLI_IMAGE_OPTS, "image-opts", NULL, "the filename is driver=...,file.filename=..."},
    CLI_OBJECT_OPTION,
    {'q', "quiet", NULL, "print nothing but errors"},
    {0},
};

struct resize_args {
    struct cli_image image;
    enum preallocation preallocation;
    bool shrink, quiet;
    char sign; /* '+' or '-': relative; 0: absolute */
    uint64_t size;
};

static int parse_size(const char *text, struct resize_args *args)
{
    if (*text == '+' || *text == '-')
        args->sign = *text++;
    int rc = *text == '+' || *text == '-' ? -1 : size_parse(text, &args->size);
    if (rc == 0 && args->size > INT64_MAX)
        return cli_error("Value '%s' is out of range for parameter 'size'", text);
    if (rc < 0)
        return cli_error("Parameter 'size' expects a non-negative number below 2^64: a "
                         "number of bytes, or one followed by k, M, G, T, P or E, not '%s'",
                         text);
    return CLI_OK;
}

/* qemu-img counts in sectors: it rounds a raw file's size up. */
static int settle_size(const struct resize_args *args, const struct node *node,
                       uint64_t *size)
{
    uint64_t old = align_up(node->size, SECTOR);

    *size = args->size;
    if (args->sign == '+' && add_overflows(old, args->size, size))
        *size = UINT64_MAX;
    if (args->sign == '-')
        *size = args->size < old ? old - args->size : 0;
    if (*size == 0)
        return cli_error("New image size must be positive");
    if (*size > INT64_MAX)
        return cli_error("%s: the new size is out of range", node->filename);
    if (*size % SECTOR && node_can(node, DRIVER_CLUSTERS))
        return cli_error("%s: The new size must be a multiple of %d", node->filename,
                         SECTOR);
    return CLI_OK;
}

static int refuse_to_shrink(void)
{
    cli_error("Use the --shrink option to perform a shrink operation.");
    log_warning("Shrinking an image will delete all data beyond the shrunken image's end. "
                "Before performing such an operation, make sure there is no important data "
                "there.");
    return CLI_FAILED;
}

/* Refuses to lose data before anything is changed. */
static int resize_node(const struct resize_args *args, struct node *node)
{
    uint64_t old = node->size, rounded = align_up(old, SECTOR), size;
    struct diag diag = {0};

    int code = settle_size(args, node, &size);
    if (code != CLI_OK)
        return code;
    if (size <= rounded && args->preallocation != PREALLOCATION_OFF)
        return cli_error("Preallocation can only be used for growing images");
    if (size < rounded && !args->shrink)
        return refuse_to_shrink();
    if (!preallocation_is_known(node, args->preallocation))
        return cli_error("Unsupported preallocation mode: %s",
                         preallocation_name(args->preallocation));
    if (node_activate(node, &diag) < 0)
        return cli_diag(&diag);
    int err = size < old ? node_shrink(node, size, &diag) : node_grow(node, size, &diag);
    if (!err)
        err = preallocate_growth(node, old, args->preallocation, &diag);
    return err < 0 ? cli_diag(&diag) : CLI_OK;
}

static int resize_given(const struct resize_args *args)
{
    struct image image;
    static const struct chain_options chain = {.keep_locked = true};

    int code = image_open_given(&image, &args->image, &chain);
    if (code != CLI_OK)
        return code;
    code = resize_node(args, image.node);
    if (image_close(&image) != CLI_OK)
        code = CLI_FAILED;
    if (code == CLI_OK && !args->quiet)
        puts("Image resized.");
    return code;
}

static int take_option(void *opaque, int option)
{
    struct resize_args *args = opaque;

    switch (option) {
    case OPT_PREALLOCATION:
        return preallocation_parse(optarg, &args->preallocation);
    case OPT_SHRINK:
        args->shrink = true;
        break;
    case 'q':
        args->quiet = true;
        break;
    default:
        return cli_take_image_option(&args->image, option);
    }
    return CLI_OK;
}

static int parse_and_resize(const char *size, struct resize_args *args)
{
    int code = size ? parse_size(size, args) : cli_usage_error("Not enough arguments");

    return code == CLI_OK ? resize_given(args) : code;
}

/* The last argument is the size, which may look like an option: "-1G". */
static int run_resize_command(const struct cli_command *self, int argc, char **argv)
{
    struct resize_args args = {0};
    bool has_size = argc > 2 && strncmp(argv[argc - 1], "--", 2) != 0;
    const char *size = has_size ? argv[--argc] : NULL;

    if (has_size)
        argv[argc] = NULL;
    int code = cli_take_image(self, argc, argv, take_option, &args, &args.image);
    if (code == CLI_GO_ON)
        code = parse_and_resize(size, &args);
    cli_free_image(&args.image);
    return code;
}

const struct cli_command resize_command = {
    .name = "resize",
    .operands = "filename [+|-]size",
    .summary = "Change the size of a disk.",
    .options = options,
    .run = run_resize_command,
};
