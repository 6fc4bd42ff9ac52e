/* SPDX-License-Identifier: BSD-3-Clause */
/* Tests dirty bitmaps: rounding, counts, runs; the named bitmaps of a node; and bitmaps that are
 * added and removed while requests run. */
#include <criterion/criterion.h>
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>

#include "block/dirty_bitmap.h"
#include "block/node.h"
#include "rng.h"

#define KIB 1024ull

static struct dirty_bitmap *new_bitmap(uint64_t size, uint64_t granularity)
{
    struct dirty_bitmap *bitmap = dirty_bitmap_new(NULL, size, granularity);

    cr_assert_not_null(bitmap);
    return bitmap;
}

static void expect_run(const struct dirty_bitmap *bitmap, uint64_t from, uint64_t off,
                       uint64_t len)
{
    uint64_t got_off, got_len;

    cr_assert(dirty_bitmap_next(bitmap, from, &got_off, &got_len), "nothing behind %lu",
              (unsigned long)from);
    cr_assert_eq(got_off, off, "%lu", (unsigned long)got_off);
    cr_assert_eq(got_len, len, "%lu", (unsigned long)got_len);
}

static bool clean_from(const struct dirty_bitmap *bitmap, uint64_t from)
{
    uint64_t off, len;

    return !dirty_bitmap_next(bitmap, from, &off, &len);
}

/* M-14 */
Test(dirty_bitmap, granularities)
{
    for (unsigned shift = 0; shift < 64; shift++)
        cr_expect_eq(dirty_bitmap_granularity_ok(1ull << shift), shift >= 9 && shift <= 31);
    cr_expect_not(dirty_bitmap_granularity_ok(0));
    cr_expect_not(dirty_bitmap_granularity_ok(65535));
    cr_expect_not(dirty_bitmap_granularity_ok(1536));
}

Test(dirty_bitmap, setting_rounds_outwards_and_clearing_inwards)
{
    struct dirty_bitmap *b = new_bitmap(1000 * KIB, 4 * KIB);

    dirty_bitmap_set(b, 5 * KIB, 1);
    expect_run(b, 0, 4 * KIB, 4 * KIB);
    expect_run(b, 6 * KIB, 6 * KIB, 2 * KIB);
    cr_assert(clean_from(b, 8 * KIB));
    dirty_bitmap_set(b, 7 * KIB, 2 * KIB);
    expect_run(b, 0, 4 * KIB, 8 * KIB);
    dirty_bitmap_clear(b, 4 * KIB + 1, 8 * KIB - 2);
    expect_run(b, 0, 4 * KIB, 8 * KIB);
    dirty_bitmap_clear(b, 4 * KIB + 1, 8 * KIB - 1);
    expect_run(b, 0, 4 * KIB, 4 * KIB);
    cr_assert(dirty_bitmap_get(b, 7 * KIB));
    cr_assert_not(dirty_bitmap_get(b, 8 * KIB));
    cr_assert_not(dirty_bitmap_get(b, 1ull << 40));
    dirty_bitmap_free(b);
}

/* M-13 */
Test(dirty_bitmap, the_count_is_never_above_the_size)
{
    for (unsigned shift = 9; shift <= 26; shift++) {
        const uint64_t size = 100000001;
        struct dirty_bitmap *b = new_bitmap(size, 1ull << shift);
        dirty_bitmap_set(b, 0, UINT64_MAX);
        cr_assert_eq(dirty_bitmap_count(b), size);
        expect_run(b, size - 1, size - 1, 1);
        dirty_bitmap_clear(b, 0, size - 1);
        uint64_t last = size % (1ull << shift);
        cr_assert_eq(dirty_bitmap_count(b), last);
        dirty_bitmap_clear(b, size - last, last);
        cr_assert_eq(dirty_bitmap_count(b), 0);
        dirty_bitmap_free(b);
    }
}

Test(dirty_bitmap, past_the_end_and_empty)
{
    struct dirty_bitmap *b = new_bitmap(0, 512), *c = new_bitmap(1000, 512);

    dirty_bitmap_set(b, 0, 100);
    dirty_bitmap_clear(b, 0, 100);
    cr_assert_eq(dirty_bitmap_count(b), 0);
    cr_assert(clean_from(b, 0));
    dirty_bitmap_set(c, 1000, 100);
    dirty_bitmap_set(c, 999, UINT64_MAX);
    cr_assert_eq(dirty_bitmap_count(c), 488);
    dirty_bitmap_free(b);
    dirty_bitmap_free(c);
    dirty_bitmap_free(NULL);
}

