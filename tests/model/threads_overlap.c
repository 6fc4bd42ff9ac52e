/* SPDX-License-Identifier: BSD-3-Clause */
/* Sixteen threads write to the same ranges of one node at once.  A log has, for each sector, when
 * which value was written.  At the end each byte must come from a request that no later request
 * replaced: if a request was answered before another one to the same sector was sent, its value
 * must not be there any more.  A lost update, a stale copy of a cluster or a cluster that is
 * reused too early breaks this rule. */
#include <inttypes.h>
#include <pthread.h>
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
#define VALUES  256u
#define MAX_LEN (160 * KIB)

struct overlap_case {
    const char *name;
    struct image_spec image;
    uint64_t slow_writes; /* ns by which each write to the storage is delayed */
    uint64_t window;      /* all requests go to the first so many bytes */
    uint64_t ops;
};

#define IMAGE(fmt, opts, bytes) \
    .image.format = fmt, .image.options = opts, .image.size = bytes, .image.real_time = true
#define SHORT_DELAY .image.node.need_check_delay_ns = 2000000

static const struct overlap_case cases[] = {
    {.name = "qcow2-64k",
     IMAGE("qcow2", "cluster_size=65536", MIB),
     .window = 192 * KIB,
     .ops = 4000},
    {.name = "qcow2-64k-slow",
     IMAGE("qcow2", "cluster_size=65536", MIB),
     .window = 128 * KIB,
     .slow_writes = 20000,
     .ops = 1000},
    {.name = "qcow2-512-slow",
     IMAGE("qcow2", "cluster_size=512", 256 * KIB),
     .image.cache_bytes = 8 * KIB,
     .window = 256 * KIB,
     .slow_writes = 20000,
     .ops = 1000},
    {.name = "qcow2-4k-lazy-slow",
     IMAGE("qcow2", "cluster_size=4096,lazy_refcounts=on", MIB),
     SHORT_DELAY,
     .window = 64 * KIB,
     .slow_writes = 20000,
     .ops = 1000},
    {.name = "qcow2-4k-lazy",
     IMAGE("qcow2", "cluster_size=4096,lazy_refcounts=on", MIB + 512),
     SHORT_DELAY,
     .window = 64 * KIB,
     .ops = 4000},
    {.name = "qcow2-512-small-cache",
     IMAGE("qcow2", "cluster_size=512,refcount_bits=1", MIB + 512),
     .image.cache_bytes = 16 * KIB,
     .window = 256 * KIB,
     .ops = 3000},
    {.name = "qcow2-4k-base-snapshot",
     IMAGE("qcow2", "cluster_size=4096", MIB),
     .image.base_format = "raw",
     .image.base_size = 512 * KIB + 512,
     .image.snapshot = true,
     .window = MIB,
     .slow_writes = 20000,
     .ops = 1000},
    {.name = "qcow2-v2-4k-base",
     IMAGE("qcow2", "cluster_size=4096,compat=0.10", MIB),
     .image.base_format = "raw",
     .image.base_size = 512 * KIB + 512,
     .window = MIB,
     .ops = 3000},
    {.name = "qcow2-64k-reads-kept",
     IMAGE("qcow2", "cluster_size=65536", MIB + 512),
     .image.base_format = "raw",
     .image.base_size = 768 * KIB + 512,
     .image.node.copy_on_read = true,
     .window = MIB,
     .slow_writes = 20000,
     .ops = 1000},
    {.name = "qcow2-4k-packed",
     IMAGE("qcow2", "cluster_size=4096", MIB),
     .image.node.compress = true,
     .window = 64 * KIB,
     .ops = 2000},
    {.name = "qcow2-4k-packed-slow",
     IMAGE("qcow2", "cluster_size=4096,refcount_bits=2", MIB),
     .image.node.compress = true,
     .image.cache_bytes = 8 * KIB,
     .window = 96 * KIB,
     .slow_writes = 20000,
     .ops = 1000},
    {.name = "qcow2-64k-packed-base-snapshot",
     IMAGE("qcow2", "cluster_size=65536", MIB + 512),
     .image.base_format = "raw",
     .image.base_size = 512 * KIB + 512,
     .image.snapshot = true,
     .image.node.compress = true,
     .window = MIB,
     .slow_writes = 20000,
     .ops = 1000},
    {.name = "qed-4k",
     IMAGE("qed", "cluster_size=4096,table_size=2", MIB + 512),
     SHORT_DELAY,
     .window = 64 * KIB,
     .ops = 4000},
    {.name = "qed-64k-base",
     IMAGE("qed", "cluster_size=65536", MIB),
     .image.base_format = "qcow2",
     .image.base_size = 512 * KIB,
     .window = MIB,
     .ops = 3000},
    {.name = "qcow2-extended-base-snapshot",
     IMAGE("qcow2", "cluster_size=16384,extended_l2=on", MIB),
     .image.base_format = "raw",
     .image.base_size = 512 * KIB + 512,
     .image.snapshot = true,
     .window = 256 * KIB,
     .slow_writes = 20000,
     .ops = 600},
    {.name = "qcow2-compress-4k",
     IMAGE("qcow2", "cluster_size=4096", MIB + 512),
     .image.packed = true,
     .image.node.compress = true,
     .window = 128 * KIB,
     .ops = 1500},
    {.name = "qcow2-compress-4k-slow",
     IMAGE("qcow2", "cluster_size=4096,compression_type=zstd,refcount_bits=2", MIB),
     .image.node.compress = true,
     .image.cache_bytes = 16 * KIB,
     .window = 64 * KIB,
     .slow_writes = 20000,
     .ops = 600},
    {.name = "qcow2-compress-512-rc1",
     IMAGE("qcow2", "cluster_size=512,refcount_bits=1", 512 * KIB),
     .image.packed = true,
     .image.node.compress = true,
     .window = 128 * KIB,
     .ops = 800},
    {.name = "qcow2-packed-64k",
     IMAGE("qcow2", "cluster_size=65536", MIB),
     .image.packed = true,
     .window = 512 * KIB,
     .ops = 1000},
    {.name = "qcow2-compress-snapshot-lazy",
     IMAGE("qcow2", "cluster_size=4096,lazy_refcounts=on", MIB),
     SHORT_DELAY,
     .image.packed = true,
     .image.snapshot = true,
     .image.node.compress = true,
     .window = 256 * KIB,
     .ops = 1000},
    {.name = "qcow2-compress-extended-slow",
     IMAGE("qcow2", "cluster_size=16384,extended_l2=on", MIB),
     .image.base_format = "raw",
     .image.base_size = 512 * KIB,
     .image.node.compress = true,
     .window = 256 * KIB,
     .slow_writes = 20000,
     .ops = 500},
    {.name = "qcow2-aes-slow",
     IMAGE("qcow2", "cluster_size=4096", MIB),
     .image.encrypt = "aes",
     .window = 64 * KIB,
     .slow_writes = 20000,
     .ops = 600},
    {.name = "qcow2-luks-snapshot",
     IMAGE("qcow2", "cluster_size=65536", MIB),
     .image.encrypt = "luks",
     .image.snapshot = true,
     .window = 256 * KIB,
     .ops = 1000},
    {.name = "qcow2-data-file-base-slow",
     IMAGE("qcow2", "cluster_size=4096", MIB),
     .image.base_format = "raw",
     .image.base_size = 512 * KIB,
     .image.data_file = "plain",
     .window = 128 * KIB,
     .slow_writes = 20000,
     .ops = 600},
    {.name = "qcow2-data-raw-extended",
     IMAGE("qcow2", "cluster_size=16384,extended_l2=on", MIB),
     .image.data_file = "raw",
     .window = 256 * KIB,
     .ops = 1500},
    {.name = "qcow2-luks-extended-data-file",
     IMAGE("qcow2", "cluster_size=16384,extended_l2=on", MIB),
     .image.encrypt = "luks",
     .image.data_file = "plain",
     .window = 128 * KIB,
     .ops = 800},
    {.name = "qed-4k-slow",
     IMAGE("qed", "cluster_size=4096,table_size=2", MIB + 512),
     SHORT_DELAY,
     .image.cache_bytes = 8 * KIB,
     .window = 64 * KIB,
     .slow_writes = 20000,
     .ops = 1000},
};

