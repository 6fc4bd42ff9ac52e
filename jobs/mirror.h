/* SPDX-License-Identifier: BSD-3-Clause */
/* The mirror job: copies the disk of a node to a target while the disk is in use, keeps the target
 * up to date and, on `complete`, makes users be served from it.  Layer: jobs. */
#ifndef JOBS_MIRROR_H
#define JOBS_MIRROR_H

#include "block/dirty_bitmap.h"
#include "block/node.h"
#include "jobs/disk_seat.h"
#include "jobs/job.h"

enum mirror_sync { MIRROR_FULL, MIRROR_TOP, MIRROR_NONE, MIRROR_INCREMENTAL };
enum mirror_copy_mode { MIRROR_BACKGROUND, MIRROR_WRITE_BLOCKING };

/* What a job asks of the owner of the disk: "users" are the clients that are served from it.  All
 * functions are called on the job's thread; begin_drain and end_drain in pairs, replace between
 * them.  int: 0 or -errno with diag. */
struct mirror_pivot {
    /* Takes a seat at the disk, whose state becomes TAKEN, and returns the node that users are
     * served from; for jobs that are started without a source. */
    struct node *(*take_seat)(void *opaque, struct disk_seat *seat);
    /* Changes the seat's state (disk_seat.h); does nothing with a seat that isn't taken. */
    void (*set_seat)(void *opaque, struct disk_seat *seat, enum disk_seat_state state);
    /* The job uses no replaced node any more.  Closes, on this thread, those that nobody uses. */
    void (*caught_up)(void *opaque, struct disk_seat *seat);
    /* Gives the seat back, and with it all nodes that were kept open for it. */
    void (*leave_seat)(void *opaque, struct disk_seat *seat);
    /* From now on changing requests of users wait; returns when those in flight have ended.
     * Doesn't wait for reads. */
    void (*begin_drain)(void *opaque);
    void (*end_drain)(void *opaque);
    /* Makes users be served from `target`, which it takes over on success.  The old node is closed
     * after `end_drain`, when the last request that uses it has left, unless it is part of the
     * target's chain. */
    int (*replace)(void *opaque, struct node *target, struct diag *diag);
    /* Makes `below` (NULL: none) the backing node of a layer of users' chain; takes it over on
     * success.  The contents are the same.  The old backing node is closed when the last request
     * that uses it has left, except for nodes that are part of `below`'s chain. */
    int (*replace_backing)(void *opaque, struct node *layer, struct node *below,
                           struct diag *diag);
    /* May images below the top be taken out of the chain?  Asked again before an image file names
     * another backing file. */
    int (*check_layers)(void *opaque, struct diag *diag);
    /* May images of users' chain be written to? */
    int (*check_changes)(void *opaque, struct diag *diag);
    /* Turns a writer's lock that a job took on a layer into a reader's, unless users write to that
     * layer by now. */
    void (*downgrade_lock)(void *opaque, struct node *layer);
    /* Makes the node that users are served from writable, as for their first write. */
    int (*make_writable)(void *opaque, struct diag *diag);
    void *opaque;
};

/* Opens the target, on the job's thread; that may take long. */
struct mirror_opener {
    /* *give_up becomes true when the job was cancelled.  Called at most once. */
    int (*open)(void *opaque, struct node *source, const _Atomic bool *give_up,
                struct node **target, struct diag *diag);
    void (*free)(void *opaque);
    void *opaque;
};

struct mirror_params {
    struct job_params job;
    struct node *source; /* NULL: what pivot.take_seat returns */
    /* Taken over by the job, and closed at its end unless users are served from it.  NULL: `opener`
     * opens it. */
    struct node *target;
    struct mirror_opener opener; /* taken over by the job */
    enum mirror_sync sync;
    const char *bitmap; /* MIRROR_INCREMENTAL: the name of a bitmap of the source */
    enum mirror_copy_mode copy_mode;
    enum job_on_error on_source_error, on_target_error;
    /* bytes, a power of two from 512 to 64 MiB; 0: chosen from the target */
    uint64_t granularity;
    uint64_t buf_size;   /* bytes in flight, at most; 0: 16 MiB */
    bool unmap;          /* zeroes may become holes on the target */
    bool target_is_zero; /* the user says that the target reads as zeroes */
    struct mirror_pivot pivot;
};

/* Starts a mirror: validates the parameters and attaches to the source.  With a target that
 * happens before the function returns.  Without one, only what doesn't depend on the target is
 * validated here, before it is opened or created; the rest happens on the job's thread, which
 * reports the result as JOB_EVENT_OPENED.  0 or -errno with diag: then nothing is left behind,
 * and a target that was passed is closed. */
int mirror_start(struct job_manager *manager, const struct mirror_params *params,
                 struct diag *diag) MUST_USE;

#endif
