/* SPDX-License-Identifier: BSD-3-Clause */
/* Tests frozen points: one reads as the disk was, whatever is done to the disk (F-01); and what
 * happens to the point and to changes when old content can't be saved (F-02). */
#include <criterion/criterion.h>
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "block/frozen_point.h"
#include "image.h"
#include "raw/raw.h"
#include "mem_storage.h"
#include "registry.h"

#define SIZE    (3 * MIB + 4096)
#define GRANULE ((uint64_t)FROZEN_GRANULE)

static struct image img;
static struct diag diag;
static struct storage *store_memory;
static struct fault_plan store_plan;
static struct node *store;
static struct frozen_point *point;
static _Atomic int told; /* the error passed to the callback, or 0 */

static void set_up(void)
{
    registry_init();
    fault_plan_init(&store_plan);
}

static void tear_down(void)
{
    fault_plan_destroy(&store_plan);
}

TestSuite(frozen, .init = set_up, .fini = tear_down, .timeout = 300);

static void open_disk(const char *format, const char *base_format)
{
    const struct image_spec spec = {
        .format = format, .size = SIZE, .base_format = base_format, .base_size = SIZE / 2};
    struct rng rng;

    rng_init(&rng, 7);
    image_make(&img, &spec, 3);
    image_open(&img);
    for (uint64_t off = 0; off < SIZE / 2; off += 300 * KIB) {
        image_fill(&img, &rng, img.model.bytes + off, 200000);
        cr_assert_eq(block_write(img.node, img.model.bytes + off, off, 200000, 0), 0);
    }
}

static void open_store(uint64_t size)
{
    const struct node_options options = {.lock_off = true};

    store_memory = mem_storage_new(size);
    cr_assert_eq(node_open(&img.ctx, &raw_driver,
                           fault_storage_new(mem_storage_share(store_memory), &store_plan),
                           "the store", &options, &store, &diag),
                 0, "%s", diag.text);
    cr_assert_eq(node_activate(store, &diag), 0, "%s", diag.text);
}

static void close_all(void)
{
    frozen_end(point);
    frozen_put(point);
    point = NULL;
    node_close(store);
    store = NULL;
    storage_close(store_memory);
    store_memory = NULL;
    image_close(&img);
    image_free(&img);
}

static void tell(void *opaque, int err)
{
    (void)opaque;
    atomic_store(&told, err);
}

static void freeze(bool give_up, unsigned timeout_ms)
{
    const struct frozen_setup setup = {
        .source = img.node,
        .store = store,
        .store_is_blank = true,
        .give_up = give_up,
        .timeout_ms = timeout_ms,
        .failed = tell,
    };

    atomic_store(&told, 0);
    cr_assert_eq(frozen_new(&setup, &point, &diag), 0, "%s", diag.text);
    cr_assert_eq(frozen_begin(point, &diag), 0, "%s", diag.text);
}

static int change_somewhere(struct rng *rng, void *buf)
{
    uint64_t len = rng_between(rng, 1, 150 * KIB), off = rng_below(rng, SIZE - len);

    switch (rng_below(rng, 4)) {
    case 0:
        return block_zero(img.node, off, len, rng_one_in(rng, 2) ? BLOCK_MAY_UNMAP : 0);
    case 1:
        return block_discard(img.node, off, len, 0);
    default:
        rng_fill(rng, buf, len);
        return block_write(img.node, buf, off, len, 0);
    }
}

static void *change_all_the_time(void *opaque)
{
    struct rng rng;
    void *buf = malloc(150 * KIB);

    rng_init(&rng, (uint64_t)(uintptr_t)opaque);
    for (unsigned i = 0; i < 400 / build_slowness(); i++)
        cr_assert_eq(change_somewhere(&rng, buf), 0);
    free(buf);
    return NULL;
}

static void expect_same(uint64_t off, uint64_t len, void *buf)
{
    cr_assert_eq(block_read(frozen_node(point), buf, off, len), 0);
    cr_assert_eq(memcmp(buf, img.model.bytes + off, len), 0, "at %lu", (unsigned long)off);
}

/* What block status reports as zero must be zero. */
static void expect_status(void)
{
    for (uint64_t off = 0; off < SIZE;) {
        struct block_status st;
        cr_assert_eq(block_status(frozen_node(point), off, SIZE - off, &st), 0);
        cr_assert(st.length > 0 && st.zero != st.data);
        for (uint64_t i = off; st.zero && i < off + st.length; i++)
            cr_assert_eq(img.model.bytes[i], 0, "at %lu", (unsigned long)i);
        off += st.length;
    }
}

