/* SPDX-License-Identifier: BSD-3-Clause */
/* A job's place at a disk that users are served from: what keeps the disk's node for it.
 *
 *     NONE -> TAKEN -> FOLLOWS <-> LEAVES -> IDLE -> NONE
 *                \------------------------------------/
 *
 *   TAKEN    the job relies on the node that it was given: nobody replaces it
 *   FOLLOWS  the job can be moved to another node with the same contents, at any time
 *   LEAVES   it is at its end, or somewhere on the way where it can't be moved: not for long; who
 *            is to replace the node waits
 *   IDLE     it uses no node any more
 *
 * A node that the job was moved away from stays open until the job says that it has caught up,
 * or gives its seat back.
 *
 * Where an overlay was put on the disk's node, who had a seat before goes on with that node, which
 * is a layer below from then on (`below`): it is moved no more, and the layers are kept for it.
 *
 * Whoever keeps the disk implements this (struct mirror_pivot).  Layer: jobs. */
#ifndef JOBS_DISK_SEAT_H
#define JOBS_DISK_SEAT_H

#include <stdbool.h>
#include <stdint.h>

#include "base/compiler.h"
#include "base/diag.h"
#include "base/list.h"

struct node;

enum disk_seat_state { SEAT_NONE, SEAT_TAKEN, SEAT_FOLLOWS, SEAT_LEAVES, SEAT_IDLE };

/* Embedded in the job; zero-initialised: NONE. */
struct disk_seat {
    /* Set before it follows.  On another job's thread, with the changing requests of users drained,
     * and waiting for nobody who waits for them: `to` is about to take the place of the
     * disk's node.  `prepare` may fail, with nothing changed; then comes `move` or `stay`. */
    int (*prepare)(struct disk_seat *seat, struct node *to, struct diag *diag);
    void (*move)(struct disk_seat *seat, struct node *to);
    void (*stay)(struct disk_seat *seat, struct node *to);

    /* the disk's */
    enum disk_seat_state state;
    struct list link;
    bool below;     /* its node is a layer below the disk's: it stays there */
    uint64_t since; /* nodes that were replaced from this number on may be in use */
};

#endif
