/* SPDX-License-Identifier: BSD-3-Clause */
/* A large set of bits that many threads set and one thread searches and clears.
 *
 * Three levels: a bit of an upper level says that the word below it isn't empty, so that a
 * search passes over 4096 clear bits with each bit of the second level, and over 262144
 * with each of the third.  Memory: a bit each, and 1.6 % more; pages never touched cost
 * nothing.
 *
 * Rules:
 *   (1) when hbits_set has returned, hbits_next_set finds the bits, until they are cleared:
 *       a bit is set first, then the word's bit above, and so on;
 *   (2) clearing empties the word, then clears the bit above, then looks at the word once
 *       more and sets the bit above again when somebody was faster;
 *   (3) an upper bit may be left set over an empty word, by a setter that was overtaken:
 *       that costs a look;
 *   (4) there is a full barrier before a set looks at bits and after a clear: who writes
 *       data and then sets, and who clears and then reads the data, can't both miss the
 *       other.
 * While setters run a search or a count tells of some moment of each word; "nothing is set"
 * is final only when no setter runs.
 *
 * Threads: hbits_set, hbits_test and hbits_count from any thread, never waiting;
 * hbits_next_*, hbits_clear from one thread at a time beside them, the owner's; init,
 * resize and destroy alone.  Offsets and counts are in bits.  Layer: block. */
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

/* All clear.  0 or -ENOMEM; to be destroyed in both cases. */
int hbits_init(struct hbits *h, uint64_t n_bits) MUST_USE;
void hbits_destroy(struct hbits *h);

/* [start, start+n) must lie inside the set. */
void hbits_set(struct hbits *h, uint64_t start, uint64_t n);

/* Returns how many of them were set. */
uint64_t hbits_clear(struct hbits *h, uint64_t start, uint64_t n);

bool hbits_test(const struct hbits *h, uint64_t bit);

/* How many are set: exact when nobody sets or clears. */
uint64_t hbits_count(const struct hbits *h);

/* The first set, or clear, bit in [from, end), or end.  The search for a clear bit reads
 * word by word: `end` bounds it. */
uint64_t hbits_next_set(const struct hbits *h, uint64_t from, uint64_t end);
uint64_t hbits_next_clear(const struct hbits *h, uint64_t from, uint64_t end);

/* Sets in `to` what is set in `from`, of the bits that both have.  The owner of `from`. */
void hbits_merge(struct hbits *to, const struct hbits *from);

/* New bits are clear.  0, or -ENOMEM with nothing changed. */
int hbits_resize(struct hbits *h, uint64_t n_bits) MUST_USE;

#endif