Test(dirty_bitmap, a_run_has_an_end)
{
    struct dirty_bitmap *b = new_bitmap(1ull << 40, 512);
    uint64_t off, len, total = 0;

    dirty_bitmap_set(b, 0, 1ull << 30);
    for (uint64_t at = 0; dirty_bitmap_next(b, at, &off, &len); at = off + len) {
        cr_assert_eq(off, at);
        cr_assert_leq(len, 65536u * 512);
        total += len;
    }
    cr_assert_eq(total, 1u << 30);
    dirty_bitmap_free(b);
}

Test(dirty_bitmap, merged_between_granularities)
{
    struct dirty_bitmap *fine = new_bitmap(1000 * KIB, 512);
    struct dirty_bitmap *coarse = new_bitmap(1000 * KIB, 64 * KIB);

    dirty_bitmap_set(fine, 63 * KIB, 2 * KIB);
    dirty_bitmap_set(fine, 999 * KIB, 1);
    dirty_bitmap_merge(coarse, fine);
    expect_run(coarse, 0, 0, 128 * KIB);
    expect_run(coarse, 128 * KIB, 960 * KIB, 40 * KIB);
    dirty_bitmap_merge(fine, coarse);
    cr_assert_eq(dirty_bitmap_count(fine), 168 * KIB);
    dirty_bitmap_free(fine);
    dirty_bitmap_free(coarse);
}

Test(dirty_bitmap, resized)
{
    struct dirty_bitmap *b = new_bitmap(1000, 512);

    dirty_bitmap_set(b, 0, 1000);
    cr_assert_eq(dirty_bitmap_resize(b, 5000), 0);
    cr_assert_eq(dirty_bitmap_count(b), 1024, "whole granules stay dirty");
    cr_assert_eq(dirty_bitmap_resize(b, 100), 0);
    cr_assert_eq(dirty_bitmap_count(b), 100);
    dirty_bitmap_free(b);
}

Test(dirty_bitmap, one_job_at_a_time)
{
    struct dirty_bitmap *b = dirty_bitmap_new("b", 1000, 512);
    struct diag diag = {0};

    cr_assert_eq(dirty_bitmap_acquire(b, &diag), 0);
    cr_assert(dirty_bitmap_busy(b));
    cr_assert_eq(dirty_bitmap_acquire(b, &diag), -EBUSY);
    cr_assert(strstr(diag.text, "'b'"));
    dirty_bitmap_release(b);
    cr_assert_eq(dirty_bitmap_acquire(b, &diag), 0);
    dirty_bitmap_free(b);
}

/* ---- bitmaps of a node ---- */

#define SIZE (1000 * KIB)

static struct gate gate;
static struct node node;
static struct diag diag;

/* Fills in only those parts of a node that bitmaps use. */
static void make_node(void)
{
    node.filename = (char *)(uintptr_t) "disk";
    node.size = SIZE;
    gate_init(&gate);
    observers_init(&node.observers, &gate);
    dirty_bitmaps_init(&node.bitmaps);
}

static void end(void)
{
    dirty_bitmaps_destroy(&node.bitmaps);
    observers_destroy(&node.observers);
}

/* Does what the engine does around a change. */
static void request(uint64_t off, uint64_t len)
{
    const struct change change = {.kind = CHANGE_WRITE, .off = off, .len = len};
    struct observed seen;

    gate_ticket ticket = gate_enter_to_change(&gate);
    cr_assert_eq(observers_before(&node.observers, &seen, &change), 0);
    observers_after(&seen, &change, 0);
    gate_leave(&gate, ticket);
}

static struct dirty_bitmap *add(const char *name, uint64_t granularity)
{
    struct dirty_bitmap *b = dirty_bitmap_new(name, SIZE, granularity);

    cr_assert_eq(node_bitmap_add(&node, b, &diag), 0, "%s", diag.text);
    return b;
}

/* M-26 */
Test(node_bitmaps, each_follows_for_itself)
{
    make_node();
    request(0, 100);
    struct dirty_bitmap *a = add("a", 512), *b = add("b", 64 * KIB);
    request(100 * KIB, 1);
    cr_assert_eq(dirty_bitmap_count(a), 512);
    cr_assert_eq(dirty_bitmap_count(b), 64 * KIB);
    dirty_bitmap_clear(a, 0, SIZE);
    cr_assert_eq(dirty_bitmap_count(b), 64 * KIB);
    dirty_bitmap_enable(a, false);
    request(0, 1);
    dirty_bitmap_enable(a, true);
    cr_assert_eq(dirty_bitmap_count(a), 0);
    request(0, 1);
    cr_assert_eq(dirty_bitmap_count(a), 512);
    end();
}

