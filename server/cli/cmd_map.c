/* SPDX-License-Identifier: BSD-3-Clause */
/* `qimg map`. */
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/plain_text.h"
#include "base/checked.h"
#include "cli.h"
#include "image.h"
#include "map_picture.h"
#include "size.h"

#define SECTOR 512

enum { OPT_SVG = CLI_OWN_OPTIONS };

static const struct cli_option options[] = {
    CLI_IMAGE_OPTIONS,
    {'s', "start-offset", "OFFSET", "begin there instead of at 0"},
    {'l', "max-length", "LEN", "end after so many bytes"},
    {OPT_SVG, "svg", NULL, "draw it: layers and snapshots, as an SVG picture"},
    {0},
};

struct map_args {
    struct cli_image image;
    uint64_t start, length;
    bool svg;
};

/* A run of the map, and where it starts (bytes). */
struct run {
    uint64_t start;
    struct block_status status;
};

struct printer {
    enum cli_output output;
    bool begun;
};

static const char *json_word(bool value)
{
    return value ? "true" : "false";
}

static int print_json(struct printer *p, const struct run *run)
{
    const struct block_status *st = &run->status;

    printf("%s{ \"start\": %" PRIu64 ", \"length\": %" PRIu64
           ", \"depth\": %u, \"present\": %s, \"zero\": %s, \"data\": %s",
           p->begun ? ",\n" : "[", run->start, st->length, st->depth,
           json_word(st->present), json_word(st->zero), json_word(st->data));
    if (st->compressed)
        printf(", \"compressed\": true");
    if (st->file)
        printf(", \"offset\": %" PRIu64, st->host_offset);
    putchar('}');
    p->begun = true;
    return CLI_OK;
}

/* The layer's own file is shown by the layer's name, which may be a URI. */
static const char *file_name(const struct block_status *st)
{
    return st->file == st->layer->data_file ? st->file->name : st->layer->filename;
}

/* The table shows only ranges that can be read from a file as they are. */
static int print_human(const struct run *run)
{
    const struct block_status *st = &run->status;

    if (!st->data || st->zero)
        return CLI_OK;
    if (!st->file)
        return cli_error("File contains external, encrypted or compressed clusters.");
    CLEANUP_FREE char *name = plain_text_copy(file_name(st));

    printf("%#-16" PRIx64 "%#-16" PRIx64 "%#-16" PRIx64 "%s\n", run->start, st->length,
           st->host_offset, name ? name : "");
    return CLI_OK;
}

static int print_run(struct printer *p, const struct run *run)
{
    return p->output == OUTPUT_JSON ? print_json(p, run) : print_human(run);
}

static bool continues_run(const struct block_status *a, const struct block_status *b)
{
    return a->data == b->data && a->compressed == b->compressed && a->zero == b->zero &&
           a->present == b->present && a->depth == b->depth && a->file == b->file &&
           (!a->file || a->host_offset + a->length == b->host_offset);
}

/* qemu-img counts in sectors: behind the last byte of a raw file, the rest of its sector is
 * a hole. */
static int status_at(struct node *node, uint64_t off, uint64_t len, struct block_status *st)
{
    if (off < node->size)
        return block_status_shown(node, off, MIN(len, node->size - off), st);
    *st = (struct block_status){.length = len,
                                .zero = true,
                                .present = true,
                                .layer = node,
                                .file = node->data,
                                .host_offset = off};
    return 0;
}

/* Prints the runs of [start, end), merging neighbours that continue each other. */
static int print_runs(struct printer *p, struct node *node, uint64_t start, uint64_t end)
{
    struct run run = {.start = start};

    for (uint64_t off = start; off < end;) {
        struct block_status next;
        int rc = status_at(node, off, end - off, &next);
        if (rc < 0)
            return cli_error("%s: cannot read its metadata: %s", node->filename,
                             strerror(-rc));
        if (off > start && continues_run(&run.status, &next)) {
            run.status.length += next.length;
        } else {
            if (off > start && print_run(p, &run) != CLI_OK)
                return CLI_FAILED;
            run = (struct run){.start = off, .status = next};
        }
        off += next.length;
    }
    /* An empty range becomes one empty run in JSON, and nothing in the table. */
    return print_run(p, &run);
}

static int print_map(enum cli_output output, struct node *node, uint64_t start,
                     uint64_t end)
{
    struct printer printer = {.output = output};

    if (output == OUTPUT_HUMAN)
        printf("%-16s%-16s%-16s%s\n", "Offset", "Length", "Mapped to", "File");
    int code = print_runs(&printer, node, start, end);
    if (output == OUTPUT_JSON)
        puts(printer.begun ? "]" : "[]");
    return code;
}

static int map_image(const struct map_args *args)
{
    /* Block status needs no key. */
    const struct chain_options chain = {
        .read_only = true, .keep_locked = true, .node = {.lock_off = args->image.share}};
    struct image image;
    int code = image_open_given(&image, &args->image, &chain);
    if (code != CLI_OK)
        return code;

    uint64_t size = align_up(image.node->size, SECTOR), end = size;
    if (args->start < size)
        end = args->start + MIN(args->length, size - args->start);
    if (args->svg)
        code = map_picture_print(image.node, MIN(args->start, image.node->size),
                                 MIN(end, image.node->size));
    else
        code = print_map(args->image.output, image.node, args->start, end);
    int close_code = image_close(&image);
    return code != CLI_OK ? code : close_code;
}

static int take_option(void *opaque, int option)
{
    struct map_args *args = opaque;

    switch (option) {
    case 's':
        return size_parse_argument("start offset", optarg, &args->start);
    case 'l':
        return size_parse_argument("max length", optarg, &args->length);
    case OPT_SVG:
        args->svg = true;
        break;
    default:
        return cli_take_image_option(&args->image, option);
    }
    return CLI_OK;
}

static int run_map_command(const struct cli_command *self, int argc, char **argv)
{
    struct map_args args = {.image.output = OUTPUT_HUMAN, .length = UINT64_MAX};
    int code = cli_take_image(self, argc, argv, take_option, &args, &args.image);

    if (code == CLI_GO_ON)
        code = map_image(&args);
    cli_free_image(&args.image);
    return code;
}

const struct cli_command map_command = {
    .name = "map",
    .operands = "filename",
    .summary = "Print where the guest's bytes lie.",
    .options = options,
    .run = run_map_command,
};
