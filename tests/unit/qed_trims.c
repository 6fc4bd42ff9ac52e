/* SPDX-License-Identifier: BSD-3-Clause */
/* Tests trimmed clusters of QED, which are punched later: Q-21. */
#include <pthread.h>

#include "qed_testing.h"

#define CLUSTER 4096u
#define TABLE   (2 * CLUSTER)
#define EMPTY   (CLUSTER + TABLE)

/* Makes an image with `bytes` of 'x' from the beginning on, flushed.  The driver has found out
 * already whether the storage can punch holes. */
static void start(struct bench *b, uint64_t bytes)
{
    struct qed_header h = small_header(GIB);

    h.table_size = 2;
    bench_init(b, new_image_in_memory(h, NULL));
    bench_open_writable(b);
    write_pattern(b->node, 0, bytes, 'x');
    cr_assert_eq(block_zero(b->node, 0, CLUSTER, BLOCK_FAST), 0);
    write_pattern(b->node, 0, CLUSTER, 'x');
    cr_assert_eq(block_flush(b->node), 0);
    fault_plan_reset_counters(&b->plan);
}

static uint64_t entry(struct bench *b, uint64_t cluster)
{
    return get_word(b->mem, EMPTY + 8 * cluster);
}

static void trim(struct bench *b, uint64_t first, uint64_t n)
{
    cr_assert_eq(block_discard(b->node, first * CLUSTER, n * CLUSTER, 0), 0);
}

static uint64_t holes(struct bench *b)
{
    return fault_plan_calls(&b->plan, FAULT_ZERO);
}

Test(qed_trims, q21_neither_a_trim_nor_a_flush_waits_for_holes)
{
    struct bench b;

    start(&b, 32 * CLUSTER);
    uint64_t place = entry(&b, 8);
    trim(&b, 8, 4);
    cr_expect(reads_as(b.node, 8 * CLUSTER, 4 * CLUSTER, 0));
    cr_expect_eq(block_flush(b.node), 0);
    cr_expect_eq(holes(&b), 0);
    cr_expect_eq(entry(&b, 8), 1, "durably zero");

    housekeeper_run_due(b.ctx.housekeeper);
    cr_expect_eq(holes(&b), 1);
    cr_expect(reads_as(b.node, 8 * CLUSTER, 4 * CLUSTER, 0));
    cr_expect(reads_as(b.node, 12 * CLUSTER, CLUSTER, 'x'));
    cr_expect_eq(map_at(b.node, 8 * CLUSTER, CLUSTER).host_offset, place);
    cr_expect_eq(block_flush(b.node), 0);
    cr_expect_eq(entry(&b, 8), place);
    bench_finish(&b);
}

Test(qed_trims, q21_the_hole_is_durable_before_the_place_is_back)
{
    struct bench b;

    start(&b, 32 * CLUSTER);
    trim(&b, 8, 4);
    cr_expect_eq(block_flush(b.node), 0);
    housekeeper_run_due(b.ctx.housekeeper);
    fault_plan_reset_counters(&b.plan);
    cr_expect_eq(block_flush(b.node), 0);
    cr_expect_eq(fault_plan_calls(&b.plan, FAULT_FLUSH), 2, "one before, one behind");
    bench_finish(&b);
}

Test(qed_trims, q21_neighbours_are_punched_as_one)
{
    struct bench b;

    start(&b, 32 * CLUSTER);
    for (uint64_t i = 0; i < 8; i++)
        trim(&b, 8 + i * 5 % 8, 1);
    housekeeper_run_due(b.ctx.housekeeper);
    cr_expect_eq(holes(&b), 1);
    cr_expect(reads_as(b.node, 8 * CLUSTER, 8 * CLUSTER, 0));
    bench_finish(&b);
}

Test(qed_trims, q21_what_is_written_again_is_never_punched)
{
    struct bench b;

    start(&b, 32 * CLUSTER);
    uint64_t place = entry(&b, 9);
    trim(&b, 8, 4);
    write_pattern(b.node, 9 * CLUSTER + 100, 50, 'y');
    cr_expect_eq(map_at(b.node, 9 * CLUSTER, CLUSTER).host_offset, place, "its own place");
    cr_expect(reads_as(b.node, 9 * CLUSTER, 100, 0), "and nothing of what was there");
    cr_expect(reads_as(b.node, 9 * CLUSTER + 150, CLUSTER - 150, 0));
    housekeeper_run_due(b.ctx.housekeeper);
    cr_expect_eq(holes(&b), 2, "before it and behind it");
    cr_expect(reads_as(b.node, 9 * CLUSTER + 100, 50, 'y'));
    cr_expect_eq(bench_close(&b), 0);
    cr_expect_eq(size_of(b.mem), EMPTY + TABLE + 32 * CLUSTER);
    bench_open_writable(&b);
    cr_expect(reads_as(b.node, 9 * CLUSTER + 100, 50, 'y'));
    cr_expect(reads_as(b.node, 8 * CLUSTER, CLUSTER, 0));
    bench_finish(&b);
}

