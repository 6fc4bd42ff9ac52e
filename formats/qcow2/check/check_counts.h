/* SPDX-License-Identifier: BSD-3-Clause */
/* The number of references to each host cluster, as a check counts them.  Private to this folder.
 *
 * Each cluster of the file has one byte; pages of the array that stay zero take no memory.  Counts
 * that don't fit into a byte are in a small hash table.  So memory is bounded by the length of
 * the file and the number of references in it, whatever the headers claim. */
#ifndef CHECK_COUNTS_H
#define CHECK_COUNTS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/compiler.h"

/* This value in `bytes` means that the count is in the hash table. */
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

/* Adds `weight` to the counts of the clusters [first, first+n), which all exist.  A count doesn't
 * exceed `max`; what couldn't be added is added to *lost.  0 or -ENOMEM. */
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
