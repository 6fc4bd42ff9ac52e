/* SPDX-License-Identifier: BSD-3-Clause */
/* Internal snapshots on the control socket.  Threads: the lane's.  Layer: server. */
#ifndef SERVER_CONTROL_SNAPSHOTS_H
#define SERVER_CONTROL_SNAPSHOTS_H

#include "control_cmds.h"
#include "export_snapshot.h"

/* The arguments of blockdev-snapshot-internal-sync, for who prepares it by itself: the export,
 * of which the caller becomes a user, and the request, whose texts are the arguments'.
 * export_check_snapshots has said yes.  NULL with the error said. */
struct served_export *control_snapshot_request(struct control_context *ctx,
                                               const json_t *args,
                                               struct snapshot_request *request,
                                               struct control_error *error) MUST_USE;

extern const struct control_arg control_snapshot_args[];

#endif
