/* SPDX-License-Identifier: BSD-3-Clause */
/* The images of an export's chain, as commands see and name them.  Layer: server. */
#ifndef SERVER_CONTROL_CHAIN_H
#define SERVER_CONTROL_CHAIN_H

#include "control_cmds.h"
#include "export.h"

/* Keeps every node of the chain from being closed: a job that takes one out waits for both gates.
 */
struct chain_use {
    struct export_use use;
    gate_ticket ticket;
};

struct chain_use control_look_at_chain(struct served_export *exp);
void control_stop_looking(struct chain_use *chain);

/* Declares `chain`, and ends the use at the end of the scope. */
#define CHAIN_USE(chain, exp) \
    struct chain_use chain CLEANUP(control_stop_looking) = control_look_at_chain(exp)

/* The name of a node: its own; without one, for the uppermost node without a name, the export's
 * node name (unless a node has that); otherwise one made from that and the node's depth. */
struct node_name_text {
    char text[280];
};
struct node_name_text control_name_node(const struct served_export *exp,
                                        const struct node *top, const struct node *node);

/* The node of that name in the chain `top`; otherwise `top`, if it is the export's node name;
 * NULL: none.  The caller keeps the chain from changing. */
struct node *control_find_in_chain(const struct served_export *exp, struct node *top,
                                   const char *node_name);

/* Finds the export by its node name or by the name of one of its layers.  The caller becomes a
 * user.  NULL with the error set. */
struct served_export *control_find_layer(struct control_context *ctx, const char *name,
                                         struct control_error *error) MUST_USE;

/* The same, but prefers the disk's node name and the top node's name, and sets a node's error. */
struct served_export *control_find_node_of_chain(struct control_context *ctx,
                                                 const char *name,
                                                 struct control_error *error) MUST_USE;

/* The file name of the layer called node_name (the export's node name: the active layer), which
 * the caller frees.  NULL with the error set: it isn't in the chain. */
char *control_layer_file(struct served_export *exp, const char *node_name,
                         struct control_error *error) MUST_USE;

#endif
