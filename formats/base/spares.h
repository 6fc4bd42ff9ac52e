/* SPDX-License-Identifier: BSD-3-Clause */
/* A set of objects that are expensive to create and that one thread uses at a time.  A thread
 * that has finished with an object leaves it here for the next thread.  So there are only as
 * many objects as threads were busy at the same moment.
 *
 * Each thread begins its search at a slot of its own, where it usually left its last object.
 * So threads that repeat the same work share neither objects nor cache lines.
 *
 * A zeroed struct is an empty set.  Threads: any; no function waits.  Layer: base. */
#ifndef BASE_SPARES_H
#define BASE_SPARES_H

#include <stdatomic.h>
#include <stdbool.h>

#include "base/compiler.h"

#define SPARES_SLOTS 32

struct spares {
    struct {
        _Alignas(64) _Atomic(void *) object;
    } slot[SPARES_SLOTS];
};

/* Takes an object from the set; the caller owns it.  NULL when the set is empty. */
void *spares_take(struct spares *spares) MUST_USE;

/* Puts an object into the set.  Returns false when the set is full: then the caller keeps it,
 * and frees it. */
bool spares_leave(struct spares *spares, void *object) MUST_USE;

#endif
