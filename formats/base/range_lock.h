/* SPDX-License-Identifier: BSD-3-Clause */
/* Locks on ranges of a disk, a file or a copy.  Operations that must not overlap with any other
 * lock their range exclusively.  Operations that may overlap with each other, but not with
 * those, share it.
 *
 * Overlapping ranges are granted in the order of their requests, so that none starves.  A range
 * may stay locked across I/O; the mutex of the list never does.  A thread holds at most one
 * range of a lock at a time, so there are no deadlocks.
 *
 * Threads: every function from any thread; init and destroy while no other thread uses it.
 * Layer: base. */
#ifndef BASE_RANGE_LOCK_H
#define BASE_RANGE_LOCK_H

#include <stdint.h>

#include "base/list.h"
#include "base/lock.h"

struct range_lock {
    struct lock lock;
    /* under lock */
    struct list ranges; /* struct locked_range.link, granted or not, in order of arrival */
    unsigned waiting;
    pthread_cond_t released;
};

enum range_mode { RANGE_SHARED, RANGE_EXCLUSIVE };

/* The caller owns it, usually on the stack, and must not move it while it is locked. */
struct locked_range {
    struct list link;
    struct range_lock *owner;
    uint64_t start, end;
    enum range_mode mode;
};

/* rank: of the list's mutex, which is held briefly. */
void range_lock_init(struct range_lock *rl, enum lock_rank rank);
/* No range may be locked. */
void range_lock_destroy(struct range_lock *rl);

/* Waits until no earlier request for an overlapping range conflicts with [start, end).  An end
 * of UINT64_MAX means everything from start on. */
void range_lock_acquire(struct range_lock *rl, struct locked_range *range, uint64_t start,
                        uint64_t end, enum range_mode mode);

/* Never waits: locks exclusively the longest part of [start, end) that begins at start and that
 * nobody holds or waits for.  Returns its length in bytes; 0: nothing is locked. */
uint64_t range_lock_try_acquire(struct range_lock *rl, struct locked_range *range,
                                uint64_t start, uint64_t end) MUST_USE;

void range_lock_release(struct locked_range *range);

/* Locks [start, end) exclusively until the end of the enclosing scope. */
#define RANGE_LOCK_GUARD(rl, start, end)                                          \
    struct locked_range LOCK_PASTE(range_, __LINE__) CLEANUP(range_lock_release); \
    range_lock_acquire(rl, &LOCK_PASTE(range_, __LINE__), start, end, RANGE_EXCLUSIVE)

#endif
