/* SPDX-License-Identifier: BSD-3-Clause */
/* The list of jobs, and the verbs. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/thread.h"
#include "jobs/internal.h"

struct job_manager *job_manager_new(job_event_sink *sink, void *opaque)
{
    struct job_manager *manager = calloc(1, sizeof *manager);

    if (!manager)
        return NULL;
    lock_init(&manager->lock, RANK_JOB_LIST);
    list_init(&manager->jobs);
    manager->sink = sink;
    manager->sink_opaque = opaque;
    return manager;
}

static void free_job_memory(struct job *job)
{
    job_group_leave(job->group);
    pthread_cond_destroy(&job->changed);
    lock_destroy(&job->lock);
    free(job);
}

/* Waits for the job's thread. */
static void job_free(struct job *job)
{
    pthread_join(job->thread, NULL);
    job->ops->free(job->state_of_kind);
    free_job_memory(job);
}

/* Under the manager's lock.  Jobs that are over are freed by the next call that uses the
 * list. */
static void free_ended_jobs_locked(struct job_manager *manager)
{
    LIST_FOR_EACH_SAFE (pos, &manager->jobs) {
        struct job *job = CONTAINER_OF(pos, struct job, link);
        lock_acquire(&job->lock);
        bool over = job->over;
        lock_release(&job->lock);
        if (!over)
            continue;
        list_remove(pos);
        job_free(job);
    }
}

static struct job *find_job_locked(struct job_manager *manager, const char *id)
{
    free_ended_jobs_locked(manager);
    LIST_FOR_EACH (pos, &manager->jobs) {
        struct job *job = CONTAINER_OF(pos, struct job, link);
        if (strcmp(job->info.id, id) == 0)
            return job;
    }
    return NULL;
}

/* As QMP requires: a letter, then letters, digits, '-', '.', '_'. */
static bool id_is_well_formed(const char *id)
{
    static const char letters[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";
    static const char rest[] =
        "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._";

    return id[0] && strchr(letters, id[0]) && id[strspn(id, rest)] == 0 &&
           strlen(id) < sizeof((struct job_info *)0)->id;
}

static struct job *job_new(struct job_manager *manager, const struct job_ops *ops,
                           void *state, const struct job_params *params)
{
    struct job *job = calloc(1, sizeof *job);

    if (!job)
        return NULL;
    job->manager = manager;
    job->ops = ops;
    job->state_of_kind = state;
    job->group = params->group;
    job_group_join(job->group);
    lock_init(&job->lock, RANK_JOB);
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&job->changed, &attr);
    pthread_condattr_destroy(&attr);
    job->info = (struct job_info){
        .ticket = params->ticket,
        .owner = params->owner,
        .type = ops->type,
        .of_no_disk = ops->of_no_disk,
        .state = JOB_CREATED,
        .speed = params->speed,
        .auto_finalize = !params->manual_finalize,
        .auto_dismiss = !params->manual_dismiss,
        .io_status = "ok",
    };
    snprintf(job->info.id, sizeof job->info.id, "%s", params->id);
    ratelimit_set_speed(&job->limit, params->speed, clock_ns());
    return job;
}

/* Under the manager's lock. */
static int check_id_locked(struct job_manager *manager, const char *id, struct diag *diag)
{
    if (!id_is_well_formed(id))
        return diag_set(diag, EINVAL, "job-id '%s': not a well-formed id", id);
    if (find_job_locked(manager, id))
        return diag_set(diag, EEXIST, "job-id '%s': is in use", id);
    return 0;
}

int job_check_id(struct job_manager *manager, const char *id, struct diag *diag)
{
    LOCK_GUARD(&manager->lock);
    return check_id_locked(manager, id, diag);
}

/* On failure the state remains the caller's. */
static int add_job_locked(struct job_manager *manager, const struct job_ops *ops,
                          void *state, const struct job_params *params, struct diag *diag)
{
    int err = check_id_locked(manager, params->id, diag);
    if (err)
        return err;
    struct job *job = job_new(manager, ops, state, params);
    if (!job)
        return diag_errno(diag, ENOMEM, "job '%s'", params->id);
    err = thread_start(&job->thread, job_main, job);
    if (err) {
        free_job_memory(job);
        return diag_errno(diag, -err, "job '%s': starting its thread", params->id);
    }
    list_append(&manager->jobs, &job->link);
    return 0;
}

