/* SPDX-License-Identifier: BSD-3-Clause */
/* `qimg rebase`.
 *
 * In safe mode the disk's contents don't change: where the image has no data of its own, and
 * old and new backing file differ, the old one's data is copied into the image.  That is
 * durable before the image names the new backing file, so that it always reads the same. */
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/checked.h"
#include "base/lock.h"
#include "base/zero_bytes.h"
#include "block/cache_mode.h"
#include "cli.h"
#include "create_options.h"
#include "image.h"
#include "interrupt.h"
#include "jobs/sweep.h"
#include "progress.h"

#define BUFFER_BYTES (1u << 20) /* for each backing file */
#define LEAST_PIECE  (2u << 20)

static const struct cli_option options[] = {
    {'f', "format", "FMT", "the image's format; by default told from its content"},
    {'b', "backing", "FILE", "the new backing file; an empty name: none"},
    {'F', "backing-format", "FMT", "the new backing file's format"},
    {'B', NULL, "FMT", "the same, as newer versions of qemu-img call it"},
    {'u', "backing-unsafe", NULL, "unsafe: change the name only, and open no backing file"},
    {'c', "compress", NULL, "store what is copied compressed"},
    {'t', "cache", "CACHE", "how the image is written: writeback, none, ..."},
    {'T', "backing-cache", "CACHE", "how the backing files are read"},
    {CLI_IMAGE_OPTS, "image-opts", NULL, "the filename is driver=...,file.filename=..."},
    CLI_OBJECT_OPTION,
    {'p', "progress", NULL, "show progress"},
    {'q', "quiet", NULL, "print nothing but errors"},
    {'U', "force-share", NULL, "allow others to have the backing files open for writing"},
    {0},
};

struct rebase_args {
    struct cli_image image;
    const char *backing, *format; /* backing NULL: not given; "": none */
    const struct cache_mode *cache, *source_cache;
    bool unsafe, compress, progress, quiet;
};

struct rebasing {
    const struct rebase_args *args;
    struct node *image, *new_backing; /* NULL: there is none */
    uint64_t unit;                    /* unit of comparing and copying, in bytes */
    struct lock lock;
    /* under lock: the failure with the lowest offset */
    uint64_t failed_at;
    int err;
    bool write_side;
};

static int note_failure(struct rebasing *r, uint64_t at, int err, bool write_side)
{
    LOCK_GUARD(&r->lock);

    if (err && (!r->err || at < r->failed_at)) {
        r->err = err;
        r->failed_at = at;
        r->write_side = write_side;
    }
    return err;
}

/* ---- copying what differs ---- */

static int read_old(struct rebasing *r, char *to, uint64_t off, uint64_t len)
{
    return note_failure(r, off, block_read(r->image, to, off, len), false);
}

/* Behind the end of the new backing file there are zeroes. */
static int read_new(struct rebasing *r, char *to, uint64_t off, uint64_t len)
{
    uint64_t size = r->new_backing->size;
    uint64_t inside = off < size ? MIN(len, size - off) : 0;

    memset(to + inside, 0, len - inside);
    return inside ? note_failure(r, off, block_read(r->new_backing, to, off, inside), false)
                  : 0;
}

/* What the image needs for a unit of the old backing file. */
enum unit { UNIT_SAME, UNIT_ZEROES, UNIT_DATA };

/* other: the new backing file's data; NULL: zeroes, which read as a hole.  Zeroes that the
 * new one doesn't have are stored as zero clusters if the format has these. */
static enum unit judge_unit(const struct rebasing *r, const char *old, const char *other,
                            uint64_t len)
{
    if (!other)
        return bytes_are_zero(old, len) ? UNIT_SAME : UNIT_DATA;
    if (memcmp(old, other, len) == 0)
        return UNIT_SAME;
    return node_holes_may_show(r->image) && bytes_are_zero(old, len) ? UNIT_ZEROES
                                                                     : UNIT_DATA;
}

/* How many bytes of the range belong to its first unit. */
static uint64_t first_unit(const struct rebasing *r, uint64_t off, uint64_t len)
{
    return MIN(len, align_down(off, r->unit) + r->unit - off);
}

/* How many bytes from the start of the range on, in whole units, need the same as the first
 * unit. */
static uint64_t find_alike(const struct rebasing *r, const char *old, const char *other,
                           uint64_t off, uint64_t len, enum unit *unit)
{
    uint64_t at = first_unit(r, off, len);

    *unit = judge_unit(r, old, other, at);
    for (uint64_t n; at < len; at += n) {
        n = first_unit(r, off + at, len - at);
        if (judge_unit(r, old + at, other ? other + at : NULL, n) != *unit)
            break;
    }
    return at;
}

