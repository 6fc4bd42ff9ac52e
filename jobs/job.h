/* SPDX-License-Identifier: BSD-3-Clause */
/* The life cycle of a job: tables of states and verbs, progress, rate limit, events.
 *
 * A job runs on a thread of its own.  Verbs come from other threads and only change state under
 * the job's lock; the job's `run` notices them at its pause points.  Names and meanings are
 * QMP's (QEMU's qapi/job.json).
 *
 * Threads: verbs and queries from any thread; functions marked RUN on the job's thread only.
 * Lock order: the manager's list, then a job.  Layer: jobs. */
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

/* QMP's names: "created", "running", ... and "cancel", "pause", ... */
const char *job_state_name(enum job_state state);
extern const char *const job_state_names[]; /* indexed by enum job_state; ends with NULL */
const char *job_verb_name(enum job_verb verb);

/* The two tables, for the state machine and for tests. */
bool job_transition_is_legal(enum job_state from, enum job_state to);
bool job_verb_is_legal(enum job_state state, enum job_verb verb);

/* How a job reacts to an I/O error; chosen for each side. */
enum job_on_error { JOB_REPORT, JOB_IGNORE, JOB_ENOSPC, JOB_STOP };

enum job_event_kind {
    JOB_EVENT_OPENED,    /* to the starter: `open` has ended, with `err` */
    JOB_EVENT_STATUS,    /* JOB_STATUS_CHANGE */
    JOB_EVENT_READY,     /* BLOCK_JOB_READY */
    JOB_EVENT_COMPLETED, /* BLOCK_JOB_COMPLETED, with info.error if the job failed */
    /* BLOCK_JOB_CANCELLED; like COMPLETED it comes before the state concluded */
    JOB_EVENT_CANCELLED,
    JOB_EVENT_PENDING, /* BLOCK_JOB_PENDING */
    JOB_EVENT_ERROR,   /* BLOCK_JOB_ERROR: operation and action */
};

/* What a query shows; a copy of it is in each event. */
struct job_info {
    char id[256];
    uint64_t ticket;  /* from job_params */
    void *owner;      /* from job_params */
    const char *type; /* "mirror", "commit", "backup", "stream" or "create" */
    bool of_no_disk;  /* from job_ops */
    enum job_state state;
    uint64_t len,
        offset; /* bytes; offset never falls, and equals len when READY and after success */
    uint64_t speed; /* bytes per second; 0: no limit */
    bool busy, paused;
    bool ready; /* in state READY or STANDBY */
    bool auto_finalize, auto_dismiss;
    bool completing; /* `complete` was accepted */
    /* mirrors: users' writes reach the target before they are answered */
    bool actively_synced;
    const char *io_status; /* "ok", "failed" or "nospace" */
    char error[1024];      /* "" if there was no error, or the job was cancelled */
};

struct job_event {
    enum job_event_kind kind;
    struct job_info info;
    int err; /* OPENED: 0 or -errno, then with info.error */
    /* ERROR: on the target's side ("write"); else on the source's ("read") */
    bool write_error;
    const char *action; /* ERROR: "ignore", "report" or "stop" */
};

struct job;
struct job_group;
struct job_manager;

/* A kind of job. */
struct job_ops {
    const char *type;
    /* Not one of QMP's block jobs, which have additional commands and events. */
    bool of_no_disk;
    /* RUN, optional: called before `run`, in state created, for what may take long or fail:
     * opening files and connections.  On failure `finish` undoes what was done, and the only
     * event about the job is JOB_EVENT_OPENED. */
    int (*open)(struct job *job, void *state, struct diag *diag);
    /* RUN: the whole work.  Returns 0: done as asked (completed, or cancelled softly when
     * ready); -ECANCELED: stopped because job_checkpoint said so; another -errno, with diag:
     * failed. */
    int (*run)(struct job *job, void *state, struct diag *diag);
    /* RUN, optional: waits until nothing is in flight, before the job pauses. */
    void (*wait_in_flight)(struct job *job, void *state);
    /* Any thread, possibly under the job's lock, any time before `free`: a forced cancel, or the
     * server's end.  Makes waits of `open` and `run` end soon.  Must not block. */
    void (*interrupt)(struct job *job, void *state);
    /* RUN: called once, after `run` or after an `open` that failed.  success: makes the result
     * take effect (pivot); otherwise undoes.  A failure of it fails the job. */
    int (*finish)(struct job *job, void *state, bool success, struct diag *diag);
    /* Any thread, after the job's thread has ended, or if it was never started. */
    void (*free)(void *state);
    /* Any thread, under the job's lock; optional: see job_change.  Must not block. */
    int (*set_write_blocking)(void *state, bool on, struct diag *diag);
};

struct job_params {
    const char *id;
    uint64_t speed;
    uint64_t ticket; /* copied into job_info */
    void *owner;     /* the disk's owner, or NULL; copied into job_info */
    /* QMP's auto-finalize=false, auto-dismiss=false */
    bool manual_finalize, manual_dismiss;
    struct job_group *group; /* group of jobs that end together; borrowed; NULL: none */
};

/* Creates and starts a job, which takes over `state` even on failure (job_ops.free).  0 or
 * -errno with diag: -EEXIST for an id in use, -EINVAL for one that isn't well-formed. */
int job_start(struct job_manager *manager, const struct job_ops *ops, void *state,
              const struct job_params *params, struct diag *diag) MUST_USE;

/* ---- RUN: called by the work ---- */

/* The only pause point: waits while the job is paused, and sleeps for the rate limit.  bytes:
 * transferred since the last call.  0, or -ECANCELED when the job must end at once (forced
 * cancel, or any cancel before it was ready). */
int job_checkpoint(struct job *job, uint64_t bytes) MUST_USE;

/* Sleeps for ns, or until a verb comes, the job must end at once, or job_kick() is called. */
void job_sleep(struct job *job, uint64_t ns);

/* Sleeps for ns, or until the job is to pause or must end at once. */
void job_rest(struct job *job, uint64_t ns);

/* As job_sleep, for a job that has nothing to do: it isn't shown as busy. */
void job_idle(struct job *job, uint64_t ns);

/* From any thread: ends job_sleep and job_idle, but not the rate limit's sleep. */
void job_kick(struct job *job);

/* Sets offset = done and len = offset + remaining (bytes).  The offset shown never falls. */
void job_progress(struct job *job, uint64_t done, uint64_t remaining);

/* Enters READY; a second call does nothing. */
void job_ready(struct job *job);

/* Sets info.actively_synced. */
void job_set_actively_synced(struct job *job, bool synced);

/* Since the job was ready: has `complete` or a soft cancel come? */
bool job_should_finish(struct job *job);
/* Was that `complete`, so that `finish` has to switch over? */
bool job_completes(struct job *job);
/* Must the job end at once, as job_checkpoint would say? */
bool job_is_cancelled(struct job *job);

/* Applies the policy to an I/O error (-errno) and sends BLOCK_JOB_ERROR; with JOB_STOP the next
 * checkpoint pauses the job until it is resumed.  Returns true: go on, the range remains to be
 * copied; false: the job fails with err. */
bool job_handle_error(struct job *job, enum job_on_error policy, bool write_side, int err);

/* Must the user finalize the job before it takes effect? */
bool job_waits_for_finalize(struct job *job);

/* How many bytes the rate limit allows in a slice of time; UINT64_MAX: no limit. */
uint64_t job_slice_bytes(struct job *job);

/* How long a job waits at most before it looks for verbs. */
#define JOB_SLICE_NS 100000000ull

#endif
