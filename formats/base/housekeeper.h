/* SPDX-License-Identifier: BSD-3-Clause */
/* One background thread that runs one-shot timers, such as the one that writes back old dirty
 * metadata.
 *
 * For tests the clock can be replaced, and housekeeper_run_due() runs the timers that are due
 * on the caller's thread; so tests neither sleep nor race.  Without a started thread no timer
 * fires by itself.  The command works in that way: it does at close what a timer would do.
 *
 * Threads: every function from any thread.  A callback runs without any lock and may arm its
 * own timer again; it must not stop or free the housekeeper.  Layer: base. */
#ifndef BASE_HOUSEKEEPER_H
#define BASE_HOUSEKEEPER_H

#include <stdbool.h>
#include <stdint.h>

#include "base/compiler.h"
#include "base/list.h"

struct housekeeper;

/* Monotonic nanoseconds. */
typedef uint64_t clock_fn(void *opaque);

struct timer {
    void (*fire)(void *opaque);
    void *opaque;
    /* private */
    struct list link;
    uint64_t deadline_ns;
    bool armed, running;
};

/* clock NULL: CLOCK_MONOTONIC.  NULL when memory is short. */
struct housekeeper *housekeeper_new(clock_fn *clock, void *clock_opaque);

/* Starts the thread; to be called after a fork.  Returns 0 or -errno. */
int housekeeper_start(struct housekeeper *hk) MUST_USE;

/* Ends the thread; waits for a callback that is running.  Does nothing if it wasn't started. */
void housekeeper_stop(struct housekeeper *hk);

void housekeeper_free(struct housekeeper *hk);

uint64_t housekeeper_now(struct housekeeper *hk);

void timer_init(struct timer *timer, void (*fire)(void *), void *opaque);

/* Fires once, delay_ns from now; an armed timer is moved. */
void timer_arm(struct housekeeper *hk, struct timer *timer, uint64_t delay_ns);

/* As timer_arm, unless it is armed already. */
void timer_arm_if_idle(struct housekeeper *hk, struct timer *timer, uint64_t delay_ns);

/* After return the timer is neither armed nor running.  Not from its own callback. */
void timer_cancel(struct housekeeper *hk, struct timer *timer);

/* Runs on this thread every timer that is due. */
void housekeeper_run_due(struct housekeeper *hk);

#endif
