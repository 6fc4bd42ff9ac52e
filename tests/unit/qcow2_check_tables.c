/* SPDX-License-Identifier: BSD-3-Clause */
/* Tests the list of L2 tables that the check keeps. */
#include <stdlib.h>

#include <criterion/criterion.h>

#include "qcow2/check/check_tables.h"
#include "rng.h"

Test(qcow2_check_tables, in_the_order_of_the_file_and_once)
{
    struct l2_tables t = {0};

    cr_assert_eq(l2_tables_add(&t, 30, 9, 2, false), 0);
    cr_assert_eq(l2_tables_add(&t, 10, 5, 1, true), 0);
    cr_assert_eq(l2_tables_add(&t, 10, 5, 1, true), 0);
    cr_assert_eq(l2_tables_add(&t, 30, 4, 1, true), 0);
    l2_tables_sort(&t);
    cr_assert_eq(t.n, 2);
    cr_expect(t.list[0].cluster == 10 && t.list[0].weight == 2 && t.list[0].active == 2);
    cr_expect_eq(l2_tables_find(&t, 30)->weight, 3);
    cr_expect_null(l2_tables_find(&t, 20));
    cr_expect(t.list[1].cluster == 30 && t.list[1].weight == 3 && t.list[1].active == 1);
    l2_tables_free(&t);
    l2_tables_sort(&t);
    cr_expect_eq(t.n, 0);
}

/* Several snapshots refer to the same tables, which must take memory only once. */
Test(qcow2_check_tables, takes_memory_for_each_table_once)
{
    enum { TABLES = 1000, ROUNDS = 500 };
    struct l2_tables t = {0};
    uint64_t weight[TABLES] = {0}, active[TABLES] = {0};
    struct rng rng;

    rng_init(&rng, 5);
    for (unsigned i = 0; i < TABLES * ROUNDS; i++) {
        uint64_t which = rng_below(&rng, TABLES), more = rng_between(&rng, 1, 3);
        bool is_active = rng_one_in(&rng, 4);
        cr_assert_eq(l2_tables_add(&t, which * 7, 0, more, is_active), 0);
        weight[which] += more;
        active[which] += is_active;
    }
    l2_tables_sort(&t);
    cr_assert_eq(t.n, TABLES);
    for (unsigned i = 0; i < TABLES; i++)
        cr_assert(t.list[i].cluster == i * 7 && t.list[i].weight == weight[i] &&
                      t.list[i].active == active[i],
                  "table %u", i);
    cr_expect_leq(t.capacity, 4 * TABLES);
    l2_tables_free(&t);
}
