/* SPDX-License-Identifier: BSD-3-Clause */
/* Internal snapshots on the control socket.  Threads: the lane's.  Layer: server. */
#ifndef SERVER_CONTROL_SNAPSHOTS_H
#define SERVER_CONTROL_SNAPSHOTS_H

#include "control_transaction.h"

/* blockdev-snapshot-internal-sync as an action. */
extern const struct transaction_kind snapshot_internal_kind;

#endif
