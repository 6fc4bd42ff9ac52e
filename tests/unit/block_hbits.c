/* SPDX-License-Identifier: BSD-3-Clause */
/* Tests the hierarchical bitset: against a flat array, at its largest size, and with threads. */
#include <criterion/criterion.h>
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>

#include "block/hbits.h"
#include "rng.h"

static bool upper_bit(const struct hbits *h, unsigned level, uint64_t word)
{
    return h->words[level][word / 64] >> word % 64 & 1;
}

/* While no thread sets bits: the bit of each word in the level above says whether it is empty. */
static void check_levels(const struct hbits *h)
{
    for (unsigned level = 0; level + 1 < HBITS_LEVELS; level++)
        for (uint64_t w = 0; w < h->n_words[level]; w++)
            cr_assert_eq(upper_bit(h, level + 1, w), h->words[level][w] != 0,
                         "level %u, word %lu", level, (unsigned long)w);
}

/* ---- a model ---- */

static uint64_t model_next(const bool *model, bool value, uint64_t from, uint64_t end)
{
    while (from < end && model[from] != value)
        from++;
    return from < end ? from : end;
}

static void one_step(struct hbits *h, bool *model, struct rng *rng)
{
    uint64_t n = h->n_bits, start = rng_below(rng, n);
    uint64_t most = rng_one_in(rng, 4) ? n - start : MIN(n - start, 100);
    uint64_t len = rng_below(rng, most + 1), end = start + len;

    switch (rng_below(rng, 4)) {
    case 0:
        hbits_set(h, start, len);
        memset(model + start, true, len);
        break;
    case 1: {
        uint64_t was = 0;
        for (uint64_t i = start; i < end; i++)
            was += model[i];
        cr_assert_eq(hbits_clear(h, start, len), was);
        memset(model + start, false, len);
        break;
    }
    case 2:
        cr_assert_eq(hbits_next_set(h, start, end), model_next(model, true, start, end));
        cr_assert_eq(hbits_next_set(h, start, n), model_next(model, true, start, n));
        break;
    default:
        cr_assert_eq(hbits_next_clear(h, start, end), model_next(model, false, start, end));
        cr_assert_eq(hbits_test(h, start), model[start]);
    }
}

static void run_model(uint64_t n, unsigned steps)
{
    struct hbits h;
    struct rng rng;
    bool *model = calloc(n, sizeof *model);
    uint64_t set = 0;

    rng_init(&rng, n);
    cr_assert_eq(hbits_init(&h, n), 0);
    for (unsigned i = 0; i < steps; i++)
        one_step(&h, model, &rng);
    for (uint64_t i = 0; i < n; i++)
        set += model[i];
    cr_assert_eq(hbits_count(&h), set);
    check_levels(&h);
    cr_assert_eq(hbits_clear(&h, 0, n), set);
    cr_assert_eq(hbits_next_set(&h, 0, n), n);
    check_levels(&h);
    hbits_destroy(&h);
    free(model);
}

Test(hbits, as_a_flat_array, .timeout = 120)
{
    static const uint64_t sizes[] = {1,    2,    63,   64,     65,     127,    4095,
                                     4096, 4097, 8191, 262143, 262144, 262145, 600000};

    for (size_t i = 0; i < ARRAY_LEN(sizes); i++)
        run_model(sizes[i], 3000);
}

Test(hbits, nothing_in_it, .timeout = 120)
{
    struct hbits h;

    cr_assert_eq(hbits_init(&h, 0), 0);
    hbits_set(&h, 0, 0);
    cr_assert_eq(hbits_clear(&h, 0, 0), 0);
    cr_assert_eq(hbits_next_set(&h, 0, 0), 0);
    cr_assert_eq(hbits_count(&h), 0);
    hbits_destroy(&h);
}

