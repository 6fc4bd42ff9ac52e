/* SPDX-License-Identifier: BSD-3-Clause */
/* A running backup; private to this folder. */
#ifndef JOBS_BACKUP_INTERNAL_H
#define JOBS_BACKUP_INTERNAL_H

#include "jobs/backup.h"
#include "jobs/mirror_internal.h"

struct backup {
    struct mirror mirror;        /* first: with it all is freed.  Its source is the point */
    struct backup_params params; /* the id and the bitmap's name are owned */
    struct job *job;
    struct disk_seat seat;
    struct node *_Atomic source; /* the disk; borrowed; another when the seat was moved */
    struct frozen_point *point;
    struct node *store;     /* of the point: own_store, or the target */
    struct node *own_store; /* NULL: none */
    _Atomic int unsaved;    /* why the point was given up: -errno; 0: it wasn't */

    /* backup_bitmap.c */
    struct dirty_bitmap *named; /* acquired; NULL: none */
    struct dirty_bitmap *since; /* what was changed since the point; NULL: isn't wanted */
    struct dirty_bitmap *remainder; /* what a job that failed hasn't copied; NULL: all */
    struct observer since_observer;
    struct dirty_bitmap *for_readers; /* of sync=none; the point's */

    bool held; /* it waits for backup_decide */
    struct lock lock;
    /* under lock */
    pthread_cond_t changed;
    bool opened, decided, goes;
    int open_err;
    struct diag open_diag;
};

/* The bitmap in the parameters, if any: is there one of that name?  0 or -errno with diag. */
int backup_check_bitmap(struct backup *b, struct diag *diag) MUST_USE;

/* Users are drained: acquires it, unless `acquired` is it, and begins to record.  On
 * failure nothing has changed. */
int backup_take_bitmap(struct backup *b, struct dirty_bitmap *acquired,
                       struct diag *diag) MUST_USE;

/* The job has failed, and nothing is in flight: notes what was to be copied still. */
void backup_note_remainder(struct backup *b);

/* The job's end: the bitmap is replaced, or stays as it is, by its mode; and given back. */
void backup_settle_bitmap(struct backup *b, bool success);

/* Gives it back as it is.  Again: does nothing. */
void backup_drop_bitmap(struct backup *b);

/* What records for it records changes of this node, too, which nobody changes yet; or doesn't after
 * all.  0 or -ENOMEM. */
int backup_record_at(struct backup *b, struct node *node) MUST_USE;
void backup_stop_recording(struct backup *b, struct node *node);

#endif
