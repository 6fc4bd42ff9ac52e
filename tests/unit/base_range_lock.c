/* SPDX-License-Identifier: BSD-3-Clause */
/* Tests which range locks wait for which others. */
#include <pthread.h>
#include <stdatomic.h>
#include <time.h>

#include <criterion/criterion.h>

#include "base/range_lock.h"
#include "rng.h"

struct waiter {
    struct range_lock *rl;
    uint64_t start, end;
    _Atomic bool *go; /* the waiter releases its range when this is set */
    _Atomic unsigned *order;
    _Atomic unsigned got; /* 1 for the first that got its range, 2, ...; 0: not yet */
    pthread_t thread;
};

static void nap(void)
{
    const struct timespec pause = {.tv_nsec = 2000000};

    nanosleep(&pause, NULL);
}

static void *hold_range(void *opaque)
{
    struct waiter *w = opaque;
    struct locked_range range;

    range_lock_acquire(w->rl, &range, w->start, w->end, RANGE_EXCLUSIVE);
    atomic_store(&w->got, atomic_fetch_add(w->order, 1) + 1);
    while (!atomic_load(w->go))
        nap();
    range_lock_release(&range);
    return NULL;
}

static void start(struct waiter *w)
{
    cr_assert_eq(pthread_create(&w->thread, NULL, hold_range, w), 0);
}

/* Does it get its range soon?  Waits long enough for a lock that doesn't have to wait. */
static bool has_it(struct waiter *w)
{
    for (int i = 0; i < 1000 && !atomic_load(&w->got); i++)
        nap();
    return atomic_load(&w->got);
}

/* Waits until n threads are waiting, which the lock counts exactly. */
static void wait_until_waiting(struct range_lock *rl, unsigned n)
{
    for (bool there = false; !there; nap()) {
        LOCK_GUARD(&rl->lock);
        there = rl->waiting == n;
    }
}

Test(range_lock, neighbours_dont_wait, .timeout = 60)
{
    struct range_lock rl;
    struct locked_range a, b, c;

    range_lock_init(&rl, RANK_RANGE);
    range_lock_acquire(&rl, &a, 4096, 8192, RANGE_EXCLUSIVE);
    range_lock_acquire(&rl, &b, 0, 4096, RANGE_EXCLUSIVE);
    range_lock_acquire(&rl, &c, 8192, 12288, RANGE_EXCLUSIVE);
    range_lock_release(&a);
    range_lock_acquire(&rl, &a, 4096, 8192, RANGE_EXCLUSIVE);
    range_lock_release(&c);
    range_lock_release(&b);
    range_lock_release(&a);
    range_lock_destroy(&rl);
}

Test(range_lock, overlapping_waits_until_the_release, .timeout = 60)
{
    struct range_lock rl;
    struct locked_range mine;
    _Atomic unsigned order = 0;
    _Atomic bool go = true;
    struct waiter w = {.rl = &rl, .start = 8191, .end = 9000, .go = &go, .order = &order};

    range_lock_init(&rl, RANK_RANGE);
    range_lock_acquire(&rl, &mine, 4096, 8192, RANGE_EXCLUSIVE);
    start(&w);
    wait_until_waiting(&rl, 1);
    cr_expect_eq(w.got, 0);
    range_lock_release(&mine);
    cr_expect(has_it(&w));
    pthread_join(w.thread, NULL);
    range_lock_destroy(&rl);
}

/* A has locked [0,10), B waits for [5,20), then C wants [15,30).  C overlaps no locked range, but
 * must wait for B, which came first: otherwise a stream of C's could starve B. */
Test(range_lock, first_come_first_served, .timeout = 60)
{
    struct range_lock rl;
    struct locked_range mine;
    _Atomic unsigned order = 0;
    _Atomic bool go = true;
    struct waiter b = {.rl = &rl, .start = 5, .end = 20, .go = &go, .order = &order};
    struct waiter c = {.rl = &rl, .start = 15, .end = 30, .go = &go, .order = &order};

    range_lock_init(&rl, RANK_RANGE);
    range_lock_acquire(&rl, &mine, 0, 10, RANGE_EXCLUSIVE);
    start(&b);
    wait_until_waiting(&rl, 1);
    start(&c);
    wait_until_waiting(&rl, 2);
    range_lock_release(&mine);
    pthread_join(b.thread, NULL);
    pthread_join(c.thread, NULL);
    cr_expect_eq(b.got, 1);
    cr_expect_eq(c.got, 2);
    range_lock_destroy(&rl);
}

