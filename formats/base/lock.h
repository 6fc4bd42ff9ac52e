/* SPDX-License-Identifier: BSD-3-Clause */
/* Mutexes with a rank: the lock order is the list below, and debug builds assert it.  A thread
 * takes locks in rising rank only.  Layer: base.
 *
 * Locks up to RANK_HEADER may be held across I/O.  Those from RANK_LAYERS on may not, which
 * storage calls assert (lock_assert_io_allowed). */
#ifndef BASE_LOCK_H
#define BASE_LOCK_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/compiler.h"

enum lock_rank {
    RANK_JOB_LIST = 1, /* jobs: the list of jobs */
    RANK_JOB,          /* jobs: a job's state */
    RANK_OPEN,         /* server: first writable open of an export */
    RANK_KEEP,         /* block: storing, removing or resizing bitmaps kept in the image */
    RANK_IN_USE,       /* a driver marking stored bitmaps as in use, or stored */
    RANK_RANGE,        /* block: the list of locked guest ranges (the ranges span I/O) */
    RANK_TABLE,        /* a driver installing or copying an L2 table */
    RANK_PACK,         /* a driver finding a place beside other compressed clusters */
    RANK_GROWTH,       /* a driver extending the file or adding allocation metadata */
    RANK_RECLAIM,      /* a driver dropping references to clusters */
    RANK_HEADER,       /* a driver writing its header */
    RANK_LAYERS,       /* block: which images are shared by chains */
    RANK_COMMIT,       /* mcache: which thread leads a commit */
    RANK_POOL,         /* mcache: the pages of all images, for eviction */
    RANK_META,         /* mcache: every in-memory change of metadata */
    RANK_LOAD,         /* mcache: waiting for a page that is being loaded */
    RANK_LEAF,         /* anything that takes no other lock: timers, bounce buffers */
    RANK_COUNT
};

struct lock {
    pthread_mutex_t mutex;
    enum lock_rank rank;
};

void lock_init(struct lock *lock, enum lock_rank rank);
void lock_destroy(struct lock *lock);
void lock_acquire(struct lock *lock);
void lock_release(struct lock *lock);

/* Takes the lock if it is free; returns false otherwise.  Never waits. */
bool lock_try_acquire(struct lock *lock) MUST_USE;

/* Waits on cond; the lock is released meanwhile. */
void lock_wait(struct lock *lock, pthread_cond_t *cond);

/* As lock_wait, until clock_ns() is `deadline` at the latest.  The condition must have been
 * made by cond_init_timed. */
void lock_wait_until(struct lock *lock, pthread_cond_t *cond, uint64_t deadline);
void cond_init_timed(pthread_cond_t *cond);

/* Debug builds: aborts unless this thread holds a lock of that rank. */
void lock_assert_held(const struct lock *lock);

/* Debug builds: aborts when this thread holds a lock that must not be held across I/O. */
void lock_assert_io_allowed(void);

static inline struct lock *lock_guard_enter(struct lock *lock)
{
    lock_acquire(lock);
    return lock;
}

static inline void lock_guard_leave(struct lock **lock)
{
    lock_release(*lock);
}

#define LOCK_PASTE_(a, b) a##b
#define LOCK_PASTE(a, b)  LOCK_PASTE_(a, b)

/* Holds the lock until the end of the enclosing scope. */
#define LOCK_GUARD(l)                                                   \
    struct lock *LOCK_PASTE(guard_, __LINE__) CLEANUP(lock_guard_leave) \
        __attribute__((unused)) = lock_guard_enter(l)

static inline struct lock *lock_gap_enter(struct lock *lock)
{
    lock_release(lock);
    return lock;
}

static inline void lock_gap_leave(struct lock **lock)
{
    lock_acquire(*lock);
}

/* Within a LOCK_GUARD: releases the lock until the end of the enclosing scope, and takes it
 * again. */
#define LOCK_GAP(l)                                                 \
    struct lock *LOCK_PASTE(gap_, __LINE__) CLEANUP(lock_gap_leave) \
        __attribute__((unused)) = lock_gap_enter(l)

#endif
