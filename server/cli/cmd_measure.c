/* SPDX-License-Identifier: BSD-3-Clause */
/* `qimg measure`. */
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "block/image_info.h"
#include "block/measure.h"
#include "create_options.h"
#include "image.h"
#include "size.h"
#include "snapshot_arg.h"

#define SECTOR 512
/* Bytes of a bitmap's directory entry without its name. */
#define DIRECTORY_ENTRY 24

/* qemu-img has convert's names of these options, too. */
enum { OPT_SOURCE_FORMAT = CLI_OWN_OPTIONS, OPT_SOURCE_IMAGE_OPTS, OPT_OPTIONS };

static const struct cli_option options[] = {
    CLI_IMAGE_OPTIONS,
    {OPT_SOURCE_FORMAT, "source-format", "FMT", "the same as --format"},
    {OPT_SOURCE_IMAGE_OPTS, "source-image-opts", NULL, "the same as --image-opts"},
    {'O', "target-format", "FMT", "the format that is measured (default raw)"},
    {'o', "target-format-options", "OPTIONS", "options of the new image, as for create"},
    {OPT_OPTIONS, "options", "OPTIONS", "the same as --target-format-options"},
    {'s', "size", "SIZE", "measure an empty image of that size"},
    {'l', "snapshot", "SNAPSHOT", "measure an internal snapshot: its id or name"},
    {0},
};

struct measure_args {
    struct cli_image image;
    const char *filename, *size_text, *format, *snapshot;
    const struct driver *driver;
    struct option_list list;
};

/* Space for the source's bitmaps in the new image; told: the new image can have bitmaps. */
struct bitmaps_size {
    bool told;
    uint64_t bytes;
};

static uint32_t cluster_of(const struct option_list *list)
{
    const char *text = options_get(list, "cluster_size");
    uint64_t bytes = 65536;

    if (text && size_parse_argument("cluster_size", text, &bytes) != CLI_OK)
        bytes = 65536;
    return (uint32_t)bytes;
}

static void add_bitmaps(const struct image_info *info, uint64_t cluster,
                        struct bitmaps_size *out)
{
    const struct qcow2_info *q = &info->qcow2;
    uint64_t directory = 0;

    out->told = true;
    for (size_t i = 0; i < q->n_bitmaps; i++) {
        uint64_t bits = div_round_up(info->virtual_size, q->bitmaps[i].granularity);
        uint64_t clusters = div_round_up(div_round_up(bits, 8), cluster);
        out->bytes += clusters * cluster + align_up(clusters * 8, cluster);
        directory += align_up(DIRECTORY_ENTRY + strlen(q->bitmaps[i].name), 8);
    }
    out->bytes += align_up(directory, cluster);
}

static int measure_bitmaps(const struct measure_args *args, struct node *source,
                           struct bitmaps_size *out)
{
    CLEANUP_IMAGE_INFO struct image_info info = {0};
    const char *compat = options_get(&args->list, "compat");

    *out = (struct bitmaps_size){0};
    if (!source || strcmp(args->driver->name, "qcow2") != 0 ||
        (compat && (strcmp(compat, "0.10") == 0 || strcmp(compat, "v2") == 0)))
        return CLI_OK;
    if (image_info_read(source, IMAGE_INFO_RECORDED, &info))
        return cli_error("out of memory");
    if (info.kind == IMAGE_INFO_QCOW2 && info.qcow2.version >= 3)
        add_bitmaps(&info, cluster_of(&args->list), out);
    return CLI_OK;
}

static void print_measure(const struct measure_args *args, const struct image_measure *m,
                          const struct bitmaps_size *bitmaps)
{
    bool json = args->image.output == OUTPUT_JSON;

    if (!json) {
        printf("required size: %" PRIu64 "\nfully allocated size: %" PRIu64 "\n",
               m->required, m->allocated);
        if (bitmaps->told)
            printf("bitmaps size: %" PRIu64 "\n", bitmaps->bytes);
        return;
    }
    printf("{\n");
    if (bitmaps->told)
        printf("    \"bitmaps\": %" PRIu64 ",\n", bitmaps->bytes);
    printf("    \"required\": %" PRIu64 ",\n    \"fully-allocated\": %" PRIu64 "\n}\n",
           m->required, m->allocated);
}

