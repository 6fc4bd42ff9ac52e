/* SPDX-License-Identifier: BSD-3-Clause */
/* Ranked mutexes.  Debug builds count for each thread the locks that it holds of each rank. */
#include <assert.h>

#include "base/lock.h"

#ifndef NDEBUG

static _Thread_local unsigned char held[RANK_COUNT];

static void note_acquired(const struct lock *lock)
{
    for (int r = (int)lock->rank; r < RANK_COUNT; r++)
        assert(held[r] == 0 && "lock order");
    held[lock->rank]++;
}

static void note_released(const struct lock *lock)
{
    assert(held[lock->rank] > 0);
    held[lock->rank]--;
}

void lock_assert_held(const struct lock *lock)
{
    assert(held[lock->rank] > 0);
}

void lock_assert_io_allowed(void)
{
    for (int r = RANK_LAYERS; r < RANK_COUNT; r++)
        assert(held[r] == 0 && "I/O under a lock that must not span it");
}

#else

static void note_acquired(const struct lock *lock)
{
    (void)lock;
}

static void note_released(const struct lock *lock)
{
    (void)lock;
}

void lock_assert_held(const struct lock *lock)
{
    (void)lock;
}

void lock_assert_io_allowed(void)
{
}

#endif

void lock_init(struct lock *lock, enum lock_rank rank)
{
    pthread_mutex_init(&lock->mutex, NULL);
    lock->rank = rank;
}

void lock_destroy(struct lock *lock)
{
    pthread_mutex_destroy(&lock->mutex);
}

void lock_acquire(struct lock *lock)
{
    pthread_mutex_lock(&lock->mutex);
    note_acquired(lock);
}

bool lock_try_acquire(struct lock *lock)
{
    if (pthread_mutex_trylock(&lock->mutex) != 0)
        return false;
    note_acquired(lock);
    return true;
}

void lock_release(struct lock *lock)
{
    note_released(lock);
    pthread_mutex_unlock(&lock->mutex);
}

void lock_wait(struct lock *lock, pthread_cond_t *cond)
{
    note_released(lock);
    pthread_cond_wait(cond, &lock->mutex);
    note_acquired(lock);
}

void cond_init_timed(pthread_cond_t *cond)
{
    pthread_condattr_t attr;

    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(cond, &attr);
    pthread_condattr_destroy(&attr);
}

void lock_wait_until(struct lock *lock, pthread_cond_t *cond, uint64_t deadline)
{
    const struct timespec until = {
        .tv_sec = (time_t)(deadline / 1000000000u),
        .tv_nsec = (long)(deadline % 1000000000u),
    };

    note_released(lock);
    pthread_cond_timedwait(cond, &lock->mutex, &until);
    note_acquired(lock);
}
