/* SPDX-License-Identifier: BSD-3-Clause */
/* `qimg compare`.
 *
 * Several threads compare the part that both images have.  Then the rest of the longer one
 * is checked, which must be zero.  The lowest offset that differs is reported, rounded to a
 * sector. */
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/checked.h"
#include "base/lock.h"
#include "base/zero_bytes.h"
#include "cli.h"
#include "image.h"
#include "interrupt.h"
#include "jobs/sweep.h"
#include "progress.h"

#define SECTOR       512
#define BUFFER_BYTES (1u << 20) /* per image */
#define LEAST_PIECE  (2u << 20)

/* Exit codes, as in qemu-img. */
enum {
    COMPARE_SAME,
    COMPARE_DIFFER,
    COMPARE_NOT_OPENED,
    COMPARE_NO_STATUS,
    COMPARE_NOT_READ
};

static const struct cli_option options[] = {
    {'f', "a-format", "FMT", "the first image's format; by default told from its content"},
    {'F', "b-format", "FMT", "the second image's format"},
    {'s', "strict", NULL, "strict: the sizes and what is allocated must be the same, too"},
    {'T', "cache", "CACHE", "how the images are read: writeback, none, ..."},
    {CLI_IMAGE_OPTS, "image-opts", NULL, "the names are driver=...,file.filename=..."},
    CLI_OBJECT_OPTION,
    {'p', "progress", NULL, "show progress"},
    {'q', "quiet", NULL, "print nothing but errors"},
    {'U', "force-share", NULL, "allow others to have the images open for writing"},
    {0},
};

struct compare_args {
    struct cli_image image; /* how both are opened; its format is the first image's */
    const char *names[2], *second_format;
    const struct cache_mode *cache;
    bool strict, progress, quiet;
};

/* The kind of a finding. */
enum finding { NOTHING, CONTENT_DIFFERS, STATUS_DIFFERS, NO_STATUS, NOT_READ };

struct comparison {
    const struct compare_args *args;
    struct node *nodes[2];
    uint64_t total, done_before; /* for progress: bytes */
    struct lock lock;
    /* under lock: the finding with the lowest offset */
    enum finding finding;
    uint64_t at;
    const struct node *where;
    int err;
};

static int note_finding(struct comparison *c, enum finding finding, uint64_t at,
                        const struct node *where, int err)
{
    LOCK_GUARD(&c->lock);

    if (!c->finding || at < c->at) {
        c->finding = finding;
        c->at = at;
        c->where = where;
        c->err = err;
    }
    return 1;
}

/* ---- contents ---- */

static uint64_t first_difference(const char *a, const char *b, uint64_t len)
{
    uint64_t at = 0;

    while (at < len && memcmp(a + at, b + at, MIN(SECTOR, len - at)) == 0)
        at += SECTOR;
    return at;
}

static uint64_t first_nonzero(const char *a, uint64_t len)
{
    uint64_t at = 0;

    while (at < len && bytes_are_zero(a + at, MIN(SECTOR, len - at)))
        at += SECTOR;
    return at;
}

static int read_one(struct comparison *c, unsigned i, char *buffer, uint64_t off,
                    uint64_t len)
{
    int err = block_read(c->nodes[i], buffer, off, len);

    return err ? note_finding(c, NOT_READ, off, c->nodes[i], err) : 0;
}

/* At most BUFFER_BYTES: image i has data, and the other one zeroes. */
static int compare_to_zero(struct comparison *c, unsigned i, char *buffer, uint64_t off,
                           uint64_t len)
{
    if (read_one(c, i, buffer, off, len))
        return 1;
    if (bytes_are_zero(buffer, len))
        return 0;
    return note_finding(c, CONTENT_DIFFERS, off + first_nonzero(buffer, len), NULL, 0);
}

static int compare_bytes(struct comparison *c, char *buffer, uint64_t off, uint64_t len)
{
    char *other = buffer + BUFFER_BYTES;

    if (read_one(c, 0, buffer, off, len) || read_one(c, 1, other, off, len))
        return 1;
    if (memcmp(buffer, other, len) == 0)
        return 0;
    return note_finding(c, CONTENT_DIFFERS, off + first_difference(buffer, other, len),
                        NULL, 0);
}

