/* SPDX-License-Identifier: BSD-3-Clause */
/* Jobs that end together: each waits, when its work is done, until that of all others is, and
 * the failure of one cancels the others.  Who made the group holds it until all its jobs were
 * started.
 *
 * Threads: any.  Layer: jobs. */
#ifndef JOBS_JOB_GROUP_H
#define JOBS_JOB_GROUP_H

#include <stdbool.h>

#include "base/compiler.h"

struct job_group;

/* NULL: no memory.  The caller's, to be put. */
struct job_group *job_group_new(void) MUST_USE;
void job_group_put(struct job_group *group); /* NULL is allowed */

/* ---- for the jobs; each of them is in it from its start to its end ---- */

void job_group_join(struct job_group *group);  /* NULL is allowed, in all of these */
void job_group_leave(struct job_group *group); /* and puts */

/* The work of one is done: waits for the others'.  False: one of them has failed. */
bool job_group_meet(struct job_group *group);

/* One has failed, or was cancelled. */
void job_group_fail(struct job_group *group);

#endif
