/* SPDX-License-Identifier: BSD-3-Clause */
/* Nodes that blockdev-add has added: descriptions of what can be opened, by name.
 *
 * A node that isn't used has no file open and holds no lock; it was opened once when it was
 * added, to see that it can be.  The command or job that uses it (as a job's target, or a
 * snapshot's overlay) opens it in the block context of the disk that it is for.  The resulting
 * struct node has its name (block/node_name.h) while it is open.  So a node that has left a
 * disk's chain is in the table again, unused, and blockdev-del can remove it.
 *
 * The table also knows all node names, so that none is given twice.
 *
 * Threads: add and remove on one thread (the lane's), everything else from any.  Layer: server. */
#ifndef SERVER_NODE_TABLE_H
#define SERVER_NODE_TABLE_H

#include <stdatomic.h>
#include <stdbool.h>

#include <jansson.h>

#include "base/compiler.h"
#include "base/diag.h"
#include "base/list.h"
#include "base/lock.h"
#include "block/chain.h"

/* Not changed any more once it is in the table, or the `file` or `below` of another. */
struct added_node {
    struct list link; /* under the table's lock */
    bool listed;      /* likewise; false: removed from the table */
    _Atomic unsigned holders;
    _Atomic unsigned parents; /* nodes whose `filtered`, `file` or `below` it is */

    struct node_name *name; /* NULL: part of another node, without a name of its own */
    const char *driver;     /* static: "file", "nbd", "rbd", or a format's name */
    char *target; /* of protocol nodes: an absolute path, an NBD URI or an RBD name */
    /* For a "zeroinit" filter: the node it stands for, which reads as zeroes.  This one holds it
     * and counts as its parent.  Except for name and parents everything is taken from that node. */
    struct added_node *filtered;
    struct added_node *file;  /* of format nodes: the node of their file; held likewise */
    struct added_node *below; /* of format nodes: their backing node; held likewise */
    char *disk; /* or the node name of a served disk that is to be the backing file */
    /* or the backing file that the image names; if all three are unset it has none */
    bool as_image_says;
    bool read_only, auto_read_only;
    bool discard_is_said; /* the discard option was given, explicitly or by default */
    struct node_options options;
    json_t *image;        /* ImageInfo when it was added; NULL: none */
    unsigned depth_below; /* the number of images below it when it was added */
};

struct node_table {
    struct lock lock;
    /* under lock */
    struct list nodes; /* struct added_node.link, in the order of adding */
    struct list names; /* every name that was given and that somebody still holds */
};

void node_table_init(struct node_table *table);
void node_table_destroy(struct node_table *table);

/* Makes a new name, which the caller holds.  NULL with diag: it isn't well-formed, or a node in
 * the table or an open one has it. */
struct node_name *node_table_give_name(struct node_table *table, const char *text,
                                       struct diag *diag) MUST_USE;

/* Adds the node to the list.  The table takes over the caller's hold. */
void node_table_add(struct node_table *table, struct added_node *node);
/* 0 or -errno with diag: -ENOENT, or -EBUSY for a node that is open or part of another. */
int node_table_remove(struct node_table *table, const char *name,
                      struct diag *diag) MUST_USE;

/* The caller holds the result; NULL: there is none. */
struct added_node *node_table_find(struct node_table *table, const char *name) MUST_USE;
/* Iterates: returns the node after `node` (NULL: the first), which the caller holds, and puts
 * `node`.  NULL at the end. */
struct added_node *node_table_next(struct node_table *table,
                                   struct added_node *node) MUST_USE;

struct added_node *added_node_get(struct added_node *node);
/* Ends a hold; the last one frees the node.  NULL is allowed. */
void added_node_put(struct added_node *node);

static inline void cleanup_added_node(struct added_node **node)
{
    added_node_put(*node);
}
#define CLEANUP_ADDED_NODE CLEANUP(cleanup_added_node)

/* The node becomes part of another. */
void added_node_add_parent(struct added_node *node);
/* A node of which this one is a part is freed: undoes added_node_add_parent, and ends a hold.
 * NULL is allowed. */
void added_node_leave(struct added_node *node);

/* Is it open? */
bool added_node_is_used(const struct added_node *node);
/* May a caller write to it or remove it?  -EBUSY with diag, in QEMU's words, if it is open, part
 * of another, or lies in a file node that is open by itself; else 0. */
int added_node_check_idle(const struct added_node *node, struct diag *diag) MUST_USE;

/* The node that a filter stands for, or the node itself. */
static inline const struct added_node *added_node_meant(const struct added_node *node)
{
    return node->filtered ? node->filtered : node;
}

/* The file, URI or RBD name, for messages. */
const char *added_node_target(const struct added_node *node);

/* ---- node_open.c ---- */

/* How to open a node, besides what its description says. */
struct node_opening {
    struct block_context *ctx;
    enum references references;
    const _Atomic bool *give_up; /* NULL: never given up */
    bool alone;                  /* only the layer itself, without backing files */
    /* Opened as the target of a backup of this disk, with that node name: a target may have the
     * disk as its backing file.  NULL: for another purpose. */
    const struct node *disk;
    const char *disk_name;
    bool as_target; /* to be written to; otherwise it is opened read-only and locked */
};

/* Opens the node and its backing files.  0 or -errno with diag; -EBUSY when a target is already
 * open, or part of another node. */
int added_node_open(struct added_node *node, const struct node_opening *how,
                    struct node **out, struct diag *diag) MUST_USE;

/* Opens an NBD export as a job's target, with `options`, but without a lock.  A lost connection
 * isn't re-established here: the job does that.  0 or -errno with diag. */
int node_open_remote_target(struct block_context *ctx, const char *uri,
                            const _Atomic bool *give_up, struct chain_options *options,
                            struct node **out, struct diag *diag) MUST_USE;

#endif
