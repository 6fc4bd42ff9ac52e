/* SPDX-License-Identifier: BSD-3-Clause */
/* Watches a job until it ends.  Layer: server. */
#ifndef CLI_JOB_WATCH_H
#define CLI_JOB_WATCH_H

#include "cli.h"
#include "qmp_client.h"

struct job_watching {
    enum cli_output output;
    bool quiet;    /* print failures only */
    bool is_owner; /* the command started the job: interrupting the command cancels it */
};

/* Shows the job's progress until it ends: as a bar on a terminal, as lines elsewhere, or as
 * one JSON object per line.  CLI_OK when the job completed; otherwise complains and returns
 * CLI_FAILED.  When a signal comes (interrupt.h), an owner cancels the job and waits for its
 * end; other commands say that the job continues, and die of the signal. */
int job_watch(struct qmp *qmp, const char *id, const struct job_watching *how);

/* Prints one job without a line end: "mirror  running   45.2%  1.2 GiB left". */
void job_print(const json_t *job);

#endif