static int write_units(struct rebasing *r, enum unit unit, const char *data, uint64_t off,
                       uint64_t len)
{
    int err = unit == UNIT_ZEROES ? block_zero(r->image, off, len, BLOCK_MAY_UNMAP)
                                  : block_write(r->image, data, off, len, 0);

    return note_failure(r, off, err, true);
}

/* At most BUFFER_BYTES.  Neighbouring units with the same need are written at once. */
static int copy_differences(struct rebasing *r, char *buffer, bool new_is_zero,
                            uint64_t off, uint64_t len, uint64_t *moved)
{
    char *other = new_is_zero ? NULL : buffer + BUFFER_BYTES;
    int err = read_old(r, buffer, off, len);

    if (!err && other)
        err = read_new(r, other, off, len);
    for (uint64_t at = 0, n; !err && at < len; at += n) {
        enum unit unit;
        n = find_alike(r, buffer + at, other ? other + at : NULL, off + at, len - at,
                       &unit);
        if (unit == UNIT_SAME)
            continue;
        err = write_units(r, unit, buffer + at, off + at, n);
        *moved += n;
    }
    return err;
}

/* ---- ranges without data in the image ---- */

static int new_status(struct rebasing *r, uint64_t off, uint64_t len,
                      struct block_status *st)
{
    uint64_t size = r->new_backing ? r->new_backing->size : 0;

    *st = (struct block_status){.length = len, .zero = true};
    return off < size
               ? note_failure(r, off,
                              block_status(r->new_backing, off, MIN(len, size - off), st),
                              false)
               : 0;
}

/* Do both read the same, as far as is known without reading? */
static bool is_alike(const struct block_status *a, const struct block_status *b)
{
    return (a->zero && b->zero) ||
           (a->data && b->data && a->file && b->file && a->host_offset == b->host_offset &&
            storage_is_same(a->file, b->file));
}

static int rebase_run(struct rebasing *r, char *buffer, uint64_t off, uint64_t *len,
                      uint64_t *moved)
{
    struct block_status old, new;

    int err = note_failure(r, off, block_status(r->image, off, *len, &old), false);
    if (err)
        return err;
    *len = old.length;
    if (old.depth == 0 && old.present)
        return 0;
    err = new_status(r, off, *len, &new);
    if (err)
        return err;
    *len = MIN(*len, new.length);
    if (is_alike(&old, &new))
        return 0;
    /* Ends at a unit's end, unless the range is within one unit. */
    uint64_t end = align_down(off + MIN(*len, BUFFER_BYTES), r->unit);
    *len = end > off ? end - off : MIN(*len, BUFFER_BYTES);
    return copy_differences(r, buffer, new.zero, off, *len, moved);
}

static int rebase_piece(void *opaque, void *buffer, uint64_t off, uint64_t len,
                        uint64_t *moved)
{
    struct rebasing *r = opaque;
    uint64_t end = off + len;
    int err = 0;

    for (uint64_t n; !err && off < end; off += n) {
        n = end - off;
        err = rebase_run(r, buffer, off, &n, moved);
    }
    return err;
}

static void show_progress(void *opaque, uint64_t done)
{
    const struct rebasing *r = opaque;

    progress_report(done, r->image->size);
}

static int flush_image(void *opaque)
{
    const struct rebasing *r = opaque;

    return block_flush(r->image);
}

static int copy_all(struct rebasing *r)
{
    const struct sweep sweep = {
        .end = r->image->size,
        .piece = sweep_piece(r->image->size, LEAST_PIECE),
        .threads = sweep_threads(),
        .buffer_bytes = 2 * BUFFER_BYTES,
        .work = rebase_piece,
        .progress = show_progress,
        .flush = r->image->options.cache->no_flush ? NULL : flush_image,
        .opaque = r,
        .stop = &interrupt_came,
    };

    lock_init(&r->lock, RANK_LEAF);
    int err = sweep_run(&sweep);
    lock_destroy(&r->lock);
    if (!err)
        err = block_flush(r->image);
    if (!err)
        return CLI_OK;
    if (r->err)
        cli_error("error while %s at byte %" PRIu64 ": %s",
                  r->write_side ? "writing" : "reading", r->failed_at, strerror(-r->err));
    else if (interrupt_came)
        cli_error("interrupted");
    else
        cli_error("cannot rebase: %s", strerror(-err));
    return cli_error("%s: still has its old backing file, and reads as before",
                     r->image->filename);
}

/* ---- the new backing file ---- */

static int open_new_backing(const struct rebase_args *args, const struct node *image,
                            struct image *out)
{
    CLEANUP_REFERENCE struct reference ref = {0};
    struct diag diag = {0};

