/* SPDX-License-Identifier: BSD-3-Clause */
/* The jobs of a server, and the receiver of their events.  Threads: every function from any
 * thread.  The event sink is called on job threads under the job's lock, and must neither
 * block nor call back.  Layer: jobs. */
#ifndef JOBS_MANAGER_H
#define JOBS_MANAGER_H

#include "jobs/job.h"

typedef void job_event_sink(void *opaque, const struct job_event *event);

struct job_manager *job_manager_new(job_event_sink *sink, void *opaque);

/* Cancels all jobs by force, waits for them, and frees the manager.  The wait is short, as
 * job_ops.interrupt ends the jobs' waits. */
void job_manager_free(struct job_manager *manager);

/* May a job have this id?  0, -EINVAL or -EEXIST with diag, as in job_start. */
int job_check_id(struct job_manager *manager, const char *id, struct diag *diag) MUST_USE;

/* Verbs, by job id.  0, or -errno with diag: -ENOENT: no such job (QMP's DeviceNotActive);
 * -EBUSY: not legal in the job's present state. */
int job_cancel(struct job_manager *manager, const char *id, bool force,
               struct diag *diag) MUST_USE;
int job_pause(struct job_manager *manager, const char *id, struct diag *diag) MUST_USE;
int job_resume(struct job_manager *manager, const char *id, struct diag *diag) MUST_USE;
int job_complete(struct job_manager *manager, const char *id, struct diag *diag) MUST_USE;
int job_set_speed(struct job_manager *manager, const char *id, uint64_t bytes_per_second,
                  struct diag *diag) MUST_USE;
/* Changes how a job of that type copies users' writes: before they are answered
 * (write_blocking), or in the background.  -EINVAL, -ENOTSUP or -EBUSY with diag; then
 * nothing has changed. */
int job_change(struct job_manager *manager, const char *id, const char *type,
               bool write_blocking, struct diag *diag) MUST_USE;
int job_finalize(struct job_manager *manager, const char *id, struct diag *diag) MUST_USE;
int job_dismiss(struct job_manager *manager, const char *id, struct diag *diag) MUST_USE;

/* Copies the infos of up to max jobs, oldest first.  Returns the number of all jobs. */
size_t job_query(struct job_manager *manager, struct job_info *infos, size_t max);

#endif
