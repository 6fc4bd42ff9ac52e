/* SPDX-License-Identifier: BSD-3-Clause */
/* What commands that start jobs share.  Threads: the control thread; actions of transactions
 * on the lane's.  Layer: server. */
#ifndef SERVER_CONTROL_START_H
#define SERVER_CONTROL_START_H

#include "control_cmds.h"
#include "jobs/mirror.h"

struct target_request;

/* Indexed by enum job_on_error; ends with NULL. */
extern const char *const on_errors[];
enum job_on_error on_error_of(const json_t *args, const char *key);

/* The arguments that all jobs have: job-id (default: the device), speed, auto-finalize,
 * auto-dismiss. */
struct job_params job_params_of(const json_t *args, struct served_export *exp,
                                uint64_t ticket);

/* An opener that opens a target on the job's thread, by control_open_target.  It takes over
 * the request (from malloc) and what that points to, and sets `source` and `give_up` itself. */
struct mirror_opener control_opener(struct target_request *request);

/* The operations by which a job drains and moves the export's users. */
struct mirror_pivot pivot_of(struct served_export *exp);

/* Starts a job of some kind on the export.  `ticket` comes back in the job's events.  0 or -errno
 * with diag. */
typedef int start_job_fn(struct control_context *ctx, struct served_export *exp,
                         const json_t *args, uint64_t ticket, struct diag *diag);

/* Starts a job on the export by calling `start`.  The export can't be removed until the job's
 * end event gives it back.  Returns what the command returns. */
json_t *start_job(struct control_context *ctx, struct served_export *exp,
                  const json_t *args, struct control_error *error, start_job_fn *start);

/* Ticket of a job whose start no client waits for. */
#define NO_TICKET UINT64_MAX

#endif
