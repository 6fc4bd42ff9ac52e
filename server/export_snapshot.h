/* SPDX-License-Identifier: BSD-3-Clause */
/* Creates, deletes and applies internal snapshots of an export while clients use it.
 * Changing requests wait meanwhile, reads go on.
 *
 * Threads: one at a time for each export, outside of requests.  May take long.  Layer:
 * server. */
#ifndef SERVER_EXPORT_SNAPSHOT_H
#define SERVER_EXPORT_SNAPSHOT_H

#include "block/snapshot.h"
#include "export.h"

/* A change in progress.  Zero-initialised: none. */
struct export_snapshot {
    struct served_export *exp;
    struct snapshot_change *change;
};

/* Can the image be written to, and can it have snapshots?  May activate and so repair the
 * image.  0, or -errno with diag in QMP's words. */
int export_check_snapshots(struct served_export *exp, struct diag *diag) MUST_USE;

/* The steps of node_begin_snapshot, for CREATE or DELETE.  The caller drains the export
 * from before prepare until commit or abort has returned.  From begin to finish no job can
 * begin, and none may run but `own` ones of the caller (export_claim).  Finish comes after
 * the drain; it also accepts a change that wasn't begun. */
int export_begin_snapshot(struct served_export *exp, unsigned own,
                          const struct snapshot_request *request,
                          struct export_snapshot *out, struct diag *diag) MUST_USE;
int export_prepare_snapshot(struct export_snapshot *snapshot, struct diag *diag) MUST_USE;
void export_commit_snapshot(struct export_snapshot *snapshot);
void export_abort_snapshot(struct export_snapshot *snapshot);
int export_finish_snapshot(struct export_snapshot *snapshot, bool committed,
                           struct diag *diag) MUST_USE;

/* All steps, with a drain of its own.  info: as for node_change_snapshot. */
int export_change_snapshot(struct served_export *exp,
                           const struct snapshot_request *request,
                           struct snapshot_info *info, struct diag *diag) MUST_USE;

#endif
