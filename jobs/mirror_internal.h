/* SPDX-License-Identifier: BSD-3-Clause */
/* A running mirror or commit; private to this folder. */
#ifndef JOBS_MIRROR_INTERNAL_H
#define JOBS_MIRROR_INTERNAL_H

#include <stdatomic.h>

#include "block/observer.h"
#include "jobs/copier.h"
#include "jobs/mirror.h"

/* What a commit is besides a mirror: the layers of users' chain that it is about. */
struct commit_layers {
    unsigned depth;       /* layers below the source that are copied, too */
    struct node *base;    /* the chain's instance of the target; NULL: no commit */
    bool base_locked;     /* it holds the lock of a writer */
    struct node *overlay; /* of the source; NULL: that is the active layer */
    bool overlay_locked;  /* and isn't the active layer, which is locked anyway */
    struct node
        *overlay_rw; /* the overlay opened for writing its header; NULL: it will do */
    char *new_name;  /* by which the overlay will call the base */
    char *top_name, *base_name, *backing_file; /* as the user said; NULL: not */
};

struct mirror {
    struct job *job; /* set by run */
    /* As it was started with; the bitmap's name and the opener are owned. */
    struct mirror_params params;
    char *id;
    struct disk_seat seat;
    struct node *_Atomic source; /* borrowed; another when the seat was moved */
    _Atomic bool moved;          /* and what was begun before may still use the old one */
    struct node *target;         /* owned; NULL once users are served from it */
    enum mirror_sync sync;
    uint64_t granularity, max_range;
    enum job_on_error on_source_error, on_target_error;
    _Atomic bool active; /* write-blocking */
    bool unmap;          /* zeroes may become holes on the target */
    struct commit_layers layers;
    struct mirror_pivot pivot;

    /* Of a backup, whose source nobody writes to.  It is never ready: */
    bool finite;  /* it is done when all is copied, or */
    bool endless; /* goes on until it is cancelled */
    /* Optional, on the job's thread: a range of the source isn't read again; what to fail
     * with, or 0. */
    void (*forget)(struct mirror *m, uint64_t off, uint64_t len);
    int (*check)(struct mirror *m);

    struct dirty_bitmap *dirty, *unflushed, *flushing;
    struct copier *copier;
    struct observer observer;
    struct dirty_bitmap *named; /* MIRROR_INCREMENTAL: in use until the end */
    bool attached;
    _Atomic bool idle; /* the job sleeps: a write wakes it */
    /* Write-blocking: users' writes go to the target, too.  Not after it failed: until it
     * has taken a copy again they only mark. */
    _Atomic bool forwarding;

    /* the job's thread */
    uint64_t cursor;     /* where the search for work goes on */
    uint64_t patience;   /* ns for which users were last drained */
    uint64_t flush_mark; /* bytes copied when the last early flush began */
    uint64_t failures;   /* of the target's flushes, as last seen */
    bool flushes;        /* one was begun, and its result not looked at */
    bool in_sync, drained;
    bool replaced; /* users are served from the target */

    /* Of the target's connection; changed by the job's thread. */
    _Atomic uint64_t losses;      /* as last seen */
    _Atomic bool unreported_loss; /* the target's next flush fails because of one */

    _Atomic uint64_t copied, sent; /* bytes; sent since the last checkpoint */
    struct lock lock;
    /* under lock */
    struct node *interruptible; /* the target, as long as it may be; else NULL */
    bool interrupted;
    int sticky_error;    /* the first that the job has not dealt with; 0 or -errno */
    bool error_on_write; /* it came from the target */

    _Atomic bool give_up; /* while it is being opened: interrupted */
};

/* Starts; see mirror_start.  m, which is zeroed but for `layers`, becomes the job's state,
 * which ops->free frees also when this fails.  Without a target it is left to ops->open to
 * call mirror_prepare. */
int mirror_launch(struct job_manager *manager, struct mirror *m,
                  const struct mirror_params *params, const struct job_ops *ops,
                  struct diag *diag) MUST_USE;

/* With source and target in m->params: validates, and attaches to the source.  What was
 * done before a failure is undone by mirror_finish or mirror_free. */
int mirror_prepare(struct mirror *m, struct diag *diag) MUST_USE;

/* Members of its ops. */
int mirror_run(struct job *job, void *state, struct diag *diag);
void mirror_wait_in_flight(struct job *job, void *state);
void mirror_interrupt(struct job *job, void *state);
int mirror_set_write_blocking(void *state, bool on, struct diag *diag);
int mirror_finish(struct job *job, void *state, bool success, struct diag *diag);
/* The last of finish. */
void mirror_leave_seat(struct mirror *m);
void mirror_free(void *state);

/* ---- mirror_copy.c; on the job's thread ---- */

/* Finds what there is to copy, while users go on writing: they mark for themselves, so that
 * nothing is ever cleared.  0 or -ECANCELED. */
int mirror_mark_first(struct mirror *m) MUST_USE;

/* Starts a copy, or waits until there may be one to start. */
void mirror_copy_more(struct mirror *m);

/* Flushes the target from time to time while the copying goes on. */
void mirror_flush_early(struct mirror *m);

/* Nothing is dirty, and no worker copies. */
bool mirror_is_clean(struct mirror *m);

/* The job is clean: READY if the target's flush succeeds. */
void mirror_try_ready(struct mirror *m);

/* Is there a sticky error? */
bool mirror_has_failed(struct mirror *m);

/* Takes the sticky error and deals with it by policy: 0: go on; or -errno. */
int mirror_handle_error(struct mirror *m) MUST_USE;

/* Marks what the target may have lost, when a flush of it has failed. */
void mirror_check_losses(struct mirror *m);

/* From any thread, about a flush of the target that failed: did it tell of a connection
 * that was lost, which is no error? */
bool mirror_flush_reported_loss(struct mirror *m);
void mirror_report_progress(struct mirror *m);

/* A pivot's drains, where nobody writes to the source. */
void mirror_drain_nobody(void *opaque);

/* The completion point: users are drained, the rest is copied, the target flushed.  True:
 * it is done, and users stay drained; else everything goes on. */
bool mirror_try_complete(struct mirror *m);
void mirror_end_drain(struct mirror *m);

/* Copies until the completion point is reached.  0, or the first error. */
int mirror_finish_copy(struct mirror *m) MUST_USE;

/* From any thread. */
void mirror_note_error(struct mirror *m, int err, bool write_side);
void mirror_copied(void *opaque, const struct copy_result *result);
void mirror_worker_freed(void *opaque);

/* mirror_observe.c: from attach to detach the source's writes are seen. */

/* Write-blocking from here on, or not any more.  -EBUSY: attached without a place among those
 * that can be.  From any thread. */
int mirror_observe_as(struct mirror *m, bool write_blocking, struct diag *diag) MUST_USE;

int mirror_attach(struct mirror *m, const char *bitmap, struct diag *diag) MUST_USE;
void mirror_detach(struct mirror *m);

/* The seat follows from here on, if there is one; to mirror_detach. */
void mirror_follow(struct mirror *m);
/* On the job's thread: what the seat was moved away from isn't used any more. */
void mirror_catch_up(struct mirror *m);

/* The source's bitmap of that name, NULL: none; or NULL with diag. */
struct dirty_bitmap *mirror_find_bitmap(struct node *source, const char *name,
                                        struct diag *diag);

#endif
