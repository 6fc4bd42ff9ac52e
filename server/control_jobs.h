/* SPDX-License-Identifier: BSD-3-Clause */
/* Which jobs there are, for who starts one.  Threads: the control thread's and the lane's.
 * Layer: server. */
#ifndef SERVER_CONTROL_JOBS_H
#define SERVER_CONTROL_JOBS_H

#include "control_cmds.h"

/* May a job of that type ("mirror", "backup", "commit", "stream") be started on the export?  A
 * commit is alone with it, streams are one at a time, and nobody begins once a job was told to
 * complete.  False with the error said. */
bool control_may_start_job(struct control_context *ctx, const struct served_export *exp,
                           const char *type, struct control_error *error);

extern const char *const control_job_types[]; /* of jobs on disks; NULL at the end */

/* By enum mirror_copy_mode; NULL at the end. */
extern const char *const control_copy_modes[];

#endif
