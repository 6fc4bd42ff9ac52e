/* SPDX-License-Identifier: BSD-3-Clause */
/* A rate limit in slices: each slice allows speed * slice bytes; what a transfer takes over
 * that is carried into the next ones.  Used by one thread under its own lock.
 * Layer: jobs. */
#ifndef JOBS_RATELIMIT_H
#define JOBS_RATELIMIT_H

#include <stdint.h>

#define RATELIMIT_SLICE_NS 100000000ull

struct ratelimit {
    uint64_t speed;      /* bytes per second; 0: no limit */
    uint64_t free_at_ns; /* when everything accounted for is paid off */
};

/* What was carried is paid off at the new speed, so that nothing is gained by setting it.
 */
void ratelimit_set_speed(struct ratelimit *limit, uint64_t speed, uint64_t now_ns);

/* Accounts for bytes that were transferred; returns how long to sleep before the next, 0
 * while the present slice still has room. */
uint64_t ratelimit_account(struct ratelimit *limit, uint64_t bytes, uint64_t now_ns);

#endif