static void check_under_changes(const char *format, const char *base_format,
                                unsigned timeout_ms)
{
    pthread_t writers[4];
    struct rng rng;
    void *buf;

    open_disk(format, base_format);
    open_store(SIZE);
    buf = malloc(SIZE);
    freeze(false, timeout_ms);
    rng_init(&rng, 1);
    for (uintptr_t i = 0; i < 4; i++)
        pthread_create(&writers[i], NULL, change_all_the_time, (void *)(i + 1));
    for (unsigned i = 0; i < 400 / build_slowness(); i++) {
        uint64_t len = rng_between(&rng, 1, 300 * KIB), off = rng_below(&rng, SIZE - len);
        expect_same(off, len, buf);
    }
    for (unsigned i = 0; i < 4; i++)
        pthread_join(writers[i], NULL);
    expect_same(0, SIZE, buf);
    expect_status();
    cr_expect_eq(frozen_error(point), 0);
    cr_expect_eq(block_write(frozen_node(point), "x", 0, 1, 0), -EROFS);
    free(buf);
    close_all();
}

Test(frozen, qcow2_under_changes)
{
    check_under_changes("qcow2", NULL, 0);
}

Test(frozen, overlay_under_changes)
{
    check_under_changes("qcow2", "raw", 0);
}

Test(frozen, qed_under_changes)
{
    check_under_changes("qed", "raw", 0);
}

Test(frozen, raw_under_changes)
{
    check_under_changes("raw", NULL, 0);
}

Test(frozen, saved_by_threads)
{
    check_under_changes("qcow2", NULL, 60000);
}

/* ---- a change after a reader has looked at the granule's bit, before it reads ---- */

static const struct storage_ops *real_ops;
static enum { NEVER, WHEN_READ, WHEN_ASKED } change_when;

static int change_and_pread(struct storage *st, void *buf, uint64_t off, uint64_t len)
{
    if (change_when == WHEN_READ) {
        change_when = NEVER;
        cr_assert_eq(block_write(img.node, "changed", off, 7, 0), 0);
    }
    return real_ops->pread(st, buf, off, len);
}

static int change_and_extent(struct storage *st, uint64_t off, uint64_t len, bool *data,
                             uint64_t *run)
{
    if (change_when == WHEN_ASKED) {
        change_when = NEVER;
        cr_assert_eq(block_zero(img.node, off, GRANULE, BLOCK_MAY_UNMAP), 0);
    }
    return real_ops->extent(st, off, len, data, run);
}

Test(frozen, changed_while_it_is_read)
{
    struct storage_ops ops;
    unsigned char buf[2 * FROZEN_GRANULE];
    struct block_status st;

    open_disk("raw", NULL);
    open_store(SIZE);
    freeze(false, 0);
    real_ops = img.node->file->ops;
    ops = *real_ops;
    ops.pread = change_and_pread;
    ops.extent = change_and_extent;
    img.node->file->ops = &ops;
    change_when = WHEN_READ;
    expect_same(GRANULE - 10, 2 * GRANULE, buf);
    cr_expect_eq(change_when, NEVER);
    change_when = WHEN_ASKED;
    cr_expect_eq(block_status(frozen_node(point), 5 * GRANULE, GRANULE, &st), 0);
    cr_expect_eq(change_when, NEVER);
    cr_expect(st.data, "what it is now is no hole in what it was");
    img.node->file->ops = real_ops;
    expect_same(5 * GRANULE, GRANULE, buf);
    close_all();
}

/* Old content is saved once for each granule; zeroes and released granules aren't saved. */
Test(frozen, is_saved_once)
{
    unsigned char byte = 1;

    open_disk("raw", NULL);
    open_store(SIZE);
    freeze(false, 0);
    for (int i = 0; i < 3; i++)
        cr_expect_eq(block_write(img.node, &byte, 5 + (uint64_t)i, 1, 0), 0);
    cr_expect_eq(fault_plan_calls(&store_plan, FAULT_WRITE), 1);
    cr_expect_eq(block_write(img.node, &byte, SIZE - 1, 1, 0), 0);
    cr_expect_eq(block_zero(img.node, SIZE - 2 * GRANULE, GRANULE, 0), 0);
    cr_expect_eq(fault_plan_calls(&store_plan, FAULT_WRITE), 1, "of zeroes");
    frozen_release(point, GRANULE - 1, 2 * GRANULE);
    cr_expect_eq(block_write(img.node, &byte, GRANULE, 1, 0), 0);
    cr_expect_eq(fault_plan_calls(&store_plan, FAULT_WRITE), 1, "released");
    cr_expect_eq(block_write(img.node, &byte, 2 * GRANULE, 1, 0), 0);
    cr_expect_eq(fault_plan_calls(&store_plan, FAULT_CHANGE), 2, "released in part");
    close_all();
}

/* If the old content can't be saved, the change fails and the point stays. */
Test(frozen, a_change_fails)
{
    unsigned char byte = 0xee, buf[100];

    open_disk("qcow2", NULL);
    open_store(SIZE);
    freeze(false, 0);
    fault_plan_fail(&store_plan, FAULT_WRITE, 1, EDQUOT, FAULT_ONCE);
    cr_expect_eq(block_write(img.node, &byte, 10, 1, 0), -EDQUOT);
    cr_expect_eq(told, -EDQUOT);
    cr_expect_eq(block_read(img.node, buf, 0, 100), 0);
    cr_expect_eq(memcmp(buf, img.model.bytes, 100), 0);
    cr_expect_eq(frozen_error(point), 0);
    cr_expect_eq(block_write(img.node, &byte, 10, 1, 0), 0, "another time it goes");
    expect_same(0, 100, buf);
    close_all();
}

