/* SPDX-License-Identifier: BSD-3-Clause */
/* The job's thread: pause points, progress, and the steps to the end. */
#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/clock.h"
#include "base/no_space.h"
#include "jobs/internal.h"

/* Under the lock. */
static void send_event(struct job *job, const struct job_event *event)
{
    if (job->manager->sink)
        job->manager->sink(job->manager->sink_opaque, event);
}

void job_send_event(struct job *job, enum job_event_kind kind)
{
    send_event(job, &(const struct job_event){.kind = kind, .info = job->info});
}

void job_enter_state(struct job *job, enum job_state state)
{
    assert(job_transition_is_legal(job->info.state, state));
    job->info.state = state;
    job->info.paused = state == JOB_PAUSED || state == JOB_STANDBY;
    job->info.ready = state == JOB_READY || state == JOB_STANDBY;
    job_send_event(job, JOB_EVENT_STATUS);
}

void job_note_verb(struct job *job)
{
    job->verb_came = true;
    pthread_cond_broadcast(&job->changed);
}

/* ---- RUN ---- */

/* Must the job end at once?  A soft cancel of a job that was ready ends it in order
 * instead. */
static bool must_abandon(const struct job *job)
{
    return job->forced || (job->cancelled && !job->was_ready);
}

static bool wants_pause(const struct job *job)
{
    return (job->user_paused || job->error_paused) && !must_abandon(job);
}

/* Under the lock. */
static void wait_until_locked(struct job *job, uint64_t deadline_ns)
{
    struct timespec ts = {.tv_sec = (time_t)(deadline_ns / 1000000000u),
                          .tv_nsec = (long)(deadline_ns % 1000000000u)};

    pthread_cond_timedwait(&job->changed, &job->lock.mutex, &ts);
}

/* Under the lock, which is released while waiting. */
static void pause_until_resumed_locked(struct job *job)
{
    bool ready = job->info.state == JOB_READY;

    if (job->ops->wait_in_flight) {
        LOCK_GAP(&job->lock);
        job->ops->wait_in_flight(job, job->state_of_kind);
    }
    if (!wants_pause(job))
        return;
    job_enter_state(job, ready ? JOB_STANDBY : JOB_PAUSED);
    job->info.busy = false;
    while (wants_pause(job))
        lock_wait(&job->lock, &job->changed);
    job->info.busy = true;
    job_enter_state(job, ready ? JOB_READY : JOB_RUNNING);
}

int job_checkpoint(struct job *job, uint64_t bytes)
{
    LOCK_GUARD(&job->lock);
    uint64_t wait = ratelimit_account(&job->limit, bytes, clock_ns());

    for (;;) {
        if (must_abandon(job))
            return -ECANCELED;
        if (wants_pause(job))
            pause_until_resumed_locked(job);
        else if (wait)
            wait_until_locked(job, clock_ns() + wait);
        else
            break;
        /* Asked again after every wake-up, since the speed may have changed. */
        wait = ratelimit_account(&job->limit, 0, clock_ns());
    }
    job->verb_came = false;
    return 0;
}

static void sleep_as(struct job *job, uint64_t ns, bool busy)
{
    LOCK_GUARD(&job->lock);
    uint64_t until = clock_ns() + ns;

    job->info.busy = busy;
    while (!job->kicked && !job->verb_came && !must_abandon(job) && clock_ns() < until)
        wait_until_locked(job, until);
    job->info.busy = true;
    job->kicked = false;
    job->verb_came = false;
}

void job_sleep(struct job *job, uint64_t ns)
{
    sleep_as(job, ns, true);
}

void job_rest(struct job *job, uint64_t ns)
{
    LOCK_GUARD(&job->lock);
    uint64_t until = clock_ns() + ns;

    while (!must_abandon(job) && !wants_pause(job) && clock_ns() < until)
        wait_until_locked(job, until);
}

void job_idle(struct job *job, uint64_t ns)
{
    sleep_as(job, ns, false);
}

void job_kick(struct job *job)
{
    LOCK_GUARD(&job->lock);
    job->kicked = true;
    pthread_cond_broadcast(&job->changed);
}

void job_progress(struct job *job, uint64_t done, uint64_t remaining)
{
    LOCK_GUARD(&job->lock);
    if (done > job->info.offset)
        job->info.offset = done;
    job->info.len = job->info.offset + remaining;
}

void job_ready(struct job *job)
{
    LOCK_GUARD(&job->lock);
    if (job->was_ready)
        return;
    job->was_ready = true;
    job_enter_state(job, JOB_READY);
    job_send_event(job, JOB_EVENT_READY);
}

void job_set_actively_synced(struct job *job, bool synced)
{
    LOCK_GUARD(&job->lock);
    job->info.actively_synced = synced;
}

bool job_should_finish(struct job *job)
{
    LOCK_GUARD(&job->lock);
    return job->was_ready && (job->info.completing || job->cancelled);
}

bool job_completes(struct job *job)
{
    LOCK_GUARD(&job->lock);
    return job->info.completing && !job->cancelled;
}

bool job_is_cancelled(struct job *job)
{
    LOCK_GUARD(&job->lock);
    return must_abandon(job);
}

bool job_waits_for_finalize(struct job *job)
{
    LOCK_GUARD(&job->lock);
    return !job->info.auto_finalize;
}

