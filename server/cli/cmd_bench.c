/* SPDX-License-Identifier: BSD-3-Clause */
/* `qimg bench`: sends requests at rising offsets, several in parallel, and measures the
 * time. */
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/lock.h"
#include "base/size.h"
#include "base/thread.h"
#include "block/cache_mode.h"
#include "cli.h"
#include "image.h"

#define MAX_DEPTH 1024
#define MAX_BYTES (64u << 20) /* of one request */

enum { OPT_FLUSH_INTERVAL = CLI_OWN_OPTIONS, OPT_PATTERN, OPT_NO_DRAIN };

static const struct cli_option options[] = {
    {'f', "format", "FMT", "the image's format; by default told from its content"},
    {'c', "count", "COUNT", "how many requests (default 75000)"},
    {'d', "depth", "DEPTH", "how many in parallel (default 64)"},
    {'s', "buffer-size", "BYTES", "of a request (default 4k)"},
    {'S', "step-size", "BYTES",
     "from the beginning of one to the next one's (default as -s)"},
    {'o', "offset", "OFFSET", "where the first begins"},
    {'w', "write", NULL, "write"},
    {OPT_PATTERN, "pattern", "BYTE", "what is written (default 0)"},
    {OPT_FLUSH_INTERVAL, "flush-interval", "N", "flush after so many writes"},
    {OPT_NO_DRAIN, "no-drain", NULL, "others go on while one flushes"},
    {'i', "aio", "AIO", "a word for qemu-img's scripts: threads, native or io_uring"},
    {'n', "native", NULL, "the same: native"},
    {'t', "cache", "CACHE", "the cache mode: writeback, none, ..."},
    {CLI_IMAGE_OPTS, "image-opts", NULL, "the filename is driver=...,file.filename=..."},
    CLI_OBJECT_OPTION,
    {'q', "quiet", NULL, "of no effect, as of qemu-img's bench"},
    {'U', "force-share", NULL, "allow others to have the image open for writing"},
    {0},
};

struct bench_args {
    struct cli_image image;
    uint64_t count, depth, bytes, step, offset, flush_interval, pattern;
    bool step_given, no_drain, write;
    const struct cache_mode *cache;
};

struct bench {
    const struct bench_args *args;
    struct node *node;
    struct lock lock;
    /* under lock */
    pthread_cond_t changed;
    uint64_t begun, done, off;
    bool flushing;
    int err;
};

/* ---- requests ---- */

/* Under the lock: must the next request wait for a flush? */
static bool waits_for_flush(const struct bench *b)
{
    uint64_t interval = b->args->flush_interval;

    return b->flushing || (interval && !b->args->no_drain && b->begun > b->done &&
                           b->begun % interval == 0);
}

static bool begin_request(struct bench *b, uint64_t *off)
{
    LOCK_GUARD(&b->lock);

    while (!b->err && b->begun < b->args->count && waits_for_flush(b))
        lock_wait(&b->lock, &b->changed);
    if (b->err || b->begun == b->args->count)
        return false;
    *off = b->off;
    b->begun++;
    b->off += b->args->step;
    /* Starts again at the beginning, in the same way as qemu-img. */
    if (b->node->size <= b->args->bytes)
        b->off = 0;
    else
        b->off %= b->node->size - b->args->bytes;
    return true;
}

/* Returns true if the calling thread must flush. */
static bool end_request(struct bench *b, int err)
{
    LOCK_GUARD(&b->lock);

    b->done++;
    if (err && !b->err)
        b->err = err;
    bool flushes = b->args->flush_interval && b->done % b->args->flush_interval == 0;
    b->flushing |= flushes && !b->args->no_drain;
    pthread_cond_broadcast(&b->changed);
    return flushes;
}

static void end_flush(struct bench *b, int err)
{
    LOCK_GUARD(&b->lock);

    if (err && !b->err)
        b->err = err;
    b->flushing = false;
    pthread_cond_broadcast(&b->changed);
}

static void *send_requests(void *opaque)
{
    struct bench *b = opaque;
    void *buffer = NULL;
    uint64_t off;
    int err = posix_memalign(&buffer, 4096, b->args->bytes) ? -ENOMEM : 0;

    if (err)
        end_flush(b, err);
    else
        memset(buffer, (int)b->args->pattern, b->args->bytes);
    while (!err && begin_request(b, &off)) {
        err = b->args->write ? block_write(b->node, buffer, off, b->args->bytes, 0)
                             : block_read(b->node, buffer, off, b->args->bytes);
        if (end_request(b, err))
            end_flush(b, block_flush(b->node));
    }
    free(buffer);
    return NULL;
}

static int send_all(struct bench *b)
{
    pthread_t threads[MAX_DEPTH];
    unsigned n = 0;

    while (n < b->args->depth && thread_start(&threads[n], send_requests, b) == 0)
        n++;
    for (unsigned i = 0; i < n; i++)
        pthread_join(threads[i], NULL);
    return n ? b->err : -EAGAIN;
}

