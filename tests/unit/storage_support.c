/* SPDX-License-Identifier: BSD-3-Clause */
/* Tests the storages that other tests rely on: mem_storage and fault_storage. */
#include <criterion/criterion.h>
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "fault_storage.h"
#include "mem_storage.h"
#include "rng.h"
#include "scratch.h"

static uint64_t size_of(struct storage *st)
{
    uint64_t size;

    cr_assert_eq(storage_size(st, &size), 0);
    return size;
}

static uint64_t allocated(struct storage *st)
{
    uint64_t bytes;

    cr_assert_eq(storage_allocated(st, &bytes), 0);
    return bytes;
}

/* ---- memory ---- */

#define SPACE (1u << 18)

/* Makes the same random change to the storage and the flat array. */
static void change_both(struct rng *rng, struct storage *st, uint8_t *flat, uint64_t *size)
{
    uint64_t off = rng_below(rng, SPACE), len = rng_between(rng, 1, SPACE - off);
    if (rng_one_in(rng, 2))
        len = MIN(len, 9000);

    switch (rng_below(rng, 4)) {
    case 0:
        rng_fill(rng, flat + off, len);
        cr_assert_eq(storage_write(st, flat + off, off, len, 0), 0);
        *size = MAX(*size, off + len);
        break;
    case 1:
        memset(flat + off, 0, len);
        cr_assert_eq(storage_zero(st, off, len, 0), 0);
        *size = MAX(*size, off + len);
        break;
    case 2:
        memset(flat + off, 0, len);
        cr_assert_eq(storage_discard(st, off, len), 0);
        break;
    case 3:
        if (off < *size)
            memset(flat + off, 0, SPACE - off);
        cr_assert_eq(storage_truncate(st, off), 0);
        *size = off;
        break;
    }
}

static void expect_flat(struct storage *st, const uint8_t *flat, uint64_t size)
{
    static uint8_t back[SPACE];

    cr_assert_eq(size_of(st), size);
    cr_assert_eq(storage_read(st, back, 0, SPACE), 0);
    cr_assert_eq(memcmp(back, flat, SPACE), 0);
    /* Extents cover the whole file, and holes read as zeroes. */
    for (uint64_t off = 0, run; off < SPACE; off += run) {
        bool data;
        cr_assert_eq(storage_extent(st, off, SPACE - off, &data, &run), 0);
        for (uint64_t i = off; i < off + run && !data; i++)
            cr_assert_eq(flat[i], 0);
    }
}

Test(memory, random_changes_match_a_flat_array, .timeout = 120)
{
    static uint8_t flat[SPACE];
    struct storage *st = mem_storage_new(0);
    struct rng rng;
    uint64_t size = 0;

    rng_init(&rng, 1);
    for (int i = 0; i < 600; i++) {
        change_both(&rng, st, flat, &size);
        expect_flat(st, flat, size);
    }
    storage_close(st);
}

Test(memory, clones_part_and_shares_do_not)
{
    struct storage *st = mem_storage_new(0);
    char got[3];

    cr_assert_eq(storage_write(st, "old", 5000, 3, 0), 0);
    struct storage *clone = mem_storage_clone(st), *share = mem_storage_share(st);
    cr_assert(mem_storage_equal(st, clone, NULL));
    cr_assert_eq(storage_write(st, "new", 5000, 3, 0), 0);
    cr_assert_eq(storage_read(clone, got, 5000, 3), 0);
    cr_assert_eq(memcmp(got, "old", 3), 0);
    storage_close(st);
    cr_assert_eq(storage_read(share, got, 5000, 3), 0);
    cr_assert_eq(memcmp(got, "new", 3), 0);
    uint64_t where = 0;
    cr_assert_not(mem_storage_equal(share, clone, &where));
    cr_assert_eq(where, 5000u);
    storage_close(share);
    storage_close(clone);
}

Test(memory, far_offsets_cost_nothing)
{
    struct storage *st = mem_storage_new(0);

    cr_assert_eq(storage_write(st, "x", INT64_MAX - 1, 1, 0), 0);
    cr_assert_eq(size_of(st), (uint64_t)INT64_MAX);
    cr_assert_eq(allocated(st), MEM_PAGE_BYTES);
    cr_assert_eq(storage_truncate(st, 1), 0);
    cr_assert_eq(allocated(st), 0u);
    storage_close(st);
}

Test(memory, a_limit_is_enospc)
{
    struct storage *st = mem_storage_new(0);
    static char buf[5 * MEM_PAGE_BYTES];

    memset(buf, 'x', sizeof buf);
    mem_storage_limit(st, 3 * MEM_PAGE_BYTES);
    cr_assert_eq(storage_write(st, buf, 0, sizeof buf, 0), -ENOSPC);
    cr_assert_eq(allocated(st), 3 * MEM_PAGE_BYTES);
    cr_assert_eq(storage_discard(st, 0, MEM_PAGE_BYTES), 0);
    cr_assert_eq(storage_write(st, buf, 4 * MEM_PAGE_BYTES, 1, 0), 0);
    storage_close(st);
}

Test(memory, fixed_size_does_not_grow)
{
    struct storage *st = mem_storage_new(100);

    st->fixed_size = true;
    cr_assert_eq(storage_write(st, "xy", 99, 2, 0), -ENOSPC);
    cr_assert_eq(storage_write(st, "x", 99, 1, 0), 0);
    storage_close(st);
}

