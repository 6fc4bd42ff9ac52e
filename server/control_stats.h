/* SPDX-License-Identifier: BSD-3-Clause */
/* query-blockstats: what clients have done.  Layer: server. */
#ifndef SERVER_CONTROL_STATS_H
#define SERVER_CONTROL_STATS_H

#include "control_cmds.h"

extern const struct control_command control_stats_commands[];

#endif
