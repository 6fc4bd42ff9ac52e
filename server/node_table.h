/* SPDX-License-Identifier: BSD-3-Clause */
/* Nodes that were added by blockdev-add: descriptions of what can be opened, by name.
 *
 * A node that nobody uses has no file open and takes no lock: it was opened once, when it was
 * added, to see that it can be.  Who uses it (a job's target, a snapshot's overlay) opens it in
 * the block context of the disk that it is for, and the struct node that comes of it bears its
 * name (block/node_name.h) for as long as it is open.  So a node that left a disk's chain is
 * there again, unused, and blockdev-del takes it away.
 *
 * Also here: which names there are, so that none is given twice.
 *
 * Threads: add and remove on one thread (the lane's), the rest from any.  Layer: server. */
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

/* Changed by nobody once it is in the table or in another's `file` or `backing`. */
struct added_node {
    struct list link; /* under the table's lock */
    bool listed;      /* so, too: it can be found */
    _Atomic unsigned holders;
    _Atomic unsigned parents; /* nodes whose `file` or `below` it is */

    struct node_name *name; /* NULL: part of another, without a name */
    const char *driver;     /* static: "file", "nbd", "rbd", or a format's name */
    char *target;           /* of no format: an absolute path, an NBD URI or an RBD name */
    /* Of "zeroinit": the node that it stands for, which reads as zeroes; held, and this one a
     * parent.  Everything but the name and the parents is that one's. */
    struct added_node *filtered;
    struct added_node *file;  /* of formats: where it lies; likewise */
    struct added_node *below; /* of formats: its backing node; likewise */
    char *disk; /* ... or the node name of a disk that is served, on which it is to lie */
    bool as_image_says; /* ... or what the image names; else it has none */
    bool read_only, auto_read_only;
    bool discard_is_said; /* whether it is `ignore`, by the options or by default */
    struct node_options options;
    json_t *image; /* ImageInfo, when it was added; NULL: it has none */
};

struct node_table {
    struct lock lock;
    /* under lock */
    struct list nodes; /* struct added_node.link, in their order */
    struct list names; /* all that were given, until nobody holds one any more */
};

void node_table_init(struct node_table *table);
void node_table_destroy(struct node_table *table);

/* A new name, with one holder: the caller.  NULL with diag: not well-formed, or there is a
 * node of that name, in the table or open. */
struct node_name *node_table_give_name(struct node_table *table, const char *text,
                                       struct diag *diag) MUST_USE;

/* Lists it; the table holds it from then on. */
void node_table_add(struct node_table *table, struct added_node *node);
/* 0, or -ENOENT, -EBUSY with diag: one that is open, or part of another, stays. */
int node_table_remove(struct node_table *table, const char *name,
                      struct diag *diag) MUST_USE;

/* The caller holds what is found; NULL: there is none. */
struct added_node *node_table_find(struct node_table *table, const char *name) MUST_USE;
/* The next in the list, which the caller holds, in exchange for this; NULL: the first, and at
 * the end. */
struct added_node *node_table_next(struct node_table *table,
                                   struct added_node *node) MUST_USE;

struct added_node *added_node_get(struct added_node *node);
/* NULL is allowed. */
void added_node_put(struct added_node *node);

static inline void cleanup_added_node(struct added_node **node)
{
    added_node_put(*node);
}
#define CLEANUP_ADDED_NODE CLEANUP(cleanup_added_node)

/* It becomes part of another, until that is freed. */
void added_node_add_parent(struct added_node *node);
/* Such a one goes: undoes that, and puts the node.  NULL is allowed. */
void added_node_leave(struct added_node *node);

/* Is it open? */
bool added_node_is_used(const struct added_node *node);
/* May nobody write to it or take it away: is it open, part of another, or lies it in a file
 * that is open by itself?  -EBUSY with diag, in QEMU's words; else 0. */
int added_node_check_idle(const struct added_node *node, struct diag *diag) MUST_USE;

/* What it stands for, if it is another's filter, or itself. */
static inline const struct added_node *added_node_meant(const struct added_node *node)
{
    return node->filtered ? node->filtered : node;
}

/* Where it lies, for messages. */
const char *added_node_target(const struct added_node *node);

/* ---- node_open.c ---- */

/* How one is opened, besides what it says itself. */
struct node_opening {
    struct block_context *ctx;
    enum references references;
    const _Atomic bool *give_up; /* NULL: nobody will */
    bool alone;                  /* without what lies below */
    /* It is written to by a backup of this disk, of that node name: it may be said to lie on it.
     * NULL: by no backup. */
    const struct node *disk;
    const char *disk_name;
    bool as_target; /* to be written to; locked otherwise, if it is no file */
};

/* Opens it and what lies below.  -EBUSY when it is open, or part of another.  0 or -errno with
 * diag. */
int added_node_open(struct added_node *node, const struct node_opening *how,
                    struct node **out, struct diag *diag) MUST_USE;

/* An NBD export that is written to, as `options` say but without a lock.  It isn't opened anew
 * when its server goes away: a job sees to that. */
int node_open_remote_target(struct block_context *ctx, const char *uri,
                            const _Atomic bool *give_up, struct chain_options *options,
                            struct node **out, struct diag *diag) MUST_USE;

#endif
