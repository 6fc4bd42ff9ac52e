/* SPDX-License-Identifier: BSD-3-Clause */
/* Arithmetic on 64-bit offsets: alignment, and sums that report overflow.
 * Alignments are powers of two.  Layer: base. */
#ifndef BASE_CHECKED_H
#define BASE_CHECKED_H

#include <stdbool.h>
#include <stdint.h>

#include "base/compiler.h"

static inline bool is_power_of_two(uint64_t v)
{
    return v != 0 && (v & (v - 1)) == 0;
}

static inline bool is_aligned(uint64_t v, uint64_t align)
{
    return (v & (align - 1)) == 0;
}

static inline uint64_t align_down(uint64_t v, uint64_t align)
{
    return v & ~(align - 1);
}

/* The caller knows that v + align doesn't overflow; values from disk use add_overflows. */
static inline uint64_t align_up(uint64_t v, uint64_t align)
{
    return (v + align - 1) & ~(align - 1);
}

static inline uint64_t div_round_up(uint64_t v, uint64_t by)
{
    return v / by + (v % by != 0);
}

/* A range divided at unit boundaries: the body consists of whole units, head and tail cover one
 * unit in part.  A range that contains no boundary is all head. */
struct split {
    uint64_t start, first, last, end; /* head [start,first), body [first,last), tail
                                         [last,end) */
};

/* The caller knows that off + len + unit doesn't overflow. */
static inline struct split split_range(uint64_t off, uint64_t len, uint64_t unit)
{
    struct split s = {.start = off, .end = off + len};

    s.first = align_up(off, unit);
    s.last = align_down(s.end, unit);
    if (s.last < s.first)
        s.first = s.last = s.end;
    return s;
}

/* True when the result doesn't fit; *sum is then meaningless. */
static inline MUST_USE bool add_overflows(uint64_t a, uint64_t b, uint64_t *sum)
{
    return __builtin_add_overflow(a, b, sum);
}

static inline MUST_USE bool mul_overflows(uint64_t a, uint64_t b, uint64_t *product)
{
    return __builtin_mul_overflow(a, b, product);
}

/* Is [off, off+len) inside [0, size)? */
static inline bool range_inside(uint64_t off, uint64_t len, uint64_t size)
{
    return off <= size && len <= size - off;
}

/* Do [a, a+a_len) and [b, b+b_len) share a byte?  Neither may wrap. */
static inline bool ranges_overlap(uint64_t a, uint64_t a_len, uint64_t b, uint64_t b_len)
{
    return a < b + b_len && b < a + a_len;
}

#endif
