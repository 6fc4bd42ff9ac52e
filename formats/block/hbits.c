/* SPDX-License-Identifier: BSD-3-Clause */
/* Three levels of words, set without a lock. */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>

#include "base/checked.h"
#include "base/fence.h"
#include "block/hbits.h"

#define WORD_BITS 64u
#define TOP       (HBITS_LEVELS - 1)

/* A mask of the bits of a word that lie in [start, end); there is at least one. */
static uint64_t mask_in_word(uint64_t word, uint64_t start, uint64_t end)
{
    uint64_t first = word * WORD_BITS, mask = UINT64_MAX;

    if (start > first)
        mask <<= start - first;
    if (end - first < WORD_BITS)
        mask &= UINT64_MAX >> (WORD_BITS - (end - first));
    return mask;
}

static unsigned count_ones(uint64_t v)
{
    return (unsigned)__builtin_popcountll(v);
}

int hbits_init(struct hbits *h, uint64_t n_bits)
{
    uint64_t n = n_bits;

    *h = (struct hbits){.n_bits = n_bits};
    for (unsigned level = 0; level < HBITS_LEVELS; level++) {
        n = div_round_up(n, WORD_BITS);
        if (n > SIZE_MAX / sizeof(uint64_t))
            return -ENOMEM;
        h->n_words[level] = n;
        h->words[level] = calloc(n ? n : 1, sizeof(uint64_t));
        if (!h->words[level])
            return -ENOMEM;
    }
    return 0;
}

void hbits_destroy(struct hbits *h)
{
    for (unsigned level = 0; level < HBITS_LEVELS; level++)
        free((void *)h->words[level]);
    *h = (struct hbits){0};
}

/* ---- setting ---- */

/* Sets bits of a level, and the bits above their words even if another thread made these words
 * non-empty (rule 1).  Returns how many were clear. */
static uint64_t set_level(struct hbits *h, unsigned level, uint64_t start, uint64_t end)
{
    uint64_t first = start / WORD_BITS, last = (end - 1) / WORD_BITS, added = 0;

    for (uint64_t w = first; w <= last; w++) {
        _Atomic uint64_t *word = &h->words[level][w];
        uint64_t mask = mask_in_word(w, start, end);
        /* Usually the bits are set already, and reading doesn't take the cache line away from
         * other processors. */
        if ((atomic_load(word) & mask) == mask)
            continue;
        added += count_ones(mask & ~atomic_fetch_or(word, mask));
    }
    if (level < TOP)
        set_level(h, level + 1, first, last + 1);
    return added;
}

void hbits_set(struct hbits *h, uint64_t start, uint64_t n)
{
    assert(range_inside(start, n, h->n_bits));
    if (n == 0)
        return;
    full_fence();
    uint64_t added = set_level(h, 0, start, start + n);
    if (added)
        atomic_fetch_add(&h->count, (int64_t)added);
}

/* ---- searching ---- */

/* The first word of a level in [from, end) that isn't empty, or end. */
static uint64_t next_word(const struct hbits *h, unsigned level, uint64_t from,
                          uint64_t end)
{
    if (level == TOP) {
        while (from < end && atomic_load(&h->words[TOP][from]) == 0)
            from++;
        return from;
    }
    while (from < end) {
        uint64_t parent = from / WORD_BITS;
        uint64_t bits = atomic_load(&h->words[level + 1][parent]);
        bits &= UINT64_MAX << from % WORD_BITS;
        if (bits == 0) {
            parent = next_word(h, level + 1, parent + 1, div_round_up(end, WORD_BITS));
            from = parent * WORD_BITS;
            continue;
        }
        from = parent * WORD_BITS + (unsigned)__builtin_ctzll(bits);
        if (from < end && atomic_load(&h->words[level][from]) != 0)
            return from;
        from++; /* rule (3) */
    }
    return end;
}

uint64_t hbits_next_set(const struct hbits *h, uint64_t from, uint64_t end)
{
    assert(end <= h->n_bits);
    while (from < end) {
        uint64_t w = from / WORD_BITS;
        uint64_t bits = atomic_load(&h->words[0][w]) & mask_in_word(w, from, end);
        if (bits)
            return w * WORD_BITS + (unsigned)__builtin_ctzll(bits);
        w = next_word(h, 0, w + 1, div_round_up(end, WORD_BITS));
        from = w * WORD_BITS;
    }
    return end;
}

uint64_t hbits_next_clear(const struct hbits *h, uint64_t from, uint64_t end)
{
    assert(end <= h->n_bits);
    while (from < end) {
        uint64_t w = from / WORD_BITS;
        uint64_t bits = ~atomic_load(&h->words[0][w]) & mask_in_word(w, from, end);
        if (bits)
            return w * WORD_BITS + (unsigned)__builtin_ctzll(bits);
        from = (w + 1) * WORD_BITS;
    }
    return end;
}

bool hbits_test(const struct hbits *h, uint64_t bit)
{
    assert(bit < h->n_bits);
    return atomic_load(&h->words[0][bit / WORD_BITS]) >> bit % WORD_BITS & 1;
}

uint64_t hbits_count(const struct hbits *h)
{
    int64_t count = atomic_load(&h->count);

    /* A bit's clearing may be counted before its setting, so the count may be negative for a
     * moment. */
    return count > 0 ? (uint64_t)count : 0;
}

/* ---- clearing ---- */

/* For a word that became empty: rule (2). */
static void clear_parent_bit(struct hbits *h, unsigned level, uint64_t w)
{
    if (level == TOP)
        return;
    _Atomic uint64_t *parent = &h->words[level + 1][w / WORD_BITS];
    uint64_t bit = 1ull << w % WORD_BITS;
    uint64_t others = atomic_fetch_and(parent, ~bit) & ~bit;
    if (atomic_load(&h->words[level][w]) != 0)
        set_level(h, level + 1, w, w + 1);
    else if (others == 0)
        clear_parent_bit(h, level + 1, w / WORD_BITS);
}

uint64_t hbits_clear(struct hbits *h, uint64_t start, uint64_t n)
{
    uint64_t end = start + n, end_word = div_round_up(end, WORD_BITS), cleared = 0;

    assert(range_inside(start, n, h->n_bits));
    if (n == 0)
        return 0;
    for (uint64_t w = start / WORD_BITS; (w = next_word(h, 0, w, end_word)) < end_word;
         w++) {
        uint64_t mask = mask_in_word(w, start, end);
        uint64_t old = atomic_fetch_and(&h->words[0][w], ~mask);
        cleared += count_ones(old & mask);
        if ((old & mask) && !(old & ~mask))
            clear_parent_bit(h, 0, w);
    }
    if (cleared)
        atomic_fetch_sub(&h->count, (int64_t)cleared);
    full_fence();
    return cleared;
}

/* ---- whole sets ---- */

void hbits_merge(struct hbits *to, const struct hbits *from)
{
    uint64_t end = MIN(to->n_bits, from->n_bits);

    for (uint64_t bit = hbits_next_set(from, 0, end); bit < end;) {
        uint64_t stop = hbits_next_clear(from, bit, end);
        hbits_set(to, bit, stop - bit);
        bit = hbits_next_set(from, stop, end);
    }
}

int hbits_resize(struct hbits *h, uint64_t n_bits)
{
    struct hbits resized;

    int err = hbits_init(&resized, n_bits);
    if (err) {
        hbits_destroy(&resized);
        return err;
    }
    hbits_merge(&resized, h);
    hbits_destroy(h);
    *h = resized;
    return 0;
}
