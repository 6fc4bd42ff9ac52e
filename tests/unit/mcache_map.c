/* SPDX-License-Identifier: BSD-3-Clause */
/* Tests maps and the pool of pages: loading, eviction, and what isn't evicted. */
#include <pthread.h>

#include "base/clock.h"
#include "mcache/internal.h"
#include "mcache_testing.h"

#define BIG_POOL (1u << 20)

Test(mcache_map, words_in_the_order_of_the_disk)
{
    struct bench b;
    const uint8_t bytes[] = {1, 2, 3, 4, 5, 6, 7, 8};

    bench_init(&b, BIG_POOL);
    cr_assert_eq(storage_write(b.st, bytes, MAP_PLACE(MAP_A) + 3 * PAGE_BYTES + 16, 8, 0),
                 0);
    cr_assert_eq(storage_write(b.st, bytes, MAP_PLACE(MAP_B) + 3 * PAGE_BYTES + 16, 8, 0),
                 0);
    cr_expect_eq(load_word(&b, MAP_A, 3, 2), 0x0102030405060708u);
    cr_expect_eq(load_word(&b, MAP_B, 3, 2), 0x0807060504030201u);
    cr_expect_eq(mcmap_words_per_page(b.map[MAP_A]), PAGE_BYTES / 8);
    bench_fini(&b);
}

struct together {
    struct bench *b;
    pthread_barrier_t start;
};

static void *load_all(void *opaque)
{
    struct together *t = opaque;

    for (uint64_t i = 0; i < 200; i++) {
        pthread_barrier_wait(&t->start);
        load_word(t->b, MAP_A, i, 0);
    }
    return NULL;
}

/* */
Test(mcache_map, a_page_is_read_once_however_many_ask)
{
    struct bench b;
    struct together t = {.b = &b};
    pthread_t threads[8];

    bench_init(&b, BIG_POOL);
    pthread_barrier_init(&t.start, NULL, 8);
    for (int i = 0; i < 8; i++)
        cr_assert_eq(pthread_create(&threads[i], NULL, load_all, &t), 0);
    for (int i = 0; i < 8; i++)
        pthread_join(threads[i], NULL);
    pthread_barrier_destroy(&t.start);
    cr_expect_eq(fault_plan_calls(&b.plan, FAULT_READ), 200);
    bench_fini(&b);
}

Test(mcache_map, a_page_without_a_place_is_said_to_be_absent)
{
    struct bench b;
    struct mc_page *page;

    bench_init(&b, BIG_POOL);
    gate_ticket ticket = gate_enter(&b.gate);
    cr_expect_eq(mcmap_get(b.map[MAP_A], PAGES - 1, &page), -ENOENT);
    gate_leave(&b.gate, ticket);
    cr_expect_eq(fault_plan_calls(&b.plan, FAULT_READ), 0);
    bench_fini(&b);
}

static uint64_t locate_by_number(void *owner, uint64_t index)
{
    (void)owner;
    return MAP_PLACE(MAP_A) + (index % 7) * PAGE_BYTES;
}

/* So many pages that a directory needs more than the smallest number of slots, with the last slot
 * only partly used. */
Test(mcache_map, two_thousand_million_pages)
{
    struct bench b;
    const uint64_t many = (UINT64_C(1) << 31) + 5;
    const uint64_t indexes[] = {0,        63,       64,       65535,    65536,
                                1u << 30, many / 2, many - 6, many - 5, many - 1};

    bench_init(&b, BIG_POOL);
    struct mcmap *map = mcmap_new(b.mc, many, PAGE_BYTES, MC_BE64, locate_by_number, &b);
    cr_assert_not_null(map);
    for (uint64_t n = 0; n < 7; n++) {
        const uint8_t bytes[8] = {[7] = (uint8_t)(n + 1)};
        cr_assert_eq(storage_write(b.st, bytes, MAP_PLACE(MAP_A) + n * PAGE_BYTES, 8, 0),
                     0);
    }
    for (unsigned round = 0; round < 2; round++) {
        for (unsigned i = 0; i < ARRAY_LEN(indexes); i++) {
            struct mc_page *page;
            gate_ticket ticket = gate_enter(&b.gate);
            cr_assert_eq(mcmap_get(map, indexes[i], &page), 0);
            cr_expect_eq(page->index, indexes[i]);
            cr_expect_eq(mc_load(page, 0), indexes[i] % 7 + 1);
            gate_leave(&b.gate, ticket);
        }
    }
    cr_expect_eq(fault_plan_calls(&b.plan, FAULT_READ), ARRAY_LEN(indexes));
    bench_fini(&b);
}

