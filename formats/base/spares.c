/* SPDX-License-Identifier: BSD-3-Clause */
/* Reusable objects: a few slots, each an atomic pointer. */
#include "base/spares.h"

#include <stddef.h>

/* The slot at which this thread begins its search. */
static unsigned home(void)
{
    static _Atomic unsigned threads;
    static _Thread_local unsigned mine; /* 0: not chosen yet */

    if (UNLIKELY(mine == 0))
        mine =
            1 + atomic_fetch_add_explicit(&threads, 1, memory_order_relaxed) % SPARES_SLOTS;
    return mine - 1;
}

void *spares_take(struct spares *spares)
{
    for (unsigned i = 0, at = home(); i < SPARES_SLOTS; i++, at = (at + 1) % SPARES_SLOTS) {
        _Atomic(void *) *place = &spares->slot[at].object;
        if (!atomic_load_explicit(place, memory_order_relaxed))
            continue;
        void *object = atomic_exchange_explicit(place, NULL, memory_order_acquire);
        if (object)
            return object;
    }
    return NULL;
}

bool spares_leave(struct spares *spares, void *object)
{
    for (unsigned i = 0, at = home(); i < SPARES_SLOTS; i++, at = (at + 1) % SPARES_SLOTS) {
        void *none = NULL;
        if (atomic_compare_exchange_strong_explicit(&spares->slot[at].object, &none, object,
                                                    memory_order_release,
                                                    memory_order_relaxed))
            return true;
    }
    return false;
}
