/* SPDX-License-Identifier: BSD-3-Clause */
/* Slices of background work, one after the other until the time is up. */
#include "base/background.h"

/* The longest time in which a turn keeps other timers waiting, but for its last slice. */
#define TURN_NS 5000000u
/* The pause before the next attempt when nothing could be done. */
#define RETRY_NS 10000000u

static void take_turn(void *opaque)
{
    struct background *work = opaque;
    uint64_t until = housekeeper_now(work->hk) + TURN_NS;
    size_t n;

    do
        n = work->slice(work->owner);
    while (n > 0 && housekeeper_now(work->hk) < until);
    if (!work->is_idle(work->owner))
        timer_arm_if_idle(work->hk, &work->timer, n > 0 ? 0 : RETRY_NS);
}

void background_init(struct background *work, struct housekeeper *hk,
                     size_t (*slice)(void *owner), bool (*is_idle)(void *owner),
                     void *owner)
{
    *work =
        (struct background){.hk = hk, .slice = slice, .is_idle = is_idle, .owner = owner};
    timer_init(&work->timer, take_turn, work);
}

void background_start(struct background *work)
{
    timer_arm_if_idle(work->hk, &work->timer, 0);
}

void background_stop(struct background *work)
{
    timer_cancel(work->hk, &work->timer);
}