Test(mcache_map, a_failed_read_is_reported_and_tried_again)
{
    struct bench b;
    struct mc_page *page;

    bench_init(&b, BIG_POOL);
    fault_plan_fail(&b.plan, FAULT_READ, 1, EIO, FAULT_ONCE);
    gate_ticket ticket = gate_enter(&b.gate);
    cr_expect_eq(mcmap_get(b.map[MAP_A], 1, &page), -EIO);
    cr_expect_eq(mcmap_get(b.map[MAP_A], 1, &page), 0);
    gate_leave(&b.gate, ticket);
    bench_fini(&b);
}

/* */
Test(mcache_map, eviction_keeps_to_the_budget)
{
    struct bench b;
    const size_t limit = 16 * 1024;

    bench_init(&b, limit);
    for (unsigned round = 0; round < 3; round++)
        for (uint64_t i = 0; i < PAGES - 1; i++) {
            load_word(&b, MAP_A, i, 0);
            cr_assert_leq(atomic_load(&b.pool->used), limit);
        }
    cr_expect_gt(atomic_load(&b.pool->used), limit / 2, "and uses it");
    bench_fini(&b);
}

Test(mcache_map, dirty_pages_stay)
{
    struct bench b;

    bench_init(&b, 4 * 1024);
    for (uint64_t i = 0; i < 20; i++)
        store_word(&b, MAP_B, i, 5, 100 + i, MC_LINK);
    for (uint64_t i = 0; i < PAGES - 1; i++)
        load_word(&b, MAP_A, i, 0);
    uint64_t reads = fault_plan_calls(&b.plan, FAULT_READ);
    for (uint64_t i = 0; i < 20; i++)
        cr_expect_eq(load_word(&b, MAP_B, i, 5), 100 + i);
    cr_expect_eq(fault_plan_calls(&b.plan, FAULT_READ), reads, "they were in memory");

    /* Once pages are clean, they can be evicted, and are loaded again as they were. */
    cr_assert_eq(mcache_commit(b.mc, MC_COMMIT), 0);
    for (uint64_t i = 0; i < PAGES - 1; i++)
        load_word(&b, MAP_A, i, 0);
    cr_expect_leq(atomic_load(&b.pool->used), 4 * 1024);
    for (uint64_t i = 0; i < 20; i++)
        cr_expect_eq(load_word(&b, MAP_B, i, 5), 100 + i);
    bench_fini(&b);
}

/* If the page is freed too early, ASan reports it. */
Test(mcache_map, an_evicted_page_lives_until_its_readers_left)
{
    struct bench b;
    struct mc_page *page;
    uint8_t raw[8];

    bench_init(&b, 4 * 1024);
    store_be64(raw, 77);
    cr_assert_eq(storage_write(b.st, raw, MAP_PLACE(MAP_A), 8, 0), 0);
    gate_ticket ticket = gate_enter(&b.gate);
    cr_assert_eq(mcmap_get(b.map[MAP_A], 0, &page), 0);
    for (uint64_t i = 1; i < PAGES - 1; i++)
        load_word(&b, MAP_A, i, 0);
    {
        LOCK_GUARD(mcache_meta(b.mc));
        cr_expect_null(mcmap_peek(b.map[MAP_A], 0), "it is evicted");
    }
    cr_expect_eq(mc_load(page, 0), 77);
    gate_leave(&b.gate, ticket);
    bench_fini(&b);
}

/* ---- a page that is evicted before its place is allocated ---- */

#define LATE_PAGE 3u
#define LATE_WORD 7u

struct late {
    struct bench bench;
    struct mc_page *seen;      /* the page that the late request got at the end */
    uint64_t value;            /* the word in it */
    pthread_barrier_t stopped; /* while loads are stopped, no page gets a place */
};

static struct mc_load_stripe *stripe_of(struct bench *b, uint64_t index)
{
    return &b->mc->load[index % LOAD_STRIPES];
}

static void *stop_loads(void *opaque)
{
    struct late *late = opaque;
    LOCK_GUARD(&stripe_of(&late->bench, LATE_PAGE)->lock);

    pthread_barrier_wait(&late->stopped);
    pthread_barrier_wait(&late->stopped);
    return NULL;
}