/* The requests to a sector, filled in after each.  Times come from one counter.  Indexed by value:
 * each request fills its range with one value, or with 0 for a zero or a trim. */
struct sector_log {
    _Atomic uint64_t last_start; /* the latest begin of a request that surely changed it */
    _Atomic uint64_t last_end[VALUES];
};

struct stage {
    const struct overlap_case *what;
    struct image img;
    uint64_t seed;
    struct sector_log *log;
    _Atomic uint64_t clock;
    _Atomic int err;
    pthread_barrier_t start;
};

struct worker {
    struct stage *stage;
    unsigned number;
    struct rng rng;
    pthread_t thread;
};

static void raise_to(_Atomic uint64_t *at, uint64_t value)
{
    uint64_t now = atomic_load(at);

    while (now < value && !atomic_compare_exchange_weak(at, &now, value)) {
    }
}

/* sure: the request surely had an effect (a trim may have none). */
static void log_request(struct stage *s, uint64_t off, uint64_t len, uint8_t value,
                        uint64_t began, bool sure)
{
    uint64_t ended = atomic_fetch_add(&s->clock, 1);

    for (uint64_t i = off / SECTOR; i < (off + len) / SECTOR; i++) {
        if (sure)
            raise_to(&s->log[i].last_start, began);
        raise_to(&s->log[i].last_end[value], ended);
    }
}

