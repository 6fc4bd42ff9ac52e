/* SPDX-License-Identifier: BSD-3-Clause */
/* Nodes as commands name them.  Layer: server. */
#ifndef SERVER_CONTROL_NODES_H
#define SERVER_CONTROL_NODES_H

#include <stdbool.h>

#include <jansson.h>

struct control_context;
struct control_error;

/* "ignore", "unmap"; and by enum detect_zeroes: NULL at the end. */
extern const char *const control_discards[], *const control_detects[];

/* Is it an object with a driver and with what that takes, its children not looked at?  False
 * with the error said. */
bool control_node_args_fit(const json_t *args, struct control_error *error);

/* Is it an export's name, or that of a node that is served by one? */
bool control_name_is_taken(struct control_context *ctx, const char *name);

#endif
