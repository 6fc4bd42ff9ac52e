/* SPDX-License-Identifier: BSD-3-Clause */
/* Tests many threads on one file: random operations against a model, and races in which the
 * read-modify-write of O_DIRECT, or its truncation to the unaligned end, could lose data. */
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#include "rng.h"
#include "storage_testing.h"

static bool is_direct;

static void open_either(bool direct)
{
    open_it(&(struct storage_open){.direct = direct});
    is_direct = direct;
}

#define BOTH(name) BOTH_WAYS(threads, name, 300, open_either)

/* ---- the model ---- */

/* The file is divided into stripes that belong to the threads in turn.  Stripes end in the middle
 * of blocks, so that neighbours share blocks.  Each thread knows what its own bytes must be,
 * whatever the others do to the rest of a block. */
#define THREADS 8
#define STRIPE  3001
#define STRIPES 160
#define SPACE   (STRIPE * STRIPES)
#define ROUNDS  4
#define OPS     120

static _Alignas(4096) uint8_t model[SPACE];

struct worker {
    pthread_t thread;
    unsigned id;
    struct rng rng;
    uint64_t end; /* the end of its farthest write */
    bool failed;
};

static bool check_read(struct worker *w, uint64_t off, uint64_t len)
{
    uint8_t back[STRIPE + 100];
    /* Reads more than its own bytes, into memory of various alignments. */
    uint64_t extra = rng_below(&w->rng, 64), shift = rng_below(&w->rng, 3);

    if (storage_read(st, back + shift, off, len + extra) != 0)
        return false;
    return memcmp(back + shift, model + off, len) == 0;
}

static int one_op(struct worker *w, uint64_t off, uint64_t len)
{
    unsigned flags = rng_one_in(&w->rng, 2) ? STORAGE_MAY_UNMAP : 0;
    flags |= rng_one_in(&w->rng, 16) ? STORAGE_FUA : 0;
    int err;

    switch (rng_below(&w->rng, 8)) {
    case 0:
        memset(model + off, 0, len);
        w->end = MAX(w->end, off + len);
        return storage_zero(st, off, len, flags);
    case 1:
        err = storage_discard(st, off, len);
        /* A trimmed range may be zero or as before. */
        return err ? err : storage_read(st, model + off, off, len);
    case 2:
        return check_read(w, off, len) ? 0 : -EILSEQ;
    default:
        rng_fill(&w->rng, model + off, len);
        w->end = MAX(w->end, off + len);
        return storage_write(st, model + off, off, len, flags & STORAGE_FUA);
    }
}

static void *work(void *opaque)
{
    struct worker *w = opaque;

    for (int i = 0; i < OPS && !w->failed; i++) {
        uint64_t stripe = rng_below(&w->rng, STRIPES / THREADS) * THREADS + w->id;
        uint64_t in = rng_below(&w->rng, STRIPE), off = stripe * STRIPE + in;
        uint64_t len = rng_between(&w->rng, 1, STRIPE - in);
        /* Sometimes a whole block that no other thread shares. */
        if (rng_one_in(&w->rng, 4)) {
            off = (off + 511) / 512 * 512;
            len = 512;
            if (off + len > (stripe + 1) * STRIPE)
                continue;
        }
        int err = one_op(w, off, len);
        if (err || !check_read(w, off, len)) {
            fprintf(stderr, "thread %u op %d at %lu+%lu: %d\n", w->id, i,
                    (unsigned long)off, (unsigned long)len, err);
            w->failed = true;
        }
    }
    return NULL;
}

static void expect_model(uint64_t size)
{
    static uint8_t back[SPACE];

    cr_assert_eq(size_now(), size, "%lu", (unsigned long)size_now());
    cr_assert_eq(storage_read(st, back, 0, SPACE), 0);
    for (uint64_t i = 0; i < SPACE; i++)
        cr_assert_eq(back[i], model[i], "byte %lu of thread %lu", (unsigned long)i,
                     (unsigned long)(i / STRIPE % THREADS));
}

BOTH(random_operations_match_a_flat_array)
{
    static struct worker workers[THREADS];
    uint64_t size = 0;
    struct rng rng;

    rng_init(&rng, 7);
    for (int round = 0; round < ROUNDS; round++) {
        for (unsigned i = 0; i < THREADS; i++) {
            workers[i] = (struct worker){.id = i};
            rng_init(&workers[i].rng, (uint64_t)(round * 100) + i + is_direct * 1000);
            cr_assert_eq(pthread_create(&workers[i].thread, NULL, work, &workers[i]), 0);
        }
        for (unsigned i = 0; i < THREADS; i++) {
            pthread_join(workers[i].thread, NULL);
            cr_assert_not(workers[i].failed);
            size = MAX(size, workers[i].end);
        }
        expect_model(size);
        size = rng_below(&rng, size);
        cr_assert_eq(storage_truncate(st, size), 0);
        memset(model + size, 0, SPACE - size);
        expect_model(size);
    }
}

/* ---- writes of whole blocks against changes of a part of a block ---- */

enum { PART_AT = 100, PART = 50, CONTEST_ROUNDS = 1500 };
static atomic_bool stop;

static void *change_part(void *opaque)
{
    char part[PART];

    (void)opaque;
    memset(part, 'p', sizeof part);
    while (!stop)
        if (storage_write(st, part, PART_AT, PART, 0) != 0)
            return (void *)"write failed";
    return NULL;
}