/* ---- runs ---- */

static bool is_same_place(const struct block_status *a, const struct block_status *b)
{
    return a->file && b->file && a->data && b->data && a->host_offset == b->host_offset &&
           storage_is_same(a->file, b->file);
}

static bool is_same_status(const struct block_status *a, const struct block_status *b)
{
    return a->data == b->data && a->zero == b->zero && a->present == b->present &&
           !a->file == !b->file;
}

/* Compares a run for which each image has one status. */
static int compare_run(struct comparison *c, char *buffer, uint64_t off, uint64_t len,
                       const struct block_status st[2])
{
    if (c->args->strict && !is_same_status(&st[0], &st[1]))
        return note_finding(c, STATUS_DIFFERS, off, NULL, 0);
    if ((st[0].zero && st[1].zero) || is_same_place(&st[0], &st[1]))
        return 0;
    for (uint64_t n; len > 0; off += n, len -= n) {
        n = MIN(len, BUFFER_BYTES);
        int found = st[0].zero   ? compare_to_zero(c, 1, buffer, off, n)
                    : st[1].zero ? compare_to_zero(c, 0, buffer, off, n)
                                 : compare_bytes(c, buffer, off, n);
        if (found)
            return found;
    }
    return 0;
}

static int look_at(struct comparison *c, unsigned i, uint64_t off, uint64_t len,
                   struct block_status *st)
{
    int err = block_status(c->nodes[i], off, len, st);

    return err ? note_finding(c, NO_STATUS, off, c->nodes[i], err) : 0;
}

static int compare_piece(void *opaque, void *buffer, uint64_t off, uint64_t len,
                         uint64_t *moved)
{
    struct comparison *c = opaque;

    (void)moved;
    for (uint64_t n; len > 0; off += n, len -= n) {
        struct block_status st[2];
        if (look_at(c, 0, off, len, &st[0]) || look_at(c, 1, off, len, &st[1]))
            return 1;
        n = MIN(st[0].length, st[1].length);
        if (compare_run(c, buffer, off, n, st))
            return 1;
    }
    return 0;
}

/* Checks a piece that only the longer image has, which is c->nodes[0] by now. */
static int check_rest(void *opaque, void *buffer, uint64_t off, uint64_t len,
                      uint64_t *moved)
{
    struct comparison *c = opaque;

    (void)moved;
    for (uint64_t n; len > 0; off += n, len -= n) {
        struct block_status st;
        if (look_at(c, 0, off, len, &st))
            return 1;
        n = st.zero ? st.length : MIN(st.length, BUFFER_BYTES);
        if (!st.zero && compare_to_zero(c, 0, buffer, off, n))
            return 1;
    }
    return 0;
}

/* ---- the whole ---- */

static void show_progress(void *opaque, uint64_t done)
{
    const struct comparison *c = opaque;

    progress_report(c->done_before + done, c->total);
}

static void say(const struct comparison *c, const char *text)
{
    if (!c->args->quiet)
        puts(text);
}

static int tell_finding(const struct comparison *c)
{
    uint64_t sector = align_down(c->at, SECTOR);

    if (c->finding == NO_STATUS) {
        cli_error("Sector allocation test failed for %s at offset %" PRIu64 ": %s",
                  c->where->filename, c->at, strerror(-c->err));
        return COMPARE_NO_STATUS;
    }
    if (c->finding == NOT_READ) {
        cli_error("Error while reading offset %" PRIu64 " of %s: %s", c->at,
                  c->where->filename, strerror(-c->err));
        return COMPARE_NOT_READ;
    }
    if (!c->args->quiet && c->finding == STATUS_DIFFERS)
        printf("Strict mode: Offset %" PRIu64 " block status mismatch!\n", c->at);
    else if (!c->args->quiet)
        printf("Content mismatch at offset %" PRIu64 "!\n", sector);
    return COMPARE_DIFFER;
}