Test(qed_trims, q21_a_write_over_trimmed_and_other_clusters)
{
    struct bench b;

    start(&b, 32 * CLUSTER);
    trim(&b, 8, 2);
    trim(&b, 12, 2);
    trim(&b, 30, 2);
    write_pattern(b.node, 7 * CLUSTER + 1, 30 * CLUSTER, 'y');
    cr_expect(reads_as(b.node, 7 * CLUSTER + 1, 30 * CLUSTER, 'y'));
    housekeeper_run_due(b.ctx.housekeeper);
    cr_expect_eq(holes(&b), 0);
    cr_expect(reads_as(b.node, 7 * CLUSTER + 1, 30 * CLUSTER, 'y'));
    cr_expect(reads_as(b.node, 37 * CLUSTER + 1, CLUSTER - 1, 0));
    bench_finish(&b);
}

Test(qed_trims, q21_a_failed_write_leaves_it_trimmed)
{
    char buf[CLUSTER] = "new";
    struct bench b;

    start(&b, 32 * CLUSTER);
    trim(&b, 8, 1);
    fault_plan_fail(&b.plan, FAULT_WRITE, 1, EIO, FAULT_ONCE_AFTER);
    cr_expect_eq(block_write(b.node, buf, 8 * CLUSTER, sizeof buf, 0), -EIO);
    cr_expect(reads_as(b.node, 8 * CLUSTER, CLUSTER, 0));
    housekeeper_run_due(b.ctx.housekeeper);
    cr_expect_eq(holes(&b), 1);
    cr_expect(reads_as(b.node, 8 * CLUSTER, CLUSTER, 0));
    bench_finish(&b);
}

Test(qed_trims, q21_a_hole_that_fails_is_tried_again)
{
    struct bench b;

    start(&b, 32 * CLUSTER);
    log_set_sink(log_to_buffer);
    uint64_t place = entry(&b, 8);
    trim(&b, 8, 4);
    fault_plan_fail(&b.plan, FAULT_ZERO, 1, EIO, FAULT_FROM_THEN_ON);
    housekeeper_run_due(b.ctx.housekeeper);
    cr_expect(strstr(logged, "disk.qed: making holes"), "%s", logged);
    cr_expect(reads_as(b.node, 8 * CLUSTER, 4 * CLUSTER, 0));
    cr_expect_eq(block_flush(b.node), 0);
    cr_expect_eq(entry(&b, 8), 1);
    fault_plan_heal(&b.plan);
    b.now += SEC;
    housekeeper_run_due(b.ctx.housekeeper);
    cr_expect_eq(block_flush(b.node), 0);
    cr_expect_eq(entry(&b, 8), place);
    bench_finish(&b);
}

Test(qed_trims, q21_the_end_makes_all_holes_or_leaves_the_mark)
{
    struct bench b;

    start(&b, 32 * CLUSTER);
    uint64_t place = entry(&b, 8);
    trim(&b, 8, 4);
    fault_plan_fail(&b.plan, FAULT_ZERO, 1, EIO, FAULT_FROM_THEN_ON);
    cr_expect_eq(bench_close(&b), -EIO);
    fault_plan_heal(&b.plan);
    cr_expect_eq(entry(&b, 8), 1, "what was answered is durable");
    cr_expect(features_of(b.mem) & QED_F_NEED_CHECK);
    cr_expect_eq(qemu_check(b.mem), 3, "four leaks");

    bench_open_writable(&b); /* this checks the image */
    cr_expect(reads_as(b.node, 8 * CLUSTER, 4 * CLUSTER, 0));
    place = entry(&b, 20);
    trim(&b, 20, 4);
    cr_expect_eq(bench_close(&b), 0);
    cr_expect_eq(entry(&b, 20), place);
    cr_expect_not(features_of(b.mem) & QED_F_NEED_CHECK);
    bench_fini(&b);
}

Test(qed_trims, q21_an_end_that_takes_long_zeroes_in_place)
{
    struct bench b;

    start(&b, 32 * CLUSTER);
    for (uint64_t i = 0; i < 32; i += 2)
        trim(&b, i, 1);
    b.tick = SEC / 10;
    cr_expect_eq(bench_close(&b), 0);
    b.tick = 0;
    cr_expect_eq(holes(&b), 16);
    cr_expect_gt(fault_plan_holes(&b.plan), 0, "some were punched");
    cr_expect_lt(fault_plan_holes(&b.plan), 16, "and some were not");
    bench_open_writable(&b);
    for (uint64_t i = 0; i < 32; i += 2)
        cr_expect(reads_as(b.node, i * CLUSTER, CLUSTER, 0));
    bench_finish(&b);
}

