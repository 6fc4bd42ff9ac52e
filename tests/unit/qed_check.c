/* SPDX-License-Identifier: BSD-3-Clause */
/* Tests the check and the repair of QED images. */
#include "block/check.h"
#include "qed_testing.h"

#define CLUSTER 4096u
#define SECOND  (CLUSTER * UINT64_C(8192 / 8)) /* where the second L2 table begins to map */

static struct check_result check_with(struct bench *b, enum check_repair repair,
                                      bool keep_mappings)
{
    const struct check_options options = {.repair = repair, .keep_mappings = keep_mappings};
    struct check_result result = {0};
    struct diag diag = {0};
    struct storage *st = mem_storage_share(b->mem);

    cr_assert_eq(qed_driver.check(st, &options, &result, &diag), 0, "%s", diag.text);
    storage_close(st);
    return result;
}

static struct check_result check(struct bench *b, enum check_repair repair)
{
    return check_with(b, repair, false);
}

/* Writes two clusters of data, and a third one that another table maps. */
static void start(struct bench *b)
{
    bench_init(b, new_image_in_memory(small_header(64 * MIB), NULL));
    bench_open_writable(b);
    write_pattern(b->node, 0, 2 * CLUSTER, 1);
    write_pattern(b->node, SECOND, CLUSTER, 2);
    cr_assert_eq(bench_close(b), 0);
}

static void put(struct bench *b, uint64_t off, uint64_t value)
{
    uint8_t raw[8];

    store_le64(raw, value);
    cr_assert_eq(storage_write(b->mem, raw, off, 8, 0), 0);
}

static uint64_t get(struct bench *b, uint64_t off)
{
    uint8_t raw[8];

    cr_assert_eq(storage_read(b->mem, raw, off, 8), 0);
    return load_le64(raw);
}

Test(qed_check, q11_figures_of_a_clean_image)
{
    struct bench b;

    start(&b);
    struct check_result r = check(&b, REPAIR_NONE);
    cr_expect_eq(r.corruptions + r.leaks + r.check_errors, 0);
    cr_expect_eq(r.allocated_clusters, 3);
    cr_expect_eq(r.fragmented_clusters, 0);
    cr_expect_eq(r.total_clusters, 64 * MIB / CLUSTER);
    bench_fini(&b);
}

Test(qed_check, q12_only_the_tail_can_be_given_back)
{
    struct bench b;

    start(&b);
    uint64_t l2 = get(&b, CLUSTER), size = size_of(b.mem);
    put(&b, l2, 0); /* a leak in the middle */
    cr_assert_eq(storage_truncate(b.mem, size + 5 * CLUSTER), 0);
    cr_expect_eq(check(&b, REPAIR_NONE).leaks, 6);
    struct check_result r = check(&b, REPAIR_LEAKS);
    cr_expect_eq(r.leaks, 1);
    cr_expect_eq(r.leaks_fixed, 5);
    cr_expect_eq(size_of(b.mem), size);
    bench_fini(&b);
}

Test(qed_check, q12_leaks_are_left_alone_while_entries_make_no_sense)
{
    struct bench b;

    start(&b);
    uint64_t l2 = get(&b, CLUSTER), size = size_of(b.mem);
    put(&b, l2, get(&b, l2) + 512);
    cr_assert_eq(storage_truncate(b.mem, size + CLUSTER), 0);
    struct check_result r = check(&b, REPAIR_LEAKS);
    cr_expect_eq(r.corruptions, 1);
    cr_expect_eq(r.leaks_fixed, 0);
    cr_expect_eq(size_of(b.mem), size + CLUSTER);
    r = check(&b, REPAIR_ALL);
    cr_expect_eq(r.corruptions, 0);
    cr_expect_eq(r.corruptions_fixed, 1);
    cr_expect_eq(get(&b, l2), 0);
    bench_fini(&b);
}

