/* SPDX-License-Identifier: BSD-3-Clause */
/* `qimg bitmap`: dirty bitmaps that are stored in an image. */
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/size.h"
#include "bitmaps_store.h"
#include "cli.h"
#include "image.h"

enum {
    OPT_ADD = CLI_OWN_OPTIONS,
    OPT_REMOVE,
    OPT_CLEAR,
    OPT_ENABLE,
    OPT_DISABLE,
    OPT_MERGE,
};

static const struct cli_option options[] = {
    {OPT_ADD, "add", NULL, "make the bitmap; it records whatever writes to the image"},
    {OPT_REMOVE, "remove", NULL, "remove it"},
    {OPT_CLEAR, "clear", NULL, "forget what it has recorded"},
    {OPT_ENABLE, "enable", NULL, "let it record"},
    {OPT_DISABLE, "disable", NULL, "keep it as it is"},
    {OPT_MERGE, "merge", "SOURCE", "add what another bitmap has recorded"},
    {'b', "source-file", "FILE",
     "the image that has the other bitmap; by default the same"},
    {'F', "source-format", "FMT", "the format of that image"},
    {'g', "granularity", "BYTES", "bytes for each bit of a new bitmap, 512 to 2G"},
    {'f', "format", "FMT", "the image's format; by default told from its content"},
    {CLI_IMAGE_OPTS, "image-opts", NULL, "the filename is driver=...,file.filename=..."},
    CLI_OBJECT_OPTION,
    {0},
};

struct bitmap_action {
    int option;         /* OPT_ADD and so on */
    const char *source; /* of OPT_MERGE */
};

struct bitmap_args {
    struct cli_image image, source; /* source.filename NULL: the same image */
    const char *bitmap;
    uint64_t granularity; /* 0: not given */
    bool add, merge;
    struct bitmap_action *actions; /* in the order given */
    size_t n_actions;
};

/* The images of one run. */
struct work {
    const struct bitmap_args *args;
    /* source: the node in which the merge source is looked up */
    struct node *node, *source;
};

/* ---- the actions ---- */

static int add(struct work *work, const struct bitmap_action *action, struct diag *diag)
{
    const struct bitmap_params params = {
        .name = work->args->bitmap,
        .granularity = work->args->granularity,
        .persistent = true,
    };
    struct dirty_bitmap *bitmap;

    (void)action;
    return node_bitmap_create(work->node, &params, &bitmap, diag);
}

static int remove_it(struct work *work, const struct bitmap_action *action,
                     struct diag *diag)
{
    (void)action;
    return node_bitmap_remove(work->node, work->args->bitmap, diag);
}

/* Acquires the bitmap and marks it as changing.  NULL with diag. */
static struct dirty_bitmap *begin_change(struct work *work, struct diag *diag)
{
    struct dirty_bitmap *bitmap = node_bitmap_acquire(work->node, work->args->bitmap, diag);

    if (!bitmap || node_bitmap_begin_change(work->node, bitmap, diag) == 0)
        return bitmap;
    dirty_bitmap_release(bitmap);
    return NULL;
}

static int end_change(struct work *work, struct dirty_bitmap *bitmap)
{
    node_bitmap_end_change(work->node, bitmap);
    dirty_bitmap_release(bitmap);
    return 0;
}

static int clear(struct work *work, const struct bitmap_action *action, struct diag *diag)
{
    struct dirty_bitmap *bitmap = begin_change(work, diag);

    (void)action;
    if (!bitmap)
        return -diag->err;
    dirty_bitmap_clear(bitmap, 0, dirty_bitmap_size(bitmap));
    return end_change(work, bitmap);
}

static int enable(struct work *work, const struct bitmap_action *action, struct diag *diag)
{
    struct dirty_bitmap *bitmap = begin_change(work, diag);

    if (!bitmap)
        return -diag->err;
    dirty_bitmap_enable(bitmap, action->option == OPT_ENABLE);
    return end_change(work, bitmap);
}

static int check_sizes(const struct dirty_bitmap *to, const struct dirty_bitmap *from,
                       struct diag *diag)
{
    if (dirty_bitmap_size(to) == dirty_bitmap_size(from))
        return 0;
    return diag_set(diag, EINVAL,
                    "Bitmaps are of different sizes (destination size is %" PRIu64
                    ", source size is %" PRIu64 ") and can't be merged",
                    dirty_bitmap_size(to), dirty_bitmap_size(from));
}

static int merge_from(struct work *work, const struct dirty_bitmap *source,
                      struct diag *diag)
{
    struct dirty_bitmap *bitmap = begin_change(work, diag);

    if (!bitmap)
        return -diag->err;
    int err = check_sizes(bitmap, source, diag);
    if (!err)
        dirty_bitmap_merge(bitmap, source);
    end_change(work, bitmap);
    return err;
}

static int merge(struct work *work, const struct bitmap_action *action, struct diag *diag)
{
    bool is_itself =
        work->source == work->node && strcmp(action->source, work->args->bitmap) == 0;
    struct dirty_bitmap *source = node_bitmap_share(work->source, action->source, diag);

    if (!source)
        return -diag->err;
    int err = is_itself ? 0 : merge_from(work, source, diag);
    dirty_bitmap_unshare(source);
    return err;
}

