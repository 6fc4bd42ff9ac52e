/* SPDX-License-Identifier: BSD-3-Clause */
/* `qimg convert`. */
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "base/size.h"
#include "block/cache_mode.h"
#include "convert.h"
#include "size.h"

enum {
    OPT_SALVAGE = CLI_OWN_OPTIONS,
    OPT_TARGET_IMAGE_OPTS,
    OPT_TARGET_IS_ZERO,
    OPT_BITMAPS,
    OPT_SKIP_BROKEN_BITMAPS,
};

static const struct cli_option options[] = {
    {'f', "source-format", "FMT",
     "the sources' format; by default told from their content"},
    {'O', "target-format", "FMT", "the target's format (default raw)"},
    {'o', "target-format-options", "OPTIONS",
     "options of the target, key=value,...; 'help' lists them"},
    {'b', "backing", "FILE", "the target's backing file; what it has isn't copied"},
    {'B', NULL, "FILE", "the same, as older versions of qemu-img call it"},
    {'F', "backing-format", "FMT", "the backing file's format"},
    {'c', "compress", NULL, "store clusters compressed"},
    {'n', "no-create", NULL, "the target is there already"},
    {OPT_TARGET_IS_ZERO, "target-is-zero", NULL, "and reads as zeroes (with -n)"},
    {'S', "sparse-size", "BYTES",
     "so many zero bytes become a hole (default 4k); 0: none do"},
    {'l', "snapshot", "SNAPSHOT", "convert an internal snapshot: its id or name"},
    {OPT_BITMAPS, "bitmaps", NULL, "copy persistent bitmaps, too"},
    {OPT_SKIP_BROKEN_BITMAPS, "skip-broken-bitmaps", NULL, "but inconsistent ones"},
    {OPT_SALVAGE, "salvage", NULL, "what can't be read is left zero, and said"},
    {'m', "parallel", "N", "work with so many threads, 1 to 16"},
    {'W', "oob-writes", NULL, "write out of order; that is always done unless -m 1"},
    {'C', "copy-range-offloading", NULL,
     "let the kernel move what it can; zeroes aren't searched for"},
    {'r', "rate-limit", "RATE", "move so many bytes per second at most"},
    {'t', "target-cache", "CACHE",
     "how the target is written (default unsafe: nothing is synced)"},
    {'T', "source-cache", "CACHE", "how the sources are read"},
    {'U', "force-share", NULL, "allow others to have the sources open for writing"},
    {CLI_IMAGE_OPTS, "image-opts", NULL, "the sources are driver=...,file.filename=..."},
    {OPT_TARGET_IMAGE_OPTS, "target-image-opts", NULL, "the same for the target (with -n)"},
    CLI_OBJECT_OPTION,
    {'p', "progress", NULL, "show progress"},
    {'q', "quiet", NULL, "print nothing but errors"},
    {0},
};

static int take_sparse(const char *text, struct convert_args *args)
{
    uint64_t bytes;

    if (size_parse(text, &bytes) < 0 || bytes % 512 || bytes > CONVERT_MAX_SPARSE)
        return cli_error("Invalid buffer size for sparse output specified. Valid sizes are "
                         "multiples of 512 up to %u. Select 0 to disable sparse detection "
                         "(fully allocates output).",
                         CONVERT_MAX_SPARSE);
    args->sparse = (uint32_t)bytes;
    args->sparse_given = true;
    return CLI_OK;
}

static int take_threads(const char *text, struct convert_args *args)
{
    uint64_t n;

    if (size_parse(text, &n) < 0 || n < 1 || n > 16)
        return cli_error("Invalid number of coroutines. Allowed number of coroutines is "
                         "between 1 and 16");
    args->threads = (unsigned)n;
    return CLI_OK;
}

static int take_switch(struct convert_args *args, int option)
{
    switch (option) {
    case 'c':
        args->compress = true;
        break;
    case 'n':
        args->existing = true;
        break;
    case 'W':
        break; /* out-of-order writes are always used */
    case 'C':
        args->offload = true;
        break;
    case 'U':
        args->source.share = true;
        break;
    case 'p':
        args->progress = true;
        break;
    case 'q':
        args->quiet = true;
        break;
    case OPT_SALVAGE:
        args->salvage = true;
        break;
    case OPT_TARGET_IMAGE_OPTS:
        args->target_image_opts = true;
        break;
    case OPT_TARGET_IS_ZERO:
        args->target_is_zero = true;
        break;
    case OPT_BITMAPS:
        args->bitmaps = true;
        break;
    case OPT_SKIP_BROKEN_BITMAPS:
        args->skip_broken_bitmaps = true;
        break;
    default:
        return cli_take_image_option(&args->source, option);
    }
    return CLI_OK;
}

