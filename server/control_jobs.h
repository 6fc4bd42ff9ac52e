/* SPDX-License-Identifier: BSD-3-Clause */
/* Which jobs may run together.  Threads: the control thread's and the lane's.  Layer: server. */
#ifndef SERVER_CONTROL_JOBS_H
#define SERVER_CONTROL_JOBS_H

#include "control_cmds.h"

/* May a job of that type ("mirror", "backup", "commit", "stream") start on the export?  A
 * commit runs alone on it; streams run one at a time; and nothing starts once a job was told
 * to complete.  False with the error set. */
bool control_may_start_job(struct control_context *ctx, const struct served_export *exp,
                           const char *type, struct control_error *error);

extern const char *const control_job_types[]; /* types of jobs on disks; ends with NULL */

/* Indexed by enum mirror_copy_mode; ends with NULL. */
extern const char *const control_copy_modes[];

#endif
