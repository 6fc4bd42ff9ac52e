/* SPDX-License-Identifier: BSD-3-Clause */
/* Tests the copier, which locks the ranges that it copies: locked ranges never overlap, whichever
 * threads lock them (M-17). */
#include "jobs_testing.h"

#include "jobs/copier.h"

#define CHUNK  4096u
#define CHUNKS 256u

struct copy_bench {
    struct bench b;
    struct copier *copier;
    _Atomic int owners[CHUNKS];
    _Atomic unsigned done, freed, failed;
    pthread_mutex_t mutex;
    struct copy_result last; /* under mutex */
};

/* Notes that a thread has locked a range; no chunk of it may be locked already. */
static void take(struct copy_bench *c, uint64_t off, uint64_t len)
{
    for (uint64_t i = off / CHUNK; i < (off + len) / CHUNK; i++)
        cr_assert_eq(atomic_fetch_add(&c->owners[i], 1), 0, "chunk %lu is taken twice",
                     (unsigned long)i);
}

static void give_back(struct copy_bench *c, uint64_t off, uint64_t len)
{
    for (uint64_t i = off / CHUNK; i < (off + len) / CHUNK; i++)
        atomic_fetch_sub(&c->owners[i], 1);
}

static void done(void *opaque, const struct copy_result *result)
{
    struct copy_bench *c = opaque;

    give_back(c, result->off, result->len);
    pthread_mutex_lock(&c->mutex);
    c->last = *result;
    pthread_mutex_unlock(&c->mutex);
    if (result->err)
        atomic_fetch_add(&c->failed, 1);
    atomic_fetch_add(&c->done, 1);
}

static struct copy_result last(struct copy_bench *c)
{
    pthread_mutex_lock(&c->mutex);
    struct copy_result result = c->last;
    pthread_mutex_unlock(&c->mutex);
    return result;
}

static void freed(void *opaque)
{
    atomic_fetch_add(&((struct copy_bench *)opaque)->freed, 1);
}

static void copy_init(struct copy_bench *c, uint64_t buf_size, uint64_t max_range)
{
    memset(c, 0, sizeof *c);
    pthread_mutex_init(&c->mutex, NULL);
    bench_init(&c->b, CHUNKS * CHUNK);
    bench_fill(&c->b);
    const struct copier_config config = {
        .source = c->b.node[SOURCE],
        .target = c->b.node[TARGET],
        .buf_size = buf_size,
        .max_range = max_range,
        .done = done,
        .freed = freed,
        .opaque = c,
    };
    c->copier = copier_new(&config);
    cr_assert_not_null(c->copier);
}

static void copy_fini(struct copy_bench *c)
{
    copier_wait_in_flight(c->copier);
    cr_expect_eq(copier_in_flight(c->copier), 0);
    copier_free(c->copier);
    bench_fini(&c->b);
}

/* Copies as much of the range as can be locked at once; returns the length. */
static uint64_t go(struct copy_bench *c, uint64_t off, uint64_t len)
{
    struct copy_worker *worker = copier_begin(c->copier, off, &len);

    if (!worker)
        return 0;
    take(c, off, len);
    copier_go(worker);
    return len;
}

Test(copier, copies)
{
    static struct copy_bench c;

    copy_init(&c, 16 * CHUNK, CHUNK);
    for (uint64_t off = 0; off < CHUNKS * CHUNK;)
        off += go(&c, off, CHUNKS * CHUNK - off);
    copier_wait_in_flight(c.copier);
    bench_same(&c.b);
    cr_expect_eq(atomic_load(&c.done), CHUNKS);
    copy_fini(&c);
    cr_expect_eq(atomic_load(&c.freed), CHUNKS);
}

Test(copier, a_range_is_cut_at_what_others_have)
{
    static struct copy_bench c;
    struct locked_range one, two;
    uint64_t len = 100 * CHUNK;

    copy_init(&c, 16 * 64 * CHUNK, 64 * CHUNK);
    copier_lock_range(c.copier, &two, 40 * CHUNK, CHUNK);
    copier_lock_range(c.copier, &one, 20 * CHUNK, 2 * CHUNK);
    cr_expect_eq(copier_in_flight(c.copier), 3 * CHUNK);
    cr_expect_null(copier_begin(c.copier, 20 * CHUNK, &len), "somebody is there");
    cr_expect_eq(len, 0);
    len = 100 * CHUNK;
    cr_expect_null(copier_begin(c.copier, 21 * CHUNK, &len));
    cr_expect_eq(len, 0);
    cr_expect_eq(go(&c, 10 * CHUNK, 100 * CHUNK), 10 * CHUNK, "up to the first");
    cr_expect_eq(go(&c, 22 * CHUNK, 100 * CHUNK), 18 * CHUNK, "up to the next");
    cr_expect_eq(go(&c, 41 * CHUNK, 200 * CHUNK), 64 * CHUNK, "no more than is allowed");
    copier_wait_in_flight(c.copier);
    cr_expect_eq(copier_in_flight(c.copier), 3 * CHUNK, "users' ranges aren't waited for");
    cr_expect_eq(copier_copying(c.copier), 0);
    copier_unlock_range(c.copier, &one);
    copier_unlock_range(c.copier, &two);
    copy_fini(&c);
}

