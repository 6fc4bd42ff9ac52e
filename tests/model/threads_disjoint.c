/* SPDX-License-Identifier: BSD-3-Clause */
/* Sixteen threads write to one node at once.  Each owns some sectors, which lie between those of
 * the other threads in the same clusters, and must always find them as it left them.  Meanwhile
 * one more thread flushes, reads all sectors, asks for block status and clears the dirty mark. */
#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include <criterion/criterion.h>
#include <criterion/parameterized.h>

#include "base/cleanup.h"
#include "image.h"
#include "registry.h"

#define THREADS 16
#define SECTOR  512u

struct disjoint_case {
    const char *name;
    struct image_spec image;
    uint64_t slow_writes; /* ns by which each write to the storage is delayed */
    uint64_t piece;       /* bytes in a row that one thread owns */
    uint64_t ops;         /* requests of each thread */
};

#define IMAGE(fmt, opts, bytes) \
    .image.format = fmt, .image.options = opts, .image.size = bytes, .image.real_time = true
#define BASE(fmt, bytes) .image.base_format = fmt, .image.base_size = bytes
#define SHORT_DELAY      .image.node.need_check_delay_ns = 2000000

static const struct disjoint_case cases[] = {
    {.name = "qcow2-64k",
     IMAGE("qcow2", "cluster_size=65536", 8 * MIB + 512),
     .piece = SECTOR,
     .ops = 6000},
    {.name = "qcow2-64k-slow",
     IMAGE("qcow2", "cluster_size=65536", 2 * MIB),
     .slow_writes = 20000,
     .piece = SECTOR,
     .ops = 800},
    {.name = "qcow2-4k-slow-snapshot",
     IMAGE("qcow2", "cluster_size=4096,lazy_refcounts=on", 2 * MIB),
     .image.snapshot = true,
     .image.cache_bytes = 16 * KIB,
     SHORT_DELAY,
     .slow_writes = 20000,
     .piece = SECTOR,
     .ops = 800},
    {.name = "qed-4k-slow",
     IMAGE("qed", "cluster_size=4096,table_size=2", 2 * MIB),
     SHORT_DELAY,
     .slow_writes = 20000,
     .piece = 3 * SECTOR,
     .ops = 800},
    {.name = "qcow2-64k-base",
     IMAGE("qcow2", "cluster_size=65536", 8 * MIB + 512),
     BASE("qcow2", 5 * MIB + 512),
     .piece = 3 * SECTOR,
     .ops = 6000},
    {.name = "qcow2-extended-reads-kept",
     IMAGE("qcow2", "cluster_size=16384,extended_l2=on", 8 * MIB + 512),
     BASE("qcow2", 7 * MIB + 512),
     .image.node.copy_on_read = true,
     .slow_writes = 20000,
     .piece = 3 * SECTOR,
     .ops = 1000},
    {.name = "qcow2-512-small-cache",
     IMAGE("qcow2", "cluster_size=512,refcount_bits=64", 4 * MIB),
     .image.cache_bytes = 48 * KIB,
     .piece = 3 * SECTOR,
     .ops = 6000},
    {.name = "qcow2-4k-snapshot",
     IMAGE("qcow2", "cluster_size=4096", 6 * MIB),
     .image.snapshot = true,
     .image.cache_bytes = 64 * KIB,
     .piece = SECTOR,
     .ops = 6000},
    {.name = "qcow2-4k-lazy",
     IMAGE("qcow2", "cluster_size=4096,lazy_refcounts=on", 8 * MIB + 512),
     SHORT_DELAY,
     .piece = SECTOR,
     .ops = 6000},
    {.name = "qcow2-v2-4k-base",
     IMAGE("qcow2", "cluster_size=4096,compat=0.10", 6 * MIB),
     BASE("raw", 7 * MIB),
     .piece = 5 * SECTOR,
     .ops = 6000},
    {.name = "qed-4k",
     IMAGE("qed", "cluster_size=4096,table_size=2", 8 * MIB + 512),
     SHORT_DELAY,
     .image.cache_bytes = 32 * KIB,
     .piece = SECTOR,
     .ops = 6000},
    {.name = "qed-64k-base",
     IMAGE("qed", "cluster_size=65536", 8 * MIB),
     BASE("raw", 5 * MIB + 512),
     .piece = 3 * SECTOR,
     .ops = 6000},
    {.name = "qcow2-extended-base-snapshot",
     IMAGE("qcow2", "cluster_size=16384,extended_l2=on", 4 * MIB + 512),
     BASE("raw", 3 * MIB + 512),
     .image.snapshot = true,
     .piece = SECTOR,
     .ops = 2500},
    {.name = "qcow2-extended-slow",
     IMAGE("qcow2", "cluster_size=65536,extended_l2=on,lazy_refcounts=on", 2 * MIB),
     SHORT_DELAY,
     .slow_writes = 20000,
     .piece = 3 * SECTOR,
     .ops = 500},
    {.name = "qcow2-packed-64k",
     IMAGE("qcow2", "cluster_size=65536", 4 * MIB + 512),
     .image.packed = true,
     .piece = SECTOR,
     .ops = 1500},
    {.name = "qcow2-compress-512",
     IMAGE("qcow2", "cluster_size=512", 2 * MIB),
     .image.packed = true,
     .image.node.compress = true,
     .image.cache_bytes = 48 * KIB,
     .piece = 3 * SECTOR,
     .ops = 2000},
    {.name = "qcow2-compress-512-slow",
     IMAGE("qcow2", "cluster_size=512,refcount_bits=2,compression_type=zstd", MIB),
     .image.node.compress = true,
     .slow_writes = 20000,
     .piece = 5 * SECTOR,
     .ops = 500},
    {.name = "qcow2-compress-extended-base",
     IMAGE("qcow2", "cluster_size=16384,extended_l2=on", 4 * MIB + 512),
     BASE("raw", 2 * MIB),
     .image.packed = true,
     .image.node.compress = true,
     .piece = SECTOR,
     .ops = 1500},
    {.name = "qcow2-aes-slow",
     IMAGE("qcow2", "cluster_size=4096", 2 * MIB),
     .image.encrypt = "aes",
     .slow_writes = 20000,
     .piece = 3 * 100,
     .ops = 800},
    {.name = "qcow2-luks-base",
     IMAGE("qcow2", "cluster_size=65536", 4 * MIB + 512),
     BASE("raw", 2 * MIB + 512),
     .image.encrypt = "luks",
     .piece = 200,
     .ops = 1000},
    {.name = "qcow2-data-file-slow",
     IMAGE("qcow2", "cluster_size=4096", 2 * MIB),
     .image.data_file = "plain",
     .slow_writes = 20000,
     .piece = SECTOR,
     .ops = 800},
    {.name = "qcow2-data-raw",
     IMAGE("qcow2", "cluster_size=65536", 4 * MIB + 512),
     .image.data_file = "raw",
     .piece = SECTOR,
     .ops = 2500},
    {.name = "qcow2-luks-extended-data-file",
     IMAGE("qcow2", "cluster_size=16384,extended_l2=on", 2 * MIB + 512),
     .image.encrypt = "luks",
     .image.data_file = "plain",
     .piece = 300,
     .ops = 1000},
    {.name = "raw", IMAGE("raw", NULL, 4 * MIB), .piece = SECTOR, .ops = 6000},
};

