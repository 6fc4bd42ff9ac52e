/* SPDX-License-Identifier: BSD-3-Clause */
/* Watching a job to its end.  Layer: server. */
#ifndef CLI_JOB_WATCH_H
#define CLI_JOB_WATCH_H

#include "cli.h"
#include "qmp_client.h"

struct job_watching {
    enum cli_output output;
    bool quiet;    /* only what went wrong is said */
    bool is_owner; /* the job is the command's: who interrupts that ends it, too */
};

/* Shows the job's progress until it ends: as a bar on a terminal, in lines elsewhere, or as
 * an object a line.  CLI_OK when it completed; else complains and returns CLI_FAILED.  When a
 * signal comes (interrupt.h): the owner's job is cancelled, and it returns at its end;
 * another goes on, which is said, and the command dies. */
int job_watch(struct qmp *qmp, const char *id, const struct job_watching *how);

/* One job as people read it, without a line end: "mirror  running   45.2%  1.2 GiB left".
 */
void job_print(const json_t *job);

#endif