static void *come_late(void *opaque)
{
    struct late *late = opaque;
    struct bench *b = &late->bench;
    gate_ticket ticket = gate_enter(&b->gate);

    cr_expect_eq(mcmap_get_for_store(b->map[MAP_A], LATE_PAGE, &late->seen), 0);
    late->value = mc_load(late->seen, LATE_WORD);
    gate_leave(&b->gate, ticket);
    return NULL;
}

static void evict_late_page(struct bench *b)
{
    for (uint64_t i = 0; i < PAGES - 1; i++)
        if (stripe_of(b, i) != stripe_of(b, LATE_PAGE))
            load_word(b, MAP_A, i, 0);
    LOCK_GUARD(mcache_meta(b->mc));
    cr_assert_null(mcmap_peek(b->map[MAP_A], LATE_PAGE));
}

/* A request has found a page without a place, all zeroes; then the page is evicted.  Its zeroes are
 * outdated: meanwhile others may have loaded the page again, stored to it and committed that.
 * They must not be written. */
Test(mcache_map, no_old_zeroes_are_written_for_an_evicted_page)
{
    struct late late = {.value = 0};
    struct bench *b = &late.bench;
    struct mc_page *old;
    pthread_t stopper, thread;
    uint8_t raw[8];

    bench_init(b, 4 * 1024);
    b->st->fixed_size = true; /* so that a place is allocated by writing zeroes */
    gate_ticket ticket = gate_enter(&b->gate);
    cr_assert_eq(mcmap_get(b->map[MAP_A], LATE_PAGE, &old), 0);
    atomic_store(&old->referenced, false);
    pthread_barrier_init(&late.stopped, NULL, 2);
    cr_assert_eq(pthread_create(&stopper, NULL, stop_loads, &late), 0);
    pthread_barrier_wait(&late.stopped);
    cr_assert_eq(pthread_create(&thread, NULL, come_late, &late), 0);
    while (!atomic_load(&old->referenced)) /* until the late request has found the page */
        clock_nap_ns(100000);
    evict_late_page(b);
    store_be64(raw, 77);
    cr_assert_eq(storage_write(b->st, raw,
                               MAP_PLACE(MAP_A) + LATE_PAGE * PAGE_BYTES + LATE_WORD * 8, 8,
                               0),
                 0);
    pthread_barrier_wait(&late.stopped);
    pthread_join(stopper, NULL);
    pthread_join(thread, NULL);
    pthread_barrier_destroy(&late.stopped);
    cr_expect_eq(disk_word(b, MAP_A, LATE_PAGE, LATE_WORD), 77);
    cr_expect_neq(late.seen, old);
    cr_expect_eq(late.value, 77);
    gate_leave(&b->gate, ticket);
    bench_fini(b);
}

Test(mcache_map, resident_maps_are_never_evicted)
{
    struct bench b;
    _Atomic uint64_t words[600] = {0};

    bench_init(&b, 4 * 1024);
    struct mcmap *map = mcmap_new_resident(b.mc, words, 600, MC_BE64, locate_b, &b);
    for (uint64_t i = 0; i < PAGES - 1; i++)
        load_word(&b, MAP_A, i, 0);
    {
        LOCK_GUARD(mcache_meta(b.mc));
        cr_expect_not_null(mcmap_peek(map, 0));
        cr_expect_not_null(mcmap_peek(map, 1));
        cr_expect_null(mcmap_peek(map, 2), "600 words are two pages of 4 KiB");
    }
    bench_fini(&b);
}

Test(mcache_map, a_resident_map_is_written_where_it_lies)
{
    struct bench b;
    _Atomic uint64_t words[600] = {0};

    bench_init(&b, BIG_POOL);
    struct mcmap *map = mcmap_new_resident(b.mc, words, 600, MC_LE64, locate_b, &b);
    cr_assert_eq(mcmap_get_for_store(map, 1, NULL), 0);
    {
        LOCK_GUARD(mcache_meta(b.mc));
        mcmap_store(mcmap_peek_for_store(map, 1), 599 - 512, 42, MC_LINK);
    }
    mcache_note_write(b.mc);
    cr_assert_eq(mcache_commit(b.mc, MC_COMMIT), 0);
    struct crash_op op = crash_log_op(b.log, 0);
    cr_expect_eq(op.off, MAP_PLACE(MAP_B) + 4096);
    cr_expect_eq(op.len, (600 - 512) * 8, "no byte past the table");
    cr_expect_eq(atomic_load(&words[599]), 42);
    bench_fini(&b);
}

/* ---- pages whose words rise by the same step ---- */