Test(qed_trims, q21_the_mark_stays_until_all_is_punched)
{
    struct bench b;

    start(&b, 32 * CLUSTER);
    log_set_sink(log_to_buffer);
    trim(&b, 8, 4);
    fault_plan_fail(&b.plan, FAULT_ZERO, 1, EIO, FAULT_FROM_THEN_ON);
    b.now += 20 * SEC;
    housekeeper_run_due(b.ctx.housekeeper);
    cr_expect(features_of(b.mem) & QED_F_NEED_CHECK);
    fault_plan_heal(&b.plan);
    b.now += SEC;
    housekeeper_run_due(b.ctx.housekeeper);
    b.now += 6 * SEC;
    housekeeper_run_due(b.ctx.housekeeper);
    cr_expect_not(features_of(b.mem) & QED_F_NEED_CHECK);
    cr_expect_eq(qemu_check(b.mem), 0);
    bench_finish(&b);
}

Test(qed_trims, q21_beyond_what_is_kept_a_trim_punches, .timeout = 120)
{
    enum { RUNS = 16384 };
    struct bench b;

    start(&b, 2 * (RUNS + 100) * CLUSTER);
    for (uint64_t i = 0; i < RUNS; i++)
        trim(&b, 2 * i, 1);
    cr_expect_eq(holes(&b), 0);
    for (uint64_t i = RUNS; i < RUNS + 100; i++)
        trim(&b, 2 * i, 1);
    cr_expect_eq(holes(&b), 100);
    for (uint64_t i = 0; i < RUNS + 100; i++) {
        cr_assert(reads_as(b.node, 2 * i * CLUSTER, CLUSTER, 0));
        cr_assert(reads_as(b.node, (2 * i + 1) * CLUSTER, CLUSTER, 'x'));
    }
    cr_expect_eq(bench_close(&b), 0);
    bench_fini(&b);
}

Test(qed_trims, q21_growing_keeps_what_is_to_be_punched)
{
    struct diag diag = {0};
    struct bench b;

    start(&b, 32 * CLUSTER);
    uint64_t place = entry(&b, 8);
    trim(&b, 8, 4);
    cr_assert_eq(node_grow(b.node, 2 * GIB, &diag), 0, "%s", diag.text);
    cr_expect(reads_as(b.node, 8 * CLUSTER, 4 * CLUSTER, 0));
    housekeeper_run_due(b.ctx.housekeeper);
    cr_expect_eq(map_at(b.node, 8 * CLUSTER, CLUSTER).host_offset, place);
    cr_expect_eq(bench_close(&b), 0);
    bench_fini(&b);
}

/* ---- races ---- */

static void *punch(void *opaque)
{
    struct bench *b = opaque;

    housekeeper_run_due(b->ctx.housekeeper);
    return NULL;
}

/* M-60, as in qcow2: a write to a cluster while holes are being punched isn't lost. */
Test(qed_trims, q21_a_punch_doesnt_come_after_its_cluster_was_rewritten, .timeout = 60)
{
    pthread_t puncher;
    struct bench b;

    start(&b, 400 * CLUSTER);
    for (unsigned round = 0; round < 2; round++) {
        for (uint64_t i = 0; i < 400; i += 2)
            trim(&b, i, 1);
        cr_assert_eq(block_flush(b.node), 0);
        fault_plan_delay_discards(&b.plan, 1000000);
        b.now += SEC;
        cr_assert_eq(pthread_create(&puncher, NULL, punch, &b), 0);
        for (uint64_t i = 0; i < 400; i += 4)
            write_pattern(b.node, i * CLUSTER + 8, 16, (int)(100 + i % 100));
        pthread_join(puncher, NULL);
        fault_plan_delay_discards(&b.plan, 0);
        for (uint64_t i = 0; i < 400; i += 4) {
            cr_expect(reads_as(b.node, i * CLUSTER + 8, 16, (int)(100 + i % 100)));
            cr_expect(reads_as(b.node, i * CLUSTER + 24, CLUSTER - 24, 0));
            cr_expect(reads_as(b.node, (i + 2) * CLUSTER, CLUSTER, 0));
        }
    }
    cr_expect_geq(holes(&b), 100);
    bench_finish(&b);
}

static void *write_ninth(void *opaque)
{
    struct bench *b = opaque;

    write_pattern(b->node, 8 * CLUSTER, CLUSTER, 'w');
    return NULL;
}

/* A write in place has looked up its cluster; then the cluster is trimmed before the data is
 * written.  The write must be answered only when its data can be read. */
Test(qed_trims, q21_a_write_in_place_that_comes_late_is_not_lost)
{
    pthread_t writer;
    struct bench b;

    start(&b, 32 * CLUSTER);
    fault_plan_gather_writes(&b.plan, 2, CLUSTER, 20000);
    cr_assert_eq(pthread_create(&writer, NULL, write_ninth, &b), 0);
    while (fault_plan_most_in_flight(&b.plan) < 1)
        usleep(1000);
    trim(&b, 8, 1);
    write_pattern(b.node, 20 * CLUSTER, CLUSTER, 'z'); /* lets the gathered write go on */
    fault_plan_gather_writes(&b.plan, 0, 0, 0);
    pthread_join(writer, NULL);
    cr_expect(reads_as(b.node, 8 * CLUSTER, CLUSTER, 'w'));
    housekeeper_run_due(b.ctx.housekeeper);
    cr_expect(reads_as(b.node, 8 * CLUSTER, CLUSTER, 'w'));
    bench_finish(&b);
}
