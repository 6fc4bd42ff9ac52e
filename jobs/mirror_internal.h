/* A running mirror or commit; private to this folder. */
#ifndef JOBS_MIRROR_INTERNAL_H
#define JOBS_MIRROR_INTERNAL_H

#include <stdatomic.h>

#include "block/observer.h"
#include "jobs/copier.h"
#include "jobs/mirror.h"

struct mirror {
    struct job *job; /* set by run */
    char *id;
    struct node *source; /* borrowed */
    struct node *target; /* owned; NULL once users were swung over to it */
    enum mirror_sync sync;
    uint64_t granularity, max_range;
    enum job_on_error on_source_error, on_target_error;
    bool active;        /* write-blocking */
    unsigned top_depth; /* MIRROR_TOP: layers down to this one are copied */
    struct mirror_pivot pivot;

    struct dirty_bitmap *dirty, *unflushed;
    struct copier *copier;
    struct observer observer;
    struct dirty_bitmap *named; /* MIRROR_INCREMENTAL: in use until the end */
    bool attached;
    _Atomic bool idle; /* the job sleeps: a write wakes it */

    /* the job's thread */
    uint64_t cursor; /* where the search for work goes on */
    uint64_t losses; /* of the target's connection, as last seen */
    bool in_sync, held;

    _Atomic uint64_t copied, sent; /* bytes; sent since the last checkpoint */
    struct lock lock;
    /* under lock: the first error that nobody has looked at */
    int error;
    bool error_on_write;
};

extern const struct job_ops mirror_job_ops, commit_job_ops;

/* Validates and starts; see mirror_start. */
int mirror_launch(struct job_manager *manager, const struct mirror_params *params,
                  const struct job_ops *ops, unsigned top_depth,
                  struct diag *diag) MUST_USE;

/* mirror_observe.c: from attach to detach the source's writes are seen. */
int mirror_attach(struct mirror *m, const char *bitmap, struct diag *diag) MUST_USE;
void mirror_detach(struct mirror *m);

#endif
