/* SPDX-License-Identifier: BSD-3-Clause */
/* Tests the rate limit with a fake clock: how many bytes are moved in ten seconds. */
#include <criterion/criterion.h>

#include "base/compiler.h"
#include "jobs/ratelimit.h"

#define KIB UINT64_C(1024)
#define MIB (UINT64_C(1024) * KIB)
#define SEC UINT64_C(1000000000)

/* The bytes that a transfer in pieces of that size moves between two times, when each piece itself
 * takes `cost` ns. */
static uint64_t moved(struct ratelimit *limit, uint64_t piece, uint64_t cost, uint64_t from,
                      uint64_t until)
{
    uint64_t bytes = 0;

    for (uint64_t now = from; now < until;) {
        bytes += piece;
        now += cost;
        now += ratelimit_account(limit, piece, now);
    }
    return bytes;
}

/* M-32: a limit of 10 MiB/s gives 9 to 11 MiB/s, whatever the size of the pieces. */
static void expect_rate(uint64_t speed, uint64_t piece, uint64_t cost)
{
    struct ratelimit limit = {0};

    ratelimit_set_speed(&limit, speed, 5 * SEC);
    uint64_t bytes = moved(&limit, piece, cost, 5 * SEC, 15 * SEC);
    cr_expect_geq(bytes, 9 * speed, "%lu a piece: %lu", piece, bytes);
    cr_expect_leq(bytes, 11 * speed, "%lu a piece: %lu", piece, bytes);
}

Test(ratelimit, holds_for_pieces_of_any_size)
{
    static const uint64_t pieces[] = {512, 4 * KIB, 64 * KIB, MIB, 3 * MIB + 17};

    for (unsigned i = 0; i < ARRAY_LEN(pieces); i++) {
        expect_rate(10 * MIB, pieces[i], 0);
        expect_rate(10 * MIB, pieces[i], 20000);
        expect_rate(100 * MIB, pieces[i], 0);
    }
    expect_rate(64 * KIB, 4 * KIB, 0);
    expect_rate(64 * KIB, 64 * KIB, 0);
}

Test(ratelimit, an_overrun_is_carried_into_the_next_slices)
{
    struct ratelimit limit = {0};

    ratelimit_set_speed(&limit, MIB, 0);
    /* A piece of ten seconds' worth: it may go at once, but the next one has to wait. */
    uint64_t wait = ratelimit_account(&limit, 10 * MIB, 0);
    cr_expect_eq(wait, 10 * SEC - RATELIMIT_SLICE_NS);
    /* Half of the time has passed and nothing more was moved. */
    cr_expect_eq(ratelimit_account(&limit, 0, 5 * SEC), 5 * SEC - RATELIMIT_SLICE_NS);
    cr_expect_eq(ratelimit_account(&limit, 0, 10 * SEC), 0);
}

Test(ratelimit, unused_time_is_not_saved_up)
{
    struct ratelimit limit = {0};

    ratelimit_set_speed(&limit, 10 * MIB, 0);
    cr_expect_eq(ratelimit_account(&limit, 4 * KIB, 0), 0);
    uint64_t bytes = moved(&limit, 64 * KIB, 0, 1000 * SEC, 1001 * SEC);
    cr_expect_leq(bytes, 11 * MIB + 64 * KIB);
}

Test(ratelimit, without_a_speed_there_is_none)
{
    struct ratelimit limit = {0};

    cr_expect_eq(ratelimit_account(&limit, UINT64_MAX, SEC), 0);
}

Test(ratelimit, what_is_owed_is_paid_at_a_new_speed)
{
    struct ratelimit limit = {0};

    ratelimit_set_speed(&limit, 1, 0);
    cr_expect_gt(ratelimit_account(&limit, MIB, 0), 1000 * SEC);
    ratelimit_set_speed(&limit, 5 * MIB, SEC);
    uint64_t wait = ratelimit_account(&limit, 0, SEC) + RATELIMIT_SLICE_NS;
    cr_expect_leq(wait, SEC / 5);
    cr_expect_geq(wait, SEC / 5 - SEC / 1000);
    /* Setting (almost) the same speed again and again gives no extra bytes. */
    for (unsigned i = 0; i < 1000; i++)
        ratelimit_set_speed(&limit, 5 * MIB + i % 2, SEC);
    cr_expect_geq(ratelimit_account(&limit, 0, SEC) + RATELIMIT_SLICE_NS,
                  SEC / 5 - SEC / 500);
    ratelimit_set_speed(&limit, 0, SEC);
    cr_expect_eq(ratelimit_account(&limit, 4 * MIB, SEC), 0);
}

Test(ratelimit, huge_numbers_do_not_wrap)
{
    struct ratelimit limit = {0};

    ratelimit_set_speed(&limit, 1, 0);
    cr_expect_gt(ratelimit_account(&limit, UINT64_MAX, 0), 1000 * SEC);
    ratelimit_set_speed(&limit, UINT64_MAX, 0);
    cr_expect_eq(ratelimit_account(&limit, MIB, 0), 0);
}
