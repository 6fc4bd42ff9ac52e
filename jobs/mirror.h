/* SPDX-License-Identifier: BSD-3-Clause */
/* The mirror job: the disk of a node to a second place while the disk is in use.
 * Layer: jobs. */
#ifndef JOBS_MIRROR_H
#define JOBS_MIRROR_H

#include "block/dirty_bitmap.h"
#include "block/node.h"
#include "jobs/disk_seat.h"
#include "jobs/job.h"

enum mirror_sync { MIRROR_FULL, MIRROR_TOP, MIRROR_NONE, MIRROR_INCREMENTAL };
enum mirror_copy_mode { MIRROR_BACKGROUND, MIRROR_WRITE_BLOCKING };

/* Who uses the source, and how `complete` has them use the target.  All are called on the
 * job's thread, begin_drain and end_drain in pairs, replace between them. */
struct mirror_pivot {
    /* The node that users are served from, for jobs that are started without a source; the seat
     * is TAKEN. */
    struct node *(*take_seat)(void *opaque, struct disk_seat *seat);
    /* See disk_seat.h; of one that isn't taken: does nothing. */
    void (*set_seat)(void *opaque, struct disk_seat *seat, enum disk_seat_state state);
    /* Closes what nobody uses any more: on this thread. */
    void (*caught_up)(void *opaque, struct disk_seat *seat);
    /* Gives it back, with all that it has kept. */
    void (*leave_seat)(void *opaque, struct disk_seat *seat);
    /* New changing requests of users wait from here on; returns when those in flight are
     * done, and doesn't wait for readers. */
    void (*begin_drain)(void *opaque);
    void (*end_drain)(void *opaque);
    /* Makes `target` what users are served from; takes it over on success.  The old node is
     * closed by `end_drain`, when the last request that uses it has left, unless it lies in
     * the target's own chain. */
    int (*replace)(void *opaque, struct node *target, struct diag *diag);
    /* Puts `below`, which it takes over on success, in the place of what lies below a layer
     * of users' chain; the contents are the same.  What was there is closed when the last
     * request that uses it has left, but for what is part of `below`'s own chain.  NULL:
     * nothing lies there then. */
    int (*replace_backing)(void *opaque, struct node *layer, struct node *below,
                           struct diag *diag);
    /* May images below the top be taken out?  0 or -errno with diag; asked once more before a file
     * says so. */
    int (*check_layers)(void *opaque, struct diag *diag);
    /* May images of users' chain be changed?  0 or -errno with diag.  And gives back a
     * writer's lock that was taken on a layer, unless users write to it by now. */
    int (*check_changes)(void *opaque, struct diag *diag);
    void (*downgrade_lock)(void *opaque, struct node *layer);
    /* Makes the node that users are served from writable, as for the first who writes. */
    int (*make_writable)(void *opaque, struct diag *diag);
    void *opaque;
};

/* How the target is opened, on the job's thread, which may wait long for it. */
struct mirror_opener {
    /* *give_up becomes true when nobody wants it any more.  Called once, or never. */
    int (*open)(void *opaque, struct node *source, const _Atomic bool *give_up,
                struct node **target, struct diag *diag);
    void (*free)(void *opaque);
    void *opaque;
};

struct mirror_params {
    struct job_params job;
    struct node *source; /* NULL: pivot.take_seat says */
    struct node *
        target; /* taken over by the job, closed at its end unless users are served from it */
    struct mirror_opener opener; /* when target is NULL; taken over by the job */
    enum mirror_sync sync;
    const char *bitmap; /* MIRROR_INCREMENTAL: a bitmap of the source's */
    enum mirror_copy_mode copy_mode;
    enum job_on_error on_source_error, on_target_error;
    uint64_t granularity; /* bytes; 0: chosen from the target */
    uint64_t buf_size;    /* bytes in flight at most; 0: 16 MiB */
    bool unmap;           /* zeroes may become holes on the target */
    bool target_is_zero;  /* the user says that the target reads as zeroes */
    struct mirror_pivot pivot;
};

/* Validates, attaches to the source and starts: at once when there is a target, else on the
 * job's thread, which tells by JOB_EVENT_OPENED what came of it.  What can be said without
 * a target is said before it is opened, or even made.  On failure nothing is left behind
 * but a closed target. */
int mirror_start(struct job_manager *manager, const struct mirror_params *params,
                 struct diag *diag) MUST_USE;

#endif
