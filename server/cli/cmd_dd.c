/* SPDX-License-Identifier: BSD-3-Clause */
/* `qimg dd`. */
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "base/size.h"
#include "base/words.h"
#include "block/cache_mode.h"
#include "copy_disk.h"
#include "create_options.h"
#include "image.h"
#include "interrupt.h"
#include "target.h"

#define SECTOR 512

static const struct cli_option options[] = {
    {'f', "format", "FMT", "the input's format; by default told from its content"},
    {'O', "output-format", "FMT", "the output's format (default raw)"},
    {CLI_IMAGE_OPTS, "image-opts", NULL, "the input is driver=...,file.filename=..."},
    CLI_OBJECT_OPTION,
    {'U', "force-share", NULL, "allow others to have the input open for writing"},
    {0},
};

struct dd_args {
    struct cli_image input;
    const char *format, *output;
    const struct driver *driver;
    /* in bytes; count and skip: in blocks; count UINT64_MAX: all */
    uint64_t block, count, skip;
};

static int take_number(const char *name, const char *text, uint64_t most, uint64_t *out)
{
    if (size_parse(text, out) < 0)
        return cli_error("invalid number: '%s' of %s", text, name);
    if (*out > most)
        return cli_error("Invalid %s specified. Must be between 1 and %" PRIu64 ".", name,
                         most);
    return CLI_OK;
}

static int take_operand(struct dd_args *args, const char *text)
{
    static const char *const names[] = {"bs", "count", "if", "of", "skip"};
    size_t n = strcspn(text, "=");
    const char *value = text + n + (text[n] == '=');
    struct words_hint hint;
    char name[16];

    snprintf(name, sizeof name, "%.*s", (int)MIN(n, sizeof name - 1), text);
    if (strcmp(name, "if") == 0)
        args->input.filename = value;
    else if (strcmp(name, "of") == 0)
        args->output = value;
    else if (strcmp(name, "bs") == 0) {
        int code = take_number("bs", value, INT32_MAX, &args->block);
        if (code == CLI_OK && args->block == 0)
            code = cli_error("Invalid bs specified. Must be between 1 and %d.", INT32_MAX);
        return code;
    } else if (strcmp(name, "count") == 0)
        return take_number("count", value, INT64_MAX, &args->count);
    else if (strcmp(name, "skip") == 0)
        return take_number("skip", value, INT64_MAX, &args->skip);
    else
        return cli_error("unrecognized operand %s: %s", text,
                         words_hint(&hint, name, names, ARRAY_LEN(names)));
    return CLI_OK;
}

static int take_operands(struct dd_args *args, int argc, char **argv)
{
    int code = CLI_OK;

    for (int i = 0; i < argc && code == CLI_OK; i++)
        code = take_operand(args, argv[i]);
    if (code == CLI_OK && (!args->input.filename || !args->output))
        code = cli_error("Must specify both input and output files");
    if (code != CLI_OK)
        return code;
    args->driver = driver_find(args->format);
    return args->driver ? CLI_OK
                        : create_format_unknown("Unknown file format", args->format);
}

/* As in qemu-img, `count` is relative to the beginning of the input, and includes skipped
 * blocks. */
static void find_range(const struct dd_args *args, uint64_t size, uint64_t *start,
                       uint64_t *len)
{
    uint64_t end;

    size = align_up(size, SECTOR);
    if (mul_overflows(args->count, args->block, &end) || end > size)
        end = size;
    if (mul_overflows(args->skip, args->block, start) || *start > end) {
        cli_error("%s: cannot skip to specified offset", args->input.filename);
        *start = end;
    }
    *len = end - *start;
}

static int copy_range_of(struct node *source, struct target *target, uint64_t start,
                         uint64_t len)
{
    uint64_t inside = start < source->size ? MIN(len, source->size - start) : 0;
    const struct copy_disk copy = {
        .how = {.source = source,
                .target = target->image.node,
                .source_start = start,
                .unmap = true,
                .align = 1,
                .target_is_zero = target->is_zero},
        .length = inside,
        .total = inside,
    };

    return inside ? copy_disk(&copy) : CLI_OK;
}

static int copy_to_output(const struct dd_args *args, struct node *source)
{
    CLEANUP_FREE struct create_option *for_driver = NULL;
    struct create_request create = {0};
    struct option_list list = {0};
    struct node *const sources[] = {source, NULL};
    const struct target_request request = {.filename = args->output,
                                           .format = args->driver,
                                           .create = &create,
                                           .cache = cache_mode_find("writeback"),
                                           .sources = sources};
    struct target target;
    uint64_t start, len;

    find_range(args, source->size, &start, &len);
    create.size = align_up(len, SECTOR);
    int code = create_options_request(args->driver, &list, args->output,
                                      &args->input.secrets, &create, &for_driver);
    if (code == CLI_OK)
        code = target_open(&target, &request);
    if (code != CLI_OK)
        return code;
    code = copy_range_of(source, &target, start, len);
    return target_finish(&target, code == CLI_OK, code);
}

static int open_and_copy(const struct dd_args *args)
{
    const struct chain_options chain = {.read_only = true,
                                        .node = {.lock_off = args->input.share}};
    struct image image;

    int code = image_open_given(&image, &args->input, &chain);
    if (code != CLI_OK)
        return code;
    interrupt_catch();
    code = copy_to_output(args, image.node);
    if (image_close(&image) != CLI_OK)
        code = CLI_FAILED;
    interrupt_die();
    return code;
}

static int take_option(void *opaque, int option)
{
    struct dd_args *args = opaque;

    if (option != 'O')
        return cli_take_image_option(&args->input, option);
    args->format = optarg;
    return CLI_OK;
}

static int parse_and_copy(struct dd_args *args, int argc, char **argv)
{
    int code = take_operands(args, argc, argv);

    return code == CLI_OK ? open_and_copy(args) : code;
}

static int run_dd_command(const struct cli_command *self, int argc, char **argv)
{
    struct dd_args args = {.format = "raw", .block = SECTOR, .count = UINT64_MAX};
    int code = cli_take_options(self, argc, argv, take_option, &args);

    if (code == CLI_GO_ON)
        code = parse_and_copy(&args, argc - optind, argv + optind);
    cli_free_image(&args.input);
    return code;
}

const struct cli_command dd_command = {
    .name = "dd",
    .operands = "[bs=block_size] [count=blocks] [skip=blocks] if=input of=output",
    .summary = "Copy a part of a disk into a new image.",
    .options = options,
    .run = run_dd_command,
};