/* of: the source image; source: it, or its snapshot.  Both NULL with --size. */
static int measure(struct measure_args *args, struct node *of, struct node *source,
                   uint64_t size)
{
    CLEANUP_FREE struct create_option *for_driver = NULL;
    struct create_request req = {.size = align_up(size, SECTOR)};
    struct image_measure result;
    struct bitmaps_size bitmaps;
    struct diag diag = {0};

    if (create_options_check(args->driver, &args->list, "measure") != CLI_OK ||
        create_options_request(args->driver, &args->list, "measure", &args->image.secrets,
                               &req, &for_driver) != CLI_OK)
        return CLI_FAILED;
    if (measure_image(args->driver, &req, source, &result, &diag) < 0)
        return cli_diag(&diag);
    /* After create_options_check: the options are valid. */
    if (measure_bitmaps(args, of, &bitmaps) != CLI_OK)
        return CLI_FAILED;
    print_measure(args, &result, &bitmaps);
    return CLI_OK;
}

static int measure_file(struct measure_args *args)
{
    const struct chain_options chain = {
        .read_only = true, .keep_locked = true, .node = {.lock_off = args->image.share}};
    struct image image;
    struct node *source;

    int code = image_open_given(&image, &args->image, &chain);
    if (code != CLI_OK)
        return code;
    code = snapshot_arg_open(image.node, args->snapshot, &source);
    if (code == CLI_OK) {
        code = measure(args, image.node, source, source->size);
        snapshot_arg_close(image.node, source);
    }
    int close_code = image_close(&image);
    return code != CLI_OK ? code : close_code;
}

static int measure_given(struct measure_args *args, int argc, char **argv)
{
    uint64_t size = 0;

    args->driver = driver_find(args->format);
    if (!args->driver)
        return create_format_unknown("Unknown file format", args->format);
    if (args->list.help) {
        create_format_help(args->driver);
        return CLI_OK;
    }
    if (argc > 1)
        return cli_error("At most one filename argument is allowed.");
    if (args->size_text && argc == 1)
        return cli_error("--size N cannot be used together with a filename.");
    if (argc == 0 && (args->image.image_opts || args->image.format || args->snapshot))
        return cli_error("--image-opts, -f, and -l require a filename argument.");
    if (!args->size_text && argc == 0)
        return cli_error("Either --size N or one filename must be specified.");
    if (argc == 1) {
        args->image.filename = argv[0];
        return measure_file(args);
    }
    if (size_parse_argument("image size", args->size_text, &size) != CLI_OK)
        return CLI_FAILED;
    return measure(args, NULL, NULL, size);
}

static int take_option(void *opaque, int option)
{
    struct measure_args *args = opaque;

    switch (option) {
    case 'O':
        args->format = optarg;
        break;
    case OPT_SOURCE_FORMAT:
        return cli_take_image_option(&args->image, 'f');
    case OPT_SOURCE_IMAGE_OPTS:
        return cli_take_image_option(&args->image, CLI_IMAGE_OPTS);
    case 'o':
    case OPT_OPTIONS:
        return options_add(&args->list, optarg);
    case 's':
        args->size_text = optarg;
        break;
    case 'l':
        args->snapshot = optarg;
        break;
    default:
        return cli_take_image_option(&args->image, option);
    }
    return CLI_OK;
}

static int run_measure_command(const struct cli_command *self, int argc, char **argv)
{
    struct measure_args args = {.image.output = OUTPUT_HUMAN, .format = "raw"};
    int code = cli_take_options(self, argc, argv, take_option, &args);

    if (code == CLI_GO_ON)
        code = measure_given(&args, argc - optind, argv + optind);
    options_free(&args.list);
    cli_free_image(&args.image);
    return code;
}

const struct cli_command measure_command = {
    .name = "measure",
    .operands = "[filename]",
    .summary = "Tell how much space an image would take.",
    .options = options,
    .run = run_measure_command,
};
