/* SPDX-License-Identifier: BSD-3-Clause */
/* A running backup; private to this folder. */
#ifndef JOBS_BACKUP_INTERNAL_H
#define JOBS_BACKUP_INTERNAL_H

#include "jobs/backup.h"
#include "jobs/mirror_internal.h"

struct backup {
    /* must be first, since mirror_free frees it all; its source is the point */
    struct mirror mirror;
    struct backup_params params; /* the id and the bitmap's name are owned */
    struct job *job;
    struct disk_seat seat;
    /* the disk's node; borrowed; changes when the seat is moved */
    struct node *_Atomic source;
    struct frozen_point *point;
    struct node *store;     /* where the point saves old data: own_store, or the target */
    struct node *own_store; /* NULL: none */
    _Atomic int unsaved;    /* -errno: why the point was given up; 0: it wasn't */

    /* backup_bitmap.c */
    struct dirty_bitmap *named; /* held; NULL: none */
    struct dirty_bitmap *since; /* changes since the point; NULL: not needed */
    /* what a failed job hasn't copied; NULL: everything was */
    struct dirty_bitmap *remainder;
    struct observer since_observer;
    /* sync=none: a copy for the point's readers, owned by the point */
    struct dirty_bitmap *for_readers;

    bool held; /* the job waits for backup_decide */
    struct lock lock;
    /* under lock */
    pthread_cond_t changed;
    bool opened, decided, goes;
    int open_err;
    struct diag open_diag;
};

/* If params name a bitmap: does it exist?  0 or -errno with diag. */
int backup_check_bitmap(struct backup *b, struct diag *diag) MUST_USE;

/* While users are drained: acquires the bitmap, or takes over `acquired`, and starts to record
 * changes.  On failure nothing has changed. */
int backup_take_bitmap(struct backup *b, struct dirty_bitmap *acquired,
                       struct diag *diag) MUST_USE;

/* After the job has failed, when nothing is in flight: notes what wasn't copied. */
void backup_note_remainder(struct backup *b);

/* At the job's end: replaces the bitmap's contents if its mode says so, and releases it. */
void backup_settle_bitmap(struct backup *b, bool success);

/* Releases the bitmap unchanged.  A second call does nothing. */
void backup_drop_bitmap(struct backup *b);

/* Also record changes of this node, which nobody writes to yet; or stop that.  0 or -ENOMEM. */
int backup_record_at(struct backup *b, struct node *node) MUST_USE;
void backup_stop_recording(struct backup *b, struct node *node);

#endif