static int sweep_over(struct comparison *c, uint64_t start, uint64_t end,
                      int (*work)(void *, void *, uint64_t, uint64_t, uint64_t *))
{
    const struct sweep sweep = {
        .start = start,
        .end = end,
        .piece = sweep_piece(end - start, LEAST_PIECE),
        .threads = sweep_threads(),
        .buffer_bytes = 2 * BUFFER_BYTES,
        .work = work,
        .progress = show_progress,
        .opaque = c,
        .stop = &interrupt_came,
    };

    c->done_before = start;
    int result = sweep_run(&sweep);
    if (result == 0)
        return COMPARE_SAME;
    if (c->finding)
        return tell_finding(c);
    if (interrupt_came)
        cli_error("interrupted");
    else
        cli_error("cannot compare: %s", strerror(-result));
    return COMPARE_NOT_READ;
}

static int compare_nodes(struct comparison *c)
{
    uint64_t sizes[2] = {c->nodes[0]->size, c->nodes[1]->size};
    bool alike = align_up(sizes[0], SECTOR) == align_up(sizes[1], SECTOR);

    c->total = MAX(sizes[0], sizes[1]);
    if (c->args->strict && !alike) {
        say(c, "Strict mode: Image size mismatch!");
        return COMPARE_DIFFER;
    }
    int code = sweep_over(c, 0, MIN(sizes[0], sizes[1]), compare_piece);
    if (code != COMPARE_SAME)
        return code;
    if (!alike)
        say(c, "Warning: Image size mismatch!");
    if (sizes[1] > sizes[0])
        c->nodes[0] = c->nodes[1];
    return sweep_over(c, MIN(sizes[0], sizes[1]), c->total, check_rest);
}

static int compare_images(const struct compare_args *args, struct node *a, struct node *b)
{
    struct comparison c = {.args = args, .nodes = {a, b}};

    interrupt_catch();
    lock_init(&c.lock, RANK_LEAF);
    progress_begin(args->progress && !args->quiet);
    int code = compare_nodes(&c);
    if (code == COMPARE_SAME) {
        progress_report(1, 1);
        say(&c, "Images are identical.");
    }
    progress_end(false);
    lock_destroy(&c.lock);
    return code;
}

static int open_image(const struct compare_args *args, unsigned i, struct image *image)
{
    const struct chain_options chain = {
        .read_only = true,
        .node = {.lock_off = args->image.share, .cache = args->cache},
    };
    struct cli_image given = args->image;

    given.filename = args->names[i];
    given.format = i ? args->second_format : args->image.format;
    return image_open_given(image, &given, &chain) == CLI_OK ? CLI_OK : COMPARE_NOT_OPENED;
}

static int open_and_compare(const struct compare_args *args)
{
    struct image first, second;

    int code = open_image(args, 0, &first);
    if (code != CLI_OK)
        return code;
    code = open_image(args, 1, &second);
    if (code == CLI_OK) {
        code = compare_images(args, first.node, second.node);
        (void)image_close(&second);
    }
    (void)image_close(&first);
    interrupt_die();
    return code;
}

/* ---- the command line ---- */

static int take_option(void *opaque, int option)
{
    struct compare_args *args = opaque;

    switch (option) {
    case 'F':
        args->second_format = optarg;
        break;
    case 's':
        args->strict = true;
        break;
    case 'p':
        args->progress = true;
        break;
    case 'q':
        args->quiet = true;
        break;
    case 'T':
        return cli_parse_cache("source cache", optarg, &args->cache) == CLI_OK
                   ? CLI_OK
                   : COMPARE_NOT_OPENED;
    default:
        return cli_take_image_option(&args->image, option);
    }
    return CLI_OK;
}

static int run_compare_command(const struct cli_command *self, int argc, char **argv)
{
    struct compare_args args = {0};
    int code = cli_take_options(self, argc, argv, take_option, &args);

    if (code == CLI_GO_ON && argc - optind != 2)
        code = cli_usage_error("Expecting two image file names");
    if (code == CLI_GO_ON) {
        args.names[0] = argv[optind];
        args.names[1] = argv[optind + 1];
        code = open_and_compare(&args);
    }
    cli_free_image(&args.image);
    return code;
}

const struct cli_command compare_command = {
    .name = "compare",
    .operands = "filename1 filename2",
    .summary = "Tell whether two images hold the same disk.",
    .options = options,
    .run = run_compare_command,
    .unwritten = COMPARE_NOT_OPENED, /* exit code 1 would mean that they differ */
};
