/* SPDX-License-Identifier: BSD-3-Clause */
/* Tests the housekeeper's timers, with a clock that only the test advances. */
#include <criterion/criterion.h>
#include <pthread.h>
#include <stdatomic.h>

#include "base/housekeeper.h"
#include "base/lock.h"

static _Atomic uint64_t now;

static uint64_t fake_clock(void *opaque)
{
    (void)opaque;
    return now;
}

struct counted {
    struct timer timer;
    struct housekeeper *hk;
    _Atomic int fired;
    uint64_t again_in;
};

static void count(void *opaque)
{
    struct counted *c = opaque;

    c->fired++;
    if (c->again_in)
        timer_arm(c->hk, &c->timer, c->again_in);
}

static struct housekeeper *hk;
static struct counted a, b;

static void setup(void)
{
    now = 1000;
    hk = housekeeper_new(fake_clock, NULL);
    cr_assert_not_null(hk);
    a = (struct counted){.hk = hk};
    b = (struct counted){.hk = hk};
    timer_init(&a.timer, count, &a);
    timer_init(&b.timer, count, &b);
}

static void teardown(void)
{
    housekeeper_free(hk);
}

TestSuite(housekeeper, .init = setup, .fini = teardown, .timeout = 60);

Test(housekeeper, fires_once_when_due_and_not_before)
{
    timer_arm(hk, &a.timer, 50);
    housekeeper_run_due(hk);
    now += 49;
    housekeeper_run_due(hk);
    cr_assert_eq(a.fired, 0);
    now += 1;
    housekeeper_run_due(hk);
    housekeeper_run_due(hk);
    now += 1000;
    housekeeper_run_due(hk);
    cr_assert_eq(a.fired, 1);
}

Test(housekeeper, arming_again_moves_the_deadline)
{
    timer_arm(hk, &a.timer, 50);
    now += 40;
    timer_arm(hk, &a.timer, 50);
    now += 40;
    housekeeper_run_due(hk);
    cr_assert_eq(a.fired, 0, "the first deadline was replaced");
    now += 10;
    housekeeper_run_due(hk);
    cr_assert_eq(a.fired, 1);
}

Test(housekeeper, arm_if_idle_keeps_the_deadline)
{
    timer_arm_if_idle(hk, &a.timer, 50);
    now += 40;
    timer_arm_if_idle(hk, &a.timer, 50);
    now += 10;
    housekeeper_run_due(hk);
    cr_assert_eq(a.fired, 1);
    timer_arm_if_idle(hk, &a.timer, 5);
    now += 5;
    housekeeper_run_due(hk);
    cr_assert_eq(a.fired, 2, "it was idle again");
}

Test(housekeeper, cancelled_timers_are_silent)
{
    timer_arm(hk, &a.timer, 50);
    timer_arm(hk, &b.timer, 50);
    timer_cancel(hk, &a.timer);
    timer_cancel(hk, &a.timer);
    now += 50;
    housekeeper_run_due(hk);
    cr_assert_eq(a.fired, 0);
    cr_assert_eq(b.fired, 1);
}

Test(housekeeper, a_callback_may_arm_its_own_timer)
{
    a.again_in = 10;
    timer_arm(hk, &a.timer, 10);
    for (int i = 0; i < 3; i++) {
        now += 10;
        housekeeper_run_due(hk);
    }
    cr_assert_eq(a.fired, 3);
    timer_cancel(hk, &a.timer);
}

static int order[2], n_order;

static void note_1(void *opaque)
{
    (void)opaque;
    order[n_order++] = 1;
}

static void note_2(void *opaque)
{
    (void)opaque;
    order[n_order++] = 2;
}

Test(housekeeper, earlier_deadlines_fire_first)
{
    struct timer late, early;

    timer_init(&late, note_2, NULL);
    timer_init(&early, note_1, NULL);
    timer_arm(hk, &late, 20);
    timer_arm(hk, &early, 10);
    now += 30;
    housekeeper_run_due(hk);
    cr_assert_eq(n_order, 2);
    cr_assert(order[0] == 1 && order[1] == 2);
}

/* With the real thread.  Test and timer wait for each other, so that nothing depends on time. */

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t cond = PTHREAD_COND_INITIALIZER;
static bool entered, may_leave;
static atomic_bool left;

static void wait_inside(void *opaque)
{
    (void)opaque;
    pthread_mutex_lock(&mutex);
    entered = true;
    pthread_cond_broadcast(&cond);
    while (!may_leave)
        pthread_cond_wait(&cond, &mutex);
    pthread_mutex_unlock(&mutex);
    left = true;
}

static void *let_go(void *opaque)
{
    (void)opaque;
    pthread_mutex_lock(&mutex);
    may_leave = true;
    pthread_cond_broadcast(&cond);
    pthread_mutex_unlock(&mutex);
    return NULL;
}

Test(housekeeper, cancel_waits_for_the_running_callback)
{
    struct timer timer;
    pthread_t thread;

    timer_init(&timer, wait_inside, NULL);
    cr_assert_eq(housekeeper_start(hk), 0);
    timer_arm(hk, &timer, 0);
    pthread_mutex_lock(&mutex);
    while (!entered)
        pthread_cond_wait(&cond, &mutex);
    pthread_mutex_unlock(&mutex);
    cr_assert_not(left);
    cr_assert_eq(pthread_create(&thread, NULL, let_go, NULL), 0);
    timer_cancel(hk, &timer);
    cr_assert(left, "cancel came back while the callback was running");
    pthread_join(thread, NULL);
}

Test(housekeeper, stop_is_harmless_twice_and_restartable)
{
    housekeeper_stop(hk);
    cr_assert_eq(housekeeper_start(hk), 0);
    housekeeper_stop(hk);
    housekeeper_stop(hk);
    cr_assert_eq(housekeeper_start(hk), 0);
}