Test(qed_check, q15_a_cluster_of_two_keeps_the_mark)
{
    struct bench b;

    start(&b);
    uint64_t l2 = get(&b, CLUSTER);
    put(&b, l2 + 8, get(&b, l2));
    put(&b, 16, QED_F_NEED_CHECK);
    struct check_result r = check(&b, REPAIR_ALL);
    cr_expect_eq(r.corruptions, 1);
    cr_expect_eq(get(&b, 16), QED_F_NEED_CHECK);
    bench_fini(&b);
}

/* An L1 entry points to a data cluster.  The check looks at it before it knows, from a later table,
 * that the cluster is data; a repair must not change that data. */
Test(qed_check, data_that_an_l1_entry_takes_for_a_table_stays_as_it_is)
{
    uint8_t before[CLUSTER], after[CLUSTER];
    struct bench b;

    start(&b);
    uint64_t data = get(&b, get(&b, CLUSTER + 2 * 8));
    put(&b, CLUSTER + 8, data);
    cr_assert_eq(storage_read(b.mem, before, data, CLUSTER), 0);
    cr_expect_gt(check(&b, REPAIR_NONE).corruptions, 0);
    cr_expect_gt(check(&b, REPAIR_ALL).corruptions, 0);
    cr_assert_eq(storage_read(b.mem, after, data, CLUSTER), 0);
    cr_expect_eq(memcmp(before, after, CLUSTER), 0);
    bench_fini(&b);
}

Test(qed_check, q15_before_the_first_write_only_what_lies_past_the_end_is_cleared)
{
    struct bench b;

    start(&b);
    uint64_t l2 = get(&b, CLUSTER), misaligned = get(&b, l2) + 512;
    put(&b, l2, misaligned);
    put(&b, l2 + 8, size_of(b.mem));
    put(&b, CLUSTER + 8, 2 * size_of(b.mem));
    put(&b, CLUSTER + 3 * 8, 700);
    put(&b, 16, QED_F_NEED_CHECK);
    struct check_result r = check_with(&b, REPAIR_ALL, true);
    cr_expect_eq(r.corruptions, 2);
    cr_expect_eq(r.corruptions_fixed, 2);
    cr_expect_eq(get(&b, l2), misaligned);
    cr_expect_eq(get(&b, l2 + 8), 0);
    cr_expect_eq(get(&b, CLUSTER + 8), 0);
    cr_expect_eq(get(&b, CLUSTER + 3 * 8), 700);
    cr_expect_eq(get(&b, 16), QED_F_NEED_CHECK);
    bench_fini(&b);
}

Test(qed_check, q12_a_last_cluster_cut_short_is_completed)
{
    struct bench b;

    start(&b);
    uint64_t size = size_of(b.mem);
    cr_assert_eq(storage_truncate(b.mem, size - 700), 0);
    cr_expect_eq(check(&b, REPAIR_NONE).corruptions, 1);
    cr_expect_eq(check(&b, REPAIR_ALL).corruptions, 0);
    cr_expect_eq(size_of(b.mem), size);
    cr_expect_eq(check(&b, REPAIR_NONE).corruptions, 0);
    bench_fini(&b);
}

Test(qed_check, an_unreadable_table_is_a_check_error_and_nothing_is_freed)
{
    struct bench b;
    struct check_result r = {0};
    struct diag diag = {0};
    const struct check_options options = {.repair = REPAIR_ALL};

    start(&b);
    cr_assert_eq(storage_truncate(b.mem, size_of(b.mem) + CLUSTER), 0);
    struct storage *st = fault_storage_new(mem_storage_share(b.mem), &b.plan);
    fault_plan_fail(&b.plan, FAULT_READ, 3, EIO, FAULT_ONCE);
    cr_expect_eq(qed_driver.check(st, &options, &r, &diag), 0);
    cr_expect_eq(r.check_errors, 1);
    cr_expect_eq(r.leaks_fixed, 0);
    storage_close(st);
    bench_fini(&b);
}
