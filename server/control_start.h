/* SPDX-License-Identifier: BSD-3-Clause */
/* What all commands that start a job have in common.  Threads: the control thread, but for
 * actions of transactions.  Layer: server. */
#ifndef SERVER_CONTROL_START_H
#define SERVER_CONTROL_START_H

#include "control_cmds.h"
#include "jobs/mirror.h"

struct target_request;

/* By enum job_on_error; NULL at the end. */
extern const char *const on_errors[];
enum job_on_error on_error_of(const json_t *args, const char *key);

/* job-id (or the device's name), speed, auto-finalize, auto-dismiss. */
struct job_params job_params_of(const json_t *args, struct served_export *exp,
                                uint64_t ticket);

/* Opens a target on the job's thread, as control_target.h does.  The request, from malloc, is
 * the opener's, and what it points to: `source` and `give_up` are set then. */
struct mirror_opener control_opener(struct target_request *request);

/* The users of the export. */
struct mirror_pivot pivot_of(struct served_export *exp);

/* Starts a job on the export, which stays while the job runs: the event of its end gives it
 * back. */
json_t *start_job(struct control_context *ctx, struct served_export *exp,
                  const json_t *args, struct control_error *error,
                  int (*start)(struct control_context *ctx, struct served_export *exp,
                               const json_t *args, uint64_t ticket, struct diag *diag));

/* Of a job that nobody awaits: no client has it. */
#define NO_TICKET UINT64_MAX

#endif
