/* The mirror job: the disk of a node to a second place while the disk is in use (M-01 to
 * M-39). Layer: jobs. */
#ifndef JOBS_MIRROR_H
#define JOBS_MIRROR_H

#include "block/dirty_bitmap.h"
#include "block/node.h"
#include "jobs/job.h"

enum mirror_sync { MIRROR_FULL, MIRROR_TOP, MIRROR_NONE, MIRROR_INCREMENTAL };
enum mirror_copy_mode { MIRROR_BACKGROUND, MIRROR_WRITE_BLOCKING };

/* Where the users of the source hang, and what `complete` swings over to the target.  All
 * are called on the job's thread, hold and release in pairs, swing between them. */
struct mirror_pivot {
    /* New changing requests of users wait from here on; returns when those in flight are
     * done. */
    void (*hold)(void *opaque);
    void (*release)(void *opaque);
    /* Makes `target` what users are served from; takes it over on success.  The old node is
     * closed when the last request that uses it has left, unless it lies in the target's
     * own chain. */
    int (*swing)(void *opaque, struct node *target, struct diag *diag);
    /* Puts `below`, which it takes over on success, in the place of what lies below a layer
     * of users' chain; the contents are the same.  What was there is closed when the last
     * request that uses it has left. */
    int (*relink)(void *opaque, struct node *layer, struct node *below, struct diag *diag);
    void *opaque;
};

struct mirror_params {
    struct job_params job;
    struct node *source;
    struct node *target; /* taken over by the job, closed at its end unless swung to */
    enum mirror_sync sync;
    const char *bitmap; /* MIRROR_INCREMENTAL: a bitmap of the source's */
    enum mirror_copy_mode copy_mode;
    enum job_on_error on_source_error, on_target_error;
    uint64_t granularity; /* bytes; 0: chosen from the target (M-14) */
    uint64_t buf_size;    /* bytes in flight at most; 0: 16 MiB (M-16) */
    bool unmap;           /* zeroes may become holes on the target */
    struct mirror_pivot pivot;
};

/* What can be said of the parameters before there is a target, which isn't looked at: 0 or
 * -errno with diag.  So that nothing need be made for a job that can't start. */
int mirror_check(struct job_manager *manager, const struct mirror_params *params,
                 struct diag *diag) MUST_USE;

/* Validates, attaches to the source and starts.  On failure nothing is left behind but a
 * closed target. */
int mirror_start(struct job_manager *manager, const struct mirror_params *params,
                 struct diag *diag) MUST_USE;

#endif
