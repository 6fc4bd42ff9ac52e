/* SPDX-License-Identifier: BSD-3-Clause */
/* query-qmp-schema: introspection of the server's own tables.  Layer: server. */
#ifndef SERVER_CONTROL_SCHEMA_H
#define SERVER_CONTROL_SCHEMA_H

#include "control_cmds.h"

extern const struct control_command control_schema_commands[];

#endif
