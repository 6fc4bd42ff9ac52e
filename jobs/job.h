/* SPDX-License-Identifier: BSD-3-Clause */
/* The life cycle of a block job: states and verbs as tables, progress, rate limit, events.
 *
 * A job runs on a thread of its own.  Verbs come from the control thread and only change
 * state under the job's lock; the job's `run` notices them at its pause points.  Names and
 * meaning are QMP's (QEMU's qapi/job.json): a client of QEMU's finds its way.
 *
 * Threads: verbs and queries from any thread; functions marked RUN from the job's thread
 * only. Lock order: the manager's list, then a job.  Layer: jobs. */
#ifndef JOBS_JOB_H
#define JOBS_JOB_H

#include <stdbool.h>
#include <stdint.h>

#include "base/compiler.h"
#include "base/diag.h"

enum job_state {
    JOB_CREATED,
    JOB_RUNNING,
    JOB_PAUSED,
    JOB_READY,
    JOB_STANDBY,
    JOB_WAITING,
    JOB_PENDING,
    JOB_ABORTING,
    JOB_CONCLUDED,
    JOB_NULL,
    JOB_STATES
};

enum job_verb {
    JOB_VERB_CANCEL,
    JOB_VERB_PAUSE,
    JOB_VERB_RESUME,
    JOB_VERB_SET_SPEED,
    JOB_VERB_COMPLETE,
    JOB_VERB_CHANGE,
    JOB_VERB_FINALIZE,
    JOB_VERB_DISMISS,
    JOB_VERBS
};

/* "created", "running", ... and "cancel", "pause", ... as QMP spells them. */
const char *job_state_name(enum job_state state);
extern const char *const job_state_names[]; /* by their numbers; NULL at the end */
const char *job_verb_name(enum job_verb verb);

/* The two tables, for tests and for drawing. */
bool job_transition_is_legal(enum job_state from, enum job_state to);
bool job_verb_is_legal(enum job_state state, enum job_verb verb);

/* What an I/O error leads to; per side of a job. */
enum job_on_error { JOB_REPORT, JOB_IGNORE, JOB_ENOSPC, JOB_STOP };

enum job_event_kind {
    JOB_EVENT_OPENED,    /* for who started it: `open` has ended, `err` tells how */
    JOB_EVENT_STATUS,    /* JOB_STATUS_CHANGE */
    JOB_EVENT_READY,     /* BLOCK_JOB_READY */
    JOB_EVENT_COMPLETED, /* BLOCK_JOB_COMPLETED, with an error text when it failed */
    JOB_EVENT_CANCELLED, /* BLOCK_JOB_CANCELLED; both before the state concluded */
    JOB_EVENT_PENDING,   /* BLOCK_JOB_PENDING */
    JOB_EVENT_ERROR,     /* BLOCK_JOB_ERROR: operation and action */
};

/* A copy of what a query shows; also part of each event. */
struct job_info {
    char id[256];
    uint64_t ticket;  /* as it was started with */
    void *owner;      /* so, too */
    const char *type; /* "mirror", "commit", "backup", "stream" or "create" */
    bool of_no_disk;  /* as the kind says */
    enum job_state state;
    uint64_t len,
        offset;     /* bytes; offset never falls, and equals len at READY and at success */
    uint64_t speed; /* bytes per second, 0: no limit */
    bool busy, paused;
    bool ready; /* now: not any more when it ends */
    bool auto_finalize, auto_dismiss;
    bool completing;      /* was told to complete */
    bool actively_synced; /* mirrors: what users write is on the target before its answer */
    const char *io_status; /* "ok", "failed" or "nospace" */
    char error[1024];      /* "" while there is none; also when it was cancelled */
};

struct job_event {
    enum job_event_kind kind;
    struct job_info info;
    int err;            /* OPENED: 0 or -errno, with info.error */
    bool write_error;   /* ERROR: the target's side ("write"), else the source's ("read") */
    const char *action; /* ERROR: "ignore", "report" or "stop" */
};

struct job;
struct job_group;
struct job_manager;

