/* SPDX-License-Identifier: BSD-3-Clause */
/* Limits per second, as QEMU has them (its docs/throttle.txt): for bytes and for operations,
 * for both directions together or for each; each limit is an average, optionally with a higher
 * rate for some seconds (burst).
 *
 * Each limit is a leaky bucket.  An operation adds its units to the bucket, which leaks at the
 * average rate; an operation that finds the bucket above its brim waits until it isn't.  The
 * brim is what the average allows in a tenth of a second, or what the burst rate allows in its
 * seconds.  If a burst may last longer than a second, a second bucket, which leaks at the burst
 * rate, limits that rate.
 *
 * Pure arithmetic: the caller passes the time and holds the lock.  Layer: server. */
#ifndef SERVER_THROTTLE_H
#define SERVER_THROTTLE_H

#include <stdbool.h>
#include <stdint.h>

/* In the order in which QEMU lists them. */
enum throttle_kind {
    THROTTLE_BPS,
    THROTTLE_BPS_READ,
    THROTTLE_BPS_WRITE,
    THROTTLE_IOPS,
    THROTTLE_IOPS_READ,
    THROTTLE_IOPS_WRITE,
    THROTTLE_KINDS,
};

#define THROTTLE_MAX_VALUE 1000000000000000u

struct throttle_limit {
    uint64_t average;       /* units per second; 0: no limit */
    uint64_t burst;         /* units per second; 0: no burst */
    uint64_t burst_seconds; /* length of a burst; 1 without a burst */
};

struct throttle_config {
    struct throttle_limit limit[THROTTLE_KINDS];
    /* bytes; a larger operation counts as several of this size; 0: as one */
    uint64_t op_size;
};

/* Sets: nothing is limited. */
void throttle_config_init(struct throttle_config *config);

bool throttle_config_is_any(const struct throttle_config *config);

/* What is wrong with the config, in QEMU's words; NULL: nothing. */
const char *throttle_config_fault(const struct throttle_config *config);

struct throttle {
    struct throttle_config config; /* without faults */
    struct {
        double level, burst_level;
    } bucket[THROTTLE_KINDS];
    uint64_t leaked_ns;
};

/* Sets the limits, and empties all buckets. */
void throttle_set(struct throttle *throttle, const struct throttle_config *config,
                  uint64_t now_ns);

/* How long (ns) an operation has to wait before it can begin, at most one hour; 0: it can begin
 * now. */
uint64_t throttle_wait_ns(struct throttle *throttle, bool is_write, uint64_t now_ns);

/* Counts an operation that begins. */
void throttle_account(struct throttle *throttle, bool is_write, uint64_t bytes);

#endif
