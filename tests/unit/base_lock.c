/* SPDX-License-Identifier: BSD-3-Clause */
/* Debug builds must assert the order of locks, and that no I/O is done under certain locks. */
#include <criterion/criterion.h>
#include <signal.h>

#include "base/lock.h"

Test(lock, rising_ranks_are_fine)
{
    struct lock low, high;

    lock_init(&low, RANK_TABLE);
    lock_init(&high, RANK_META);
    {
        LOCK_GUARD(&low);
        lock_assert_io_allowed();
        LOCK_GUARD(&high);
        lock_assert_held(&high);
    }
    /* Both locks are free again. */
    lock_acquire(&high);
    lock_release(&high);
    lock_acquire(&low);
    lock_release(&low);
    lock_destroy(&low);
    lock_destroy(&high);
}

static void *take_and_leave(void *opaque)
{
    LOCK_GUARD(opaque);
    return NULL;
}

Test(lock, ranks_are_per_thread)
{
    struct lock low, high;
    pthread_t thread;

    lock_init(&low, RANK_TABLE);
    lock_init(&high, RANK_META);
    LOCK_GUARD(&high);
    cr_assert_eq(pthread_create(&thread, NULL, take_and_leave, &low), 0);
    pthread_join(thread, NULL);
}

#ifndef NDEBUG

Test(lock, falling_rank_aborts, .signal = SIGABRT)
{
    struct lock low, high;

    lock_init(&low, RANK_TABLE);
    lock_init(&high, RANK_META);
    lock_acquire(&high);
    lock_acquire(&low);
}

Test(lock, same_rank_aborts, .signal = SIGABRT)
{
    struct lock a, b;

    lock_init(&a, RANK_META);
    lock_init(&b, RANK_META);
    lock_acquire(&a);
    lock_acquire(&b);
}

Test(lock, io_under_meta_aborts, .signal = SIGABRT)
{
    struct lock meta;

    lock_init(&meta, RANK_META);
    lock_acquire(&meta);
    lock_assert_io_allowed();
}

Test(lock, not_held_aborts, .signal = SIGABRT)
{
    struct lock meta;

    lock_init(&meta, RANK_META);
    lock_assert_held(&meta);
}

#endif
