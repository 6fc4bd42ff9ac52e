/* SPDX-License-Identifier: BSD-3-Clause */
/* The backup job: copies the disk as it was at one point to a target, while the disk goes on
 * being changed.  Mirror's engine copies from a frozen point.  Layer: jobs. */
#ifndef JOBS_BACKUP_H
#define JOBS_BACKUP_H

#include "block/frozen_point.h"
#include "jobs/mirror.h"

enum backup_sync {
    BACKUP_FULL,
    BACKUP_TOP, /* what the active layer itself has */
    /* Copies only what is about to be changed after the point.  The job runs until it is
     * cancelled, and shows the point under its id (frozen_find). */
    BACKUP_NONE,
    BACKUP_BITMAP, /* what a bitmap marks */
};

/* What becomes of the bitmap at the end: with ON_SUCCESS, if the job succeeded, it contains
 * exactly what was changed since the point. */
enum backup_bitmap_mode {
    BACKUP_ON_SUCCESS,
    BACKUP_NEVER,
    BACKUP_ALWAYS, /* also when the job fails; then with what wasn't copied added */
};

struct backup_params {
    struct job_params job;
    struct node *source;         /* NULL: taken from pivot.take_seat */
    struct node *target;         /* taken over; NULL: `opener` opens it */
    struct mirror_opener opener; /* taken over */
    enum backup_sync sync;
    /* Name of a bitmap of the source; NULL: none.  BACKUP_BITMAP needs one.  With FULL and TOP
     * only its mode matters.  With NONE readers of the point are told its contents as what has
     * changed. */
    const char *bitmap;
    enum backup_bitmap_mode bitmap_mode;
    bool compress; /* compress the target's clusters */
    enum job_on_error on_source_error, on_target_error;
    /* When old data can't be saved before a change: true: the job fails; false: the change
     * fails. */
    bool give_up;
    unsigned save_timeout_ms;  /* how long a change waits for the save; 0: no limit */
    unsigned max_workers;      /* 0: 16 */
    uint64_t max_chunk;        /* bytes of one copy at most; 0: 1 MiB */
    struct mirror_pivot pivot; /* needs: seats, begin_drain, end_drain */
};

/* Starts a backup.  Its point is when JOB_EVENT_OPENED reports success, or shortly before.  On
 * failure nothing remains; the target is closed. */
int backup_start(struct job_manager *manager, const struct backup_params *params,
                 struct diag *diag) MUST_USE;

/* ---- several backups at one point ---- */

struct backup;

/* As backup_start, but after opening its target the job waits for its point.  The caller then
 * may call backup_freeze, and must call backup_decide, until which *out is valid. */
int backup_start_held(struct job_manager *manager, const struct backup_params *params,
                      struct backup **out, struct diag *diag) MUST_USE;

/* Waits until the target is open, or has failed to open (-errno with diag); then the decision
 * must be not to go on. */
int backup_wait_until_open(struct backup *backup, struct diag *diag) MUST_USE;

/* The target, after backup_wait_until_open and until the decision. */
struct node *backup_target(const struct backup *backup);

/* Sets the point to now; users must be drained.  bitmap: the bitmap that params names, if the
 * caller has acquired it, which the job takes over; NULL: the job acquires it.  On -errno, with
 * diag, nothing has changed. */
int backup_freeze(struct backup *backup, struct dirty_bitmap *bitmap,
                  struct diag *diag) MUST_USE;

/* While still drained, when the contents of the bitmap are final: notes what to copy. */
void backup_read_bitmap(struct backup *backup);

/* Undoes backup_freeze.  A bitmap that was passed to it is the caller's again. */
void backup_thaw(struct backup *backup, struct dirty_bitmap *bitmap);

/* go: the job continues from its point; otherwise it ends without a trace. */
void backup_decide(struct backup *backup, bool go);

#endif
