/* SPDX-License-Identifier: BSD-3-Clause */
/* Making and removing internal snapshots of an export while clients use it: their changes
 * wait meanwhile, reads go on.
 *
 * Threads: one at a time for each export, outside of requests; may take long.
 * Layer: server. */
#ifndef SERVER_EXPORT_SNAPSHOT_H
#define SERVER_EXPORT_SNAPSHOT_H

#include "block/snapshot.h"
#include "export.h"

/* A change on its way; zero-initialised: there is none. */
struct export_snapshot {
    struct served_export *exp;
    struct snapshot_change *change;
};

/* 0 when the image can be written to and have snapshots, which may have meant to repair it;
 * -errno with QMP's words in diag. */
int export_check_snapshots(struct served_export *exp, struct diag *diag) MUST_USE;

/* The states of node_begin_snapshot's; CREATE or DELETE.  The caller drains the export from
 * before prepare until commit or abort has returned.  From begin to finish no job begins,
 * and there is none but the caller's `own` (export_claim).  Finish,
 * which comes after the drain: also of one that isn't begun. */
int export_begin_snapshot(struct served_export *exp, unsigned own,
                          const struct snapshot_request *request,
                          struct export_snapshot *out, struct diag *diag) MUST_USE;
int export_prepare_snapshot(struct export_snapshot *snapshot, struct diag *diag) MUST_USE;
void export_commit_snapshot(struct export_snapshot *snapshot);
void export_abort_snapshot(struct export_snapshot *snapshot);
int export_finish_snapshot(struct export_snapshot *snapshot, bool committed,
                           struct diag *diag) MUST_USE;

/* All of it, with a drain of its own.  info: as node_change_snapshot's. */
int export_change_snapshot(struct served_export *exp,
                           const struct snapshot_request *request,
                           struct snapshot_info *info, struct diag *diag) MUST_USE;

#endif
