/* SPDX-License-Identifier: BSD-3-Clause */
/* Tests how a whole table is replaced: reading it with its dirty pages, forgetting pages, and
 * commits in between. */
#include <pthread.h>

#include "base/clock.h"
#include "mcache_testing.h"

#define BIG_POOL (1u << 20)

static void put_word(struct bench *b, uint64_t index, uint32_t word, uint64_t value)
{
    uint8_t raw[8];

    store_be64(raw, value);
    cr_assert_eq(
        storage_write(b->st, raw, MAP_PLACE(MAP_A) + index * PAGE_BYTES + word * 8, 8, 0),
        0);
}

/* Reads pages as they are, with unwritten changes.  Returns whether there were such changes. */
static bool read_as_is(struct bench *b, uint64_t first, uint64_t n, void *bytes)
{
    bool unwritten;

    cr_assert_eq(mcmap_read_as_is(b->map[MAP_A], first, n,
                                  MAP_PLACE(MAP_A) + first * PAGE_BYTES, bytes, &unwritten),
                 0);
    LOCK_GUARD(mcache_meta(b->mc));
    cr_expect_eq(mcmap_has_unwritten(b->map[MAP_A], first, n), unwritten);
    return unwritten;
}

static void forget(struct bench *b)
{
    mcache_hold(b->mc);
    mcmap_forget(b->map[MAP_A]);
    mcache_release(b->mc);
}

Test(mcache_replace, what_is_dirty_is_laid_over_what_the_file_has)
{
    struct bench b;
    uint8_t bytes[4 * PAGE_BYTES] = {0};

    bench_init(&b, BIG_POOL);
    load_word(&b, MAP_A, 8, 0);
    cr_expect_not(read_as_is(&b, 8, 4, bytes));
    store_word(&b, MAP_A, 9, 3, 0x0102030405060708u, MC_LINK);
    store_word(&b, MAP_A, 12, 0, 1, MC_LINK); /* after the range that is read */
    cr_expect(read_as_is(&b, 8, 4, bytes));
    cr_expect_eq(load_be64(bytes + PAGE_BYTES + 24), 0x0102030405060708u);
    cr_expect_eq(load_be64(bytes + 3 * PAGE_BYTES), 0);
    cr_assert_eq(mcache_commit(b.mc, MC_COMMIT), 0);
    cr_expect_not(read_as_is(&b, 8, 4, bytes), "it is in the file");
    cr_expect_eq(load_be64(bytes + PAGE_BYTES + 24), 0x0102030405060708u);
    bench_fini(&b);
}

Test(mcache_replace, forgotten_pages_are_read_anew)
{
    struct bench b;

    bench_init(&b, BIG_POOL);
    cr_expect_eq(load_word(&b, MAP_A, 7, 1), 0);
    store_word(&b, MAP_A, 8, 1, 5, MC_LINK);
    cr_expect(mcache_has_dirty(b.mc));
    put_word(&b, 7, 1, 77);
    put_word(&b, 8, 1, 88);
    cr_expect_eq(load_word(&b, MAP_A, 7, 1), 0, "it is in memory");
    size_t used = mc_pool_used(b.pool);
    forget(&b);
    cr_expect_lt(mc_pool_used(b.pool), used);
    cr_expect_not(mcache_has_dirty(b.mc));
    cr_expect_eq(load_word(&b, MAP_A, 7, 1), 77);
    cr_expect_eq(load_word(&b, MAP_A, 8, 1), 88);
    cr_assert_eq(mcache_commit(b.mc, MC_COMMIT), 0);
    cr_expect_eq(load_word(&b, MAP_A, 8, 1), 88, "nothing of the old page was written");
    bench_fini(&b);
}

Test(mcache_replace, a_reader_keeps_the_page_it_has)
{
    struct bench b;
    struct mc_page *page;

    bench_init(&b, BIG_POOL);
    put_word(&b, 3, 0, 1);
    gate_ticket ticket = gate_enter(&b.gate);
    cr_assert_eq(mcmap_get(b.map[MAP_A], 3, &page), 0);
    put_word(&b, 3, 0, 2);
    forget(&b);
    cr_expect_eq(mc_load(page, 0), 1);
    cr_expect_eq(load_word(&b, MAP_A, 3, 0), 2);
    gate_leave(&b.gate, ticket);
    bench_fini(&b);
}

