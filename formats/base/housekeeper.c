/* SPDX-License-Identifier: BSD-3-Clause */
/* The thread that runs the timers, and their list. */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <time.h>

#include "base/clock.h"
#include "base/housekeeper.h"
#include "base/lock.h"
#include "base/thread.h"

struct housekeeper {
    clock_fn *clock;
    void *clock_opaque;
    pthread_t thread;
    bool started;

    struct lock lock;
    /* under lock */
    pthread_cond_t changed; /* a deadline moved, or stop */
    pthread_cond_t idle;    /* a callback ended */
    struct list armed;      /* struct timer.link, unordered: there are a handful */
    bool stop;
};

static uint64_t monotonic_now(void *opaque)
{
    (void)opaque;
    return clock_ns();
}

struct housekeeper *housekeeper_new(clock_fn *clock, void *clock_opaque)
{
    struct housekeeper *hk = calloc(1, sizeof *hk);

    if (!hk)
        return NULL;
    hk->clock = clock ? clock : monotonic_now;
    hk->clock_opaque = clock_opaque;
    lock_init(&hk->lock, RANK_LEAF);
    cond_init_timed(&hk->changed);
    pthread_cond_init(&hk->idle, NULL);
    list_init(&hk->armed);
    return hk;
}

/* Under the lock: the armed timer with the earliest deadline, or NULL.  Leaves out a timer
 * whose callback is running: it is considered again when that has ended. */
static struct timer *find_earliest_timer(struct housekeeper *hk)
{
    struct timer *best = NULL;

    LIST_FOR_EACH (pos, &hk->armed) {
        struct timer *t = CONTAINER_OF(pos, struct timer, link);
        if (!t->running && (!best || t->deadline_ns < best->deadline_ns))
            best = t;
    }
    return best;
}

/* Under the lock, which is released while the callback runs. */
static void fire_timer(struct housekeeper *hk, struct timer *t)
{
    list_remove(&t->link);
    t->armed = false;
    t->running = true;
    {
        LOCK_GAP(&hk->lock);
        t->fire(t->opaque);
    }
    t->running = false;
    pthread_cond_broadcast(&hk->idle);
    pthread_cond_signal(&hk->changed);
}

void housekeeper_run_due(struct housekeeper *hk)
{
    LOCK_GUARD(&hk->lock);
    uint64_t now = hk->clock(hk->clock_opaque);

    for (struct timer *t; (t = find_earliest_timer(hk)) && t->deadline_ns <= now;)
        fire_timer(hk, t);
}

static void *housekeeper_main(void *opaque)
{
    struct housekeeper *hk = opaque;
    LOCK_GUARD(&hk->lock);

    while (!hk->stop) {
        struct timer *t = find_earliest_timer(hk);
        if (!t) {
            lock_wait(&hk->lock, &hk->changed);
            continue;
        }
        uint64_t now = hk->clock(hk->clock_opaque);
        if (t->deadline_ns <= now) {
            fire_timer(hk, t);
            continue;
        }
        lock_wait_until(&hk->lock, &hk->changed,
                        monotonic_now(NULL) + (t->deadline_ns - now));
    }
    return NULL;
}

int housekeeper_start(struct housekeeper *hk)
{
    int err = thread_start(&hk->thread, housekeeper_main, hk);

    hk->started = err == 0;
    return err;
}

void housekeeper_stop(struct housekeeper *hk)
{
    if (!hk->started)
        return;
    lock_acquire(&hk->lock);
    hk->stop = true;
    pthread_cond_signal(&hk->changed);
    lock_release(&hk->lock);
    pthread_join(hk->thread, NULL);
    hk->started = false;
    hk->stop = false;
}

void housekeeper_free(struct housekeeper *hk)
{
    if (!hk)
        return;
    housekeeper_stop(hk);
    pthread_cond_destroy(&hk->changed);
    pthread_cond_destroy(&hk->idle);
    lock_destroy(&hk->lock);
    free(hk);
}

uint64_t housekeeper_now(struct housekeeper *hk)
{
    return hk->clock(hk->clock_opaque);
}

void timer_init(struct timer *timer, void (*fire_fn)(void *), void *opaque)
{
    *timer = (struct timer){.fire = fire_fn, .opaque = opaque};
    list_init(&timer->link);
}

/* Under the lock. */
static void arm_timer_locked(struct housekeeper *hk, struct timer *timer, uint64_t delay_ns)
{
    timer->deadline_ns = hk->clock(hk->clock_opaque) + delay_ns;
    if (!timer->armed)
        list_append(&hk->armed, &timer->link);
    timer->armed = true;
    pthread_cond_signal(&hk->changed);
}

void timer_arm(struct housekeeper *hk, struct timer *timer, uint64_t delay_ns)
{
    LOCK_GUARD(&hk->lock);
    arm_timer_locked(hk, timer, delay_ns);
}

void timer_arm_if_idle(struct housekeeper *hk, struct timer *timer, uint64_t delay_ns)
{
    LOCK_GUARD(&hk->lock);
    if (!timer->armed)
        arm_timer_locked(hk, timer, delay_ns);
}

void timer_cancel(struct housekeeper *hk, struct timer *timer)
{
    LOCK_GUARD(&hk->lock);
    while (timer->armed || timer->running) {
        if (timer->armed) {
            list_remove(&timer->link);
            timer->armed = false;
        } else {
            lock_wait(&hk->lock, &hk->idle);
        }
    }
}