    if (reference_resolve_layer(image->filename, args->backing, REFERENCES_ANY, &ref,
                                &diag) < 0)
        return cli_diag(&diag);
    const struct chain_options chain = {
        .format = args->format,
        .protocol = ref.protocol,
        .named = &ref,
        .read_only = true,
        .keys_of = image,
        .node = {.cache = args->source_cache, .lock_off = args->image.share},
    };
    return image_open(out, ref.path, &chain, IMAGE_NEVER_RAW);
}

static int check_not_below(const struct node *image, const struct node *below)
{
    for (; below; below = below->backing)
        if (storage_is_same(image->file, below->file))
            return cli_error("%s: would lie on itself, by way of %s", image->filename,
                             below->filename);
    return CLI_OK;
}

static int name_backing(const struct rebase_args *args, struct node *image)
{
    bool none = args->backing[0] == '\0';
    struct diag diag = {0};

    return node_set_backing(image, none ? NULL : args->backing, none ? NULL : args->format,
                            &diag) < 0
               ? cli_diag(&diag)
               : CLI_OK;
}

static int rebase_safely(const struct rebase_args *args, struct node *image)
{
    bool none = args->backing[0] == '\0';
    struct image new_backing = {0};
    struct rebasing r = {
        .args = args,
        .image = image,
        .unit = args->compress ? image->cluster_size : image->subcluster_size,
    };

    int code = none ? CLI_OK : open_new_backing(args, image, &new_backing);
    if (code != CLI_OK)
        return code;
    r.new_backing = new_backing.node;
    image->expects_backing = r.new_backing;
    code = check_not_below(image, r.new_backing);
    if (code == CLI_OK)
        code = copy_all(&r);
    if (!none && image_close(&new_backing) != CLI_OK)
        code = CLI_FAILED;
    return code;
}

static int check_words(const struct rebase_args *args, const struct node *image)
{
    const char *name = args->backing[0] ? args->backing : NULL;
    struct diag diag = {0};

    if (name && !args->format)
        return cli_error("Could not change the backing file to '%s': backing format must "
                         "be specified",
                         args->backing);
    if (node_check_backing(image, name, &diag) < 0)
        return cli_diag(&diag);
    if (args->compress && node_why_not_compress(image))
        return cli_error("%s: Compression not supported for this file format: %s",
                         image->filename, node_why_not_compress(image));
    return CLI_OK;
}

static int rebase_node(const struct rebase_args *args, struct node *image)
{
    struct diag diag = {0};

    int code = check_words(args, image);
    bool is_above = image->backing || args->backing[0];
    if (code == CLI_OK && !args->unsafe && is_above &&
        node_check_no_snapshots(image, &diag))
        code = cli_diag(&diag);
    if (code == CLI_OK && node_activate(image, &diag) < 0)
        code = cli_diag(&diag);
    if (code == CLI_OK && !args->unsafe)
        code = rebase_safely(args, image);
    return code == CLI_OK ? name_backing(args, image) : code;
}

static int rebase_given(const struct rebase_args *args)
{
    const struct chain_options chain = {
        .no_backing = args->unsafe,
        .keep_locked = args->unsafe,
        .node = {.cache = args->cache, .compress = args->compress},
    };
    struct image image;

    if (args->format && !driver_find_recorded(args->format))
        return create_format_unknown("Invalid format name:", args->format);
    int code = image_open_given(&image, &args->image, &chain);
    if (code != CLI_OK)
        return code;
    interrupt_catch();
    progress_begin(args->progress && !args->quiet);
    code = rebase_node(args, image.node);
    if (image_close(&image) != CLI_OK)
        code = CLI_FAILED;
    progress_end(code == CLI_OK);
    interrupt_die();
    return code;
}

static int take_option(void *opaque, int option)
{
    struct rebase_args *args = opaque;

    switch (option) {
    case 'b':
        args->backing = optarg;
        break;
    case 'F':
    case 'B':
        args->format = optarg;
        break;
    case 'u':
        args->unsafe = true;
        break;
    case 'c':
        args->compress = true;
        break;
    case 't':
        return cli_parse_cache("cache", optarg, &args->cache);
    case 'T':
        return cli_parse_cache("source cache", optarg, &args->source_cache);
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

static int run_rebase_command(const struct cli_command *self, int argc, char **argv)
{
    struct rebase_args args = {.cache = cache_mode_find("writeback")};
    int code = cli_take_image(self, argc, argv, take_option, &args, &args.image);

    if (code == CLI_GO_ON && !args.backing)
        code = args.unsafe ? cli_error("-u needs -b: the new backing file's name, or \"\"")
                           : cli_error("Must specify backing file (-b) or use unsafe mode "
                                       "(-u)");
    if (code == CLI_GO_ON)
        code = rebase_given(&args);
    cli_free_image(&args.image);
    return code;
}

const struct cli_command rebase_command = {
    .name = "rebase",
    .operands = "filename",
    .summary = "Put an image on another backing file.",
    .options = options,
    .run = run_rebase_command,
};