int job_start(struct job_manager *manager, const struct job_ops *ops, void *state,
              const struct job_params *params, struct diag *diag)
{
    LOCK_GUARD(&manager->lock);

    int err = add_job_locked(manager, ops, state, params, diag);
    if (err)
        ops->free(state);
    return err;
}

/* Finds the job and checks the verb.  On success both the manager and the job are locked. */
static int find_and_lock_for_verb(struct job_manager *manager, const char *id,
                                  enum job_verb verb, struct job **out, struct diag *diag)
{
    lock_acquire(&manager->lock);
    struct job *job = find_job_locked(manager, id);
    if (!job) {
        lock_release(&manager->lock);
        return diag_set(diag, ENOENT, "Block job '%s' not found", id);
    }
    lock_acquire(&job->lock);
    if (job_verb_is_legal(job->info.state, verb)) {
        *out = job;
        return 0;
    }
    diag_set(diag, EBUSY, "Job '%s' in state '%s' cannot accept command verb '%s'", id,
             job_state_name(job->info.state), job_verb_name(verb));
    lock_release(&job->lock);
    lock_release(&manager->lock);
    return -EBUSY;
}

/* err: the verb was refused and changed nothing. */
static int unlock_after_verb(struct job_manager *manager, struct job *job, int err)
{
    if (!err)
        job_note_verb(job);
    lock_release(&job->lock);
    lock_release(&manager->lock);
    return err;
}

int job_cancel(struct job_manager *manager, const char *id, bool force, struct diag *diag)
{
    struct job *job;
    int err = find_and_lock_for_verb(manager, id, JOB_VERB_CANCEL, &job, diag);
    if (err)
        return err;
    /* A cancel before READY, or when the job is already ending, is always by force. */
    job->forced |= force || !job->info.ready;
    job->cancelled = true;
    /* A paused job continues to its end; an I/O error may pause it again. */
    job->user_paused = job->error_paused = false;
    if (job->forced)
        job_group_fail(job->group); /* wakes it if it is waiting for its group */
    if (job->forced && job->ops->interrupt)
        job->ops->interrupt(job, job->state_of_kind);
    return unlock_after_verb(manager, job, 0);
}

/* Under the job's lock: it hasn't begun to end. */
static bool can_be_cancelled(const struct job *job)
{
    return job_verb_is_legal(job->info.state, JOB_VERB_CANCEL);
}

static void cancel_by_force(struct job *job)
{
    LOCK_GUARD(&job->lock);
    if (!can_be_cancelled(job))
        return;
    job->cancelled = job->forced = true;
    job->user_paused = job->error_paused = false;
    if (job->ops->interrupt)
        job->ops->interrupt(job, job->state_of_kind);
    job_note_verb(job);
}

void job_cancel_group(struct job *job)
{
    if (!job->group)
        return;
    job_group_fail(job->group);
    LOCK_GUARD(&job->manager->lock);
    LIST_FOR_EACH (pos, &job->manager->jobs) {
        struct job *other = CONTAINER_OF(pos, struct job, link);
        if (other != job && other->group == job->group)
            cancel_by_force(other);
    }
}

int job_pause(struct job_manager *manager, const char *id, struct diag *diag)
{
    struct job *job;
    int err = find_and_lock_for_verb(manager, id, JOB_VERB_PAUSE, &job, diag);
    if (err)
        return err;
    if (job->user_paused)
        err = diag_set(diag, EBUSY, "Job is already paused");
    job->user_paused = true;
    return unlock_after_verb(manager, job, err);
}

int job_resume(struct job_manager *manager, const char *id, struct diag *diag)
{
    struct job *job;
    int err = find_and_lock_for_verb(manager, id, JOB_VERB_RESUME, &job, diag);
    if (err)
        return err;
    if (!job->user_paused && !job->error_paused) {
        err = diag_set(diag, EBUSY, "Can't resume a job that was not paused");
    } else {
        job->user_paused = job->error_paused = false;
        job->info.io_status = "ok";
    }
    return unlock_after_verb(manager, job, err);
}

int job_complete(struct job_manager *manager, const char *id, struct diag *diag)
{
    struct job *job;
    int err = find_and_lock_for_verb(manager, id, JOB_VERB_COMPLETE, &job, diag);
    if (err)
        return err;
    if (job->cancelled)
        err = diag_set(
            diag, EBUSY,
            "The active block job '%s' cannot be completed: it is being cancelled", id);
    else
        job->info.completing = true;
    return unlock_after_verb(manager, job, err);
}