static void note_name(struct dirty_bitmap *bitmap, void *opaque)
{
    strcat(opaque, dirty_bitmap_name(bitmap));
}

Test(node_bitmaps, names)
{
    char names[16] = "", long_name[BITMAP_NAME_MAX + 2];
    struct dirty_bitmap *wrong;

    make_node();
    add("b", 512);
    struct dirty_bitmap *a = add("a", 512);
    node_bitmap_each(&node, note_name, names);
    cr_assert_str_eq(names, "ba");
    cr_assert_eq(node_bitmap_find(&node, "a"), a);
    cr_assert_null(node_bitmap_find(&node, "c"));

    memset(long_name, 'x', sizeof long_name - 1);
    long_name[sizeof long_name - 1] = '\0';
    const struct {
        const char *name;
        uint64_t size;
        int err;
    } cases[] = {{"a", SIZE, -EEXIST},
                 {"", SIZE, -EINVAL},
                 {NULL, SIZE, -EINVAL},
                 {long_name, SIZE, -EINVAL},
                 {"c", SIZE + 1, -EINVAL}};
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        wrong = dirty_bitmap_new(cases[i].name, cases[i].size, 512);
        cr_assert_eq(node_bitmap_add(&node, wrong, &diag), cases[i].err);
        cr_assert_eq(diag.err, -cases[i].err);
        dirty_bitmap_free(wrong);
    }
    end();
}

Test(node_bitmaps, removed_unless_busy)
{
    make_node();
    struct dirty_bitmap *a = add("a", 512);
    cr_assert_eq(dirty_bitmap_acquire(a, &diag), 0);
    cr_assert_eq(node_bitmap_remove(&node, "a", &diag), -EBUSY);
    cr_assert_eq(node_bitmaps_resize(&node, 2 * SIZE, &diag), -EBUSY);
    dirty_bitmap_release(a);
    cr_assert_eq(node_bitmaps_resize(&node, 2 * SIZE, &diag), 0);
    cr_assert_eq(dirty_bitmap_size(a), 2 * SIZE);
    cr_assert_eq(dirty_bitmap_count(a), SIZE, "what is added is dirty");
    cr_assert_eq(node_bitmap_remove(&node, "a", &diag), 0);
    cr_assert_eq(node_bitmap_remove(&node, "a", &diag), -ENOENT);
    cr_assert_null(node.observers.list);
    request(0, 1);
    end();
}

/* ---- threads ---- */

#define WRITERS 3

static atomic_bool stop;
static _Atomic uint64_t requests;

static void *keep_writing(void *opaque)
{
    struct rng rng;

    rng_init(&rng, (uintptr_t)opaque);
    while (!stop) {
        request(rng_below(&rng, SIZE), rng_between(&rng, 1, 9000));
        requests++;
    }
    return NULL;
}

/* Bitmaps are freed while requests run; a sanitizer sees a request that still uses one. */
Test(node_bitmaps, come_and_go_under_requests, .timeout = 120)
{
    pthread_t threads[WRITERS];

    make_node();
    struct dirty_bitmap *stays = add("stays", 512);
    for (uintptr_t i = 0; i < WRITERS; i++)
        cr_assert_eq(pthread_create(&threads[i], NULL, keep_writing, (void *)i), 0);
    for (int i = 0; i < 300; i++) {
        struct dirty_bitmap *b = add("goes", 4 * KIB);
        uint64_t before = requests;
        while (requests < before + 2 * WRITERS)
            sched_yield();
        cr_assert_gt(dirty_bitmap_count(b), 0u, "added, and told of nothing");
        cr_assert_eq(node_bitmap_remove(&node, "goes", &diag), 0);
    }
    stop = true;
    for (int i = 0; i < WRITERS; i++)
        pthread_join(threads[i], NULL);
    cr_assert_gt(dirty_bitmap_count(stays), 0u);
    end();
}

/* ---- storing them ---- */

/* The first granule is in the lowest bit.  Bits after the last granule are 0 when they are given
 * out, and ignored when they are taken in. */
