/* SPDX-License-Identifier: BSD-3-Clause */
/* A small random number generator (splitmix64): the same seed gives the same numbers on every
 * machine.  Each thread needs its own. */
#ifndef SUPPORT_RNG_H
#define SUPPORT_RNG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

struct rng {
    uint64_t state;
};

static inline void rng_init(struct rng *rng, uint64_t seed)
{
    rng->state = seed;
}

static inline uint64_t rng_next(struct rng *rng)
{
    uint64_t z = (rng->state += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

/* 0..n-1; n is not 0. */
static inline uint64_t rng_below(struct rng *rng, uint64_t n)
{
    return rng_next(rng) % n;
}

/* lo..hi, both included. */
static inline uint64_t rng_between(struct rng *rng, uint64_t lo, uint64_t hi)
{
    return lo + rng_below(rng, hi - lo + 1);
}

/* True with the probability 1/n. */
static inline bool rng_one_in(struct rng *rng, uint64_t n)
{
    return rng_below(rng, n) == 0;
}

static inline void rng_fill(struct rng *rng, void *buf, size_t len)
{
    uint8_t *p = buf;

    for (uint64_t word = 0; len > 0; len--, word >>= 8) {
        if (word == 0)
            word = rng_next(rng);
        *p++ = (uint8_t)word;
    }
}

/* Random bytes that compress well: mostly runs of one value, with some noise. */
static inline void rng_texture(struct rng *rng, void *buf, size_t len)
{
    uint8_t *p = buf;

    for (size_t n; len > 0; len -= n, p += n) {
        n = (size_t)rng_between(rng, 1, 600);
        if (n > len)
            n = len;
        if (rng_one_in(rng, 6))
            rng_fill(rng, p, n);
        else
            memset(p, (int)rng_below(rng, 256), n);
    }
}

#endif
