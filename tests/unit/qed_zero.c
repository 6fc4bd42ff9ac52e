/* SPDX-License-Identifier: BSD-3-Clause */
/* Tests zeroing and trimming of QED images, and which requests are fast. */
#include "qed_testing.h"

#define CLUSTER 4096u
#define TABLE   (2 * CLUSTER)
#define SPAN    (UINT64_C(1) * CLUSTER * (TABLE / 8))
#define EMPTY   (CLUSTER + TABLE)

static void start(struct bench *b)
{
    struct qed_header h = small_header(GIB);

    h.table_size = 2;
    bench_init(b, new_image_in_memory(h, NULL));
    bench_open_writable(b);
}

/* Opens an image over a backing file of `size` bytes, all 0xb0. */
static void start_with_backing(struct bench *b, uint64_t size)
{
    struct qed_header h = small_header(size);
    struct storage *below;

    h.table_size = 2;
    below = new_image_in_memory(h, NULL);
    bench_init(b, below);
    bench_open_writable(b);
    write_pattern(b->node, 0, size, 0xb0);
    cr_assert_eq(bench_close(b), 0);
    below = mem_storage_share(b->mem);
    bench_fini(b);

    h.image_size = GIB;
    bench_init(b, new_image_in_memory(h, "base.qed"));
    bench_open_writable(b);
    b->node->backing = open_backing(b, below);
}

static void finish(struct bench *b)
{
    cr_expect_eq(bench_close(b), 0);
    cr_expect_eq(qemu_check(b->mem), 0);
    bench_fini(b);
}

Test(qed_zero, q18_holes_over_a_backing_file_get_the_marker)
{
    struct bench b;

    start_with_backing(&b, 20 * CLUSTER);
    cr_expect_eq(block_zero(b.node, 3 * CLUSTER, 4 * CLUSTER, BLOCK_MAY_UNMAP), 0);
    cr_expect_eq(block_discard(b.node, 10 * CLUSTER, CLUSTER, 0), 0);
    cr_expect(reads_as(b.node, 3 * CLUSTER, 4 * CLUSTER, 0));
    cr_expect(reads_as(b.node, 10 * CLUSTER, CLUSTER, 0));
    cr_expect(reads_as(b.node, 2 * CLUSTER, CLUSTER, 0xb0));
    cr_expect(reads_as(b.node, 7 * CLUSTER, CLUSTER, 0xb0));
    cr_expect(map_at(b.node, 3 * CLUSTER, CLUSTER).allocated);
    cr_assert_eq(bench_close(&b), 0);

    cr_expect_eq(size_of(b.mem), EMPTY + TABLE, "no data clusters");
    for (unsigned i = 0; i < 20; i++)
        cr_expect_eq(get_word(b.mem, EMPTY + 8 * i), (i >= 3 && i < 7) || i == 10);
    bench_open(&b);
    finish(&b);
}

Test(qed_zero, q18_a_partial_write_to_a_zero_cluster_is_filled_with_zeroes)
{
    struct bench b;

    start_with_backing(&b, 20 * CLUSTER);
    cr_expect_eq(block_zero(b.node, 3 * CLUSTER, CLUSTER, 0), 0);
    write_pattern(b.node, 3 * CLUSTER + 100, 50, 'x');
    cr_expect(reads_as(b.node, 3 * CLUSTER, 100, 0));
    cr_expect(reads_as(b.node, 3 * CLUSTER + 100, 50, 'x'));
    cr_expect(reads_as(b.node, 3 * CLUSTER + 150, CLUSTER - 150, 0));

    write_pattern(b.node, 5 * CLUSTER + 100, 50, 'x');
    cr_expect(reads_as(b.node, 5 * CLUSTER, 100, 0xb0), "others from the backing file");
    cr_expect(reads_as(b.node, 5 * CLUSTER + 150, CLUSTER - 150, 0xb0));
    finish(&b);
}