int job_set_speed(struct job_manager *manager, const char *id, uint64_t bytes_per_second,
                  struct diag *diag)
{
    struct job *job;
    int err = find_and_lock_for_verb(manager, id, JOB_VERB_SET_SPEED, &job, diag);
    if (err)
        return err;
    job->info.speed = bytes_per_second;
    ratelimit_set_speed(&job->limit, bytes_per_second, clock_ns());
    return unlock_after_verb(manager, job, 0);
}

/* Under the job's lock. */
static int change_copying(struct job *job, const char *type, bool write_blocking,
                          struct diag *diag)
{
    if (strcmp(type, job->ops->type) != 0)
        return diag_set(diag, EINVAL, "Job '%s' is a %s job, not a %s job", job->info.id,
                        job->ops->type, type);
    if (!job->ops->set_write_blocking)
        return diag_set(diag, ENOTSUP, "Job type does not support change");
    return job->ops->set_write_blocking(job->state_of_kind, write_blocking, diag);
}

int job_change(struct job_manager *manager, const char *id, const char *type,
               bool write_blocking, struct diag *diag)
{
    struct job *job;
    int err = find_and_lock_for_verb(manager, id, JOB_VERB_CHANGE, &job, diag);
    if (err)
        return err;
    return unlock_after_verb(manager, job, change_copying(job, type, write_blocking, diag));
}

/* Under the manager's lock: finalizes the other jobs of the group that wait for it. */
static void finalize_group_locked(struct job_manager *manager,
                                  const struct job_group *group)
{
    LIST_FOR_EACH (pos, &manager->jobs) {
        struct job *job = CONTAINER_OF(pos, struct job, link);
        if (!group || job->group != group)
            continue;
        LOCK_GUARD(&job->lock);
        if (job_verb_is_legal(job->info.state, JOB_VERB_FINALIZE)) {
            job->finalized = true;
            job_note_verb(job);
        }
    }
}

int job_finalize(struct job_manager *manager, const char *id, struct diag *diag)
{
    struct job *job;
    int err = find_and_lock_for_verb(manager, id, JOB_VERB_FINALIZE, &job, diag);
    if (err)
        return err;
    job->finalized = true;
    job_note_verb(job);
    lock_release(&job->lock);
    finalize_group_locked(manager, job->group);
    lock_release(&manager->lock);
    return 0;
}

int job_dismiss(struct job_manager *manager, const char *id, struct diag *diag)
{
    struct job *job;
    int err = find_and_lock_for_verb(manager, id, JOB_VERB_DISMISS, &job, diag);
    if (err)
        return err;
    job->dismissed = true;
    job_note_verb(job);
    /* Waits until the job is over, so that the next query doesn't show it.  Its thread has
     * nothing else to do. */
    while (!job->over)
        lock_wait(&job->lock, &job->changed);
    return unlock_after_verb(manager, job, 0);
}

size_t job_query(struct job_manager *manager, struct job_info *infos, size_t max)
{
    LOCK_GUARD(&manager->lock);
    size_t n = 0;

    free_ended_jobs_locked(manager);
    LIST_FOR_EACH (pos, &manager->jobs) {
        struct job *job = CONTAINER_OF(pos, struct job, link);
        lock_acquire(&job->lock);
        if (n < max)
            infos[n] = job->info;
        lock_release(&job->lock);
        n++;
    }
    return n;
}

/* Under the manager's lock. */
static void end_by_force(struct job *job)
{
    LOCK_GUARD(&job->lock);
    job->cancelled = job->forced = job->dismissed = true;
    job->info.auto_dismiss = true;
    job_group_fail(job->group);
    if (job->ops->interrupt)
        job->ops->interrupt(job, job->state_of_kind);
    job_note_verb(job);
}

static void end_all_by_force(struct job_manager *manager)
{
    LOCK_GUARD(&manager->lock);
    LIST_FOR_EACH (pos, &manager->jobs)
        end_by_force(CONTAINER_OF(pos, struct job, link));
}

/* Removes a job from the list while others may still look at that. */
static struct job *take_first(struct job_manager *manager)
{
    LOCK_GUARD(&manager->lock);
    if (list_empty(&manager->jobs))
        return NULL;
    struct job *job = CONTAINER_OF(manager->jobs.next, struct job, link);
    list_remove(&job->link);
    return job;
}

void job_manager_free(struct job_manager *manager)
{
    struct job *job;

    if (!manager)
        return;
    end_all_by_force(manager);
    while ((job = take_first(manager)))
        job_free(job);
    lock_destroy(&manager->lock);
    free(manager);
}
