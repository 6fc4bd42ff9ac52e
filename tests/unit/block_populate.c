/* SPDX-License-Identifier: BSD-3-Clause */
/* block_populate copies into a layer what it doesn't have itself, from the layers below (M-53). */
#include "block_testing.h"

#define SIZE (CLUSTERS * CLUSTER)

Test(block_populate, only_what_the_layer_has_nothing_of)
{
    struct toy_bench b;
    uint64_t copied;

    toy_init(&b, SIZE, NULL);
    toy_add_base(&b, SIZE, 9);
    b.toy.cell[1] = DATA;
    toy_fill_host(&b, CLUSTER, CLUSTER, 7);
    b.toy.cell[2] = ZERO;
    cr_expect_eq(block_populate(b.node, 0, 4 * CLUSTER, NULL, &copied), 0);
    cr_expect_eq(copied, 2 * CLUSTER);
    cr_expect(toy_reads(&b, 0, CLUSTER, 9));
    cr_expect(toy_reads(&b, CLUSTER, CLUSTER, 7));
    cr_expect(toy_reads(&b, 2 * CLUSTER, CLUSTER, 0));
    cr_expect(toy_reads(&b, 3 * CLUSTER, CLUSTER, 9));
    cr_expect_eq(b.toy.cell[0], MOVED);
    cr_expect_eq(b.toy.cell[3], MOVED);
    cr_expect_eq(b.toy.cell[4], HOLE, "not asked for");

    /* The second time nothing is written. */
    uint64_t changes = fault_plan_calls(&b.plan, FAULT_CHANGE);
    cr_expect_eq(block_populate(b.node, 0, 4 * CLUSTER, NULL, &copied), 0);
    cr_expect_eq(copied, 0);
    cr_expect_eq(fault_plan_calls(&b.plan, FAULT_CHANGE), changes);
    toy_fini(&b);
}

Test(block_populate, what_the_base_has_stays_there)
{
    struct toy_bench b;
    uint64_t copied;

    toy_init(&b, SIZE, NULL);
    toy_add_base(&b, SIZE, 9);
    cr_expect_eq(block_populate(b.node, 0, SIZE, b.node->backing, &copied), 0);
    cr_expect_eq(copied, 0);
    cr_expect_eq(fault_plan_calls(&b.plan, FAULT_CHANGE), 0);
    toy_fini(&b);
}

Test(block_populate, nobody_is_told)
{
    struct toy_bench b;
    struct dirty_bitmap *bitmap;
    struct diag diag;
    uint64_t copied;

    toy_init(&b, SIZE, NULL);
    toy_add_base(&b, SIZE, 9);
    bitmap = dirty_bitmap_new("b", SIZE, BITMAP_MIN_GRANULARITY);
    cr_assert_eq(node_bitmap_add(b.node, bitmap, &diag), 0);
    cr_expect_eq(block_populate(b.node, 0, SIZE, NULL, &copied), 0);
    cr_expect_eq(copied, SIZE);
    cr_expect_eq(dirty_bitmap_count(bitmap), 0);
    toy_fini(&b);
}
