/* SPDX-License-Identifier: BSD-3-Clause */
/* Descriptions of nodes in commands (QMP's BlockdevOptions and BlockdevRef).  Layer: server. */
#ifndef SERVER_CONTROL_NODES_H
#define SERVER_CONTROL_NODES_H

#include <stdbool.h>

#include "control_types.h"

struct added_node;
struct control_context;
struct control_error;

/* control_discards: "ignore", "unmap".  control_detects: indexed by enum detect_zeroes.  Both end
 * with NULL. */
extern const char *const control_discards[], *const control_detects[];

/* control_node_options: BlockdevOptions. */
extern const struct control_type control_node_options;
/* BlockdevRef: the name of an added node, or BlockdevOptions. */
extern const struct control_type control_node_reference;
/* BlockdevOptions with the member "throttling", which is about the disk.  control_inet_args and
 * control_unix_args: members of the address types "inet" and "unix". */
extern const struct control_type control_reopen_options;
extern const struct control_arg control_inet_args[], control_unix_args[];

/* Is it an export's node name? */
bool control_name_is_taken(struct control_context *ctx, const char *name);

/* Takes the node that a BlockdevRef means, in order to overwrite it: nobody uses it, and until
 * added_node_leave nobody else can use or remove it.  NULL with the error set. */
struct added_node *control_take_node(struct control_context *ctx, const json_t *reference,
                                     struct control_error *error);

#endif