struct stage {
    struct image img;
    const struct disjoint_case *what;
    uint64_t seed;
    pthread_barrier_t start;
    _Atomic unsigned running;
    _Atomic bool wrong;
    pthread_mutex_t saying;
    char said[256];
};

struct worker {
    struct stage *stage;
    unsigned number;
    struct rng rng;
    pthread_t thread;
};

static void PRINTF_LIKE(2, 3) complain(struct stage *s, const char *fmt, ...)
{
    va_list ap;

    pthread_mutex_lock(&s->saying);
    if (!atomic_exchange(&s->wrong, true)) {
        va_start(ap, fmt);
        vsnprintf(s->said, sizeof s->said, fmt, ap);
        va_end(ap);
    }
    pthread_mutex_unlock(&s->saying);
}

/* Picks a range in one of the worker's pieces.  Most are in few clusters, so that the threads work
 * on the same ones. */
static void pick(struct worker *w, uint64_t *off, uint64_t *len)
{
    struct stage *s = w->stage;
    uint64_t piece = s->what->piece, round = piece * THREADS, size = s->img.model.size;
    uint64_t rounds = size / round;
    uint64_t near = rng_one_in(&w->rng, 4) ? rounds : MIN(rounds, 8 + 128 * KIB / round);

    *off = rng_below(&w->rng, near) * round + w->number * piece;
    *len = piece;
    if (rng_one_in(&w->rng, 3)) { /* without the beginning of the piece */
        uint64_t cut = rng_below(&w->rng, piece);
        *off += cut;
        *len -= cut;
    }
}

static int change(struct worker *w, uint64_t off, uint64_t len)
{
    static const unsigned ways[] = {0, BLOCK_MAY_UNMAP, BLOCK_FUA | BLOCK_MAY_UNMAP};
    struct node *node = w->stage->img.node;
    uint8_t *model = w->stage->img.model.bytes + off;

    if (rng_one_in(&w->rng, 6)) {
        memset(model, 0, len);
        return block_zero(node, off, len, ways[rng_below(&w->rng, ARRAY_LEN(ways))]);
    }
    image_fill(&w->stage->img, &w->rng, model, len);
    return block_write(node, model, off, len, rng_one_in(&w->rng, 20) ? BLOCK_FUA : 0);
}

/* After a trim each byte must be as it was or zero; the model takes it over. */
static int trim(struct worker *w, uint64_t off, uint64_t len)
{
    struct node *node = w->stage->img.node;
    uint8_t *model = w->stage->img.model.bytes + off, now[8 * SECTOR];

    int err = block_discard(node, off, len, 0);
    if (!err)
        err = block_read(node, now, off, len);
    for (uint64_t i = 0; !err && i < len; i++)
        if (now[i] != 0 && now[i] != model[i])
            complain(w->stage, "thread %u: trim changed offset %" PRIu64, w->number,
                     off + i);
    memcpy(model, now, len);
    return err;
}

