/* SPDX-License-Identifier: BSD-3-Clause */
/* The parts of a frozen point; private to this folder. */
#ifndef BLOCK_FROZEN_INTERNAL_H
#define BLOCK_FROZEN_INTERNAL_H

#include <stdatomic.h>

#include "base/range_lock.h"
#include "block/frozen_point.h"
#include "block/hbits.h"
#include "block/node.h"

struct frozen_savers;

struct frozen_point {
    /* Its source: for properties that never change; otherwise use `source`. */
    struct frozen_setup setup;
    struct node *_Atomic source; /* the node that is the disk now */
    uint64_t size;               /* the disk's, bytes */
    struct observer observer;
    bool attached;
    char *name; /* the name under which it is shown; NULL: it isn't */
    /* The list in which it is shown or is about to be; NULL: none.  Changed under the lock of
     * that list. */
    struct frozen_points *_Atomic shown;
    struct list link; /* struct frozen_points.list */
    _Atomic unsigned users;
    struct hbits saved;           /* one bit per granule: saved, or released */
    struct range_lock saving;     /* locks granules that are being saved */
    _Atomic int error;            /* -errno: why the point was given up; 0: it wasn't */
    struct frozen_savers *savers; /* NULL: requests save by themselves */

    struct dirty_bitmap *changed; /* owned; NULL: unknown */
    /* Only for readers of the point, so that only they are waited for. */
    struct block_context ctx;
    struct node *node;
};

static inline bool frozen_is_saved(const struct frozen_point *point, uint64_t granule)
{
    return hbits_test(&point->saved, granule);
}

/* Saves one granule, unless it is saved already.  Returns 0 or -errno. */
int frozen_save(struct frozen_point *point, uint64_t granule) MUST_USE;

/* frozen_node.c: opens point->node. */
int frozen_node_open(struct frozen_point *point, struct diag *diag) MUST_USE;

/* frozen_node.c: opens a node with the name and size of the disk, but without a file; and the
 * `open` and `close` of its driver, which have nothing to do. */
int frozen_open_driver(struct block_context *ctx, const struct driver *driver,
                       const struct node *disk, struct node **out,
                       struct diag *diag) MUST_USE;
int frozen_open_nothing(struct node *node, struct diag *diag) MUST_USE;
int frozen_close_nothing(struct node *node);

/* frozen_savers.c: threads that save granules for requests.  A request waits for them no longer
 * than the point's timeout. */
struct frozen_savers *frozen_savers_new(struct frozen_point *point) MUST_USE;
/* As frozen_save; -ETIMEDOUT: it is still being saved. */
int frozen_savers_save(struct frozen_savers *savers, uint64_t granule) MUST_USE;
/* Waits for the granules that are being saved.  No request may use it any more; NULL is
 * allowed. */
void frozen_savers_free(struct frozen_savers *savers);

#endif
