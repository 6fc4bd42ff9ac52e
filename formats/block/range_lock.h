/* SPDX-License-Identifier: BSD-3-Clause */
/* Locked guest ranges: requests that change the same clusters' mapping go one after the
 * other. A request holds at most one range of a lock at a time, so nobody can deadlock.
 * First come, first served among overlapping ranges.  The locked range may span I/O. Layer:
 * block. */
#ifndef BLOCK_RANGE_LOCK_H
#define BLOCK_RANGE_LOCK_H

#include <stdint.h>

#include "base/list.h"
#include "base/lock.h"

struct range_lock {
    struct lock lock;
    /* under lock */
    struct list held; /* struct range_hold.link, in order of arrival */
    unsigned waiting;
    pthread_cond_t freed;
};

/* On the holder's stack. */
struct range_hold {
    struct list link;
    struct range_lock *owner;
    uint64_t start, end;
};

void range_lock_init(struct range_lock *rl);
void range_lock_destroy(struct range_lock *rl);

/* Waits until no earlier hold overlaps [start, end). */
void range_lock_acquire(struct range_lock *rl, struct range_hold *hold, uint64_t start,
                        uint64_t end);
void range_lock_release(struct range_hold *hold);

#endif
