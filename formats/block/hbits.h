/* SPDX-License-Identifier: BSD-3-Clause */
/* A large set of bits: many threads set bits, one thread searches and clears.
 *
 * There are three levels.  A bit of an upper level says that the word below it isn't empty.  So
 * a search skips 4096 clear bits with each bit of the second level, and 262144 with each bit of
 * the third.  Memory: one bit each, plus 1.6 %; pages that were never touched cost nothing.
 *
 * Rules:
 *   (1) when hbits_set has returned, hbits_next_set finds the bits until they are cleared: a bit
 *       is set first, then the bit above its word, and so on;
 *   (2) clearing empties the word, then clears the bit above, then looks at the word once more
 *       and sets the bit above again if another thread has set a bit meanwhile;
 *   (3) an upper bit may stay set over an empty word, when hbits_set was overtaken by a clear;
 *       that costs the search one look;
 *   (4) hbits_set has a full barrier before it looks at bits, and hbits_clear after it has
 *       cleared them.  So of a thread that writes data and then sets the bit, and a thread that
 *       clears the bit and then reads the data, at least one sees what the other has done.
 * While bits are being set, a search or a count reflects each word at some moment; "no bit is
 * set" is certain only when no thread sets bits.
 *
 * Threads: hbits_set, hbits_test and hbits_count from any thread, without waiting;
 * hbits_next_*, hbits_clear at the same time, but from one thread at a time (the owner's);
 * init, resize and destroy alone.  Offsets and counts are in bits.  Layer: block. */
#ifndef BLOCK_HBITS_H
#define BLOCK_HBITS_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/compiler.h"

#define HBITS_LEVELS 3

struct hbits {
    uint64_t n_bits;
    uint64_t n_words[HBITS_LEVELS]; /* [0]: the bits themselves */
    _Atomic uint64_t *words[HBITS_LEVELS];
    _Atomic int64_t count;
};

/* All bits are clear.  Returns 0 or -ENOMEM; hbits_destroy has to be called in both cases. */
int hbits_init(struct hbits *h, uint64_t n_bits) MUST_USE;
void hbits_destroy(struct hbits *h);

/* [start, start+n) must lie inside the set. */
void hbits_set(struct hbits *h, uint64_t start, uint64_t n);

/* Returns how many of the n bits were set. */
uint64_t hbits_clear(struct hbits *h, uint64_t start, uint64_t n);

bool hbits_test(const struct hbits *h, uint64_t bit);

/* The number of set bits: exact when no thread sets or clears. */
uint64_t hbits_count(const struct hbits *h);

/* The first set (or clear) bit in [from, end), or end.  The search for a clear bit goes word by
 * word, so its cost is bounded by `end` only. */
uint64_t hbits_next_set(const struct hbits *h, uint64_t from, uint64_t end);
uint64_t hbits_next_clear(const struct hbits *h, uint64_t from, uint64_t end);

/* Sets in `to` the bits that are set in `from`, as far as both sets reach.  To be called by the
 * owner of `from`. */
void hbits_merge(struct hbits *to, const struct hbits *from);

/* New bits are clear.  0, or -ENOMEM with nothing changed. */
int hbits_resize(struct hbits *h, uint64_t n_bits) MUST_USE;

#endif
