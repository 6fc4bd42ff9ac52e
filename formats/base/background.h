/* SPDX-License-Identifier: BSD-3-Clause */
/* Work that no request waits for.  The housekeeper does it in slices of a few milliseconds, so
 * that other timers get their turn.  While something prevents progress, it tries again a little
 * later.
 *
 * Threads: background_start from any; init and stop by one thread, while no other uses it.
 * Layer: base. */
#ifndef BASE_BACKGROUND_H
#define BASE_BACKGROUND_H

#include <stdbool.h>
#include <stddef.h>

#include "base/housekeeper.h"

/* For an orderly shutdown, in nanoseconds: how long background work goes on that only benefits
 * others (punching holes gives space back to the filesystem).  Closing shouldn't take longer
 * for that. */
#define BACKGROUND_LAST_NS UINT64_C(500000000)

struct background {
    struct housekeeper *hk;
    /* Does a part of the work, about a millisecond long, and returns how much (in units of the
     * owner's choice); 0: nothing can be done at present. */
    size_t (*slice)(void *owner);
    bool (*is_idle)(void *owner); /* is nothing left to do? */
    void *owner;
    struct timer timer;
};

void background_init(struct background *work, struct housekeeper *hk,
                     size_t (*slice)(void *owner), bool (*is_idle)(void *owner),
                     void *owner);

/* There is something to do.  May be called under any lock. */
void background_start(struct background *work);

/* No slice runs after it has returned (it waits for one that does), until background_start is
 * called again. */
void background_stop(struct background *work);

#endif
