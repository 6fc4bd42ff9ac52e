/* SPDX-License-Identifier: BSD-3-Clause */
/* `qimg create`. */
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "cli.h"
#include "create_options.h"
#include "image.h"
#include "object.h"
#include "secrets.h"
#include "size.h"

#define SECTOR 512

static const struct cli_option options[] = {
    {'f', "format", "FMT", "the new image's format (default raw)"},
    {'b', "backing", "FILE", "the new image's backing file"},
    {'F', "backing-format", "FMT", "the backing file's format"},
    {'B', NULL, "FMT", "the same, as newer versions of qemu-img call it"},
    {'u', "backing-unsafe", NULL, "don't open the backing file"},
    {'o', "options", "OPTIONS", "options of the format, key=value,...; 'help' lists them"},
    CLI_OBJECT_OPTION,
    {'q', "quiet", NULL, "print nothing but errors"},
    {0},
};

struct create_args {
    const char *filename, *given; /* `given`: as on the command line, with its protocol */
    const struct storage_protocol *protocol;
    const struct driver *format;
    const char *size_text; /* NULL: none given */
    struct option_list list;
    struct secrets secrets;
    bool unchecked, quiet;
};

static int parse_size(struct create_args *args, uint64_t *size, bool *given)
{
    const char *option = options_get(&args->list, "size");

    *given = args->size_text || option;
    if (args->size_text && option)
        return cli_error("%s: The image size must be specified only once", args->filename);
    if (!*given)
        return CLI_OK;
    return size_parse_argument("image size", args->size_text ? args->size_text : option,
                               size);
}

/* Refuses to overwrite a file (the image or its data file) that belongs to the new image's
 * backing chain. */
static int check_not_below(const char *filename, const struct node *node)
{
    const struct storage_open how = {.read_only = true};
    CLEANUP_STORAGE struct storage *target = NULL;

    if (storage_open_file(filename, &how, &target, NULL) < 0)
        /* usually it doesn't exist; other errors are reported when it is created */
        return CLI_OK;
    for (; node; node = node->backing)
        if (storage_is_same(target, node->file) ||
            (node->data_file && storage_is_same(target, node->data_file)))
            return cli_error(
                "%s: the image would be created over %s, which it is to lie on", filename,
                node->filename);
    return CLI_OK;
}

static int check_data_file_not_below(const struct create_args *args,
                                     const struct node *node)
{
    const char *name = options_get(&args->list, "data_file");
    CLEANUP_REFERENCE struct reference ref = {0};

    /* An invalid name is reported when the file is created. */
    if (!name || reference_resolve(args->filename, name, REFERENCES_ANY, &ref, NULL) < 0)
        return CLI_OK;
    return check_not_below(ref.path, node);
}

/* Opens the backing chain, which must be usable.  *size: its size. */
static int check_backing(const struct create_args *args, const char *name,
                         const char *format, uint64_t *size)
{
    CLEANUP_REFERENCE struct reference ref = {0};
    struct diag diag = {0};
    if (reference_resolve_layer(args->filename, name, REFERENCES_ANY, &ref, &diag) < 0)
        return cli_diag(&diag);
    if (ref.format && strcmp(ref.format, format) != 0)
        return cli_error("%s: Backing format '%s' is not the one in the name, '%s'",
                         args->filename, format, ref.format);

    /* No lock, as in qemu-img: an overlay may be created on a disk that is in use. */
    const struct chain_options chain = {.format = format,
                                        .protocol = ref.protocol,
                                        .named = &ref,
                                        .read_only = true,
                                        .keep_locked = true,
                                        .node.lock_off = true};
    struct image image;
    int code = image_open(&image, ref.path, &chain, IMAGE_NEVER_RAW);
    if (code != CLI_OK)
        return code;
    code = check_not_below(args->filename, image.node);
    if (code == CLI_OK)
        code = check_data_file_not_below(args, image.node);
    *size = image.node->size;
    int close_code = image_close(&image);
    return code != CLI_OK ? code : close_code;
}

/* Reports the detected format, but doesn't use it: a raw file can look like any format. */
static int refuse_without_format(const struct create_args *args, const char *name)
{
    CLEANUP_REFERENCE struct reference ref = {0};
    struct diag diag = {0};
    struct image image;

    if (args->unchecked)
        return cli_error("%s: Backing file specified without backing format (-F)",
                         args->filename);
    if (reference_resolve_layer(args->filename, name, REFERENCES_ANY, &ref, &diag) < 0)
        return cli_diag(&diag);
    const struct chain_options chain = {.format = ref.format,
                                        .protocol = ref.protocol,
                                        .named = &ref,
                                        .read_only = true,
                                        .no_backing = true,
                                        .node = {.describe = true, .lock_off = true}};
    int code = image_open(&image, ref.path, &chain, IMAGE_MAYBE_RAW);
    if (code != CLI_OK)
        return code;
    cli_error(
        "%s: Backing file specified without backing format (-F): detected format of %s",
        args->filename, image.node->driver->name);
    (void)image_close(&image);
    return CLI_FAILED;
}

