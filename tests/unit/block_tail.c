/* SPDX-License-Identifier: BSD-3-Clause */
/* Tests the tail of the image file: which clusters it hands out, and from when on the growth under
 * them is durable ("settled"). */
#include "block/tail.h"
#include "block_testing.h"

#define MIB (1u << 20)

Test(block_tail, hands_out_what_was_grown)
{
    struct tail tail;
    uint64_t at;
    bool fresh;

    tail_init(&tail, CLUSTER, 3 * CLUSTER, 3 * CLUSTER);
    cr_expect_eq(tail_take(&tail, CLUSTER, &at, &fresh), 0, "used up");
    tail_publish(&tail, 6 * CLUSTER);
    cr_expect_eq(tail_take(&tail, 2 * CLUSTER, &at, &fresh), 2 * CLUSTER);
    cr_expect_eq(at, 3 * CLUSTER);
    cr_expect(fresh);
    cr_expect_eq(tail_take(&tail, 5 * CLUSTER, &at, &fresh), CLUSTER, "what is left");
    cr_expect_eq(at, 5 * CLUSTER);
}

/* A driver may let the tail start before the end of the file, where old bytes can be.  A run of
 * clusters is then entirely fresh (beyond that end) or entirely not. */
Test(block_tail, a_run_is_fresh_or_not_as_a_whole)
{
    struct tail tail;
    uint64_t at;
    bool fresh;

    tail_init(&tail, CLUSTER, 2 * CLUSTER, 4 * CLUSTER);
    tail_publish(&tail, 8 * CLUSTER);
    cr_expect_eq(tail_take(&tail, 4 * CLUSTER, &at, &fresh), 2 * CLUSTER);
    cr_expect_not(fresh);
    cr_expect_eq(tail_take(&tail, 4 * CLUSTER, &at, &fresh), 4 * CLUSTER);
    cr_expect(fresh);
}

Test(block_tail, a_file_that_ends_within_a_cluster)
{
    struct tail tail;

    tail_init(&tail, CLUSTER, 0, CLUSTER + 1);
    cr_expect_eq(tail.end, 2 * CLUSTER);
}

Test(block_tail, steps_grow_with_use)
{
    struct tail tail;

    tail_init(&tail, CLUSTER, 0, 0);
    cr_expect_eq(tail_next_end(&tail, CLUSTER), MIB, "the least step");
    cr_expect_eq(tail_next_end(&tail, 3 * MIB + 1), 3 * MIB + CLUSTER,
                 "at least what is asked");
    tail.taken = 80 * (uint64_t)MIB;
    cr_expect_eq(tail_next_end(&tail, CLUSTER), 10 * MIB, "an eighth");
    tail.taken = UINT64_C(1) << 40;
    cr_expect_eq(tail_next_end(&tail, CLUSTER), 64 * MIB, "the largest step");
}

Test(block_tail, settled_when_the_growth_is_durable)
{
    struct tail tail;
    struct toy_bench b;

    toy_init(&b, CLUSTERS * CLUSTER, NULL);
    tail_init(&tail, CLUSTER, CLUSTER, CLUSTER);
    cr_expect(tail_settled(&tail, CLUSTER), "was there at the start");
    tail_publish(&tail, 4 * CLUSTER);
    cr_expect_not(tail_settled(&tail, 2 * CLUSTER));
    tail_frozen(&tail);
    tail_publish(&tail, 8 * CLUSTER); /* grows while the group is being written */
    cr_expect_not(tail_settled(&tail, 2 * CLUSTER), "written isn't durable");
    tail_durable(&tail, b.node);
    cr_expect(tail_settled(&tail, 4 * CLUSTER));
    cr_expect_not(tail_settled(&tail, 5 * CLUSTER), "the growth came after the freeze");
    tail_frozen(&tail);
    tail_durable(&tail, b.node);
    cr_expect(tail_settled(&tail, 8 * CLUSTER));
    toy_fini(&b);
}

/* Clusters that were cut off aren't settled after the file has grown again, not even by a group
 * that was frozen before the cut. */
Test(block_tail, what_was_cut_off_is_neither_handed_out_nor_settled)
{
    struct tail tail;
    struct toy_bench b;
    uint64_t at;
    bool fresh;

    toy_init(&b, CLUSTERS * CLUSTER, NULL);
    tail_init(&tail, CLUSTER, CLUSTER, CLUSTER);
    tail_publish(&tail, 8 * CLUSTER);
    tail_frozen(&tail);
    tail_durable(&tail, b.node);
    tail_frozen(&tail);
    tail_cut(&tail, 4 * CLUSTER);
    cr_expect_eq(tail_take(&tail, 8 * CLUSTER, &at, &fresh), 3 * CLUSTER);
    cr_expect_not(tail_settled(&tail, 5 * CLUSTER));
    tail_publish(&tail, 8 * CLUSTER);
    tail_durable(&tail, b.node);
    cr_expect(tail_settled(&tail, 4 * CLUSTER));
    cr_expect_not(tail_settled(&tail, 5 * CLUSTER));
    toy_fini(&b);
}

Test(block_tail, growing_a_file)
{
    struct tail tail;
    struct toy_bench b;
    uint64_t size;

    toy_init(&b, CLUSTERS * CLUSTER, NULL);
    tail_init(&tail, CLUSTER, 0, 0);
    cr_assert_eq(tail_grow(&tail, b.node, 3 * CLUSTER), 0);
    cr_assert_eq(storage_size(b.node->file, &size), 0);
    cr_expect_eq(size, 3 * CLUSTER);
    cr_expect_eq(tail.end, 3 * CLUSTER);

    fault_plan_fail(&b.plan, FAULT_TRUNCATE, 1, ENOSPC, FAULT_ONCE);
    cr_expect_eq(tail_grow(&tail, b.node, 5 * CLUSTER), -ENOSPC);
    cr_expect_eq(tail.end, 3 * CLUSTER, "nothing to hand out");
    b.node->file->fixed_size = true;
    cr_expect_eq(tail_grow(&tail, b.node, 5 * CLUSTER), -ENOSPC);
    b.node->file->fixed_size = false;
    toy_fini(&b);
}
