/* SPDX-License-Identifier: BSD-3-Clause */
/* A bench for the metadata cache: its storage is in memory, records all calls, and can be made to
 * fail. */
#ifndef MCACHE_TESTING_H
#define MCACHE_TESTING_H

#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <criterion/criterion.h>

#include "base/bytes.h"
#include "base/log.h"
#include "crash_storage.h"
#include "fault_storage.h"
#include "mcache/mcache.h"
#include "mem_storage.h"

#define PAGE_BYTES 512u
#define PAGES      512u

/* Two maps, with their places in the file. */
enum { MAP_A, MAP_B, MAPS };
#define MAP_PLACE(map) (0x10000u + (map) * (uint64_t)(PAGES * PAGE_BYTES))

struct bench {
    struct gate gate;
    struct mc_pool *pool;
    struct crash_log *log;
    struct fault_plan plan;
    struct storage *st;
    struct mcache *mc;
    struct mcmap *map[MAPS];
    unsigned frozen, durable; /* how often these hooks were called */
};

static inline uint64_t locate_a(void *owner, uint64_t index)
{
    (void)owner;
    return index == PAGES - 1 ? 0 : MAP_PLACE(MAP_A) + index * PAGE_BYTES;
}

static inline uint64_t locate_b(void *owner, uint64_t index)
{
    (void)owner;
    return MAP_PLACE(MAP_B) + index * PAGE_BYTES;
}

static inline void count_frozen(void *owner)
{
    ((struct bench *)owner)->frozen++;
}

static inline void count_durable(void *owner)
{
    struct bench *b = owner;

    b->durable++;
    cr_expect_eq(b->durable, b->frozen, "durable comes after its frozen");
}

static inline void no_messages(enum log_level level, const char *fmt, va_list ap)
{
    (void)level;
    (void)fmt;
    (void)ap;
}

/* Opens one more image, which shares the pool. */
static inline void bench_join(struct bench *b, struct mc_pool *pool)
{
    static const struct mcache_hooks hooks = {.frozen = count_frozen,
                                              .durable = count_durable};

    *b = (struct bench){0};
    log_set_sink(no_messages);
    gate_init(&b->gate);
    b->pool = pool;
    b->log = crash_log_new(NULL);
    fault_plan_init(&b->plan);
    b->st = fault_storage_new(crash_storage_open(b->log), &b->plan);
    /* The file is long enough from the start, so that the log will have no growth in it. */
    cr_assert_eq(storage_truncate(b->st, MAP_PLACE(MAPS)), 0);
    crash_log_rebase(b->log);
    b->mc = mcache_new(b->pool, &b->gate, b->st, &hooks, b);
    b->map[MAP_A] = mcmap_new(b->mc, PAGES, PAGE_BYTES, MC_BE64, locate_a, b);
    b->map[MAP_B] = mcmap_new(b->mc, PAGES, PAGE_BYTES, MC_LE64, locate_b, b);
    cr_assert_not_null(b->map[MAP_A]);
    cr_assert_not_null(b->map[MAP_B]);
}

static inline void bench_init(struct bench *b, size_t limit)
{
    bench_join(b, mc_pool_new(limit));
}

static inline void bench_leave(struct bench *b)
{
    cr_assert(gate_empty(&b->gate));
    mcache_free(b->mc);
    storage_close(b->st);
    crash_log_free(b->log);
    fault_plan_destroy(&b->plan);
}

static inline void bench_fini(struct bench *b)
{
    bench_leave(b);
    mc_pool_free(b->pool);
}

/* Loads one word of a page as a request would. */
static inline uint64_t load_word(struct bench *b, unsigned map, uint64_t index,
                                 uint32_t word)
{
    gate_ticket ticket = gate_enter(&b->gate);
    struct mc_page *page = NULL;

    cr_assert_eq(mcmap_get(b->map[map], index, &page), 0);
    uint64_t value = mc_load(page, word);
    gate_leave(&b->gate, ticket);
    return value;
}

/* Stores a word as a request would: loads the page without the lock, then looks under the lock
 * whether it is still there, and repeats both if it isn't. */
static inline void store_word(struct bench *b, unsigned map, uint64_t index, uint32_t word,
                              uint64_t value, enum mc_class cls)
{
    gate_ticket ticket = gate_enter(&b->gate);
    struct mc_page *page;

    for (bool done = false; !done;) {
        cr_assert_eq(mcmap_get_for_store(b->map[map], index, NULL), 0);
        LOCK_GUARD(mcache_meta(b->mc));
        page = mcmap_peek_for_store(b->map[map], index);
        done = page != NULL;
        if (done)
            mcmap_store(page, word, value, cls);
    }
    gate_leave(&b->gate, ticket);
    mcache_note_write(b->mc);
}

static inline void make_strict(struct bench *b)
{
    LOCK_GUARD(mcache_meta(b->mc));
    mcache_strict(b->mc);
}

/* The word in the storage, without asking the cache. */
static inline uint64_t disk_word(struct bench *b, unsigned map, uint64_t index,
                                 uint32_t word)
{
    struct storage *live = crash_log_live(b->log);
    uint8_t raw[8];

    cr_assert_eq(storage_read(live, raw, MAP_PLACE(map) + index * PAGE_BYTES + word * 8, 8),
                 0);
    storage_close(live);
    return map == MAP_A ? load_be64(raw) : load_le64(raw);
}

/* The log's entries since `from`, one letter each: "a" and "b" for writes to map A and B, "F" for a
 * flush. */
static inline void calls_since(struct bench *b, uint64_t from, char *out, size_t n)
{
    size_t at = 0;

    for (uint64_t i = from; i < crash_log_count(b->log) && at + 1 < n; i++) {
        struct crash_op op = crash_log_op(b->log, i);
        if (op.kind == CRASH_FLUSH)
            out[at++] = 'F';
        else if (op.kind == CRASH_WRITE)
            out[at++] = op.off >= MAP_PLACE(MAP_B) ? 'b' : 'a';
        else
            out[at++] = '?';
    }
    out[at] = 0;
}

#endif
