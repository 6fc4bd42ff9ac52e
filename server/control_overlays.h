/* SPDX-License-Identifier: BSD-3-Clause */
/* External snapshots (a new overlay on a disk), as actions of a transaction.  Layer:
 * server. */
#ifndef SERVER_CONTROL_OVERLAYS_H
#define SERVER_CONTROL_OVERLAYS_H

struct transaction_kind;

extern const struct transaction_kind overlay_file_kind, overlay_node_kind;

#endif