static int one_request(struct worker *w, uint8_t *buf)
{
    struct stage *s = w->stage;
    struct node *node = s->img.node;
    uint64_t n = MIN(s->what->window, s->img.model.size) / SECTOR;
    uint64_t at = rng_below(&w->rng, n), most = MIN(n - at, MAX_LEN / SECTOR);
    uint64_t count = rng_between(&w->rng, 1, rng_one_in(&w->rng, 8) ? most : MIN(most, 24));
    uint64_t off = at * SECTOR, len = count * SECTOR;
    unsigned dice = (unsigned)rng_below(&w->rng, 32);
    uint64_t began = atomic_fetch_add(&s->clock, 1);
    uint8_t value = 0;
    int err;

    if (dice < 4) {
        err = block_zero(node, off, len, dice & 1 ? BLOCK_MAY_UNMAP : 0);
    } else if (dice < 8) {
        err = block_discard(node, off, len, 0);
    } else if (dice < 9) {
        return block_flush(node);
    } else if (dice < 12) {
        return block_read_for_user(node, buf, off, len);
    } else {
        value = (uint8_t)rng_between(&w->rng, 1, VALUES - 1);
        memset(buf, value, len);
        err = block_write(node, buf, off, len, dice == 12 ? BLOCK_FUA : 0);
    }
    log_request(s, off, len, value, began, dice < 4 || dice >= 8);
    return err;
}

static void *work(void *opaque)
{
    struct worker *w = opaque;
    struct stage *s = w->stage;
    uint64_t ops = env_number("QIMG_OPS", s->what->ops / build_slowness());
    CLEANUP_FREE uint8_t *buf = malloc(MAX_LEN);

    pthread_barrier_wait(&s->start);
    for (uint64_t i = 0; i < ops && atomic_load(&s->err) == 0; i++) {
        int err = one_request(w, buf);
        if (err)
            atomic_store(&s->err, err);
    }
    return NULL;
}

static void run_threads(struct stage *s)
{
    struct worker workers[THREADS];

    pthread_barrier_init(&s->start, NULL, THREADS);
    for (unsigned i = 0; i < THREADS; i++) {
        workers[i] = (struct worker){.stage = s, .number = i};
        rng_init(&workers[i].rng, s->seed * 100 + i);
        cr_assert_eq(pthread_create(&workers[i].thread, NULL, work, &workers[i]), 0);
    }
    for (unsigned i = 0; i < THREADS; i++)
        pthread_join(workers[i].thread, NULL);
    pthread_barrier_destroy(&s->start);
}

/* A sector that was at most trimmed must be as at the start, or zero.  In any other one the byte's
 * value must belong to a request that ended after the last sure one began. */
static void check_byte(struct stage *s, uint64_t off, uint8_t now)
{
    struct sector_log *log = &s->log[off / SECTOR];

    if (log->last_start == 0) {
        cr_assert(now == s->img.model.bytes[off] || (now == 0 && log->last_end[0]),
                  "%s, QIMG_SEED=%" PRIu64 ": offset %" PRIu64 " changed, untouched",
                  s->what->name, s->seed, off);
        return;
    }
    cr_assert_gt(log->last_end[now], log->last_start,
                 "%s, QIMG_SEED=%" PRIu64 ": offset %" PRIu64 ": 0x%02x is %s",
                 s->what->name, s->seed, off, now,
                 log->last_end[now] ? "stale" : "nobody's");
}

static void check_contents(struct stage *s)
{
    struct flat *model = &s->img.model;
    CLEANUP_FREE uint8_t *all = malloc(model->size);

    cr_assert_eq(block_read(s->img.node, all, 0, model->size), 0);
    for (uint64_t i = 0; i < model->size; i++)
        check_byte(s, i, all[i]);
    memcpy(model->bytes, all, model->size);
}

ParameterizedTestParameters(model_threads, overlap)
{
    static int index[ARRAY_LEN(cases)];

    for (int i = 0; i < (int)ARRAY_LEN(cases); i++)
        index[i] = i;
    return cr_make_param_array(int, index, ARRAY_LEN(cases));
}

ParameterizedTest(int *index, model_threads, overlap, .timeout = 300)
{
    struct stage s = {
        .what = &cases[*index], .seed = env_number("QIMG_SEED", 1), .clock = 1};
    struct fault_plan plan;
    char why[1024];

    registry_init();
    image_make(&s.img, &s.what->image, s.seed);
    /* While a slow write is in flight, other threads can do a lot in between. */
    fault_plan_init(&plan);
    fault_plan_delay_writes(&plan, s.what->slow_writes, 1);
    s.img.plan = &plan;
    s.log = calloc(s.img.model.size / SECTOR + 1, sizeof *s.log);
    image_open(&s.img);
    run_threads(&s);
    cr_assert_eq(s.err, 0, "%s: errno %d", s.what->name, -s.err);
    check_contents(&s);
    cr_assert_eq(image_close(&s.img), 0);
    cr_assert(image_verify(&s.img, why, sizeof why), "%s: %s", s.what->name, why);
    free(s.log);
    image_free(&s.img);
    fault_plan_destroy(&plan);
}