uint64_t job_slice_bytes(struct job *job)
{
    LOCK_GUARD(&job->lock);
    uint64_t per_second = job->info.speed;
    return per_second ? per_second / (1000000000u / RATELIMIT_SLICE_NS) : UINT64_MAX;
}

bool job_handle_error(struct job *job, enum job_on_error policy, bool write_side, int err)
{
    if (policy == JOB_ENOSPC)
        policy = means_no_space(err) ? JOB_STOP : JOB_REPORT;

    LOCK_GUARD(&job->lock);
    if (policy == JOB_STOP) {
        job->error_paused = true;
        job->info.io_status = means_no_space(err) ? "nospace" : "failed";
    }
    struct job_event event = {
        .kind = JOB_EVENT_ERROR,
        .info = job->info,
        .write_error = write_side,
        .action = policy == JOB_IGNORE ? "ignore"
                  : policy == JOB_STOP ? "stop"
                                       : "report",
    };
    send_event(job, &event);
    return policy != JOB_REPORT;
}

/* ---- ending ---- */

static void set_error(struct job *job, int err, const struct diag *diag)
{
    char reason[128];

    snprintf(job->info.error, sizeof job->info.error, "%s",
             diag->text[0] ? diag->text : strerror_r(-err, reason, sizeof reason));
}

/* Waits for the verb finalize, or a forced cancel. */
static int wait_for_finalize_locked(struct job *job)
{
    job_send_event(job, JOB_EVENT_PENDING);
    while (!job->finalized && !job->forced)
        lock_wait(&job->lock, &job->changed);
    return job->forced ? -ECANCELED : 0;
}

/* Under the lock, which is released while waiting for the other jobs. */
static bool meet_group_locked(struct job *job)
{
    LOCK_GAP(&job->lock);
    return job_group_meet(job->group);
}

static void cancel_group_locked(struct job *job)
{
    LOCK_GAP(&job->lock);
    job_cancel_group(job);
}

/* Before a success takes effect: WAITING for the group, PENDING for finalize.  0, or
 * -ECANCELED. */
static int prepare_finish_locked(struct job *job)
{
    if (job->forced)
        return -ECANCELED;
    job_enter_state(job, JOB_WAITING);
    if (!meet_group_locked(job) || job->forced)
        return -ECANCELED;
    job_enter_state(job, JOB_PENDING);
    return job->info.auto_finalize ? 0 : wait_for_finalize_locked(job);
}

/* Under the lock, which is released meanwhile. */
static int call_finish_locked(struct job *job, bool success, struct diag *diag)
{
    LOCK_GAP(&job->lock);
    return job->ops->finish(job, job->state_of_kind, success, diag);
}

/* From the end of `run`, which returned err, until its effect: WAITING, PENDING, ABORTING. */
static int finish_job_locked(struct job *job, int err, struct diag *diag)
{
    if (!err)
        err = prepare_finish_locked(job);
    if (err) {
        job_enter_state(job, JOB_ABORTING);
        cancel_group_locked(job);
        (void)call_finish_locked(job, false, diag);
        return err;
    }
    err = call_finish_locked(job, true, diag);
    if (err) {
        job_enter_state(job, JOB_ABORTING);
        cancel_group_locked(job);
    }
    return err;
}

/* Opens the job, and reports that to its starter.  False: the job ends here. */
static bool open_job(struct job *job, struct diag *diag)
{
    struct diag ignored;
    int err = job->ops->open ? job->ops->open(job, job->state_of_kind, diag) : 0;
    bool cancelled = job_is_cancelled(job);

    if (cancelled)
        err = diag_set(diag, ECANCELED, "job '%s': cancelled before it had begun",
                       job->info.id);
    if (err)
        (void)!job->ops->finish(job, job->state_of_kind, false, &ignored);
    LOCK_GUARD(&job->lock);
    if (err) {
        set_error(job, err, diag);
        job->info.state = JOB_NULL; /* no event but OPENED was sent */
        job->over = true;
    } else {
        job_send_event(job, JOB_EVENT_STATUS); /* the state is created */
        job_enter_state(job, JOB_RUNNING);
        job->info.busy = true;
    }
    send_event(job, &(const struct job_event){
                        .kind = JOB_EVENT_OPENED, .info = job->info, .err = err});
    return !err;
}

void *job_main(void *opaque)
{
    static const struct diag none;
    struct job *job = opaque;
    struct diag diag = {0};

    if (!open_job(job, &diag))
        return NULL;
    int err = job->ops->run(job, job->state_of_kind, &diag);

    LOCK_GUARD(&job->lock);
    job->info.busy = false;
    if (err == 0)
        job->info.offset = job->info.len; /* as job_info promises for success */
    err = finish_job_locked(job, err, &diag);
    if (err)
        set_error(job, err, err == -ECANCELED ? &none : &diag);
    job_send_event(job, err == -ECANCELED ? JOB_EVENT_CANCELLED : JOB_EVENT_COMPLETED);
    job_enter_state(job, JOB_CONCLUDED);
    while (!job->info.auto_dismiss && !job->dismissed)
        lock_wait(&job->lock, &job->changed);
    job_enter_state(job, JOB_NULL);
    job->over = true;
    pthread_cond_broadcast(&job->changed);
    return NULL;
}
