/* SPDX-License-Identifier: BSD-3-Clause */
/* Commands that add, remove and list exports.  Layer: server. */
#ifndef SERVER_CONTROL_EXPORTS_H
#define SERVER_CONTROL_EXPORTS_H

#include "control_cmds.h"

/* For the lane, as they open and close images; and those that wait for nothing. */
extern const struct control_command control_export_commands[], control_export_queries[];

#endif