Test(copier, has_as_many_workers_as_memory_allows)
{
    static struct copy_bench c;
    uint64_t len = CHUNK, others = 0;
    struct copy_worker *held[3];

    copy_init(&c, 3 * CHUNK, CHUNK);
    for (uint64_t i = 0; i < 3; i++) {
        len = CHUNK;
        held[i] = copier_begin(c.copier, i * CHUNK, &len);
        cr_assert_not_null(held[i]);
        take(&c, i * CHUNK, CHUNK);
    }
    others = CHUNK;
    cr_expect_null(copier_begin(c.copier, 9 * CHUNK, &others));
    cr_expect_eq(others, CHUNK, "nobody is idle: not cut");
    cr_expect_eq(copier_copying(c.copier), 3 * CHUNK);
    for (unsigned i = 0; i < 3; i++)
        copier_go(held[i]);
    copy_fini(&c);
}

Test(copier, tells_of_failures_and_whose_they_are)
{
    static struct copy_bench c;

    copy_init(&c, CHUNK, CHUNK);
    fault_plan_fail(&c.b.plan[SOURCE], FAULT_READ, 1, EIO, FAULT_ONCE);
    go(&c, 0, CHUNK);
    copier_wait_in_flight(c.copier);
    cr_expect_eq(last(&c).err, -EIO);
    cr_expect_not(last(&c).write_side);
    fault_plan_fail(&c.b.plan[TARGET], FAULT_WRITE, 1, ENOSPC, FAULT_ONCE);
    go(&c, CHUNK, CHUNK);
    copier_wait_in_flight(c.copier);
    cr_expect_eq(last(&c).err, -ENOSPC);
    cr_expect(last(&c).write_side);
    cr_expect_eq(atomic_load(&c.failed), 2);
    copy_fini(&c);
}

Test(copier, zeroes_are_not_sent_as_data)
{
    static struct copy_bench c;

    copy_init(&c, CHUNK, CHUNK);
    cr_assert_eq(block_zero(c.b.node[SOURCE], 0, CHUNK, BLOCK_MAY_UNMAP), 0);
    go(&c, 0, CHUNK);
    copier_wait_in_flight(c.copier);
    cr_expect_eq(last(&c).sent, 0);
    cr_expect_eq(fault_plan_calls(&c.b.plan[TARGET], FAULT_WRITE), 0);
    cr_expect_eq(fault_plan_calls(&c.b.plan[TARGET], FAULT_ZERO), 1);
    copy_fini(&c);
}

/* ---- many at once ---- */

struct locker {
    struct copy_bench *c;
    pthread_t thread;
    uint64_t seed;
};

static void *lock_at_random(void *opaque)
{
    struct locker *me = opaque;
    struct rng rng;

    rng_init(&rng, me->seed);
    for (unsigned i = 0; i < 3000; i++) {
        struct locked_range range;
        uint64_t len = rng_between(&rng, 1, 8), off = rng_below(&rng, CHUNKS - len);
        copier_lock_range(me->c->copier, &range, off * CHUNK, len * CHUNK);
        take(me->c, off * CHUNK, len * CHUNK);
        give_back(me->c, off * CHUNK, len * CHUNK);
        copier_unlock_range(me->c->copier, &range);
    }
    return NULL;
}

/* M-17 */
Test(copier, ranges_in_flight_never_overlap, .timeout = 120)
{
    static struct copy_bench c;
    struct locker lockers[4];
    struct rng rng;

    copy_init(&c, 16 * 8 * CHUNK, 8 * CHUNK);
    for (unsigned i = 0; i < 4; i++) {
        lockers[i] = (struct locker){.c = &c, .seed = i};
        cr_assert_eq(pthread_create(&lockers[i].thread, NULL, lock_at_random, &lockers[i]),
                     0);
    }
    rng_init(&rng, 99);
    for (unsigned i = 0; i < 5000; i++) {
        uint64_t off = rng_below(&rng, CHUNKS - 1), len = rng_between(&rng, 1, 16);
        go(&c, off * CHUNK, MIN(len, CHUNKS - off) * CHUNK);
    }
    for (unsigned i = 0; i < 4; i++)
        pthread_join(lockers[i].thread, NULL);
    copy_fini(&c);
    for (unsigned i = 0; i < CHUNKS; i++)
        cr_expect_eq(atomic_load(&c.owners[i]), 0);
}