#define PAGE_WORDS (PAGE_BYTES / 8)

/* Writes the words first, first + step, ... to the disk, as a page of the map. */
static void put_even_words(struct bench *b, unsigned map, uint64_t index, uint64_t first,
                           uint64_t step)
{
    uint8_t raw[PAGE_BYTES];

    for (uint32_t i = 0; i < PAGE_WORDS; i++) {
        if (map == MAP_A)
            store_be64(raw + i * 8, first + i * step);
        else
            store_le64(raw + i * 8, first + i * step);
    }
    cr_assert_eq(
        storage_write(b->st, raw, MAP_PLACE(map) + index * PAGE_BYTES, PAGE_BYTES, 0), 0);
}

static bool is_even(struct bench *b, unsigned map, uint64_t index)
{
    gate_ticket ticket = gate_enter(&b->gate);
    struct mc_page *page = NULL;

    cr_assert_eq(mcmap_get(b->map[map], index, &page), 0);
    bool even = atomic_load(&page->even);
    gate_leave(&b->gate, ticket);
    return even;
}

/* With positive and negative steps, and with an overflow. */
Test(mcache_map, even_words_are_those_of_the_disk)
{
    const uint64_t steps[] = {0x10000, 1, UINT64_C(0) - 0x10000, UINT64_C(1) << 62};
    struct bench b;

    bench_init(&b, BIG_POOL);
    for (unsigned map = 0; map < MAPS; map++) {
        for (unsigned n = 0; n < ARRAY_LEN(steps); n++) {
            put_even_words(&b, map, n, 0x8000000000050000u, steps[n]);
            cr_expect(is_even(&b, map, n));
            for (uint32_t i = 0; i < PAGE_WORDS; i++)
                cr_assert_eq(load_word(&b, map, n, i), 0x8000000000050000u + i * steps[n]);
        }
    }
    bench_fini(&b);
}

/* Wherever in the page that word is. */
Test(mcache_map, one_word_that_is_another_makes_a_page_uneven)
{
    struct bench b;

    bench_init(&b, BIG_POOL);
    for (uint32_t other = 0; other < PAGE_WORDS; other++) {
        uint8_t raw[8];
        store_be64(raw, 77);
        put_even_words(&b, MAP_A, other, 0x50000, 0x10000);
        cr_assert_eq(storage_write(b.st, raw,
                                   MAP_PLACE(MAP_A) + other * PAGE_BYTES + other * 8, 8, 0),
                     0);
        cr_expect_not(is_even(&b, MAP_A, other));
        for (uint32_t i = 0; i < PAGE_WORDS; i++)
            cr_assert_eq(load_word(&b, MAP_A, other, i),
                         i == other ? 77 : 0x50000 + UINT64_C(0x10000) * i);
    }
    bench_fini(&b);
}

/* Invariant 3 of mcache.h, also if the stored word equals the one that was there. */
Test(mcache_map, what_is_stored_to_an_even_page_is_read)
{
    struct bench b;

    bench_init(&b, BIG_POOL);
    for (uint32_t word = 0; word < PAGE_WORDS; word++) {
        put_even_words(&b, MAP_B, word, 0x50000, 0x10000);
        cr_assert(is_even(&b, MAP_B, word));
        store_word(&b, MAP_B, word, word, 42, MC_LINK);
        for (uint32_t i = 0; i < PAGE_WORDS; i++)
            cr_assert_eq(load_word(&b, MAP_B, word, i),
                         i == word ? 42 : 0x50000 + UINT64_C(0x10000) * i);
    }
    cr_assert_eq(mcache_commit(b.mc, MC_COMMIT), 0);
    for (uint32_t word = 0; word < PAGE_WORDS; word++)
        for (uint32_t i = 0; i < PAGE_WORDS; i++)
            cr_assert_eq(disk_word(&b, MAP_B, word, i),
                         i == word ? 42 : 0x50000 + UINT64_C(0x10000) * i);
    bench_fini(&b);
}

struct even_race {
    struct bench bench;
    struct mc_page *page;
    pthread_barrier_t start;
    _Atomic uint32_t stored; /* words stored so far; a pair counts as two */
    bool pairs;
};

