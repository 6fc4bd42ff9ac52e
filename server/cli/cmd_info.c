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
#include "image.h"
#include "info_print.h"

/* qemu-img counts in these, and so a raw file that ends inside one seems larger there. */
#define SECTOR 512

enum { OPT_BACKING_CHAIN = CLI_OWN_OPTIONS };

static const struct cli_option options[] = {
    CLI_IMAGE_OPTIONS,
    {OPT_BACKING_CHAIN, "backing-chain", NULL, "describe the backing files, too"},
    {0},
};

struct info_args {
    struct cli_image image;
    bool backing_chain;
};

/* JSON is UTF-8 and file names are bytes: what isn't the one is shown as '?'. */
static json_t *json_text(const char *text)
{
    json_t *value = json_string(text);
    if (value)
        return value;
    CLEANUP_FREE char *copy = strdup(text);
    for (char *p = copy; p && *p; p++)
        if ((unsigned char)*p >= 0x80)
            *p = '?';
    return copy ? json_string(copy) : NULL;
}

static void add_backing(const struct node *node, json_t *object)
{
    if (!node->backing_name)
        return;
    CLEANUP_FREE char *full = reference_join(node->filename, node->backing_name);
    json_object_set_new(object, "backing-filename", json_text(node->backing_name));
    if (full)
        json_object_set_new(object, "full-backing-filename", json_text(full));
    if (node->backing_format)
        json_object_set_new(object, "backing-filename-format",
                            json_text(node->backing_format));
}

static json_t *describe(struct node *node)
{
    json_t *object = json_object();
    uint64_t allocated;

    json_object_set_new(object, "filename", json_text(node->filename));
    json_object_set_new(object, "format", json_string(node->driver->name));
    json_object_set_new(object, "virtual-size",
                        json_integer((json_int_t)align_up(node->size, SECTOR)));
    if (storage_allocated(node->file, &allocated) == 0)
        json_object_set_new(object, "actual-size", json_integer((json_int_t)allocated));
    if (node->cluster_size > 1)
        json_object_set_new(object, "cluster-size", json_integer(node->cluster_size));
    add_backing(node, object);
    json_object_set_new(object, "dirty-flag", json_false());
    node_add_info(node, object);
    return object;
}

static void print_json(json_t *value)
{
    json_dumpf(value, stdout, JSON_INDENT(4));
    putchar('\n');
}

static void print(json_t *images, const struct info_args *args)
{
    if (args->image.output == OUTPUT_JSON) {
        print_json(args->backing_chain ? images : json_array_get(images, 0));
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

static int info(const struct info_args *args)
{
    const struct chain_options chain = {
        .read_only = true,
        .no_backing = !args->backing_chain,
        .node = {.lock_off = args->image.share, .describe = true},
    };
    struct image image;
    int code = image_open_given(&image, &args->image, &chain);
    if (code != CLI_OK)
        return code;

    json_t *images = json_array();
    for (struct node *node = image.node; node; node = node->backing)
        json_array_append_new(images, describe(node));
    print(images, args);
    json_decref(images);
    return image_close(&image);
}

static int take_option(void *opaque, int option)
{
    struct info_args *args = opaque;

    switch (option) {
    case OPT_BACKING_CHAIN:
        args->backing_chain = true;
        break;
    default:
        return cli_take_image_option(&args->image, option);
    }
    return CLI_OK;
}

static int run(const struct cli_command *self, int argc, char **argv)
{
    struct info_args args = {.image.output = OUTPUT_HUMAN};
    int code = cli_take_image(self, argc, argv, take_option, &args, &args.image);

    return code == CLI_GO_ON ? info(&args) : code;
}

const struct cli_command info_command = {
    .name = "info",
    .operands = "filename",
    .summary = "Describe an image.",
    .options = options,
    .run = run,
};
