/* SPDX-License-Identifier: BSD-3-Clause */
/* Tests several images, each with its own gate, that share one pool of pages. */
#include "mcache_testing.h"

#include "mcache/internal.h"

static bool has_retired(struct bench *b)
{
    LOCK_GUARD(&b->pool->lock);
    return !list_empty(&b->mc->retired);
}

static void load_many(struct bench *b)
{
    for (uint64_t i = 0; i < PAGES - 1; i++)
        load_word(b, MAP_A, i, 0);
}

/* */
Test(mcache_pool, images_share_one_budget)
{
    struct bench first, second;
    const size_t limit = 16 * 1024;

    bench_init(&first, limit);
    bench_join(&second, first.pool);
    for (uint64_t i = 0; i < PAGES - 1; i++) {
        load_word(&first, MAP_A, i, 0);
        load_word(&second, MAP_A, i, 0);
        cr_assert_leq(mc_pool_used(first.pool), limit);
    }
    bench_leave(&second);
    load_many(&first);
    cr_expect_leq(mc_pool_used(first.pool), limit);
    cr_expect_gt(mc_pool_used(first.pool), limit / 2, "the room of who left is used");
    bench_fini(&first);
}

/* If the page is freed too early, ASan reports it. */
Test(mcache_pool, a_reader_keeps_the_pages_of_its_own_image)
{
    struct bench read, other;
    struct mc_page *page;

    bench_init(&read, 4 * 1024);
    bench_join(&other, read.pool);
    gate_ticket ticket = gate_enter(&read.gate);
    cr_assert_eq(mcmap_get(read.map[MAP_A], 0, &page), 0);
    load_many(&other);
    load_many(&other);
    {
        LOCK_GUARD(mcache_meta(read.mc));
        cr_expect_null(mcmap_peek(read.map[MAP_A], 0), "it is evicted");
    }
    cr_expect_eq(mc_load(page, 0), 0);
    cr_expect(has_retired(&read));
    gate_leave(&read.gate, ticket);
    load_many(&other);
    cr_expect_not(has_retired(&read));
    bench_leave(&other);
    bench_fini(&read);
}

Test(mcache_pool, an_image_leaves_with_pages_that_wait_for_its_gate)
{
    struct bench first, second;

    bench_init(&first, 4 * 1024);
    bench_join(&second, first.pool);
    gate_ticket ticket = gate_enter(&second.gate);
    load_many(&second);
    cr_expect(has_retired(&second));
    gate_leave(&second.gate, ticket);
    bench_leave(&second);
    load_many(&first);
    bench_fini(&first);
}

/* Each image's dirty pages are less than a quarter of the pool, but together they would fill it. */
Test(mcache_pool, many_images_have_less_dirty_pages_each)
{
    struct bench first, more[3];

    bench_init(&first, 32 * 1024);
    for (unsigned i = 0; i < 3; i++)
        bench_join(&more[i], first.pool);
    for (uint64_t page = 0; page < 12; page++)
        store_word(&first, MAP_A, page, 0, 1, MC_LINK);
    mcache_relieve(first.mc);
    cr_expect(mcache_has_dirty(first.mc), "alone it may have them");
    for (unsigned i = 0; i < 3; i++)
        for (uint64_t page = 0; page < 12; page++)
            store_word(&more[i], MAP_A, page, 0, 1, MC_LINK);
    mcache_relieve(first.mc);
    cr_expect_not(mcache_has_dirty(first.mc));
    /* An image with few dirty pages doesn't have to commit, however many the others have. */
    store_word(&first, MAP_A, 0, 0, 2, MC_LINK);
    mcache_relieve(first.mc);
    cr_expect(mcache_has_dirty(first.mc));
    for (unsigned i = 0; i < 3; i++)
        bench_leave(&more[i]);
    bench_fini(&first);
}

/* ---- the memory of evicted pages ---- */

#define MEMO_PAGES 1000u
#define THREADS    4u

/* If a waiting page still uses its freed map, ASan reports it. */
Test(mcache_pool, pages_that_wait_for_the_gate_outlive_their_map)
{
    struct bench b;
    struct mc_page *page;

    bench_init(&b, 32 * 1024);
    struct mcmap *map = mcmap_new_memo(b.mc, MEMO_PAGES);
    gate_ticket ticket = gate_enter(&b.gate);
    for (uint64_t i = 0; i < 20; i++)
        cr_assert_eq(mcmap_get(map, i, &page), 0);
    gate_leave(&b.gate, ticket);
    mcmap_free(map);
    cr_expect(has_retired(&b));
    load_many(&b);
    bench_fini(&b);
}

struct loader {
    struct bench *bench;
    struct mcmap *map;
    unsigned number;
    pthread_barrier_t *turn;
    uintptr_t first, last; /* the lowest and highest address of its pages */
};

static void load_all(struct loader *loader)
{
    struct mc_page *page;

    loader->first = UINTPTR_MAX;
    for (uint64_t i = 0; i < MEMO_PAGES; i++) {
        gate_ticket ticket = gate_enter(&loader->bench->gate);
        cr_assert_eq(mcmap_get(loader->map, i, &page), 0);
        gate_leave(&loader->bench->gate, ticket);
        loader->first = MIN(loader->first, (uintptr_t)page);
        loader->last = MAX(loader->last, (uintptr_t)page);
    }
}

/* The threads load one after the other, but all exist at the same time, so that malloc gives each
 * its own arena. */
static void *load_in_turn(void *opaque)
{
    struct loader *loader = opaque;

    for (unsigned turn = 0; turn < THREADS; turn++) {
        pthread_barrier_wait(loader->turn);
        if (turn == loader->number)
            load_all(loader);
    }
    pthread_barrier_wait(loader->turn);
    return NULL;
}

Test(mcache_pool, evicted_memory_serves_whichever_thread_loads_next)
{
    struct loader loader[THREADS] = {{0}};
    pthread_t thread[THREADS];
    pthread_barrier_t turn;
    struct bench b;

    bench_init(&b, 32 * 1024);
    pthread_barrier_init(&turn, NULL, THREADS);
    for (unsigned i = 0; i < THREADS; i++) {
        loader[i] = (struct loader){.bench = &b, .number = i, .turn = &turn};
        loader[i].map = mcmap_new_memo(b.mc, MEMO_PAGES);
        cr_assert_eq(pthread_create(&thread[i], NULL, load_in_turn, &loader[i]), 0);
    }
    for (unsigned i = 0; i < THREADS; i++) {
        pthread_join(thread[i], NULL);
        mcmap_free(loader[i].map);
    }
    /* The first thread's pages take more memory than the pool keeps; the others must reuse it. */
    for (unsigned i = 1; i < THREADS; i++) {
        cr_expect_geq(loader[i].first, loader[0].first);
        cr_expect_leq(loader[i].last, loader[0].last);
    }
    pthread_barrier_destroy(&turn);
    bench_fini(&b);
}
