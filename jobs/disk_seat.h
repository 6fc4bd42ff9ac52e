/* SPDX-License-Identifier: BSD-3-Clause */
/* A seat: a job's hold on the node of a disk that users are served from.  Another job may replace
 * that node (a mirror at its end); the seat says whether this one can move along.
 *
 *     NONE -> TAKEN -> FOLLOWS <-> LEAVES -> IDLE -> NONE
 *                \------------------------------------/
 *
 *   TAKEN    the job needs the node that it was given: it can't be replaced
 *   FOLLOWS  the job can be moved to another node with the same contents, at any time
 *   LEAVES   for a short time the job can't be moved (at its end, for example): a replacement
 *            waits
 *   IDLE     the job uses no node any more
 *
 * A node that the job was moved away from stays open until the job has caught up (mirror_pivot's
 * caught_up), or gives its seat back.
 *
 * When an overlay is put on top of the disk's node, jobs that have a seat stay with that node,
 * which is a layer below from then on (`below`).  They are not moved any more, and no layer between
 * is taken out of the chain until they end.
 *
 * The owner of the disk implements this, for jobs through struct mirror_pivot.  Layer: jobs. */
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
    /* Set before the state becomes FOLLOWS.  Called when `to` is about to replace the disk's
     * node: on another job's thread, with changes of users drained.  They must not wait for
     * anything that waits for those changes.  `prepare` returns 0, or -errno with diag and
     * nothing changed.  After a success comes `move`, or `stay` if the node isn't replaced after
     * all. */
    int (*prepare)(struct disk_seat *seat, struct node *to, struct diag *diag);
    void (*move)(struct disk_seat *seat, struct node *to);
    void (*stay)(struct disk_seat *seat, struct node *to);

    /* The rest belongs to the disk's owner. */
    enum disk_seat_state state;
    struct list link;
    bool below; /* the job's node is a layer below the disk's node, and stays there */
    /* replaced nodes with this number or a higher one may still be in use */
    uint64_t since;
};

#endif
