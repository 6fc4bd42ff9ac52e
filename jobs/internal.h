/* SPDX-License-Identifier: BSD-3-Clause */
/* Private to job.c and manager.c. */
#ifndef JOBS_INTERNAL_H
#define JOBS_INTERNAL_H

#include <pthread.h>

#include "base/list.h"
#include "base/lock.h"
#include "jobs/job_group.h"
#include "jobs/manager.h"
#include "jobs/ratelimit.h"

struct job_manager {
    struct lock lock;
    struct list jobs; /* struct job.link, oldest first; under lock */
    job_event_sink *sink;
    void *sink_opaque;
};

struct job {
    struct list link; /* under the manager's lock */
    struct job_manager *manager;
    const struct job_ops *ops;
    void *state_of_kind;
    struct job_group *group; /* held; NULL: none */
    pthread_t thread;

    struct lock lock;
    /* under lock */
    pthread_cond_t changed; /* a verb, a kick, or the thread's end */
    struct job_info info;
    bool user_paused;  /* by the verb pause */
    bool error_paused; /* by JOB_STOP; the verb resume ends it too */
    bool was_ready;    /* READY was reached: a soft cancel now ends the job in order */
    bool cancelled, forced;
    bool kicked, verb_came;
    bool finalized, dismissed;
    bool over; /* the thread ends; the job can be freed */
    struct ratelimit limit;
};

/* Under the job's lock. */
void job_enter_state(struct job *job, enum job_state state);
void job_send_event(struct job *job, enum job_event_kind kind);
void job_note_verb(struct job *job);

/* Called without the job's lock, when it has failed: cancels the other jobs of its group. */
void job_cancel_group(struct job *job);

/* The thread's main function. */
void *job_main(void *opaque);

#endif