static void *store_to_even_pages(void *opaque)
{
    struct even_race *race = opaque;

    for (uint64_t n = 0; n < PAGES - 1; n++) {
        pthread_barrier_wait(&race->start);
        for (uint32_t i = 0; i < PAGE_WORDS; i += race->pairs ? 2 : 1) {
            LOCK_GUARD(mcache_meta(race->bench.mc));
            if (race->pairs)
                mcmap_store_pair(race->page, i, (struct mc_pair){i + 7, i + 9}, MC_LINK);
            else
                mcmap_store(race->page, i, 7, MC_LINK);
            atomic_store(&race->stored, i + 1);
        }
        pthread_barrier_wait(&race->start);
    }
    return NULL;
}

/* Words that were reported as stored must be seen, and a pair is entirely old or entirely new. */
static void look_at_even_page(struct even_race *race)
{
    for (uint32_t stored = 0; stored < PAGE_WORDS - 1;) {
        stored = atomic_load(&race->stored);
        for (uint32_t i = 0; i < PAGE_WORDS; i += 2) {
            struct mc_pair pair = race->pairs ? mc_load_pair(race->page, i)
                                              : (struct mc_pair){mc_load(race->page, i), 0};
            if (!race->pairs) {
                cr_assert(pair.first == 7 || (i >= stored && pair.first == 100 + i));
                continue;
            }
            bool renewed = pair.first == i + 7;
            cr_assert(renewed || (i >= stored && pair.first == 100 + i));
            cr_assert_eq(pair.second, renewed ? i + 9 : 101 + i, "half of a pair");
        }
    }
}

static void race_on_even_pages(bool pairs)
{
    struct even_race race = {.pairs = pairs};
    struct bench *b = &race.bench;
    pthread_t writer;

    bench_init(b, BIG_POOL);
    pthread_barrier_init(&race.start, NULL, 2);
    gate_ticket ticket = gate_enter(&b->gate);
    cr_assert_eq(pthread_create(&writer, NULL, store_to_even_pages, &race), 0);
    for (uint64_t n = 0; n < PAGES - 1; n++) {
        put_even_words(b, MAP_A, n, 100, 1);
        cr_assert_eq(mcmap_get_for_store(b->map[MAP_A], n, &race.page), 0);
        cr_assert(atomic_load(&race.page->even));
        atomic_store(&race.stored, 0);
        pthread_barrier_wait(&race.start);
        look_at_even_page(&race);
        pthread_barrier_wait(&race.start);
        cr_assert_not(atomic_load(&race.page->even));
    }
    pthread_join(writer, NULL);
    pthread_barrier_destroy(&race.start);
    gate_leave(&b->gate, ticket);
    bench_fini(b);
}

Test(mcache_map, who_reads_an_even_page_sees_what_was_stored)
{
    race_on_even_pages(false);
}

Test(mcache_map, a_pair_of_an_even_page_is_never_seen_half)
{
    race_on_even_pages(true);
}

/* ---- pairs ---- */

struct pair_race {
    struct bench bench;
    struct mc_page *page;
    _Atomic bool end;
};

#define PAIRS 200000u

static void *store_pairs(void *opaque)
{
    struct pair_race *race = opaque;

    for (uint64_t i = 1; i <= PAIRS; i++) {
        LOCK_GUARD(mcache_meta(race->bench.mc));
        mcmap_store_pair(race->page, 4, (struct mc_pair){i, ~i}, MC_LINK);
    }
    atomic_store(&race->end, true);
    return NULL;
}

/* Invariant 3 of mcache.h for entries of two words. */
Test(mcache_map, a_pair_is_never_seen_half)
{
    struct pair_race race = {.end = false};
    struct bench *b = &race.bench;
    pthread_t writer;
    uint64_t seen = 0;

    bench_init(b, BIG_POOL);
    gate_ticket ticket = gate_enter(&b->gate);
    cr_assert_eq(mcmap_get_for_store(b->map[MAP_A], 0, &race.page), 0);
    {
        LOCK_GUARD(mcache_meta(b->mc));
        mcmap_store_pair(race.page, 4, (struct mc_pair){0, ~UINT64_C(0)}, MC_LINK);
    }
    cr_assert_eq(pthread_create(&writer, NULL, store_pairs, &race), 0);
    while (!atomic_load(&race.end)) {
        struct mc_pair pair = mc_load_pair(race.page, 4);
        cr_assert_eq(pair.second, ~pair.first);
        cr_assert_geq(pair.first, seen, "older than what was seen before");
        seen = pair.first;
    }
    pthread_join(writer, NULL);
    cr_expect_eq(mc_load_pair(race.page, 4).first, PAIRS);
    gate_leave(&b->gate, ticket);
    bench_fini(b);
}
