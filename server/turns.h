/* SPDX-License-Identifier: BSD-3-Clause */
/* Whose turn it is among many who wait: those above take turns with one another, whatever the
 * number of those who wait below each.  So a client with many requests doesn't keep one with
 * few from its share, and a busy disk not a quiet one.
 *
 * A tree.  The leaves wait; an inner one is in the queue of the one above while anybody waits
 * below it.  All in constant time; the caller has the lock.  Layer: server. */
#ifndef SERVER_TURNS_H
#define SERVER_TURNS_H

#include <stdbool.h>

#include "base/list.h"

struct turns {
    struct turns *above; /* NULL: the root; of an inner one it may change while none wait */
    struct list queue; /* of those below that wait, or have somebody who does: their link */
    struct list link;
};

void turns_init(struct turns *turns, struct turns *above);

/* A leaf waits from here on, behind those of its queue. */
void turns_add(struct turns *leaf);

/* The leaf below `root` whose turn it is; NULL: nobody waits. */
struct turns *turns_next(const struct turns *root);

/* It has had its turn, and so have those above it. */
void turns_take(struct turns *leaf);

/* It waits no longer. */
void turns_remove(struct turns *leaf);

static inline bool turns_waits(const struct turns *turns)
{
    return !list_empty(&turns->link);
}

#endif
