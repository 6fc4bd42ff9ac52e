/* SPDX-License-Identifier: BSD-3-Clause */
/* The commit job: copies layers of a chain into a layer below them.  Uses mirror's engine.
 * Layer: jobs. */
#ifndef JOBS_COMMIT_H
#define JOBS_COMMIT_H

#include "jobs/mirror.h"

struct commit_params {
    struct job_params job;
    const char *top;  /* file name of the topmost layer to commit; NULL: the active layer */
    const char *base; /* file name of the layer to commit into; NULL: the lowest one */
    /* The name of the base that is written into the layer above top; NULL: chosen by
     * layer_name_for.  Only allowed if there is such a layer. */
    const char *backing_file;
    enum job_on_error on_error;
    struct mirror_pivot pivot;
};

/* An active commit (top is the active layer) becomes READY and switches over on `complete`;
 * an intermediate commit ends by itself.  A base that is smaller is grown first.  Images are
 * opened on the job's thread: JOB_EVENT_OPENED reports failures. */
int commit_start(struct job_manager *manager, const struct commit_params *params,
                 struct diag *diag) MUST_USE;

#endif
