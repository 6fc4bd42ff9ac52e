/* SPDX-License-Identifier: BSD-3-Clause */
/* Counting references in a byte per cluster, and a hash table for large counts. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "qcow2/check/check_counts.h"

int counts_init(struct counts *counts, uint64_t n)
{
    *counts = (struct counts){.n = n};
    /* calloc gets large areas from the kernel, which provides pages when they are first used. */
    counts->bytes = calloc(n + 1, 1);
    return counts->bytes ? 0 : -ENOMEM;
}

void counts_free(struct counts *counts)
{
    free(counts->bytes);
    free(counts->large);
    *counts = (struct counts){0};
}

/* The slot of a cluster, or the unused slot in which it has to be put. */
static struct large_count *find_slot(struct large_count *slots, size_t capacity,
                                     uint64_t cluster)
{
    size_t at = (size_t)(cluster * 0x9e3779b97f4a7c15u >> 20) & (capacity - 1);

    while (slots[at].count && slots[at].cluster != cluster)
        at = (at + 1) & (capacity - 1);
    return &slots[at];
}

static int grow_large(struct counts *counts)
{
    size_t capacity = counts->capacity ? counts->capacity * 2 : 64;
    struct large_count *slots = calloc(capacity, sizeof *slots);

    if (!slots)
        return -ENOMEM;
    for (size_t i = 0; i < counts->capacity; i++)
        if (counts->large[i].count)
            *find_slot(slots, capacity, counts->large[i].cluster) = counts->large[i];
    free(counts->large);
    counts->large = slots;
    counts->capacity = capacity;
    return 0;
}

uint64_t counts_get(const struct counts *counts, uint64_t cluster)
{
    uint8_t byte = counts->bytes[cluster];

    if (byte != COUNT_LARGE)
        return byte;
    return find_slot(counts->large, counts->capacity, cluster)->count;
}

static int set_large(struct counts *counts, uint64_t cluster, uint64_t count)
{
    if (counts->n_large * 2 >= counts->capacity && grow_large(counts))
        return -ENOMEM;
    struct large_count *slot = find_slot(counts->large, counts->capacity, cluster);
    if (!slot->count)
        counts->n_large++;
    *slot = (struct large_count){cluster, count};
    counts->bytes[cluster] = COUNT_LARGE;
    return 0;
}

static int add_one(struct counts *counts, uint64_t cluster, uint64_t weight, uint64_t max,
                   uint64_t *lost)
{
    uint64_t old = counts_get(counts, cluster);
    uint64_t room = old < max ? max - old : 0;

    if (weight > room) {
        *lost += weight - room;
        weight = room;
    }
    if (old + weight >= COUNT_LARGE)
        return set_large(counts, cluster, old + weight);
    counts->bytes[cluster] = (uint8_t)(old + weight);
    return 0;
}

int counts_add(struct counts *counts, uint64_t first, uint64_t n, uint64_t weight,
               uint64_t max, uint64_t *lost)
{
    uint8_t *bytes = counts->bytes + first;
    uint64_t limit = MIN(max, COUNT_LARGE - 1);

    if (weight <= limit) {
        /* Two simple loops, which compilers vectorise. */
        uint8_t highest = (uint8_t)(limit - weight);
        unsigned over = 0;
        for (uint64_t i = 0; i < n; i++)
            over |= bytes[i] > highest;
        if (!over) {
            for (uint64_t i = 0; i < n; i++)
                bytes[i] = (uint8_t)(bytes[i] + weight);
            return 0;
        }
    }
    for (uint64_t i = 0; i < n; i++)
        if (add_one(counts, first + i, weight, max, lost))
            return -ENOMEM;
    return 0;
}

bool bits_any(const uint8_t *bits, uint64_t first, uint64_t n)
{
    uint64_t end = first + n;

    for (; first < end && first % 8; first++)
        if (bit_test(bits, first))
            return true;
    for (; first + 8 <= end; first += 8)
        if (bits[first / 8])
            return true;
    for (; first < end; first++)
        if (bit_test(bits, first))
            return true;
    return false;
}
