/* SPDX-License-Identifier: BSD-3-Clause */
/* The backup job: the disk of a node as it was at one point, to a second place, while the disk
 * goes on being changed.  Shares mirror's engine, which copies from a frozen point.
 * Layer: jobs. */
#ifndef JOBS_BACKUP_H
#define JOBS_BACKUP_H

#include "block/frozen_point.h"
#include "jobs/mirror.h"

enum backup_sync {
    BACKUP_FULL,
    BACKUP_TOP, /* what the active layer has */
    /* What is changed from the point on; the job goes on until it is cancelled, and shows its
     * point under its id (frozen_find). */
    BACKUP_NONE,
    BACKUP_BITMAP, /* what a bitmap says */
};

/* What becomes of the bitmap: from then on it says what was changed since the point. */
enum backup_bitmap_mode {
    BACKUP_ON_SUCCESS,
    BACKUP_NEVER,
    BACKUP_ALWAYS, /* and what wasn't copied, when the job fails */
};

struct backup_params {
    struct job_params job;
    struct node *source;         /* NULL: pivot.take_seat says */
    struct node *target;         /* taken over; NULL: `opener` opens it */
    struct mirror_opener opener; /* taken over */
    enum backup_sync sync;
    /* A bitmap of the source's, NULL: none: BACKUP_BITMAP needs one; with FULL and TOP only its
     * mode matters, and with NONE it is what the point's readers are told was changed. */
    const char *bitmap;
    enum backup_bitmap_mode bitmap_mode;
    bool compress; /* the target's clusters */
    enum job_on_error on_source_error, on_target_error;
    /* When old content can't be saved: the job fails, else the change that would destroy
     * it. */
    bool give_up;
    unsigned save_timeout_ms;  /* so long a change waits for it; 0: as long as it takes */
    unsigned max_workers;      /* 0: 16 */
    uint64_t max_chunk;        /* bytes of one copy; 0: 1 MiB */
    struct mirror_pivot pivot; /* the seat, begin_drain, end_drain */
};

/* Starts; the point is the moment at which JOB_EVENT_OPENED says that it goes on, or shortly
 * before.  On failure nothing is left behind but a closed target. */
int backup_start(struct job_manager *manager, const struct backup_params *params,
                 struct diag *diag) MUST_USE;

/* ---- several jobs at one point ---- */

struct backup;

/* As backup_start, but when it is open the job waits for its point: the caller freezes it, or
 * doesn't, and decides.  0: *out is valid until backup_decide, which has to be called. */
int backup_start_held(struct job_manager *manager, const struct backup_params *params,
                      struct backup **out, struct diag *diag) MUST_USE;

/* Waits until its target is open.  Else the decision can only be that it doesn't go on. */
int backup_wait_until_open(struct backup *backup, struct diag *diag) MUST_USE;

/* Its target, when it is open, until the decision. */
struct node *backup_target(const struct backup *backup);

/* The point is now: users are drained.  `bitmap`: the one that params names, when the caller
 * has acquired it, which is the job's from then on; NULL: the job does.  -EBUSY and the like:
 * nothing has changed. */
int backup_freeze(struct backup *backup, struct dirty_bitmap *bitmap,
                  struct diag *diag) MUST_USE;

/* Still drained, when what its bitmap says is final: notes that. */
void backup_read_bitmap(struct backup *backup);

/* Undoes backup_freeze.  The bitmap that came with it is the caller's again. */
void backup_thaw(struct backup *backup, struct dirty_bitmap *bitmap);

/* Lets it go on from a point that was frozen, or end as if it had never been. */
void backup_decide(struct backup *backup, bool go);

#endif
