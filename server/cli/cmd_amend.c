/* SPDX-License-Identifier: BSD-3-Clause */
/* `qimg amend`. */
#include <getopt.h>
#include <stdio.h>
#include <string.h>

#include "base/cleanup.h"
#include "block/amend.h"
#include "block/cache_mode.h"
#include "create_options.h"
#include "image.h"
#include "image_opts.h"
#include "progress.h"

enum { OPT_FORCE = CLI_OWN_OPTIONS };

static const struct cli_option options[] = {
    {'f', "format", "FMT", "the image's format; by default told from its content"},
    {'o', "options", "OPTIONS", "what to change, key=value,...; 'help' lists what can be"},
    {'t', "cache", "CACHE", "how the image is written: writeback, none, ..."},
    {OPT_FORCE, "force", NULL, "key slots: overwrite one in use, erase the last one"},
    {CLI_IMAGE_OPTS, "image-opts", NULL, "the filename is driver=...,file.filename=..."},
    CLI_OBJECT_OPTION,
    {'p', "progress", NULL, "show progress"},
    {'q', "quiet", NULL, "print nothing but errors"},
    {0},
};

struct amend_args {
    struct cli_image image;
    struct option_list list;
    const struct cache_mode *cache;
    bool given, force, progress, quiet;
};

static int take_secret(const struct amend_args *args, const char *id,
                       struct amend_secret *out)
{
    const struct secret_item *secret = secrets_find_passphrase(&args->image.secrets, id);

    if (!secret)
        return CLI_FAILED;
    *out = (struct amend_secret){.bytes = secret->bytes, .len = secret->len};
    return CLI_OK;
}

static int find_secret(const struct amend_args *args, const char *key,
                       struct amend_secret *out)
{
    const char *id = options_get(&args->list, key);

    return id ? take_secret(args, id, out) : CLI_OK;
}

/* A key slot is added with a passphrase that opens the image: that of encrypt.old-secret,
 * or else the one with which --image-opts opens it. */
static int find_old_secret(const struct amend_args *args, struct amend_secret *out)
{
    static const char *const key = "encrypt.old-secret";
    CLEANUP_IMAGE_OPTS struct image_opts opts = {0};
    const char *state = options_get(&args->list, "encrypt.state");

    if (options_get(&args->list, key) || !args->image.image_opts || !state ||
        strcmp(state, "active") != 0)
        return find_secret(args, key, out);
    if (image_opts_parse(&args->image, &opts) != CLI_OK)
        return CLI_FAILED;
    const char *id = options_get(&opts.encryption, IMAGE_OPTS_KEY);
    return id ? take_secret(args, id, out) : CLI_OK;
}

static int refuse_key(const struct driver *driver, const char *key)
{
    if (strncmp(key, "backing_", strlen("backing_")) == 0)
        return cli_error("Cannot amend the backing file: use 'qimg rebase' instead (%s)",
                         key);
    for (const struct create_option_info *o = driver->create_options; o->name; o++)
        if (strcmp(o->name, key) == 0)
            return cli_error("Invalid parameter '%s': This option is only supported for "
                             "image creation",
                             key);
    return cli_error("Invalid parameter '%s'", key);
}

static int check_keys(const struct driver *driver, struct option_list *list,
                      const char *filename)
{
    for (size_t i = 0; i < list->count; i++) {
        const struct create_option_info *o = driver->amend_options;
        while (o->name && strcmp(o->name, list->pairs[i].key) != 0)
            o++;
        if (!o->name)
            return refuse_key(driver, list->pairs[i].key);
    }
    return create_options_normalise(driver->amend_options, list, filename);
}

static int amend_image(struct amend_args *args, struct node *node)
{
    const struct driver *driver = node->driver;
    CLEANUP_FREE struct create_option *list = NULL;
    struct amend_request req = {.force = args->force};
    struct diag diag = {0};

    if (!driver->amend)
        return cli_error("Format driver '%s' does not support option amendment",
                         driver->name);
    if (node_protocol(node) != &storage_protocol_file)
        return cli_error("%s: only local files can be amended", node->filename);
    if (check_keys(driver, &args->list, node->filename) != CLI_OK ||
        find_old_secret(args, &req.old_secret) != CLI_OK ||
        find_secret(args, "encrypt.new-secret", &req.new_secret) != CLI_OK ||
        create_options_list(NULL, &args->list, &list, &req.n_options) != CLI_OK)
        return CLI_FAILED;
    req.options = list;
    return node_amend(node, &req, &diag) < 0 ? cli_diag(&diag) : CLI_OK;
}

static int open_and_amend(struct amend_args *args)
{
    const struct chain_options chain = {.keep_locked = true,
                                        .node = {.cache = args->cache}};
    struct image image;

    int code = image_open_given(&image, &args->image, &chain);
    if (code != CLI_OK)
        return code;
    code = amend_image(args, image.node);
    return image_close(&image) == CLI_OK ? code : CLI_FAILED;
}

static int amend_given(struct amend_args *args)
{
    progress_begin(args->progress && !args->quiet);
    int code = open_and_amend(args);
    progress_end(code == CLI_OK);
    return code;
}

static int take_option(void *opaque, int option)
{
    struct amend_args *args = opaque;

    switch (option) {
    case 'o':
        args->given = true;
        return options_add(&args->list, optarg);
    case 't':
        return cli_parse_cache("cache", optarg, &args->cache);
    case OPT_FORCE:
        args->force = true;
        break;
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

/* Prints the options that can be amended. */
static int print_options(const struct driver *driver)
{
    if (!driver->amend_options)
        return cli_error("Format driver '%s' does not support option amendment",
                         driver->name);
    printf("Amend options for '%s':\n", driver->name);
    create_options_print(driver->amend_options);
    return CLI_OK;
}

static int print_options_of_format(const char *format)
{
    const struct driver *driver = driver_find(format);

    return driver ? print_options(driver)
                  : create_format_unknown("Unknown file format", format);
}

static int print_options_of_image(const struct amend_args *args)
{
    const struct chain_options chain = {
        .read_only = true, .no_backing = true, .node.describe = true};
    struct image image;

    int code = image_open_given(&image, &args->image, &chain);
    if (code != CLI_OK)
        return code;
    code = print_options(image.node->driver);
    return image_close(&image) == CLI_OK ? code : CLI_FAILED;
}

static int parse_and_amend(struct amend_args *args, int argc, char **argv)
{
    if (!args->given)
        return cli_error("Must specify options (-o)");
    if (args->list.help && args->image.format)
        return print_options_of_format(args->image.format);
    if (argc != 1)
        return cli_usage_error("Expecting one image file name");
    args->image.filename = argv[0];
    return args->list.help ? print_options_of_image(args) : amend_given(args);
}

static int run_amend_command(const struct cli_command *self, int argc, char **argv)
{
    struct amend_args args = {.cache = cache_mode_find("writeback")};
    int code = cli_take_options(self, argc, argv, take_option, &args);

    if (code == CLI_GO_ON)
        code = parse_and_amend(&args, argc - optind, argv + optind);
    options_free(&args.list);
    cli_free_image(&args.image);
    return code;
}

const struct cli_command amend_command = {
    .name = "amend",
    .operands = "filename",
    .summary = "Change options of an image that is there.",
    .options = options,
    .run = run_amend_command,
};