static const struct {
    int option;
    const char *name; /* in messages */
    int (*run)(struct work *work, const struct bitmap_action *action, struct diag *diag);
} verbs[] = {
    {OPT_ADD, "add", add},
    {OPT_REMOVE, "remove", remove_it},
    {OPT_CLEAR, "clear", clear},
    {OPT_ENABLE, "enable", enable},
    {OPT_DISABLE, "disable", enable},
    {OPT_MERGE, "merge", merge},
};

static int run_action(struct work *work, const struct bitmap_action *action)
{
    struct diag diag = {0};
    size_t v = 0;

    while (verbs[v].option != action->option)
        v++;
    return verbs[v].run(work, action, &diag)
               ? cli_error("Operation %s on bitmap %s failed: %s", verbs[v].name,
                           work->args->bitmap, diag.text)
               : CLI_OK;
}

/* ---- the images ---- */

/* Bitmaps need no backing files. */
static int open_one(struct image *image, const struct cli_image *given, bool read_only)
{
    const struct chain_options how = {.read_only = read_only, .no_backing = true};

    return image_open_given(image, given, &how);
}

static int close_source(struct image *source, int code)
{
    int closed = source->node ? image_close(source) : CLI_OK;

    return code == CLI_OK ? closed : code;
}

/* As in qemu-img, actions before one that fails remain, and are stored. */
static int run_actions(const struct bitmap_args *args, struct node *node)
{
    struct image other = {0};
    struct diag diag = {0};
    int code = CLI_OK;

    if (node_activate(node, &diag))
        return cli_diag(&diag);
    if (args->source.filename)
        code = open_one(&other, &args->source, true);
    if (other.node)
        node_bitmaps_load(other.node);
    struct work work = {args, node, other.node ? other.node : node};
    for (size_t i = 0; code == CLI_OK && i < args->n_actions; i++)
        code = run_action(&work, &args->actions[i]);
    return close_source(&other, code);
}

static int open_and_run(const struct bitmap_args *args)
{
    struct image image;

    int code = open_one(&image, &args->image, false);
    if (code != CLI_OK)
        return code;
    code = run_actions(args, image.node);
    if (code == CLI_OK)
        code = bitmaps_store(image.node, image.node->filename);
    int closed = image_close(&image);
    return code == CLI_OK ? closed : code;
}

/* ---- the command line ---- */

static int append_action(struct bitmap_args *args, int option)
{
    struct bitmap_action *more =
        realloc(args->actions, (args->n_actions + 1) * sizeof *more);

    if (!more)
        return cli_error("out of memory");
    args->actions = more;
    args->actions[args->n_actions++] =
        (struct bitmap_action){.option = option, .source = optarg};
    args->add |= option == OPT_ADD;
    args->merge |= option == OPT_MERGE;
    return CLI_OK;
}

static int take_granularity(const char *text, uint64_t *granularity)
{
    if (size_parse(text, granularity) == 0)
        return CLI_OK;
    return cli_error("Invalid granularity specified: '%s': it is a number of bytes, or one "
                     "followed by k, M, G, T, P or E",
                     text);
}

static int take_option(void *opaque, int option)
{
    struct bitmap_args *args = opaque;

    switch (option) {
    case 'b':
        args->source.filename = optarg;
        break;
    case 'F':
        args->source.format = optarg;
        break;
    case 'g':
        return take_granularity(optarg, &args->granularity);
    case 'f':
    case CLI_IMAGE_OPTS:
    case CLI_OBJECT:
        return cli_take_image_option(&args->image, option);
    default:
        return append_action(args, option);
    }
    return CLI_OK;
}

static int check_args(struct bitmap_args *args, int argc, char **argv)
{
    if (args->n_actions == 0)
        return cli_usage_error("Need at least one of --add, --remove, --clear, --enable, "
                               "--disable, or --merge");
    if (args->granularity && !args->add)
        return cli_usage_error("granularity only supported with --add");
    if (args->source.format && !args->source.filename)
        return cli_usage_error("-F only supported with -b");
    if (args->source.filename && !args->merge)
        return cli_usage_error("Merge bitmap source file only supported with --merge");
    if (argc - optind != 2)
        return cli_usage_error("Expecting filename and bitmap name");
    args->image.filename = argv[optind];
    args->bitmap = argv[optind + 1];
    return CLI_GO_ON;
}

static int run_bitmap_command(const struct cli_command *self, int argc, char **argv)
{
    struct bitmap_args args = {0};
    int code = cli_take_options(self, argc, argv, take_option, &args);

    if (code == CLI_GO_ON)
        code = check_args(&args, argc, argv);
    if (code == CLI_GO_ON)
        code = open_and_run(&args);
    free(args.actions);
    cli_free_image(&args.image);
    return code;
}

const struct cli_command bitmap_command = {
    .name = "bitmap",
    .operands = "filename bitmap",
    .summary = "Make, change and remove dirty bitmaps that are kept in an image.",
    .options = options,
    .run = run_bitmap_command,
};
