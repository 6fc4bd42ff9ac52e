/* SPDX-License-Identifier: BSD-3-Clause */
/* Work that nobody waits for: done by the housekeeper in slices of a few milliseconds, so
 * that other timers get their turn, and tried again a little later while something is in its
 * way.
 *
 * Threads: start from any; init and stop alone.  Layer: base. */
#ifndef BASE_BACKGROUND_H
#define BASE_BACKGROUND_H

#include <stdbool.h>
#include <stddef.h>

#include "base/housekeeper.h"

/* For an orderly end: how long it goes on with what is a gift to others, for which nobody waits
 * long. */
#define BACKGROUND_LAST_NS UINT64_C(500000000)

struct background {
    struct housekeeper *hk;
    /* Does a part that takes a millisecond or so: how much; 0: nothing can be done for now. */
    size_t (*slice)(void *owner);
    bool (*is_idle)(void *owner); /* is nothing left to do? */
    void *owner;
    struct timer timer;
};

void background_init(struct background *work, struct housekeeper *hk,
                     size_t (*slice)(void *owner), bool (*is_idle)(void *owner),
                     void *owner);

/* There is something to do.  Under any lock. */
void background_start(struct background *work);

/* Not before it is started again: no slice runs on return, which waits for one that does. */
void background_stop(struct background *work);

#endif