Test(dirty_bitmap, as_bytes_and_back)
{
    struct dirty_bitmap *from = new_bitmap(1000 * KIB, 4 * KIB); /* 250 granules */
    struct dirty_bitmap *to = new_bitmap(1000 * KIB, 4 * KIB);
    uint8_t bytes[40];

    cr_assert_eq(dirty_bitmap_bytes(1000 * KIB, 4 * KIB), 32);
    cr_assert_not(dirty_bitmap_export(from, 0, bytes, 40));
    dirty_bitmap_set(from, 0, 1);
    dirty_bitmap_set(from, 36 * KIB, 300 * KIB);
    dirty_bitmap_set(from, 999 * KIB, 1);
    cr_assert(dirty_bitmap_export(from, 0, bytes, 40));
    cr_expect_eq(bytes[0], 1);
    cr_expect_eq(bytes[1], 0xfe);
    cr_expect_eq(bytes[31], 2);
    cr_expect_eq(bytes[32], 0);
    cr_expect(dirty_bitmap_any(from, 24, 8));
    cr_expect_not(dirty_bitmap_any(from, 16, 8));
    cr_expect_not(dirty_bitmap_any(from, 32, 8));
    bytes[31] |= 0xf0; /* bits after the last granule */
    memset(bytes + 32, 0xff, 8);
    dirty_bitmap_import(to, 0, bytes, 40);
    cr_assert_eq(dirty_bitmap_count(to), dirty_bitmap_count(from));
    for (uint64_t off = 0; off < 1000 * KIB; off += 4 * KIB)
        cr_expect_eq(dirty_bitmap_get(to, off), dirty_bitmap_get(from, off));
    dirty_bitmap_import_ones(to, 0, 4096);
    cr_assert_eq(dirty_bitmap_count(to), 1000 * KIB);
    dirty_bitmap_free(from);
    dirty_bitmap_free(to);
}

Test(dirty_bitmap, knows_what_is_unsaved)
{
    struct dirty_bitmap *b = new_bitmap(1000 * KIB, 4 * KIB);

    cr_assert_not(dirty_bitmap_unsaved(b));
    dirty_bitmap_set(b, 0, 1);
    cr_assert(dirty_bitmap_unsaved(b));
    dirty_bitmap_set_unsaved(b, false);
    dirty_bitmap_clear(b, 0, 4 * KIB);
    cr_assert(dirty_bitmap_unsaved(b));
    dirty_bitmap_set_unsaved(b, false);
    cr_assert_eq(dirty_bitmap_resize(b, 2000 * KIB), 0);
    cr_assert(dirty_bitmap_unsaved(b));
    dirty_bitmap_free(b);
}

/* B-09: several readers may share a bitmap; a user that changes it needs it alone. */
Test(dirty_bitmap, shared_or_one_s_own)
{
    struct dirty_bitmap *b = new_bitmap(1000 * KIB, 4 * KIB);

    cr_assert_eq(dirty_bitmap_share(b, &diag), 0);
    cr_assert_eq(dirty_bitmap_share(b, &diag), 0);
    cr_assert(dirty_bitmap_busy(b));
    cr_assert_eq(dirty_bitmap_acquire(b, &diag), -EBUSY);
    dirty_bitmap_unshare(b);
    cr_assert_eq(dirty_bitmap_acquire_to_remove(b, &diag), -EBUSY);
    dirty_bitmap_unshare(b);
    cr_assert_eq(dirty_bitmap_acquire(b, &diag), 0);
    cr_assert_eq(dirty_bitmap_share(b, &diag), -EBUSY);
    dirty_bitmap_release(b);
    cr_assert_not(dirty_bitmap_busy(b));
    dirty_bitmap_free(b);
}

/* B-03: an inconsistent bitmap has no content and can only be removed. */
Test(dirty_bitmap, inconsistent)
{
    struct dirty_bitmap *b = dirty_bitmap_new_inconsistent("b", 1000 * KIB, 4 * KIB);
    struct dirty_bitmap *spoilt = new_bitmap(1000 * KIB, 4 * KIB);

    dirty_bitmap_set(spoilt, 0, 1000 * KIB);
    dirty_bitmap_spoil(spoilt);
    struct dirty_bitmap *both[] = {b, spoilt};
    for (int i = 0; i < 2; i++) {
        uint64_t off, len;
        dirty_bitmap_set(both[i], 0, 1000 * KIB);
        cr_expect_not(dirty_bitmap_enabled(both[i]));
        cr_expect_not(dirty_bitmap_get(both[i], 0));
        cr_expect_not(dirty_bitmap_next(both[i], 0, &off, &len));
        cr_expect_eq(dirty_bitmap_count(both[i]), 0);
        cr_expect_eq(dirty_bitmap_resize(both[i], 2000 * KIB), 0);
        cr_expect_eq(dirty_bitmap_share(both[i], &diag), -EINVAL);
        cr_expect_eq(dirty_bitmap_acquire_to_remove(both[i], &diag), 0);
        dirty_bitmap_free(both[i]);
    }
}
