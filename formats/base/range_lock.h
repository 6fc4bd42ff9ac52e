/* SPDX-License-Identifier: BSD-3-Clause */
/* Locked ranges of something long: of a disk, a file, a copy.  Whoever changes what others
 * must not see half done, or change at the same time, locks the range exclusively; those
 * who don't mind each other, but mind him, share it.
 *
 * First come, first served among overlapping ranges, so that nobody starves.  A locked
 * range may span I/O; the list's mutex never does.  A thread has at most one range of a
 * lock at a time, so that nobody can deadlock.
 *
 * Threads: every function from any thread; init and destroy alone.  Layer: base. */
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

/* The owner's, who keeps it where it is: mostly on a stack. */
struct locked_range {
    struct list link;
    struct range_lock *owner;
    uint64_t start, end;
    enum range_mode mode;
};

/* rank: of the list's mutex, which is held for moments. */
void range_lock_init(struct range_lock *rl, enum lock_rank rank);
/* No range may be locked. */
void range_lock_destroy(struct range_lock *rl);

/* Waits until nobody who came earlier stands in the way of [start, end); an end of
 * UINT64_MAX is everything from start on. */
void range_lock_acquire(struct range_lock *rl, struct locked_range *range, uint64_t start,
                        uint64_t end, enum range_mode mode);

/* Never waits: locks exclusively as much of [start, end), from start on, as nobody has or
 * waits for.  Returns how many bytes; 0: nothing is locked. */
uint64_t range_lock_try_acquire(struct range_lock *rl, struct locked_range *range,
                                uint64_t start, uint64_t end) MUST_USE;

void range_lock_release(struct locked_range *range);

/* Locks [start, end) exclusively until the end of the enclosing scope. */
#define RANGE_LOCK_GUARD(rl, start, end)                                          \
    struct locked_range LOCK_PASTE(range_, __LINE__) CLEANUP(range_lock_release); \
    range_lock_acquire(rl, &LOCK_PASTE(range_, __LINE__), start, end, RANGE_EXCLUSIVE)

#endif
