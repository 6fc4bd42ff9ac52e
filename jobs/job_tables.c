/* SPDX-License-Identifier: BSD-3-Clause */
/* The states and verbs of a job, as tables. */
#include <stddef.h>

#include "jobs/job.h"

const char *const job_state_names[JOB_STATES + 1] = {
    [JOB_CREATED] = "created", [JOB_RUNNING] = "running",   [JOB_PAUSED] = "paused",
    [JOB_READY] = "ready",     [JOB_STANDBY] = "standby",   [JOB_WAITING] = "waiting",
    [JOB_PENDING] = "pending", [JOB_ABORTING] = "aborting", [JOB_CONCLUDED] = "concluded",
    [JOB_NULL] = "null",
};

static const char *const verb_names[JOB_VERBS] = {
    [JOB_VERB_CANCEL] = "cancel",     [JOB_VERB_PAUSE] = "pause",
    [JOB_VERB_RESUME] = "resume",     [JOB_VERB_SET_SPEED] = "set-speed",
    [JOB_VERB_COMPLETE] = "complete", [JOB_VERB_CHANGE] = "change",
    [JOB_VERB_FINALIZE] = "finalize", [JOB_VERB_DISMISS] = "dismiss",
};

#define S(state) (1u << JOB_##state)

/* For each state, the states that may follow. */
static const unsigned transitions[JOB_STATES] = {
    [JOB_CREATED] = S(RUNNING) | S(ABORTING),
    [JOB_RUNNING] = S(PAUSED) | S(READY) | S(WAITING) | S(ABORTING),
    [JOB_PAUSED] = S(RUNNING),
    [JOB_READY] = S(STANDBY) | S(WAITING) | S(ABORTING),
    [JOB_STANDBY] = S(READY),
    [JOB_WAITING] = S(PENDING) | S(ABORTING),
    [JOB_PENDING] = S(CONCLUDED) | S(ABORTING),
    [JOB_ABORTING] = S(CONCLUDED),
    [JOB_CONCLUDED] = S(NULL),
    [JOB_NULL] = 0,
};

static const unsigned verbs[JOB_VERBS] = {
    [JOB_VERB_CANCEL] = S(CREATED) | S(RUNNING) | S(PAUSED) | S(READY) | S(STANDBY) |
                        S(WAITING) | S(PENDING),
    [JOB_VERB_PAUSE] = S(CREATED) | S(RUNNING) | S(PAUSED) | S(READY) | S(STANDBY),
    [JOB_VERB_RESUME] = S(CREATED) | S(RUNNING) | S(PAUSED) | S(READY) | S(STANDBY),
    [JOB_VERB_SET_SPEED] = S(CREATED) | S(RUNNING) | S(PAUSED) | S(READY) | S(STANDBY),
    [JOB_VERB_COMPLETE] = S(READY) | S(STANDBY),
    [JOB_VERB_CHANGE] = S(RUNNING) | S(PAUSED) | S(READY) | S(STANDBY),
    [JOB_VERB_FINALIZE] = S(PENDING),
    [JOB_VERB_DISMISS] = S(CONCLUDED),
};

#undef S

const char *job_state_name(enum job_state state)
{
    return job_state_names[state];
}

const char *job_verb_name(enum job_verb verb)
{
    return verb_names[verb];
}

bool job_transition_is_legal(enum job_state from, enum job_state to)
{
    return transitions[from] & 1u << to;
}

bool job_verb_is_legal(enum job_state state, enum job_verb verb)
{
    return verbs[verb] & 1u << state;
}