/* 64 TiB in granules of 64 KiB.  If a search read every word, this test would take hours (M-11). */
Test(hbits, sixty_four_tebibytes, .timeout = 120)
{
    const uint64_t n = 1ull << 30;
    struct hbits h;
    uint64_t words = 0;

    cr_assert_eq(hbits_init(&h, n), 0);
    for (unsigned level = 0; level < HBITS_LEVELS; level++)
        words += h.n_words[level];
    cr_assert_leq(words * 64, n + n / 50, "2 %% more than a bit each");
    for (int i = 0; i < 10000; i++)
        cr_assert_eq(hbits_next_set(&h, 0, n), n);
    hbits_set(&h, n - 1, 1);
    for (int i = 0; i < 10000; i++)
        cr_assert_eq(hbits_next_set(&h, 0, n), n - 1);
    cr_assert_eq(hbits_clear(&h, 0, n), 1);
    cr_assert_eq(hbits_count(&h), 0);
    hbits_destroy(&h);
}

Test(hbits, merged_and_resized, .timeout = 120)
{
    struct hbits a, b;

    cr_assert_eq(hbits_init(&a, 1000), 0);
    cr_assert_eq(hbits_init(&b, 5000), 0);
    hbits_set(&a, 10, 5);
    hbits_set(&b, 12, 100);
    hbits_set(&b, 990, 4010);
    hbits_merge(&a, &b);
    cr_assert_eq(hbits_count(&a), 102 + 10);
    cr_assert_eq(hbits_resize(&a, 995), 0);
    cr_assert_eq(hbits_count(&a), 102 + 5);
    cr_assert_eq(hbits_resize(&a, 3000), 0);
    cr_assert_eq(hbits_count(&a), 102 + 5);
    cr_assert_eq(hbits_next_set(&a, 112, 3000), 990);
    cr_assert_eq(hbits_next_clear(&a, 990, 3000), 995);
    check_levels(&a);
    hbits_destroy(&a);
    hbits_destroy(&b);
}

/* ---- threads ---- */

#define BITS    20000u
#define SETTERS 4
#define ROUNDS  20000

/* A small model of a mirror: setters write, then set the bit; the owner clears the bit, then
 * copies.  If source and target differ at the end, an update was lost. */
struct mirror {
    struct hbits dirty;
    _Atomic uint32_t source[BITS], target[BITS];
    _Atomic unsigned running;
};

struct setter {
    struct mirror *mirror;
    uint64_t seed;
};

static void *write_and_mark(void *opaque)
{
    struct setter *setter = opaque;
    struct mirror *m = setter->mirror;
    struct rng rng;

    rng_init(&rng, setter->seed);
    for (uint32_t round = 1; round <= ROUNDS; round++) {
        /* Few places, so that setters and the owner often work on the same word. */
        uint64_t start = rng_below(&rng, 64) * (BITS / 64), n = rng_between(&rng, 1, 3);
        for (uint64_t i = start; i < start + n; i++)
            atomic_store_explicit(&m->source[i], (uint32_t)rng_next(&rng),
                                  memory_order_relaxed);
        hbits_set(&m->dirty, start, n);
    }
    atomic_fetch_sub(&m->running, 1);
    return NULL;
}

static void copy_one_run(struct mirror *m, uint64_t from)
{
    uint64_t start = hbits_next_set(&m->dirty, from, BITS);

    if (start == BITS)
        return;
    uint64_t end = hbits_next_clear(&m->dirty, start, BITS);
    hbits_clear(&m->dirty, start, end - start);
    for (uint64_t i = start; i < end; i++) {
        uint32_t now = atomic_load_explicit(&m->source[i], memory_order_relaxed);
        atomic_store_explicit(&m->target[i], now, memory_order_relaxed);
    }
}

Test(hbits, no_update_is_lost, .timeout = 120)
{
    static struct mirror m;
    pthread_t threads[SETTERS];
    struct setter setters[SETTERS];
    struct rng rng;

    rng_init(&rng, 99);
    cr_assert_eq(hbits_init(&m.dirty, BITS), 0);
    m.running = SETTERS;
    for (unsigned i = 0; i < SETTERS; i++) {
        setters[i] = (struct setter){.mirror = &m, .seed = i};
        cr_assert_eq(pthread_create(&threads[i], NULL, write_and_mark, &setters[i]), 0);
    }
    while (m.running > 0)
        copy_one_run(&m, rng_one_in(&rng, 2) ? 0 : rng_below(&rng, BITS));
    for (unsigned i = 0; i < SETTERS; i++)
        pthread_join(threads[i], NULL);
    while (hbits_next_set(&m.dirty, 0, BITS) < BITS)
        copy_one_run(&m, 0);
    cr_assert_eq(hbits_count(&m.dirty), 0, "the count is exact when all is quiet");
    for (unsigned i = 0; i < BITS; i++)
        cr_assert_eq(m.source[i], m.target[i], "update of %u lost", i);
    hbits_destroy(&m.dirty);
}