Test(memory, files_and_back)
{
    struct scratch scratch;
    scratch_make(&scratch);
    char *path = scratch_path(&scratch, "image");
    struct storage *st = mem_storage_new(0), *back;

    cr_assert_eq(storage_write(st, "far", 10 << 20, 3, 0), 0);
    cr_assert_eq(storage_truncate(st, (10 << 20) + 777), 0);
    cr_assert_eq(mem_storage_save(st, path), 0);
    cr_assert_eq(mem_storage_load(path, &back), 0);
    cr_assert(mem_storage_equal(st, back, NULL));
    cr_assert_leq(allocated(back), 1u << 20, "holes stayed holes");
    cr_assert_eq(mem_storage_load("/nonexistent", &back), -ENOENT);
    storage_close(st);
    storage_close(back);
    free(path);
    scratch_remove(&scratch);
}

/* ---- faults ---- */

static struct fault_plan plan;
static struct storage *mine, *st;

static void setup(void)
{
    fault_plan_init(&plan);
    mine = mem_storage_new(0);
    st = fault_storage_new(mem_storage_share(mine), &plan);
}

static void teardown(void)
{
    storage_close(st);
    storage_close(mine);
    fault_plan_destroy(&plan);
}

TestSuite(fault, .init = setup, .fini = teardown, .timeout = 60);

Test(fault, the_nth_call_of_a_kind_fails_once)
{
    cr_assert_eq(storage_write(st, "x", 0, 1, 0), 0);
    fault_plan_fail(&plan, FAULT_WRITE, 2, ENOSPC, FAULT_ONCE);
    cr_assert_eq(storage_write(st, "x", 1, 1, 0), 0);
    cr_assert_eq(storage_flush(st), 0);
    cr_assert_eq(storage_write(st, "x", 2, 1, 0), -ENOSPC);
    cr_assert_eq(storage_write(st, "x", 3, 1, 0), 0);
    cr_assert_eq(fault_plan_calls(&plan, FAULT_WRITE), 4u);
    cr_assert_eq(fault_plan_calls(&plan, FAULT_FLUSH), 1u);
    cr_assert_eq(fault_plan_calls(&plan, FAULT_CHANGE), 5u);
    cr_assert_eq(fault_plan_injected(&plan), 1u);
    char got[4];
    cr_assert_eq(storage_read(mine, got, 0, 4), 0);
    cr_assert_eq(memcmp(got, "xx\0x", 4), 0, "a failed write changes nothing");
}

Test(fault, from_then_on_until_healed)
{
    fault_plan_fail(&plan, FAULT_CHANGE, 2, EIO, FAULT_FROM_THEN_ON);
    cr_assert_eq(storage_truncate(st, 100), 0);
    cr_assert_eq(storage_flush(st), -EIO);
    cr_assert_eq(storage_discard(st, 0, 1), -EIO);
    fault_plan_reset_counters(&plan);
    cr_assert_eq(storage_zero(st, 0, 1, 0), -EIO);
    cr_assert_eq(fault_plan_calls(&plan, FAULT_CHANGE), 1u);
    fault_plan_heal(&plan);
    cr_assert_eq(storage_zero(st, 0, 1, 0), 0);
}

Test(fault, torn_and_late_failures)
{
    char buf[2048], got[2048];

    memset(buf, 'n', sizeof buf);
    fault_plan_fail(&plan, FAULT_WRITE, 1, EIO, FAULT_ONCE_TORN);
    cr_assert_eq(storage_write(st, buf, 0, sizeof buf, 0), -EIO);
    cr_assert_eq(storage_read(mine, got, 0, sizeof got), 0);
    cr_assert_eq(memcmp(got, buf, 1024), 0);
    cr_assert_eq(got[1024], 0);
    fault_plan_fail(&plan, FAULT_WRITE, 1, EIO, FAULT_ONCE_AFTER);
    cr_assert_eq(storage_write(st, buf, 0, sizeof buf, 0), -EIO);
    cr_assert_eq(storage_read(mine, got, 0, sizeof got), 0);
    cr_assert_eq(memcmp(got, buf, sizeof buf), 0);
}

Test(fault, reads_can_fail)
{
    char byte;

    fault_plan_fail(&plan, FAULT_READ, 1, EIO, FAULT_ONCE);
    cr_assert_eq(storage_read(st, &byte, 0, 1), -EIO);
    cr_assert_eq(storage_read(st, &byte, 0, 1), 0);
    cr_assert_eq(fault_plan_calls(&plan, FAULT_CHANGE), 0u);
}

static void *write_one(void *opaque)
{
    static char buf[4096];

    cr_assert_eq(storage_write(st, buf, (uintptr_t)opaque * sizeof buf, sizeof buf, 0), 0);
    return NULL;
}

Test(fault, gathered_writes_meet)
{
    pthread_t threads[4];

    fault_plan_gather_writes(&plan, 4, 4096, 30000);
    for (uintptr_t i = 0; i < 4; i++)
        cr_assert_eq(pthread_create(&threads[i], NULL, write_one, (void *)i), 0);
    cr_assert_eq(storage_write(st, "small", 0, 5, 0), 0, "a small one isn't held up");
    for (int i = 0; i < 4; i++)
        pthread_join(threads[i], NULL);
    cr_assert_eq(fault_plan_most_in_flight(&plan), 4u);
}

Test(fault, writes_one_by_one_do_not_meet)
{
    fault_plan_gather_writes(&plan, 2, 4096, 10);
    write_one((void *)0);
    write_one((void *)1);
    cr_assert_eq(fault_plan_most_in_flight(&plan), 1u);
}
