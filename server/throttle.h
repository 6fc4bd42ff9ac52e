/* SPDX-License-Identifier: BSD-3-Clause */
/* Limits of what is done per second, as QEMU has them (docs/throttle.txt there): for bytes and
 * for operations, together or for reads and writes apart, each an average and, if wanted, a
 * higher rate for some seconds.
 *
 * Each limit is a bucket that leaks at the average.  What is done goes in, and who comes when
 * it is over its brim waits until it isn't.  The brim is a tenth of a second's average, or what
 * the higher rate gives in its seconds; a second bucket, which leaks at the higher rate, holds
 * that one down when it may last longer than a second.
 *
 * Plain sums: the caller has the clock and the lock.  Layer: server. */
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
    uint64_t average;       /* per second; 0: no limit */
    uint64_t burst;         /* per second; 0: none is allowed */
    uint64_t burst_seconds; /* how long; 1 when there is none */
};

struct throttle_config {
    struct throttle_limit limit[THROTTLE_KINDS];
    uint64_t op_size; /* a larger operation counts as so many of this size; 0: as one */
};

/* Nothing is limited. */
void throttle_config_init(struct throttle_config *config);

bool throttle_config_is_any(const struct throttle_config *config);

/* What is wrong with it, in QEMU's words; NULL: nothing. */
const char *throttle_config_fault(const struct throttle_config *config);

struct throttle {
    struct throttle_config config; /* has no fault */
    struct {
        double level, burst_level;
    } bucket[THROTTLE_KINDS];
    uint64_t leaked_ns;
};

/* With all buckets empty. */
void throttle_set(struct throttle *throttle, const struct throttle_config *config,
                  uint64_t now_ns);

/* How long an operation that wants to begin has to wait at least, an hour at most; 0: it may
 * begin. */
uint64_t throttle_wait_ns(struct throttle *throttle, bool is_write, uint64_t now_ns);

/* One has begun. */
void throttle_account(struct throttle *throttle, bool is_write, uint64_t bytes);

#endif