Test(range_lock, sharers_wait_for_the_exclusive_only, .timeout = 60)
{
    struct range_lock rl;
    struct locked_range one, two;
    _Atomic unsigned order = 0;
    _Atomic bool go = true;
    struct waiter w = {.rl = &rl, .start = 0, .end = 1, .go = &go, .order = &order};

    range_lock_init(&rl, RANK_LEAF);
    range_lock_acquire(&rl, &one, 0, 4096, RANGE_SHARED);
    range_lock_acquire(&rl, &two, 0, UINT64_MAX, RANGE_SHARED);
    start(&w);
    wait_until_waiting(&rl, 1);
    range_lock_release(&two);
    cr_expect_eq(w.got, 0);
    range_lock_release(&one);
    cr_expect(has_it(&w));
    pthread_join(w.thread, NULL);
    range_lock_destroy(&rl);
}

Test(range_lock, a_try_gets_what_nobody_has_or_waits_for, .timeout = 60)
{
    struct range_lock rl;
    struct locked_range has, try;
    _Atomic unsigned order = 0;
    _Atomic bool go = true;
    struct waiter w = {.rl = &rl, .start = 30, .end = 45, .go = &go, .order = &order};

    range_lock_init(&rl, RANK_LEAF);
    range_lock_acquire(&rl, &has, 40, 50, RANGE_SHARED);
    cr_expect_eq(range_lock_try_acquire(&rl, &try, 45, 60), 0);
    cr_expect_eq(range_lock_try_acquire(&rl, &try, 50, 60), 10, "behind it");
    range_lock_release(&try);
    cr_expect_eq(range_lock_try_acquire(&rl, &try, 0, 60), 40, "up to it");
    range_lock_release(&try);
    start(&w);
    wait_until_waiting(&rl, 1);
    cr_expect_eq(range_lock_try_acquire(&rl, &try, 0, 60), 30, "up to who waits");
    range_lock_release(&try);
    range_lock_release(&has);
    pthread_join(w.thread, NULL);
    cr_expect(list_empty(&rl.ranges));
    range_lock_destroy(&rl);
}

#define CELLS 64u

struct churn {
    struct range_lock *rl;
    _Atomic unsigned *cells;
    _Atomic bool *wrong;
    uint64_t seed;
};

static void *churn(void *opaque)
{
    struct churn *c = opaque;
    struct rng rng;

    rng_init(&rng, c->seed);
    for (int i = 0; i < 3000; i++) {
        struct locked_range range;
        uint64_t from = rng_below(&rng, CELLS), to = rng_between(&rng, from + 1, CELLS);
        if (to - from > 8)
            to = from + 8;
        range_lock_acquire(c->rl, &range, from, to, RANGE_EXCLUSIVE);
        for (uint64_t k = from; k < to; k++)
            if (atomic_fetch_add(&c->cells[k], 1) != 0)
                atomic_store(c->wrong, true);
        for (uint64_t k = from; k < to; k++)
            atomic_fetch_sub(&c->cells[k], 1);
        range_lock_release(&range);
    }
    return NULL;
}

Test(range_lock, nobody_is_alone_in_vain, .timeout = 60)
{
    struct range_lock rl;
    _Atomic unsigned cells[CELLS] = {0};
    _Atomic bool wrong = false;
    pthread_t threads[8];
    struct churn c[8];

    range_lock_init(&rl, RANK_RANGE);
    for (unsigned i = 0; i < 8; i++) {
        c[i] = (struct churn){.rl = &rl, .cells = cells, .wrong = &wrong, .seed = i};
        cr_assert_eq(pthread_create(&threads[i], NULL, churn, &c[i]), 0);
    }
    for (unsigned i = 0; i < 8; i++)
        pthread_join(threads[i], NULL);
    cr_expect_not(wrong, "two held one range");
    cr_expect(list_empty(&rl.ranges));
    range_lock_destroy(&rl);
}
