/* SPDX-License-Identifier: BSD-3-Clause */
/* Reading QMP's description of a node, in parts; private to the files control_node_*.c, which turn
 * it into an entry of the table of nodes.  Threads: the lane's.  Layer: server. */
#ifndef SERVER_CONTROL_NODE_READING_H
#define SERVER_CONTROL_NODE_READING_H

#include <stdbool.h>

#include "control_cmds.h"
#include "control_nodes.h"
#include "node_table.h"

/* The context in which a description is read. */
struct reading {
    struct control_context *ctx;
    unsigned depth; /* how deep the description is nested */
    struct control_error *error;
};

struct node_driver {
    struct control_variant variant;
    const char *name; /* the node's `driver` */
    bool (*read)(const struct reading *how, const json_t *args, struct added_node *node);
};

/* ---- control_node_reading.c ---- */

/* Reads a description.  The caller holds the result.  NULL with the error set. */
struct added_node *node_read(const struct reading *how, const json_t *args);

/* The node that a name or a description means; the caller holds it.  NULL with the error set. */
struct added_node *node_find_child(const struct reading *how, const json_t *value);
/* The same; it counts the caller's node as its parent, too. */
struct added_node *node_read_child(const struct reading *how, const json_t *value);

/* What every driver has.  False with the error set. */
bool node_read_options(const struct reading *how, const json_t *args,
                       struct added_node *node);

/* NULL: unknown driver, which is impossible for a value that fits control_node_options. */
const struct node_driver *node_find_driver(const char *name);

/* ---- control_node_protocols.c ---- */

/* Of files: "auto", "on", "off", NULL. */
extern const char *const node_locking[];
extern const struct node_driver node_file_driver, node_device_driver, node_nbd_driver,
    node_rbd_driver;

/* ---- control_node_layers.c ---- */

/* Sets what lies below the node: an added node, a served disk, or a layer of one.  False with the
 * error set. */
bool node_read_backing(const struct reading *how, const json_t *backing,
                       struct added_node *node);

#endif