static int run_bench(const struct bench_args *args, struct node *node)
{
    struct bench b = {.args = args, .node = node, .off = args->offset};
    struct diag diag = {0};

    if (args->write && node_activate(node, &diag) < 0)
        return cli_diag(&diag);
    printf("Sending %" PRIu64 " %s requests, %" PRIu64 " bytes each, %" PRIu64
           " in parallel (starting at offset %" PRIu64 ", step size %" PRIu64 ")\n",
           args->count, args->write ? "write" : "read", args->bytes, args->depth,
           args->offset, args->step);
    if (args->flush_interval)
        printf("Sending flush every %" PRIu64 " requests\n", args->flush_interval);
    fflush(stdout);
    lock_init(&b.lock, RANK_LEAF);
    pthread_cond_init(&b.changed, NULL);
    uint64_t start = clock_ns();
    int err = send_all(&b);
    double seconds = (double)(clock_ns() - start) / 1e9;
    pthread_cond_destroy(&b.changed);
    lock_destroy(&b.lock);
    if (err)
        return cli_error("Failed request: %s", strerror(-err));
    printf("Run completed in %3.3f seconds.\n", seconds);
    return CLI_OK;
}

/* ---- the command line ---- */

static int take_number(const char *what, uint64_t least, uint64_t most, uint64_t *out)
{
    if (size_parse(optarg, out) < 0 || *out < least || *out > most)
        return cli_error("Invalid %s specified: '%s': it is between %" PRIu64
                         " and %" PRIu64,
                         what, optarg, least, most);
    return CLI_OK;
}

static int check_words(struct bench_args *args)
{
    if (!args->step_given)
        args->step = args->bytes;
    if (!args->write && args->flush_interval)
        return cli_error("--flush-interval is only available in write tests");
    if (args->write && args->image.share)
        return cli_error(
            "-U is only available in read tests: nobody else writes beside this");
    if (args->flush_interval && args->flush_interval < args->depth)
        return cli_error("Flush interval can't be smaller than depth");
    return CLI_OK;
}

static int bench_given(struct bench_args *args)
{
    const struct chain_options chain = {
        .read_only = !args->write,
        .node = {.lock_off = args->image.share, .cache = args->cache}};
    struct image image;

    int code = check_words(args);
    if (code == CLI_OK)
        code = image_open_given(&image, &args->image, &chain);
    if (code != CLI_OK)
        return code;
    code = run_bench(args, image.node);
    return image_close(&image) == CLI_OK ? code : CLI_FAILED;
}

static int take_aio(const char *word)
{
    if (strcmp(word, "threads") == 0 || strcmp(word, "native") == 0 ||
        strcmp(word, "io_uring") == 0)
        return CLI_OK;
    return cli_error("Invalid aio option: %s: it is threads, native or io_uring", word);
}

static int take_switch(struct bench_args *args, int option)
{
    switch (option) {
    case 'w':
        args->write = true;
        break;
    case 'n':
        break; /* native AIO isn't used: there are threads */
    case 'q':
        break; /* as in qemu-img, the output is printed anyway */
    case OPT_NO_DRAIN:
        args->no_drain = true;
        break;
    default:
        return cli_take_image_option(&args->image, option);
    }
    return CLI_OK;
}

static int take_option(void *opaque, int option)
{
    struct bench_args *args = opaque;

    switch (option) {
    case 'c':
        return take_number("request count", 1, INT32_MAX, &args->count);
    case 'd':
        return take_number("queue depth", 1, MAX_DEPTH, &args->depth);
    case 's':
        return take_number("buffer size", 1, MAX_BYTES, &args->bytes);
    case 'S':
        args->step_given = true;
        return take_number("step size", 0, INT32_MAX, &args->step);
    case 'o':
        return take_number("offset", 0, INT64_MAX, &args->offset);
    case OPT_PATTERN:
        return take_number("pattern byte", 0, 255, &args->pattern);
    case OPT_FLUSH_INTERVAL:
        return take_number("flush interval", 1, INT32_MAX, &args->flush_interval);
    case 'i':
        return take_aio(optarg);
    case 't':
        return cli_parse_cache("cache", optarg, &args->cache);
    default:
        return take_switch(args, option);
    }
}

static int run_bench_command(const struct cli_command *self, int argc, char **argv)
{
    struct bench_args args = {.count = 75000, .depth = 64, .bytes = 4096};
    int code = cli_take_image(self, argc, argv, take_option, &args, &args.image);

    if (code == CLI_GO_ON)
        code = bench_given(&args);
    cli_free_image(&args.image);
    return code;
}

const struct cli_command bench_command = {
    .name = "bench",
    .operands = "filename",
    .summary = "Time reads or writes of an image.",
    .options = options,
    .run = run_bench_command,
};
