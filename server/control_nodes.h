/* SPDX-License-Identifier: BSD-3-Clause */
/* Nodes as commands name them.  Layer: server. */
#ifndef SERVER_CONTROL_NODES_H
#define SERVER_CONTROL_NODES_H

#include <stdbool.h>

#include "control_types.h"

struct added_node;
struct control_context;
struct control_error;

/* "ignore", "unmap"; and by enum detect_zeroes: NULL at the end. */
extern const char *const control_discards[], *const control_detects[];

/* BlockdevOptions; what the types "inet" and "unix" of an address take. */
extern const struct control_type control_node_options;
/* BlockdevRef: the name of a node that was added, or such options. */
extern const struct control_type control_node_reference;
/* The same and "throttling", which is the disk's. */
extern const struct control_type control_reopen_options;
extern const struct control_arg control_inet_args[], control_unix_args[];

/* Is it an export's name, or that of a node that is served by one? */
bool control_name_is_taken(struct control_context *ctx, const char *name);

/* What a BlockdevRef means, which is to be overwritten: nobody uses it, and nobody will, nor takes
 * it away, until added_node_leave.  NULL with the error said. */
struct added_node *control_take_node(struct control_context *ctx, const json_t *reference,
                                     struct control_error *error);

#endif
