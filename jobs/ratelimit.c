/* SPDX-License-Identifier: BSD-3-Clause */
/* Rate limits. */
#include "base/compiler.h"
#include "jobs/ratelimit.h"

/* Clamps to thirty years, to avoid overflow. */
static uint64_t in_ns(long double ns)
{
    return ns > 1e18L ? (uint64_t)1e18 : (uint64_t)ns;
}

void ratelimit_set_speed(struct ratelimit *limit, uint64_t speed, uint64_t now_ns)
{
    uint64_t owed_ns =
        limit->speed && limit->free_at_ns > now_ns ? limit->free_at_ns - now_ns : 0;

    limit->free_at_ns = now_ns;
    if (speed)
        limit->free_at_ns +=
            in_ns((long double)owed_ns * (long double)limit->speed / (long double)speed);
    limit->speed = speed;
}

uint64_t ratelimit_account(struct ratelimit *limit, uint64_t bytes, uint64_t now_ns)
{
    if (limit->speed == 0)
        return 0;
    /* Unused time isn't saved up: a burst lasts a slice at most. */
    if (limit->free_at_ns < now_ns)
        limit->free_at_ns = now_ns;
    long double cost = (long double)bytes * 1e9L / (long double)limit->speed;
    limit->free_at_ns += in_ns(cost);
    uint64_t ahead = limit->free_at_ns - now_ns;
    return ahead > RATELIMIT_SLICE_NS ? ahead - RATELIMIT_SLICE_NS : 0;
}
