/* SPDX-License-Identifier: BSD-3-Clause */
/* A running mirror or commit; private to this folder. */
#ifndef JOBS_MIRROR_INTERNAL_H
#define JOBS_MIRROR_INTERNAL_H

#include <stdatomic.h>

#include "block/observer.h"
#include "jobs/copier.h"
#include "jobs/mirror.h"

/* For a commit, which is a mirror from layers of users' chain to their base: these layers. */
struct commit_layers {
    unsigned depth; /* number of layers below the source that are copied as well */
    /* The node of the base in users' chain; NULL: this is no commit.  The target is another node
     * on the same image, opened for writing. */
    struct node *base;
    bool base_locked; /* `base` holds a writer's lock */
    /* the layer above the source; NULL: the source is the active layer */
    struct node *overlay;
    bool overlay_locked; /* `overlay` holds a writer's lock for this job */
    /* the overlay opened for writing its header; NULL: `overlay` is writable */
    struct node *overlay_rw;
    char *new_name; /* the name of the base that is written into the overlay */
    char *top_name, *base_name, *backing_file; /* as the user gave them; NULL: not given */
};

struct mirror {
    struct job *job; /* set by run */
    /* As it was started with; the bitmap's name and the opener are owned. */
    struct mirror_params params;
    char *id;
    struct disk_seat seat;
    struct node *_Atomic source; /* borrowed; changes when the seat is moved */
    _Atomic bool moved;          /* it changed, and copies in flight may use the old one */
    struct node *target;         /* owned; NULL once users are served from it */
    enum mirror_sync sync;
    uint64_t granularity, max_range;
    enum job_on_error on_source_error, on_target_error;
    _Atomic bool active; /* write-blocking */
    bool unmap;          /* zeroes may become holes on the target */
    struct commit_layers layers;
    struct mirror_pivot pivot;

    /* For a backup, whose source is a frozen point that doesn't change, and which never becomes
     * READY: */
    bool finite;  /* it is done when everything is copied */
    bool endless; /* it goes on until it is cancelled */
    /* Both optional, on the job's thread.  forget: a range of the source won't be read again.
     * check: 0, or -errno with which the job is to fail. */
    void (*forget)(struct mirror *m, uint64_t off, uint64_t len);
    int (*check)(struct mirror *m);

    struct dirty_bitmap *dirty, *unflushed, *flushing;
    struct copier *copier;
    struct observer observer;
    struct dirty_bitmap *named; /* MIRROR_INCREMENTAL: kept busy until the end */
    bool attached;
    _Atomic bool idle; /* the job sleeps, and a user's write has to wake it */
    /* Write-blocking: users' writes are sent to the target, too.  False after a write to the target
     * failed, until a copy succeeds: writes only mark meanwhile. */
    _Atomic bool forwarding;

    /* the job's thread */
    uint64_t cursor; /* where the search for work goes on */
    /* ns: how long users were drained at most, at the last attempt to end */
    uint64_t patience;
    uint64_t flush_mark; /* `copied` when the last early flush began */
    uint64_t failures;   /* node_flush_failures of the target, as last seen */
    bool flushes;        /* an early flush was begun, and its result not looked at */
    bool in_sync, drained;
    bool replaced; /* users are served from the target */

    /* Lost connections of the target; changed by the job's thread. */
    _Atomic uint64_t losses;      /* node_lost_writes of the target, as last seen */
    _Atomic bool unreported_loss; /* because of a loss the target's next flush will fail */

    _Atomic uint64_t copied; /* bytes, in all */
    _Atomic uint64_t sent;   /* bytes of data since the last job_checkpoint */
    struct lock lock;
    /* under lock */
    struct node *interruptible; /* the target while an interrupt may abort it; else NULL */
    bool interrupted;
    int sticky_error;    /* the first error that the job hasn't handled yet; 0 or -errno */
    bool error_on_write; /* it came from the target */

    _Atomic bool give_up; /* interrupted while the target is being opened */
};

/* Starts the job; see mirror_start.  m, which is zeroed except for `layers`, becomes the job's
 * state and is freed by ops->free, even when this fails.  Without a target, ops->open opens one
 * and calls mirror_prepare. */
int mirror_launch(struct job_manager *manager, struct mirror *m,
                  const struct mirror_params *params, const struct job_ops *ops,
                  struct diag *diag) MUST_USE;

/* With source and target in m->params: validates, and attaches to the source.  After a failure
 * mirror_finish or mirror_free undoes what was done. */
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

/* Marks what has to be copied at first, while users go on writing.  It only sets bits, as users'
 * writes do at the same time.  0 or -ECANCELED. */
int mirror_mark_first(struct mirror *m) MUST_USE;

/* Starts a copy, or waits until there may be one to start. */
void mirror_copy_more(struct mirror *m);

/* Flushes the target from time to time while the copying goes on. */
void mirror_flush_early(struct mirror *m);

/* Is nothing dirty, and no worker copying? */
bool mirror_is_clean(struct mirror *m);

/* When the mirror is clean: flushes the target, and becomes READY if that succeeds. */
void mirror_try_ready(struct mirror *m);

/* Is there a sticky error? */
bool mirror_has_failed(struct mirror *m);

/* Takes the sticky error and deals with it by policy: 0: go on; or -errno. */
int mirror_handle_error(struct mirror *m) MUST_USE;

/* If a flush of the target has failed: marks again what the target may have lost. */
void mirror_check_losses(struct mirror *m);

/* From any thread, after a flush of the target failed: did it only report that a connection was
 * lost?  Then it is no error of the job. */
bool mirror_flush_reported_loss(struct mirror *m);
void mirror_report_progress(struct mirror *m);

/* begin_drain and end_drain of a pivot where nobody writes to the source: does nothing. */
void mirror_drain_nobody(void *opaque);

/* Tries to reach the completion point: drains users, copies the rest, flushes the target.  True:
 * the target equals the source, and users stay drained.  False: not now, and users go on. */
bool mirror_try_complete(struct mirror *m);
void mirror_end_drain(struct mirror *m);

/* Copies until mirror_try_complete succeeds.  0, or the first error. */
int mirror_finish_copy(struct mirror *m) MUST_USE;

/* From any thread. */
void mirror_note_error(struct mirror *m, int err, bool write_side);
void mirror_copied(void *opaque, const struct copy_result *result);
void mirror_worker_freed(void *opaque);

/* ---- mirror_observe.c: from attach to detach the job observes the source's changes ---- */

/* Switches write-blocking mode on or off, from any thread.  -EBUSY with diag: the source has too
 * many observers of that kind. */
int mirror_observe_as(struct mirror *m, bool write_blocking, struct diag *diag) MUST_USE;

int mirror_attach(struct mirror *m, const char *bitmap, struct diag *diag) MUST_USE;
void mirror_detach(struct mirror *m);

/* From now until mirror_detach the seat's state is FOLLOWS, if there is a seat. */
void mirror_follow(struct mirror *m);
/* On the job's thread, after the seat was moved: waits until the old node isn't used any more, and
 * reports that. */
void mirror_catch_up(struct mirror *m);

/* The source's bitmap of that name.  NULL with diag: there is none. */
struct dirty_bitmap *mirror_find_bitmap(struct node *source, const char *name,
                                        struct diag *diag);

#endif