/* A kind of job. */
struct job_ops {
    const char *type;
    /* It isn't one of QMP's block jobs: they have commands and events of their own besides those
     * of all jobs. */
    bool of_no_disk;
    /* RUN, optional: before `run`, in the state created, what may take long or fail:
     * opening files and connections.  When it fails, `finish` undoes, and nothing is ever
     * told of the job but JOB_EVENT_OPENED. */
    int (*open)(struct job *job, void *state, struct diag *diag);
    /* RUN: the whole work.  0: done as asked (completed, or cancelled softly when ready);
     * -ECANCELED: abandoned on demand; another -errno: failed, said in diag. */
    int (*run)(struct job *job, void *state, struct diag *diag);
    /* RUN, optional: waits until nothing is in flight, for the job is to stand still. */
    void (*wait_in_flight)(struct job *job, void *state);
    /* Any thread, until `free`, maybe under the job's lock: a forced cancel or the server's
     * end.  Makes waits of `open` and `run` end soon; waits for nothing itself. */
    void (*interrupt)(struct job *job, void *state);
    /* RUN: after `run`, or an `open` that failed: makes a success take effect (pivot), or
     * undoes (success false).  Called once.  A failure of it fails the job. */
    int (*finish)(struct job *job, void *state, bool success, struct diag *diag);
    /* Any thread, when the job's has ended, or never began. */
    void (*free)(void *state);
    /* Any thread, under the job's lock; optional: see job_change.  Waits for nothing. */
    int (*set_write_blocking)(void *state, bool on, struct diag *diag);
};

struct job_params {
    const char *id;
    uint64_t speed;
    uint64_t ticket; /* comes back in events */
    void *owner;     /* whose disk it is about, or NULL; comes back, too */
    bool manual_finalize, manual_dismiss; /* QMP's auto-* turned off */
    struct job_group *group;              /* whose end is its own; borrowed.  NULL: none */
};

/* Creates and starts a job; `state` is the job's from then on, whatever happens.  -EEXIST
 * for an id in use, -EINVAL for one that isn't well-formed. */
int job_start(struct job_manager *manager, const struct job_ops *ops, void *state,
              const struct job_params *params, struct diag *diag) MUST_USE;

/* ---- RUN: what the work calls ---- */

/* The one pause point: waits while paused, and sleeps as the rate limit says for `bytes`
 * that were really transferred since the last call.  0, or -ECANCELED when the job is to
 * end at once (forced cancel, or any cancel before ready). */
int job_checkpoint(struct job *job, uint64_t bytes) MUST_USE;

/* Sleeps until something happens to the job (a verb), job_kick(), or ns have passed. */
void job_sleep(struct job *job, uint64_t ns);

/* Sleeps for so long whatever happens, but for a pause, or an end at once. */
void job_rest(struct job *job, uint64_t ns);

/* As job_sleep, by a job that has nothing to do meanwhile: it isn't shown as busy. */
void job_idle(struct job *job, uint64_t ns);

/* From any thread: ends job_sleep (a completion came in); not the rate limit's sleep. */
void job_kick(struct job *job);

/* offset = done, len = done + remaining; offset shown never falls. */
void job_progress(struct job *job, uint64_t done, uint64_t remaining);

/* Enters READY; again: does nothing. */
void job_ready(struct job *job);

/* What info.actively_synced is from here on. */
void job_set_actively_synced(struct job *job, bool synced);

/* Was `complete`, or a soft cancel, asked for since ready? */
bool job_should_finish(struct job *job);
/* Of the two: complete, so `finish` shall switch over. */
bool job_completes(struct job *job);
/* Is it to end at once, as job_checkpoint would say? */
bool job_is_cancelled(struct job *job);

/* Decides by policy what an I/O error leads to, sends BLOCK_JOB_ERROR, and with JOB_STOP
 * pauses the job visibly (the next checkpoint waits for resume).  True: go on (the range
 * stays dirty); false: the job fails with err. */
bool job_handle_error(struct job *job, enum job_on_error policy, bool write_side, int err);

/* Will the user have to say when the job may take effect? */
bool job_waits_for_finalize(struct job *job);

/* How many bytes the rate limit allows in a slice; UINT64_MAX: any number. */
uint64_t job_slice_bytes(struct job *job);

/* The longest a job waits before it looks for verbs. */
#define JOB_SLICE_NS 100000000ull

#endif
