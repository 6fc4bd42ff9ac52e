/* SPDX-License-Identifier: BSD-3-Clause */
/* Nodes as commands name them.  Layer: server. */
#ifndef SERVER_CONTROL_NODES_H
#define SERVER_CONTROL_NODES_H

#include <stdbool.h>

#include "control_types.h"

struct control_context;

/* "ignore", "unmap"; and by enum detect_zeroes: NULL at the end. */
extern const char *const control_discards[], *const control_detects[];

/* BlockdevOptions; what the types "inet" and "unix" of an address take. */
extern const struct control_type control_node_options;
/* The same and "throttling", which is the disk's. */
extern const struct control_type control_reopen_options;
extern const struct control_arg control_inet_args[], control_unix_args[];

/* Is it an export's name, or that of a node that is served by one? */
bool control_name_is_taken(struct control_context *ctx, const char *name);

#endif
