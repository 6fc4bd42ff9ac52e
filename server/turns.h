/* SPDX-License-Identifier: BSD-3-Clause */
/* Fair queues in a tree.  Siblings take turns with one another, no matter how many wait below
 * each.  So a client with many requests leaves a client with few its share, and a busy disk
 * leaves a quiet one its share.
 *
 * Leaves wait.  An inner node is in its parent's queue while a leaf below it waits.  Every
 * operation takes constant time (the depth is fixed).  The caller holds the lock.  Layer:
 * server. */
#ifndef SERVER_TURNS_H
#define SERVER_TURNS_H

#include <stdbool.h>

#include "base/list.h"

struct turns {
    /* parent; NULL: the root.  May be changed in an inner node while nobody waits below it */
    struct turns *above;
    /* children that wait, or have a waiting leaf below them: their `link` */
    struct list queue;
    struct list link;
};

void turns_init(struct turns *turns, struct turns *above);

/* The leaf begins to wait, at the end of its parent's queue. */
void turns_add(struct turns *leaf);

/* The leaf below `root` whose turn it is; NULL: none waits. */
struct turns *turns_next(const struct turns *root);

/* The leaf has had its turn: it leaves, and its ancestors go to the end of their queues. */
void turns_take(struct turns *leaf);

/* The leaf stops waiting without having had its turn. */
void turns_remove(struct turns *leaf);

static inline bool turns_waits(const struct turns *turns)
{
    return !list_empty(&turns->link);
}

#endif
