/* SPDX-License-Identifier: BSD-3-Clause */
/* What saves, and what reads, a frozen point; private to this folder. */
#ifndef BLOCK_FROZEN_INTERNAL_H
#define BLOCK_FROZEN_INTERNAL_H

#include <stdatomic.h>

#include "base/range_lock.h"
#include "block/frozen_point.h"
#include "block/hbits.h"
#include "block/node.h"

struct frozen_savers;

struct frozen_point {
    struct frozen_setup setup;   /* its source: for what doesn't change; else */
    struct node *_Atomic source; /* where the disk is now */
    uint64_t size;               /* the disk's, bytes */
    struct observer observer;
    bool attached;
    char *name; /* under which it is shown; NULL: isn't */
    /* Where it is shown, or is about to be; NULL: it isn't.  Changed under that one's lock. */
    struct frozen_points *_Atomic shown;
    struct list link; /* struct frozen_points.list */
    _Atomic unsigned users;
    struct hbits saved;           /* or released: a granule each */
    struct range_lock saving;     /* granules on their way to the store */
    _Atomic int error;            /* given up: -errno */
    struct frozen_savers *savers; /* NULL: requests save by themselves */

    struct dirty_bitmap *changed; /* owned; NULL: isn't known */
    struct block_context ctx;     /* of readers alone, so that only they are waited for */
    struct node *node;
};

static inline bool frozen_is_saved(const struct frozen_point *point, uint64_t granule)
{
    return hbits_test(&point->saved, granule);
}

/* Saves one granule, unless it was.  0 or -errno. */
int frozen_save(struct frozen_point *point, uint64_t granule) MUST_USE;

/* frozen_node.c: point->node. */
int frozen_node_open(struct frozen_point *point, struct diag *diag) MUST_USE;

/* frozen_node.c, too: a node of the disk's name and size with no file behind it, and the
 * operations of its driver that open and close nothing. */
int frozen_open_driver(struct block_context *ctx, const struct driver *driver,
                       const struct node *disk, struct node **out,
                       struct diag *diag) MUST_USE;
int frozen_open_nothing(struct node *node, struct diag *diag) MUST_USE;
int frozen_close_nothing(struct node *node);

/* frozen_savers.c: threads that save for requests, which wait for them no longer than the
 * point's timeout. */
struct frozen_savers *frozen_savers_new(struct frozen_point *point) MUST_USE;
/* As frozen_save; -ETIMEDOUT: it is still being saved. */
int frozen_savers_save(struct frozen_savers *savers, uint64_t granule) MUST_USE;
/* Waits for what they are at; nobody may come any more.  NULL is allowed. */
void frozen_savers_free(struct frozen_savers *savers);

#endif