/* ---- the protocol between the levels ---- */

/* Each bit is set only once, two in each word.  So if rule (2) of block/hbits.h doesn't restore a
 * bit of an upper level, no later hbits_set repairs it by chance. */
#define PLACES 200000u
#define STRIDE 32u

struct race {
    struct hbits bits;
    _Atomic unsigned ready, running;
};

struct racer {
    struct race *race;
    unsigned number, step;
};

/* Makes the n threads of a test begin at nearly the same time. */
static void line_up(struct race *race, unsigned n)
{
    race->ready++;
    while (race->ready < n)
        sched_yield();
}

static void *set_every_other(void *opaque)
{
    struct racer *racer = opaque;
    struct race *race = racer->race;

    line_up(race, 3);
    for (uint64_t i = racer->number; i < PLACES; i += racer->step)
        hbits_set(&race->bits, i * STRIDE, 1);
    race->running--;
    return NULL;
}

/* Clears all bits that it finds, close behind the setters; returns how many. */
static uint64_t chase(struct hbits *h)
{
    uint64_t cleared = 0;

    for (uint64_t bit; (bit = hbits_next_set(h, 0, h->n_bits)) < h->n_bits;)
        cleared += hbits_clear(h, bit, MIN(4 * STRIDE, h->n_bits - bit));
    return cleared;
}

Test(hbits, what_is_set_while_it_is_cleared_is_found, .timeout = 120)
{
    struct race race = {.running = 2};
    struct racer racers[2];
    pthread_t threads[2];
    uint64_t cleared = 0;

    cr_assert_eq(hbits_init(&race.bits, (uint64_t)PLACES * STRIDE), 0);
    for (unsigned i = 0; i < 2; i++) {
        racers[i] = (struct racer){.race = &race, .number = i, .step = 2};
        cr_assert_eq(pthread_create(&threads[i], NULL, set_every_other, &racers[i]), 0);
    }
    line_up(&race, 3);
    while (race.running > 0)
        cleared += chase(&race.bits);
    for (unsigned i = 0; i < 2; i++)
        pthread_join(threads[i], NULL);
    cleared += chase(&race.bits);
    cr_assert_eq(cleared, PLACES, "%lu lost", (unsigned long)(PLACES - cleared));
    cr_assert_eq(hbits_count(&race.bits), 0);
    hbits_destroy(&race.bits);
}

/* Rule (1): a bit is found as soon as hbits_set has returned.  This holds also for a second thread
 * that found the bit set while the first one was still setting the upper levels. */
static void *set_and_look(void *opaque)
{
    struct racer *racer = opaque;
    struct hbits *h = &racer->race->bits;

    line_up(racer->race, SETTERS);
    for (uint64_t i = racer->number; i < PLACES; i += racer->step) {
        hbits_set(h, i * 2 * STRIDE, 1);
        /* Starts at the word before, so that the search has to use the upper levels. */
        uint64_t from = i > 0 ? (i - 1) * 2 * STRIDE + 1 : 0;
        cr_assert_eq(hbits_next_set(h, from, h->n_bits), i * 2 * STRIDE);
    }
    return NULL;
}

Test(hbits, found_as_soon_as_it_is_set, .timeout = 120)
{
    struct race race = {.running = SETTERS};
    struct racer racers[SETTERS];
    pthread_t threads[SETTERS];

    cr_assert_eq(hbits_init(&race.bits, (uint64_t)PLACES * 2 * STRIDE), 0);
    for (unsigned i = 0; i < SETTERS; i++) {
        racers[i] = (struct racer){.race = &race, .number = 0, .step = 1};
        cr_assert_eq(pthread_create(&threads[i], NULL, set_and_look, &racers[i]), 0);
    }
    for (unsigned i = 0; i < SETTERS; i++)
        pthread_join(threads[i], NULL);
    cr_assert_eq(hbits_count(&race.bits), PLACES);
    check_levels(&race.bits);
    hbits_destroy(&race.bits);
}