static int take_option(void *opaque, int option)
{
    struct convert_args *args = opaque;

    switch (option) {
    case 'O':
        args->format = optarg;
        break;
    case 'o':
        args->options_given = true;
        return options_add(&args->list, optarg);
    case 'b':
    case 'B':
        args->backing_file = optarg;
        break;
    case 'F':
        args->backing_format = optarg;
        break;
    case 'S':
        return take_sparse(optarg, args);
    case 'l':
        args->snapshot = optarg;
        break;
    case 'm':
        return take_threads(optarg, args);
    case 'r':
        return cli_parse_rate(optarg, &args->speed);
    case 't':
        return cli_parse_cache("cache", optarg, &args->cache);
    case 'T':
        return cli_parse_cache("source cache", optarg, &args->source_cache);
    default:
        return take_switch(args, option);
    }
    return CLI_OK;
}

/* Refuses options that exclude each other. */
static int check_words(const struct convert_args *args)
{
    if (args->target_image_opts && args->format)
        return cli_error("-O and --target-image-opts are mutually exclusive");
    if (args->target_image_opts && !args->existing)
        return cli_error("--target-image-opts requires use of -n flag");
    if (args->target_is_zero && !args->existing)
        return cli_error("--target-is-zero requires use of -n flag");
    if (args->target_is_zero && args->backing_file)
        return cli_error("Cannot use --target-is-zero when the destination image has a "
                         "backing file");
    if (args->existing && args->options_given)
        return cli_error("-o has no effect when skipping image creation");
    if (args->offload && args->compress)
        return cli_error("Cannot enable copy offloading when -c is used");
    if (args->offload && args->sparse_given)
        return cli_error("Cannot enable copy offloading when -S is used");
    if (args->offload && args->salvage)
        return cli_error("Cannot use copy offloading in salvaging mode");
    if (args->skip_broken_bitmaps && !args->bitmaps)
        return cli_error("Use of --skip-broken-bitmaps requires --bitmaps");
    return CLI_OK;
}

static int take_operands(struct convert_args *args, int argc, char **argv)
{
    if (args->list.help && args->driver) {
        create_format_help(args->driver);
        return CLI_OK;
    }
    if (argc < 2)
        return cli_error("Must specify image file name");
    args->sources = argv;
    args->n_sources = (size_t)argc - 1;
    args->target = argv[argc - 1];
    if (args->backing_file && args->n_sources > 1)
        return cli_error(CONVERT_ONE_SOURCE);
    return CLI_GO_ON;
}

static int parse_and_convert(struct convert_args *args, const struct cli_command *self,
                             int argc, char **argv)
{
    int code = cli_take_options(self, argc, argv, take_option, args);

    if (code != CLI_GO_ON)
        return code;
    code = check_words(args);
    if (code != CLI_OK)
        return code;
    if (!args->target_image_opts) {
        const char *name = args->format ? args->format : "raw";
        args->driver = driver_find(name);
        if (!args->driver)
            return create_format_unknown("Unknown file format", name);
    }
    if (args->backing_file &&
        options_set(&args->list, "backing_file", args->backing_file) != CLI_OK)
        return CLI_FAILED;
    if (args->backing_format &&
        options_set(&args->list, "backing_fmt", args->backing_format) != CLI_OK)
        return CLI_FAILED;
    code = take_operands(args, argc - optind, argv + optind);
    return code == CLI_GO_ON ? convert(args) : code;
}

static int run_convert_command(const struct cli_command *self, int argc, char **argv)
{
    struct convert_args args = {.sparse = 4096, .cache = cache_mode_find("unsafe")};
    int code = parse_and_convert(&args, self, argc, argv);

    options_free(&args.list);
    cli_free_image(&args.source);
    return code;
}

const struct cli_command convert_command = {
    .name = "convert",
    .operands = "filename [filename2 [...]] output_filename",
    .summary = "Copy a disk into an image of another format.",
    .options = options,
    .run = run_convert_command,
};