/* With give_up the change is made nevertheless, and the point is lost. */
Test(frozen, the_point_is_given_up)
{
    unsigned char byte = 0xee, buf[100];
    struct block_status st;

    open_disk("qcow2", NULL);
    open_store(SIZE);
    freeze(true, 0);
    fault_plan_fail(&store_plan, FAULT_WRITE, 1, EDQUOT, FAULT_FROM_THEN_ON);
    cr_expect_eq(block_write(img.node, &byte, 10, 1, 0), 0);
    cr_expect_eq(told, -EDQUOT);
    cr_expect_eq(frozen_error(point), -EDQUOT);
    cr_expect_eq(block_read(frozen_node(point), buf, 0, 100), -EIO);
    cr_expect_eq(block_status(frozen_node(point), 0, 100, &st), -EIO);
    cr_expect_eq(block_write(img.node, &byte, MIB, 1, 0), 0);
    cr_expect_eq(fault_plan_calls(&store_plan, FAULT_WRITE), 1,
                 "nothing is saved any more");
    close_all();
}

/* If the store doesn't answer, a change waits for it only as long as the timeout. */
static void check_timeout(bool give_up)
{
    unsigned char byte = 0xee;

    open_disk("qcow2", NULL);
    open_store(SIZE);
    freeze(give_up, 50);
    fault_plan_reset_counters(&store_plan);
    fault_plan_gather_writes(&store_plan, 2, 1, 3000); /* one write waits for another */
    cr_expect_eq(block_write(img.node, &byte, 10, 1, 0), give_up ? 0 : -ETIMEDOUT);
    cr_expect_eq(told, -ETIMEDOUT);
    cr_expect_eq(frozen_error(point), give_up ? -ETIMEDOUT : 0);
    cr_expect_eq(block_write(img.node, &byte, 11, 1, 0), give_up ? 0 : -ETIMEDOUT);
    cr_expect_eq(block_write(img.node, &byte, MIB, 1, 0), 0,
                 "the second, for which the first has waited");
    close_all();
}

Test(frozen, a_change_doesnt_wait_for_ever)
{
    check_timeout(false);
    check_timeout(true);
}

/* A point that has ended can still be held; reading from it fails. */
Test(frozen, ended_and_still_held)
{
    unsigned char buf[10];

    open_disk("qcow2", NULL);
    open_store(SIZE);
    freeze(false, 0);
    struct frozen_point *held = frozen_hold(point);
    struct storage *memory = store_memory;
    frozen_end(point);
    frozen_end(point);
    cr_expect_eq(block_write(img.node, "abc", 0, 3, 0), 0);
    cr_expect_eq(fault_plan_calls(&store_plan, FAULT_WRITE), 0);
    cr_expect_eq(block_read(frozen_node(held), buf, 0, 10), -EIO);
    cr_expect_null(atomic_load(&img.node->observers.list));
    frozen_put(held);
    cr_expect_eq(memory, store_memory);
    close_all();
}

Test(frozen, refuses_what_cant_be_a_store)
{
    struct frozen_setup setup;

    open_disk("raw", NULL);
    open_store(SIZE - 1);
    setup = (struct frozen_setup){.source = img.node, .store = store};
    cr_expect_eq(frozen_new(&setup, &point, &diag), -EINVAL);
    cr_expect(strstr(diag.text, "less than the disk's"), "%s", diag.text);
    setup.store = img.node;
    cr_expect_eq(frozen_new(&setup, &point, &diag), -EINVAL);
    node_close(store);
    storage_close(store_memory);
    image_close(&img);
    image_free(&img);
}

/* The temporary store is an unnamed file of the disk's size that takes no space at first. */
Test(frozen, a_temporary_store)
{
    uint64_t bytes = 1;
    char buf[100], zeroes[100] = "";

    open_disk("qcow2", NULL);
    cr_assert_eq(frozen_store_open(img.node, &store, &diag), 0, "%s", diag.text);
    cr_expect_eq(store->size, SIZE);
    cr_expect_eq(node_allocated(store, &bytes), 0);
    cr_expect_eq(bytes, 0);
    cr_expect_eq(block_read(store, buf, SIZE - 100, 100), 0);
    cr_expect_eq(memcmp(buf, zeroes, 100), 0);
    cr_expect_eq(block_write(store, "abc", 1000, 3, 0), 0);
    cr_expect_eq(block_read(store, buf, 1000, 3), 0);
    cr_expect_eq(memcmp(buf, "abc", 3), 0);
    node_close(store);
    image_close(&img);
    image_free(&img);
}
