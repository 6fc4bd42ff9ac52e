/* SPDX-License-Identifier: BSD-3-Clause */
/* The commit job: layers of a chain into one below them.  Shares mirror's engine.
 * Layer: jobs. */
#ifndef JOBS_COMMIT_H
#define JOBS_COMMIT_H

#include "jobs/mirror.h"

struct commit_params {
    struct job_params job;
    const char *top;  /* file name of the topmost layer to commit; NULL: the active layer */
    const char *base; /* file name of the layer to commit into; NULL: the bottom one */
    /* By which the layer above top is to call the base; NULL: by the base's name.  Only where
     * there is such a layer. */
    const char *backing_file;
    enum job_on_error on_error;
    struct mirror_pivot pivot;
};

/* An active commit (top is the active layer) becomes READY and switches over on complete;
 * an intermediate one ends by itself.  The base is grown first when it is smaller.  What
 * can't be is told by JOB_EVENT_OPENED: images are opened on the job's thread. */
int commit_start(struct job_manager *manager, const struct commit_params *params,
                 struct diag *diag) MUST_USE;

#endif
