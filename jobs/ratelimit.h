/* SPDX-License-Identifier: BSD-3-Clause */
/* A rate limit with slices of time: each slice allows speed * slice bytes, and a larger
 * transfer is carried over into the next slices.  The caller holds a lock.  Layer: jobs. */
#ifndef JOBS_RATELIMIT_H
#define JOBS_RATELIMIT_H

#include <stdint.h>

#define RATELIMIT_SLICE_NS 100000000ull

struct ratelimit {
    uint64_t speed;      /* bytes per second; 0: no limit */
    uint64_t free_at_ns; /* when everything accounted for is paid off, at `speed` */
};

/* What was carried over is paid off at the new speed, so setting the speed gains nothing. */
void ratelimit_set_speed(struct ratelimit *limit, uint64_t speed, uint64_t now_ns);

/* Accounts for transferred bytes.  Returns how long (ns) to sleep before the next transfer;
 * 0 while the present slice has room. */
uint64_t ratelimit_account(struct ratelimit *limit, uint64_t bytes, uint64_t now_ns);

#endif
