/* SPDX-License-Identifier: BSD-3-Clause */
/* The stream job: what lies below a layer of a chain becomes the layer's own, down to a base,
 * on which it lies then; without one it lies on nothing.  Layer: jobs. */
#ifndef JOBS_STREAM_H
#define JOBS_STREAM_H

#include "jobs/mirror.h"

struct stream_params {
    struct job_params job;
    /* File names of layers; NULL: not given.  top NULL: the active one.  Of base and bottom,
     * the last layer that is taken over, at most one. */
    const char *top, *base, *bottom;
    const char *backing_file; /* by which top is to call the base; NULL: by its name */
    enum job_on_error on_error;
    struct mirror_pivot pivot;
};

/* Users go on reading and writing.  It ends by itself: top names the base, durably, and the
 * layers between are closed.  What can't be is told by JOB_EVENT_OPENED. */
int stream_start(struct job_manager *manager, const struct stream_params *params,
                 struct diag *diag) MUST_USE;

#endif
