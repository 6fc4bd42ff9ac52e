/* SPDX-License-Identifier: BSD-3-Clause */
/* Objects that cost time to make and that one thread uses at a time: who is done with one
 * leaves it here, and the next takes it.  There are as many as threads that were busy at
 * once, however many threads there are.
 *
 * A thread looks first where it left its last one, so threads that go on with the same work
 * meet neither each other's objects nor each other's cache lines.
 *
 * All zero is an empty set.  Threads: any, never waiting.  Layer: base. */
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

/* An object that was left here, now the caller's; NULL when there is none. */
void *spares_take(struct spares *spares) MUST_USE;

/* Leaves an object; false when there is no room: it stays the caller's, to be freed. */
bool spares_leave(struct spares *spares, void *object) MUST_USE;

#endif
