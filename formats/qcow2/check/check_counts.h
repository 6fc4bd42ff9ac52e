/* SPDX-License-Identifier: BSD-3-Clause */
/* The references to each host cluster, counted anew by a check.
 *
 * One byte for each cluster of the file, which takes memory only where something is
 * counted; what doesn't fit a byte is in a small hash table.  So the memory is bounded by
 * the size of the file and the references in it, whatever headers claim.  Private to this
 * folder. */
#ifndef CHECK_COUNTS_H
#define CHECK_COUNTS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/compiler.h"

/* In `bytes`: the count is in the hash table. */
#define COUNT_LARGE 255

struct large_count {
    uint64_t cluster, count; /* count 0: unused slot */
};

struct counts {
    uint8_t *bytes;
    uint64_t n; /* clusters */
    struct large_count *large;
    size_t n_large, capacity;
};

int counts_init(struct counts *counts, uint64_t n) MUST_USE;
void counts_free(struct counts *counts);

uint64_t counts_get(const struct counts *counts, uint64_t cluster);

/* Adds `weight` to each of the clusters [first, first+n), all of them inside, but never
 * beyond `max`; what was left out is added to *lost.  0 or -ENOMEM. */
int counts_add(struct counts *counts, uint64_t first, uint64_t n, uint64_t weight,
               uint64_t max, uint64_t *lost) MUST_USE;

/* Bitmaps of clusters. */
static inline bool bit_test(const uint8_t *bits, uint64_t i)
{
    return bits[i / 8] >> (i % 8) & 1;
}

static inline void bit_set(uint8_t *bits, uint64_t i)
{
    bits[i / 8] = (uint8_t)(bits[i / 8] | 1u << (i % 8));
}

/* Is any bit of [first, first+n) set? */
bool bits_any(const uint8_t *bits, uint64_t first, uint64_t n);

#endif