Test(qed_zero, q18_parts_of_clusters)
{
    struct bench b;

    start_with_backing(&b, 20 * CLUSTER);
    cr_expect_eq(block_zero(b.node, 2 * CLUSTER + 512, 3 * CLUSTER, 0), 0);
    cr_expect(reads_as(b.node, 2 * CLUSTER, 512, 0xb0));
    cr_expect(reads_as(b.node, 2 * CLUSTER + 512, 3 * CLUSTER, 0));
    cr_expect(reads_as(b.node, 5 * CLUSTER + 512, CLUSTER - 512, 0xb0));
    finish(&b);
}

Test(qed_zero, q16_markers_are_kept_for_when_the_backing_file_is_not_open)
{
    struct qed_header h = small_header(GIB);
    struct bench b;

    h.table_size = 2;
    bench_init(&b, new_image_in_memory(h, "base.qed"));
    bench_open_writable(&b); /* without the backing file, as with backing=none */
    cr_expect_eq(block_zero(b.node, 0, CLUSTER, 0), 0);
    cr_expect_eq(bench_close(&b), 0);
    cr_expect_eq(get_word(b.mem, EMPTY), 1);
    bench_fini(&b);
}

Test(qed_zero, holes_over_nothing_stay_holes)
{
    struct bench b;

    start(&b);
    fault_plan_reset_counters(&b.plan);
    cr_expect_eq(block_zero(b.node, 0, GIB, BLOCK_FAST), 0);
    cr_expect_eq(block_discard(b.node, 0, GIB, 0), 0);
    cr_expect_eq(fault_plan_calls(&b.plan, FAULT_CHANGE), 0);
    finish(&b);
}

Test(qed_zero, allocated_clusters_keep_their_place)
{
    static const unsigned flags[] = {0, BLOCK_MAY_UNMAP};

    for (size_t i = 0; i < ARRAY_LEN(flags); i++) {
        struct bench b;
        start(&b);
        write_pattern(b.node, 0, 10 * CLUSTER, 'x');
        struct extent before = map_at(b.node, CLUSTER, 8 * CLUSTER);
        cr_expect_eq(block_zero(b.node, CLUSTER, CLUSTER, BLOCK_FAST), 0); /* can be fast */
        fault_plan_reset_counters(&b.plan);
        cr_expect_eq(block_zero(b.node, CLUSTER, 8 * CLUSTER, flags[i]), 0);
        housekeeper_run_due(b.ctx.housekeeper);
        cr_expect_eq(fault_plan_calls(&b.plan, FAULT_ZERO), 1, "one call for the run");
        cr_expect(reads_as(b.node, CLUSTER, 8 * CLUSTER, 0));
        cr_expect(reads_as(b.node, 0, CLUSTER, 'x'));
        cr_expect(reads_as(b.node, 9 * CLUSTER, CLUSTER, 'x'));
        cr_expect_eq(map_at(b.node, CLUSTER, CLUSTER).host_offset, before.host_offset);
        finish(&b);
    }
}

Test(qed_zero, trimmed_clusters_are_punched)
{
    uint64_t before = 0, after = 0;
    struct bench b;

    start(&b);
    write_pattern(b.node, 0, MIB, 'x');
    cr_assert_eq(storage_allocated(b.mem, &before), 0);
    cr_expect_eq(block_discard(b.node, 0, MIB, 0), 0);
    housekeeper_run_due(b.ctx.housekeeper);
    cr_assert_eq(storage_allocated(b.mem, &after), 0);
    cr_expect_eq(before - after, MIB);
    cr_expect(reads_as(b.node, 0, MIB, 0));
    finish(&b);
}

