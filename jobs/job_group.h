/* SPDX-License-Identifier: BSD-3-Clause */
/* Jobs that end together.  Each job waits, when its work is done, until the work of all
 * others is done; if one fails, the others are cancelled.  The creator holds the group until
 * all its jobs were started.
 *
 * Threads: any.  Layer: jobs. */
#ifndef JOBS_JOB_GROUP_H
#define JOBS_JOB_GROUP_H

#include <stdbool.h>

#include "base/compiler.h"

struct job_group;

/* The caller holds it; NULL: no memory. */
struct job_group *job_group_new(void) MUST_USE;
void job_group_put(struct job_group *group); /* NULL is allowed */

/* ---- for the jobs: each is in its group from its start to its end ---- */

void job_group_join(struct job_group *group);  /* NULL is allowed, in all of these */
void job_group_leave(struct job_group *group); /* also ends the job's hold */

/* The job's work is done: waits until that of all others is.  False: one of them has failed. */
bool job_group_meet(struct job_group *group);

/* A job has failed or was cancelled: job_group_meet returns false in all. */
void job_group_fail(struct job_group *group);

#endif