static int look(struct worker *w, uint64_t off, uint64_t len)
{
    uint8_t now[8 * SECTOR];

    int err = block_read_for_user(w->stage->img.node, now, off, len);
    if (!err && memcmp(now, w->stage->img.model.bytes + off, len) != 0)
        complain(w->stage, "thread %u: %" PRIu64 "+%" PRIu64 " is not what it wrote",
                 w->number, off, len);
    return err;
}

static void *work(void *opaque)
{
    struct worker *w = opaque;
    struct stage *s = w->stage;
    uint64_t ops = env_number("QIMG_OPS", s->what->ops / build_slowness());
    int err = 0;

    pthread_barrier_wait(&s->start);
    for (uint64_t i = 0; i < ops && !err && !atomic_load(&s->wrong); i++) {
        uint64_t off, len;
        pick(w, &off, &len);
        unsigned dice = (unsigned)rng_below(&w->rng, 16);
        if (dice < 11)
            err = change(w, off, len);
        else if (dice < 12)
            err = trim(w, off, len);
        else if (dice < 13 && rng_one_in(&w->rng, 8))
            err = block_flush(s->img.node);
        if (!err)
            err = look(w, off, len);
    }
    if (err)
        complain(s, "thread %u: errno %d", w->number, -err);
    atomic_fetch_sub(&s->running, 1);
    return NULL;
}

/* The other thread.  It runs until the workers have ended. */
static void *storm(void *opaque)
{
    struct worker *w = opaque;
    struct stage *s = w->stage;
    CLEANUP_FREE uint8_t *buf = malloc(256 * KIB);

    pthread_barrier_wait(&s->start);
    while (atomic_load(&s->running) > 0) {
        uint64_t len = MIN(256 * KIB, s->img.model.size);
        uint64_t off = rng_below(&w->rng, s->img.model.size - len + 1);
        struct block_status st;
        int err = block_flush(s->img.node);
        if (!err && rng_one_in(&w->rng, 4))
            err = block_read_for_user(s->img.node, buf, off, len);
        if (!err)
            err = block_status(s->img.node, off, len, &st);
        if (!err && rng_one_in(&w->rng, 8) && node_can(s->img.node, DRIVER_MARKS))
            err = s->img.node->driver->clear_mark(s->img.node);
        if (err)
            complain(s, "the flushing thread: errno %d", -err);
    }
    return NULL;
}

static void run_threads(struct stage *s)
{
    struct worker workers[THREADS + 1];

    pthread_barrier_init(&s->start, NULL, THREADS + 1);
    pthread_mutex_init(&s->saying, NULL);
    atomic_init(&s->running, THREADS);
    for (unsigned i = 0; i <= THREADS; i++) {
        workers[i] = (struct worker){.stage = s, .number = i};
        rng_init(&workers[i].rng, s->seed * 100 + i);
        cr_assert_eq(pthread_create(&workers[i].thread, NULL, i < THREADS ? work : storm,
                                    &workers[i]),
                     0);
    }
    for (unsigned i = 0; i <= THREADS; i++)
        pthread_join(workers[i].thread, NULL);
    pthread_barrier_destroy(&s->start);
    pthread_mutex_destroy(&s->saying);
}

static void read_everything(struct stage *s)
{
    struct flat *model = &s->img.model;
    CLEANUP_FREE uint8_t *all = malloc(model->size);

    cr_assert_eq(block_read(s->img.node, all, 0, model->size), 0);
    for (uint64_t i = 0; i < model->size; i++)
        cr_assert_eq(all[i], model->bytes[i], "%s, QIMG_SEED=%" PRIu64 ": offset %" PRIu64,
                     s->what->name, s->seed, i);
}

ParameterizedTestParameters(model_threads, disjoint)
{
    static int index[ARRAY_LEN(cases)];

    for (int i = 0; i < (int)ARRAY_LEN(cases); i++)
        index[i] = i;
    return cr_make_param_array(int, index, ARRAY_LEN(cases));
}

ParameterizedTest(int *index, model_threads, disjoint, .timeout = 300)
{
    struct stage s = {.what = &cases[*index], .seed = env_number("QIMG_SEED", 1)};
    struct fault_plan plan;
    char why[1024];

    registry_init();
    image_make(&s.img, &s.what->image, s.seed);
    /* While a slow write is in flight, other threads can do a lot in between. */
    fault_plan_init(&plan);
    fault_plan_delay_writes(&plan, s.what->slow_writes, 1);
    s.img.plan = &plan;
    image_open(&s.img);
    run_threads(&s);
    cr_assert_not(s.wrong, "%s, QIMG_SEED=%" PRIu64 ": %s", s.what->name, s.seed, s.said);
    read_everything(&s);
    cr_assert_eq(image_close(&s.img), 0);
    cr_assert(image_verify(&s.img, why, sizeof why), "%s: %s", s.what->name, why);
    image_open(&s.img);
    read_everything(&s);
    image_free(&s.img);
    fault_plan_destroy(&plan);
}