Test(qed_zero, trim_does_not_write_zeroes_where_punching_is_unknown)
{
    struct bench b;

    start(&b);
    write_pattern(b.node, 0, MIB, 'x');
    fault_plan_fail(&b.plan, FAULT_ZERO, 1, ENOTSUP, FAULT_FROM_THEN_ON);
    fault_plan_reset_counters(&b.plan);
    cr_expect_eq(block_discard(b.node, 0, MIB, 0), 0);
    cr_expect_eq(fault_plan_calls(&b.plan, FAULT_WRITE), 0);
    cr_expect(reads_as(b.node, 0, MIB, 'x'), "a trim may do nothing");
    cr_expect_eq(block_zero(b.node, 0, MIB, 0), 0);
    cr_expect(reads_as(b.node, 0, MIB, 0), "write zeroes may not");
    fault_plan_heal(&b.plan);
    finish(&b);
}

Test(qed_zero, discard_ignore_leaves_the_file_as_it_is)
{
    uint64_t before = 0, after = 0;
    struct bench b;

    start(&b);
    b.node->options.discard_ignore = true;
    write_pattern(b.node, 0, MIB, 'x');
    cr_assert_eq(storage_allocated(b.mem, &before), 0);
    cr_expect_eq(block_discard(b.node, 0, MIB, 0), 0);
    cr_assert_eq(storage_allocated(b.mem, &after), 0);
    cr_expect_eq(before, after);
    cr_expect(reads_as(b.node, 0, MIB, 'x'));
    cr_expect_eq(block_zero(b.node, 0, MIB, BLOCK_MAY_UNMAP), 0);
    cr_expect(reads_as(b.node, 0, MIB, 0));
    finish(&b);
}

Test(qed_zero, errors_of_the_storage_reach_the_client)
{
    struct bench b;

    start(&b);
    write_pattern(b.node, 0, MIB, 'x');
    fault_plan_fail(&b.plan, FAULT_ZERO, 1, EIO, FAULT_ONCE);
    cr_expect_eq(block_zero(b.node, 0, MIB, 0), -EIO);
    finish(&b);
}

/* ---- fast zeroing ---- */

Test(qed_zero, fast_by_metadata_and_where_the_file_can_be_punched)
{
    struct bench b;

    start_with_backing(&b, 20 * CLUSTER);
    write_pattern(b.node, 2 * CLUSTER, 2 * CLUSTER, 'x');
    cr_expect_eq(block_zero(b.node, 0, 6 * CLUSTER, BLOCK_FAST), 0);
    cr_expect(reads_as(b.node, 0, 6 * CLUSTER, 0));
    cr_expect_eq(block_zero(b.node, 10 * CLUSTER, 100, BLOCK_FAST), -ENOTSUP);
    cr_expect(reads_as(b.node, 10 * CLUSTER, CLUSTER, 0xb0));
    finish(&b);
}

Test(qed_zero, not_fast_where_it_can_not)
{
    struct bench b;

    start(&b);
    write_pattern(b.node, 0, MIB, 'x');
    fault_plan_fail(&b.plan, FAULT_ZERO, 1, ENOTSUP, FAULT_FROM_THEN_ON);
    cr_expect_eq(block_zero(b.node, 0, MIB, BLOCK_FAST), -ENOTSUP);
    cr_expect(reads_as(b.node, 0, MIB, 'x'), "decided before anything is touched");
    fault_plan_heal(&b.plan);
    finish(&b);
}

Test(qed_zero, asking_once_is_enough_and_leaves_no_trace)
{
    struct bench b;

    start(&b);
    write_pattern(b.node, 0, MIB, 'x');
    cr_assert_eq(bench_close(&b), 0);
    uint64_t size = size_of(b.mem);
    bench_open_writable(&b);
    for (int i = 0; i < 3; i++)
        cr_expect_eq(block_zero(b.node, 0, CLUSTER, BLOCK_FAST), 0);
    cr_expect_eq(fault_plan_calls(&b.plan, FAULT_ZERO), 2 + 3);
    cr_assert_eq(bench_close(&b), 0);
    cr_expect_eq(size_of(b.mem), size);
    bench_open(&b);
    finish(&b);
}
