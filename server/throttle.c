/* SPDX-License-Identifier: BSD-3-Clause */
/* Limits per second: leaky buckets. */
#include "throttle.h"

#include <stddef.h>

#include "base/compiler.h"

#define SECOND_NS  1e9
#define LONGEST_NS (3600 * SECOND_NS)

void throttle_config_init(struct throttle_config *config)
{
    *config = (struct throttle_config){0};
    for (unsigned kind = 0; kind < THROTTLE_KINDS; kind++)
        config->limit[kind].burst_seconds = 1;
}

bool throttle_config_is_any(const struct throttle_config *config)
{
    for (unsigned kind = 0; kind < THROTTLE_KINDS; kind++)
        if (config->limit[kind].average)
            return true;
    return false;
}

/* ---- checking ---- */

/* `total` points to three limits, of bytes or of operations: both directions, reads,
 * writes. */
static bool is_said_twice(const struct throttle_limit *total)
{
    return (total[0].average && (total[1].average || total[2].average)) ||
           (total[0].burst && (total[1].burst || total[2].burst));
}

static const char *limit_fault(const struct throttle_limit *limit)
{
    if (limit->average > THROTTLE_MAX_VALUE || limit->burst > THROTTLE_MAX_VALUE)
        return "bps/iops/max values must be within [0, 1000000000000000]";
    if (!limit->burst_seconds)
        return "the burst length cannot be 0";
    if (limit->burst_seconds > 1 && !limit->burst)
        return "burst length set without burst rate";
    if (limit->burst && limit->burst_seconds > THROTTLE_MAX_VALUE / limit->burst)
        return "burst length too high for this burst rate";
    if (limit->burst && !limit->average)
        return "bps_max/iops_max require corresponding bps/iops values";
    if (limit->burst && limit->burst < limit->average)
        return "bps_max/iops_max cannot be lower than bps/iops";
    return NULL;
}

const char *throttle_config_fault(const struct throttle_config *config)
{
    const struct throttle_limit *iops = &config->limit[THROTTLE_IOPS];

    if (is_said_twice(&config->limit[THROTTLE_BPS]) || is_said_twice(iops))
        return "bps/iops/max total values and read/write values cannot be used at the same "
               "time";
    if (config->op_size && !iops[0].average && !iops[1].average && !iops[2].average)
        return "iops size requires an iops value to be set";
    for (unsigned kind = 0; kind < THROTTLE_KINDS; kind++) {
        const char *fault = limit_fault(&config->limit[kind]);
        if (fault)
            return fault;
    }
    return NULL;
}

/* ---- the buckets ---- */

/* The buckets that a read, and those that a write counts in. */
static const enum throttle_kind of_direction[2][4] = {
    {THROTTLE_BPS, THROTTLE_BPS_READ, THROTTLE_IOPS, THROTTLE_IOPS_READ},
    {THROTTLE_BPS, THROTTLE_BPS_WRITE, THROTTLE_IOPS, THROTTLE_IOPS_WRITE},
};

void throttle_set(struct throttle *throttle, const struct throttle_config *config,
                  uint64_t now_ns)
{
    *throttle = (struct throttle){.config = *config, .leaked_ns = now_ns};
}

static double less(double level, double leak)
{
    return level > leak ? level - leak : 0;
}

static void leak(struct throttle *throttle, uint64_t now_ns)
{
    if (now_ns <= throttle->leaked_ns)
        return;
    double seconds = (double)(now_ns - throttle->leaked_ns) / SECOND_NS;
    throttle->leaked_ns = now_ns;
    for (unsigned kind = 0; kind < THROTTLE_KINDS; kind++) {
        const struct throttle_limit *limit = &throttle->config.limit[kind];
        throttle->bucket[kind].level =
            less(throttle->bucket[kind].level, (double)limit->average * seconds);
        throttle->bucket[kind].burst_level =
            less(throttle->bucket[kind].burst_level, (double)limit->burst * seconds);
    }
}

static double leak_time_ns(double level, double brim, uint64_t per_second)
{
    return level > brim ? (level - brim) * SECOND_NS / (double)per_second : 0;
}

static double bucket_wait_ns(const struct throttle *throttle, enum throttle_kind kind)
{
    const struct throttle_limit *limit = &throttle->config.limit[kind];
    double average = (double)limit->average, burst = (double)limit->burst;

    if (!limit->average)
        return 0;
    double brim = limit->burst ? burst * (double)limit->burst_seconds : average / 10;
    double wait = leak_time_ns(throttle->bucket[kind].level, brim, limit->average);
    if (limit->burst_seconds == 1)
        return wait;
    double slower =
        leak_time_ns(throttle->bucket[kind].burst_level, burst / 10, limit->burst);
    return MAX(wait, slower);
}

uint64_t throttle_wait_ns(struct throttle *throttle, bool is_write, uint64_t now_ns)
{
    double longest = 0;

    leak(throttle, now_ns);
    for (unsigned i = 0; i < 4; i++)
        longest = MAX(longest, bucket_wait_ns(throttle, of_direction[is_write][i]));
    /* + 1: a wait that is rounded down to 0 would never be waited for. */
    return longest > 0 ? (uint64_t)MIN(longest, LONGEST_NS) + 1 : 0;
}

void throttle_account(struct throttle *throttle, bool is_write, uint64_t bytes)
{
    uint64_t op_size = throttle->config.op_size;
    double ops = op_size && bytes > op_size ? (double)bytes / (double)op_size : 1;

    for (unsigned i = 0; i < 4; i++) {
        enum throttle_kind kind = of_direction[is_write][i];
        double units = kind < THROTTLE_IOPS ? (double)bytes : ops;
        if (!throttle->config.limit[kind].average)
            continue;
        throttle->bucket[kind].level += units;
        throttle->bucket[kind].burst_level += units;
    }
}
