/* SPDX-License-Identifier: BSD-3-Clause */
/* The clock for delays and deadlines: CLOCK_MONOTONIC, so changes of the time of day don't
 * affect it.  Threads: any.  Layer: base. */
#ifndef BASE_CLOCK_H
#define BASE_CLOCK_H

#include <stdint.h>
#include <time.h>

static inline uint64_t clock_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static inline uint64_t clock_ms(void)
{
    return clock_ns() / 1000000;
}

/* Sleeps for ns nanoseconds, less than a second. */
static inline void clock_nap_ns(uint32_t ns)
{
    nanosleep(&(struct timespec){.tv_nsec = (long)ns}, NULL);
}

#endif
