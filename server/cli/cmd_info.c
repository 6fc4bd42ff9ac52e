/* SPDX-License-Identifier: BSD-3-Clause */
/* `qimg info`. */
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jansson.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "cli.h"
#include "common/image_info_json.h"
#include "image.h"
#include "info_print.h"

/* qemu-img counts in sectors: it rounds a raw file's size up. */
#define SECTOR 512

enum { OPT_BACKING_CHAIN = CLI_OWN_OPTIONS };

static const struct cli_option options[] = {
    CLI_IMAGE_OPTIONS,
    {OPT_BACKING_CHAIN, "backing-chain", NULL, "describe the backing files, too"},
    {'t', "cache", "CACHE", "how the image is read: writeback, none, ..."},
    {0},
};

struct info_args {
    struct cli_image image;
    const struct cache_mode *cache; /* NULL: not given */
    bool backing_chain;
};

/* Appends the descriptions of an image and its backing files. */
static int describe_chain(struct node *node, json_t *images)
{
    for (; node; node = node->backing) {
        CLEANUP_IMAGE_INFO struct image_info info = {0};
        if (image_info_read(node, IMAGE_INFO_RECORDED, &info))
            return cli_error("%s: out of memory", node->filename);
        info.virtual_size = align_up(info.virtual_size, SECTOR);
        json_array_append_new(images, image_info_json(&info));
    }
    return CLI_OK;
}

static void print_images(json_t *images, const struct info_args *args)
{
    if (args->image.output == OUTPUT_JSON) {
        json_dumpf(args->backing_chain ? images : json_array_get(images, 0), stdout,
                   JSON_INDENT(4));
        putchar('\n');
        return;
    }
    size_t i;
    json_t *object;
    json_array_foreach (images, i, object) {
        if (i > 0)
            putchar('\n');
        info_print_human(object, stdout);
    }
}

static int describe_given(const struct info_args *args)
{
    const struct chain_options chain = {
        .read_only = true,
        .no_backing = !args->backing_chain,
        .node = {.lock_off = args->image.share, .describe = true, .cache = args->cache},
    };
    struct image image;
    int code = image_open_given(&image, &args->image, &chain);
    if (code != CLI_OK)
        return code;

    json_t *images = json_array();
    code = describe_chain(image.node, images);
    if (code == CLI_OK)
        print_images(images, args);
    json_decref(images);
    int close_code = image_close(&image);
    return code != CLI_OK ? code : close_code;
}

static int take_info_option(void *opaque, int option)
{
    struct info_args *args = opaque;

    switch (option) {
    case OPT_BACKING_CHAIN:
        args->backing_chain = true;
        break;
    case 't':
        return cli_parse_cache("cache", optarg, &args->cache);
    default:
        return cli_take_image_option(&args->image, option);
    }
    return CLI_OK;
}

static int run_info_command(const struct cli_command *self, int argc, char **argv)
{
    struct info_args args = {.image.output = OUTPUT_HUMAN};
    int code = cli_take_image(self, argc, argv, take_info_option, &args, &args.image);

    if (code == CLI_GO_ON)
        code = describe_given(&args);
    cli_free_image(&args.image);
    return code;
}

const struct cli_command info_command = {
    .name = "info",
    .operands = "filename",
    .summary = "Describe an image.",
    .options = options,
    .run = run_info_command,
};