/* `whole` sets the whole first block to a value, while another thread changes a part of it.  The
 * bytes outside of that part must have the value afterwards. */
static void contest(int (*whole)(int value, char *block), int (*expected)(int value))
{
    static _Alignas(4096) char block[4096], back[4096];
    pthread_t thread;
    void *said;

    memset(block, 0, sizeof block);
    cr_assert_eq(storage_write(st, block, 0, sizeof block, 0), 0);
    cr_assert_eq(pthread_create(&thread, NULL, change_part, NULL), 0);
    for (int i = 0; i < CONTEST_ROUNDS; i++) {
        cr_assert_eq(whole(i, block), 0);
        cr_assert_eq(storage_read(st, back, 0, sizeof back), 0);
        for (unsigned b = 0; b < sizeof back; b++)
            if (b < PART_AT || b >= PART_AT + PART)
                cr_assert_eq(back[b], (char)expected(i), "round %d: byte %u came back", i,
                             b);
    }
    stop = true;
    pthread_join(thread, &said);
    cr_assert_null(said);
}

static int write_whole(int value, char *block)
{
    memset(block, value, 4096);
    return storage_write(st, block, 0, 4096, 0);
}

static int the_value(int value)
{
    return value;
}

static int write_then_zero(int value, char *block)
{
    int err = write_whole(value | 1, block);
    return err ? err : storage_zero(st, 0, 4096, value % 2 ? STORAGE_MAY_UNMAP : 0);
}

/* Zeroes parts of blocks, which the kernel does. */
static int write_then_zero_parts(int value, char *block)
{
    int err = write_whole(value | 1, block);
    if (!err)
        err = storage_zero(st, 0, PART_AT, 0);
    return err ? err : storage_zero(st, PART_AT + PART, 4096 - PART_AT - PART, 0);
}

static int zero(int value)
{
    (void)value;
    return 0;
}

BOTH(a_whole_block_is_not_undone)
{
    contest(write_whole, the_value);
}

BOTH(a_zero_is_not_undone)
{
    contest(write_then_zero, zero);
}

BOTH(a_zero_of_parts_is_not_undone)
{
    contest(write_then_zero_parts, zero);
}

/* ---- the end of the file ---- */

/* Appends so that the file always ends 100 bytes after a multiple of 512.  Any other size was
 * requested by no thread. */
static void *append(void *opaque)
{
    uint64_t me = (uintptr_t)opaque;
    char buf[700];

    memset(buf, (int)me + 1, sizeof buf);
    for (uint64_t i = 0; i < 60; i++) {
        uint64_t end = 4096 + 100 + (i * 8 + me) * 512;
        if (me % 2 ? storage_write(st, buf, end - 300, 300, 0)
                   : storage_zero(st, end - 300, 300, me % 4 ? STORAGE_MAY_UNMAP : 0))
            return (void *)"append failed";
    }
    return NULL;
}

static void *watch_size(void *opaque)
{
    uint64_t size = 0, before = 0;

    (void)opaque;
    for (; !stop; before = size) {
        if (storage_size(st, &size) != 0)
            return (void *)"size failed";
        /* Buffered, the kernel itself makes a write visible page by page. */
        if (is_direct && size % 512 != 100 && size != 0)
            return (void *)"a size that nobody asked for";
        if (size < before)
            return (void *)"the file shrank";
    }
    return NULL;
}

BOTH(growing_writers_neither_cut_nor_pad)
{
    pthread_t threads[8], watcher;
    void *said;
    char back[300];

    cr_assert_eq(pthread_create(&watcher, NULL, watch_size, NULL), 0);
    for (uintptr_t i = 0; i < 8; i++)
        cr_assert_eq(pthread_create(&threads[i], NULL, append, (void *)i), 0);
    for (int i = 0; i < 8; i++) {
        pthread_join(threads[i], &said);
        cr_assert_null(said, "%s", (char *)said);
    }
    stop = true;
    pthread_join(watcher, &said);
    cr_assert_null(said, "%s", (char *)said);
    cr_assert_eq(size_now(), 4096u + 100 + (59 * 8 + 7) * 512);
    for (uint64_t i = 0; i < 60; i++)
        for (uint64_t me = 0; me < 8; me++) {
            cr_assert_eq(storage_read(st, back, 4096 + 100 + (i * 8 + me) * 512 - 300, 300),
                         0);
            for (int b = 0; b < 300; b++)
                cr_assert_eq(back[b], me % 2 ? (char)(me + 1) : 0);
        }
}

static _Atomic unsigned written;

static void *write_at_the_end(void *opaque)
{
    char buf[100];

    (void)opaque;
    memset(buf, 'w', sizeof buf);
    for (; !stop; written++)
        if (storage_write(st, buf, 100, sizeof buf, 0) != 0)
            return (void *)"write failed";
    return NULL;
}

BOTH(a_truncate_between_is_before_or_after)
{
    pthread_t thread;
    void *said;

    cr_assert_eq(pthread_create(&thread, NULL, write_at_the_end, NULL), 0);
    for (int i = 0; i < 200; i++) {
        /* The write may have found its range inside the file before the truncate came. */
        cr_assert_eq(storage_truncate(st, 4096), 0);
        cr_assert_eq(storage_truncate(st, 50), 0);
        for (unsigned since = written; written - since < 2;)
            sched_yield();
        cr_assert_eq(size_now(), 200u, "%lu", (unsigned long)size_now());
    }
    stop = true;
    pthread_join(thread, &said);
    cr_assert_null(said, "%s", (char *)said);
}