/* ---- beside readers ---- */

struct readers {
    struct bench *b;
    _Atomic uint64_t least; /* smaller (older) values must not be seen any more */
    _Atomic bool stop, wrong;
};

static void *read_on(void *opaque)
{
    struct readers *r = opaque;

    while (!atomic_load(&r->stop))
        for (uint64_t i = 0; i < 64; i++) {
            uint64_t least = atomic_load(&r->least);
            if (load_word(r->b, MAP_A, i, 0) < least)
                atomic_store(&r->wrong, true);
        }
    return NULL;
}

/* A request that was loading the old table when it was replaced leaves no old page in the cache. */
Test(mcache_replace, no_old_page_comes_back)
{
    struct bench b;
    struct readers r = {.b = &b};
    pthread_t threads[4];

    bench_init(&b, 16 * PAGE_BYTES); /* so small that pages are evicted all the time */
    for (int i = 0; i < 4; i++)
        cr_assert_eq(pthread_create(&threads[i], NULL, read_on, &r), 0);
    for (uint64_t round = 1; round <= 100; round++) {
        for (uint64_t i = 0; i < 64; i++)
            put_word(&b, i, 0, round);
        forget(&b);
        atomic_store(&r.least, round);
    }
    atomic_store(&r.stop, true);
    for (int i = 0; i < 4; i++)
        pthread_join(threads[i], NULL);
    cr_expect_not(atomic_load(&r.wrong));
    bench_fini(&b);
}

/* ---- a reader that has asked for the page's old place ---- */

struct moving {
    struct bench *b;
    _Atomic uint64_t place;
    _Atomic bool slow, asked;
};

static uint64_t locate_moving(void *owner, uint64_t index)
{
    struct moving *m = owner;
    uint64_t place = atomic_load(&m->place);

    (void)index;
    atomic_store(&m->asked, true);
    if (atomic_exchange(&m->slow, false))
        clock_nap_ns(50000000);
    return place;
}

static void *load_moving(void *opaque)
{
    struct moving *m = opaque;

    load_word(m->b, MAP_A, 0, 0);
    return NULL;
}

/* The reader loads the old place although the table was replaced meanwhile: that page must be
 * forgotten, too. */
Test(mcache_replace, a_load_of_the_old_place_is_waited_for)
{
    struct bench b;
    struct moving m = {.b = &b, .place = MAP_PLACE(MAP_A), .slow = true};
    pthread_t thread;

    bench_init(&b, BIG_POOL);
    put_word(&b, 0, 0, 1);
    put_word(&b, 1, 0, 2);
    struct mcmap *old = b.map[MAP_A];
    b.map[MAP_A] = mcmap_new(b.mc, 1, PAGE_BYTES, MC_BE64, locate_moving, &m);
    cr_assert_eq(pthread_create(&thread, NULL, load_moving, &m), 0);
    while (!atomic_load(&m.asked))
        clock_nap_ns(100000);
    atomic_store(&m.place, MAP_PLACE(MAP_A) + PAGE_BYTES);
    forget(&b);
    cr_expect_eq(load_word(&b, MAP_A, 0, 0), 2);
    pthread_join(thread, NULL);
    cr_expect_eq(load_word(&b, MAP_A, 0, 0), 2);
    mcmap_free(old);
    bench_fini(&b);
}

/* ---- commits ---- */

static void *commit(void *opaque)
{
    struct bench *b = opaque;

    cr_expect_eq(mcache_commit(b->mc, MC_COMMIT), 0);
    return NULL;
}

Test(mcache_replace, commits_wait_while_they_are_held)
{
    struct bench b;
    pthread_t thread;

    bench_init(&b, BIG_POOL);
    store_word(&b, MAP_A, 1, 0, 9, MC_LINK);
    mcache_hold(b.mc);
    cr_assert_eq(pthread_create(&thread, NULL, commit, &b), 0);
    mcmap_forget(b.map[MAP_A]);
    cr_expect_eq(b.frozen, 0);
    mcache_release(b.mc);
    pthread_join(thread, NULL);
    cr_expect_eq(b.frozen, 1);
    cr_expect_eq(load_word(&b, MAP_A, 1, 0), 0, "what was forgotten isn't written");
    bench_fini(&b);
}
