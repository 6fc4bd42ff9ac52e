/* SPDX-License-Identifier: BSD-3-Clause */
/* Tests base/checked.h and base/bytes.h: arithmetic at its limits. */
#include <criterion/criterion.h>

#include "base/bytes.h"
#include "base/checked.h"

Test(checked, power_of_two)
{
    cr_assert_not(is_power_of_two(0));
    cr_assert(is_power_of_two(1));
    cr_assert_not(is_power_of_two(3));
    cr_assert(is_power_of_two(UINT64_C(1) << 63));
    cr_assert_not(is_power_of_two(UINT64_MAX));
}

Test(checked, alignment)
{
    cr_assert(is_aligned(0, 4096));
    cr_assert(is_aligned(8192, 4096));
    cr_assert_not(is_aligned(8193, 4096));
    cr_assert_eq(align_down(8191, 4096), 4096u);
    cr_assert_eq(align_up(4097, 4096), 8192u);
    cr_assert_eq(align_up(4096, 4096), 4096u);
    cr_assert_eq(align_up(77, 1), 77u);
}

Test(checked, div_round_up_does_not_wrap)
{
    cr_assert_eq(div_round_up(0, 7), 0u);
    cr_assert_eq(div_round_up(7, 7), 1u);
    cr_assert_eq(div_round_up(8, 7), 2u);
    cr_assert_eq(div_round_up(UINT64_MAX, 2), UINT64_C(1) << 63);
}

Test(checked, overflow_is_reported)
{
    uint64_t r;

    cr_assert_not(add_overflows(UINT64_MAX - 1, 1, &r));
    cr_assert_eq(r, UINT64_MAX);
    cr_assert(add_overflows(UINT64_MAX, 1, &r));
    cr_assert_not(mul_overflows(UINT64_C(1) << 32, (UINT64_C(1) << 32) - 1, &r));
    cr_assert(mul_overflows(UINT64_C(1) << 32, UINT64_C(1) << 32, &r));
}

Test(checked, range_inside_at_the_edges)
{
    cr_assert(range_inside(0, 0, 0));
    cr_assert(range_inside(10, 0, 10));
    cr_assert(range_inside(0, 10, 10));
    cr_assert_not(range_inside(1, 10, 10));
    cr_assert_not(range_inside(11, 0, 10));
    /* off + len overflows */
    cr_assert_not(range_inside(8, UINT64_MAX, 10));
}

Test(checked, overlap_needs_a_shared_byte)
{
    cr_assert(ranges_overlap(0, 10, 9, 1));
    cr_assert_not(ranges_overlap(0, 10, 10, 5));
    cr_assert_not(ranges_overlap(10, 5, 0, 10));
    cr_assert(ranges_overlap(5, 1, 0, 10));
}

/* Head, body and tail make up the range, and the body is all whole units in it. */
Test(checked, a_split_is_the_range_cut_at_units)
{
    for (uint64_t off = 0; off < 24; off++)
        for (uint64_t len = 0; len < 24; len++) {
            struct split s = split_range(off, len, 8);
            cr_assert(s.start == off && s.end == off + len);
            cr_assert(s.start <= s.first && s.first <= s.last && s.last <= s.end);
            cr_assert_lt(s.first - s.start, 8);
            cr_assert_lt(s.end - s.last, 8);
            cr_assert(s.first == s.last || (s.first % 8 == 0 && s.last % 8 == 0));
            cr_assert(off / 8 != (off + len) / 8 || off % 8 == 0 || s.first == s.end,
                      "within one unit all is head");
        }
}

Test(bytes, orders_at_odd_addresses)
{
    uint8_t buf[9] = {0};

    store_be32(buf + 1, 0x01020304);
    cr_assert(buf[1] == 1 && buf[2] == 2 && buf[3] == 3 && buf[4] == 4);
    cr_assert_eq(load_be32(buf + 1), 0x01020304u);
    cr_assert_eq(load_le32(buf + 1), 0x04030201u);
    store_le64(buf + 1, 0x0102030405060708);
    cr_assert(buf[1] == 8 && buf[8] == 1);
    cr_assert_eq(load_be64(buf + 1), 0x0807060504030201u);
    store_be16(buf + 1, 0xabcd);
    cr_assert_eq(load_le16(buf + 1), 0xcdabu);
    cr_assert_eq(buf[0], 0u);
}
