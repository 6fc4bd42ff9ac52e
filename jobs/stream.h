/* SPDX-License-Identifier: BSD-3-Clause */
/* The stream job: copies what lies between a layer of a chain and a base into the layer,
 * which afterwards lies directly on the base, or on nothing if there is no base.  Layer:
 * jobs. */
#ifndef JOBS_STREAM_H
#define JOBS_STREAM_H

#include "jobs/mirror.h"

struct stream_params {
    struct job_params job;
    /* File names of layers; NULL: not given.  top NULL: the active layer.  bottom is the
     * lowest layer that is copied; at most one of base and bottom may be given. */
    const char *top, *base, *bottom;
    /* name of the base that is written into top; NULL: chosen by layer_name_for */
    const char *backing_file;
    enum job_on_error on_error;
    struct mirror_pivot pivot;
};

/* Users go on reading and writing.  The job ends by itself: the layer durably names the base,
 * and the layers between are closed.  JOB_EVENT_OPENED reports failures of the start. */
int stream_start(struct job_manager *manager, const struct stream_params *params,
                 struct diag *diag) MUST_USE;

#endif
