/* SPDX-License-Identifier: BSD-3-Clause */
/* The images of an export's chain, as commands look at them and name them.  Layer: server. */
#ifndef SERVER_CONTROL_CHAIN_H
#define SERVER_CONTROL_CHAIN_H

#include "control_cmds.h"
#include "export.h"

/* While it lasts no node of the chain is closed: whoever takes one out waits for both gates. */
struct chain_use {
    struct export_use use;
    gate_ticket ticket;
};

struct chain_use control_look_at_chain(struct served_export *exp);
void control_stop_looking(struct chain_use *chain);

/* Declares `chain`, and leaves it at the end of the scope. */
#define CHAIN_USE(chain, exp) \
    struct chain_use chain CLEANUP(control_stop_looking) = control_look_at_chain(exp)

/* The name of a node: its own; or the export's, for the uppermost that has none, as it was called
 * before others were put on top; or one made from that and how deep it lies. */
struct node_name_text {
    char text[280];
};
struct node_name_text control_name_node(const struct served_export *exp,
                                        const struct node *top, const struct node *node);

/* The layer of the chain below `top`, which the caller keeps from being changed, that bears
 * the name, or else `top` if it is the
 * export's; NULL: none. */
struct node *control_find_in_chain(const struct served_export *exp, struct node *top,
                                   const char *node_name);

/* The export by whose name, or by that of one of its layers, a command means a disk or a layer:
 * the caller becomes a user.  NULL with the error said. */
struct served_export *control_find_layer(struct control_context *ctx, const char *name,
                                         struct control_error *error) MUST_USE;

/* The same, but first by the disk's own name or that of the node on top, and with a node's error. */
struct served_export *control_find_node_of_chain(struct control_context *ctx,
                                                 const char *name,
                                                 struct control_error *error) MUST_USE;

/* The file name of the layer that a node-name means (the export's own: the active one), the
 * caller's to free.  NULL with the error
 * said: it isn't in the chain. */
char *control_layer_file(struct served_export *exp, const char *node_name,
                         struct control_error *error) MUST_USE;

#endif