/* Checks the backing options before anything is created. */
static int check_backing_words(const struct create_args *args, const char *name,
                               const char *format)
{
    struct diag diag = {0};

    if (!name && format)
        return cli_error("%s: Backing format cannot be used without backing file",
                         args->filename);
    if (!name)
        return CLI_OK;
    if (name[0] == '\0')
        return cli_error("%s: Expected backing file name, got empty string",
                         args->filename);
    if (strcmp(name, args->filename) == 0)
        return cli_error("%s: an image can't be its own backing file", args->filename);
    if (reference_check_recorded(args->filename, name, &diag) < 0)
        return cli_diag(&diag);
    if (!format)
        return refuse_without_format(args, name);
    if (!args->unchecked && !driver_find_recorded(format))
        return create_format_unknown("Unknown backing format", format);
    return CLI_OK;
}

/* Determines the size, from the command line or else from the backing file, and puts it
 * into the list. */
static int settle_size(struct create_args *args, uint64_t *size)
{
    const char *name = options_get(&args->list, "backing_file");
    const char *format = options_get(&args->list, "backing_fmt");
    uint64_t backing_size = 0;
    bool given;

    if (parse_size(args, size, &given) != CLI_OK ||
        check_backing_words(args, name, format) != CLI_OK)
        return CLI_FAILED;
    bool opened = name && !args->unchecked;
    if (opened && check_backing(args, name, format, &backing_size) != CLI_OK)
        return CLI_FAILED;
    if (!given && !opened)
        return cli_error("%s: Image creation needs a size parameter", args->filename);
    if (!given)
        *size = align_up(backing_size, SECTOR);

    char text[32];
    snprintf(text, sizeof text, "%" PRIu64, *size);
    return options_set(&args->list, "size", text);
}

static int create_as_asked(struct create_args *args)
{
    CLEANUP_FREE struct create_option *for_driver = NULL;
    struct create_request req = {0};
    struct diag diag = {0};

    if (!driver_can(args->format, DRIVER_BACKING) &&
        options_get(&args->list, "backing_file"))
        return cli_error("%s: Backing file not supported for file format '%s'",
                         args->filename, args->format->name);
    if (create_options_check(args->format, &args->list, args->filename) != CLI_OK ||
        settle_size(args, &req.size) != CLI_OK ||
        create_options_request(args->format, &args->list, args->filename, &args->secrets,
                               &req, &for_driver) != CLI_OK)
        return CLI_FAILED;
    req.protocol = args->protocol;
    if (!args->quiet)
        create_options_announce(args->format, &args->list, args->given);
    if (create_image(args->format, &req, &diag) < 0)
        return cli_diag(&diag);
    return CLI_OK;
}

/* Options of the command line; -b and -F override -o. */
struct raw_args {
    struct create_args *args;
    const char *format, *backing_file, *backing_format;
};

static int take_create_option(void *opaque, int option)
{
    struct raw_args *raw = opaque;
    struct create_args *args = raw->args;

    switch (option) {
    case 'f':
        raw->format = optarg;
        break;
    case 'b':
        raw->backing_file = optarg;
        break;
    case 'F':
    case 'B':
        raw->backing_format = optarg;
        break;
    case 'u':
        args->unchecked = true;
        break;
    case 'o':
        return options_add(&args->list, optarg);
    case CLI_OBJECT:
        return object_add(&args->secrets, optarg);
    case 'q':
        args->quiet = true;
        break;
    }
    return CLI_OK;
}

static int take_operands(struct create_args *args, int argc, char **argv)
{
    if (argc < 1)
        return cli_usage_error("Expecting image file name");
    if (argc > 2)
        return cli_usage_error("Unexpected argument: %s", argv[2]);
    args->protocol = storage_protocol_of(argv[0]);
    args->given = argv[0];
    args->filename = cli_local_name(argv[0]);
    args->size_text = argc == 2 ? argv[1] : NULL;
    return CLI_OK;
}

static int parse_and_create(struct create_args *args, const struct cli_command *self,
                            int argc, char **argv)
{
    struct raw_args raw = {.args = args, .format = "raw"};
    int code = cli_take_options(self, argc, argv, take_create_option, &raw);

    if (code != CLI_GO_ON)
        return code;
    args->format = driver_find(raw.format);
    if (!args->format)
        return create_format_unknown("Unknown file format", raw.format);
    if (args->list.help) {
        create_format_help(args->format);
        return CLI_OK;
    }
    if (raw.backing_file &&
        options_set(&args->list, "backing_file", raw.backing_file) != CLI_OK)
        return CLI_FAILED;
    if (raw.backing_format &&
        options_set(&args->list, "backing_fmt", raw.backing_format) != CLI_OK)
        return CLI_FAILED;
    if (take_operands(args, argc - optind, argv + optind) != CLI_OK)
        return CLI_FAILED;
    return create_as_asked(args);
}

static int run_create_command(const struct cli_command *self, int argc, char **argv)
{
    struct create_args args = {0};
    int code = parse_and_create(&args, self, argc, argv);

    options_free(&args.list);
    secrets_free(&args.secrets);
    return code;
}

const struct cli_command create_command = {
    .name = "create",
    .operands = "filename [size]",
    .summary = "Make a new, empty image.",
    .options = options,
    .run = run_create_command,
};
