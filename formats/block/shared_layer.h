/* SPDX-License-Identifier: BSD-3-Clause */
/* An image that several chains of a process read as a layer: open once, with one descriptor (and
 * lock) and one set of cached tables, for as long as one of them is there.
 *
 *     a.qcow2            b.qcow2                 the disks: their own, as ever
 *        |                  |
 *     layer of a         layer of b              nodes of the chains: names, what lies below
 *        |       \        /   |
 *        |     [ base.qcow2 ] |                  the shared layer: its node has file, tables, state
 *        |             |      |
 *     layer of a       |   layer of b
 *                \     |   /
 *              [ root.qcow2 ]
 *
 * So a chain remains a list of nodes that it owns alone, as it was: a layer's node borrows what is
 * open (as a snapshot's does, snapshot.h) from the node of the shared layer, which lies in no
 * chain.  A shared layer knows the one below it, so that what is remembered of both (merged_map.h)
 * is shared, too.
 *
 * When all that lies below an image is open, chain_open looks at the files' names and identities
 * alone.  Otherwise it opens the chain as if it were alone, and then gives up what is open already:
 * nobody waits for anybody else's open, and whoever is refused an image is told by his own attempt.
 *
 * Who reads is inside the gate of his own chain, as ever: no reader counts himself anywhere else.
 * The shared layer has a gate whose members (gate.h) those are; what was evicted from its tables
 * is freed when all of them have passed.
 *
 * Invariants, cited by number:
 *   (1) a shared layer is never written to through its node: that is not active, and its file is
 *       open as the chains' files are, read-only;
 *   (2) two images are the same layer when they are the same file (and data file), opened in the
 *       same way, over the same layer (or nothing);
 *   (3) who wants to write to such a file by another node has to be the only one who reads it
 *       (shared_layer_take); then nobody finds it any more;
 *   (4) it is closed after the last node that borrows from it, and the last shared layer above it.
 *
 * Threads: any; each chain is opened, changed and closed as node.h says.  Private to this
 * folder. */
#ifndef BLOCK_SHARED_LAYER_H
#define BLOCK_SHARED_LAYER_H

#include "block/node.h"

struct shared_layers;

struct file_identity {
    uint64_t device, inode;
};

struct shared_layer {
    struct list link;  /* in the list of its process; alone: it isn't found */
    struct node *node; /* owned; its state, file, tables */
    struct block_context ctx;
    struct shared_layer *below;      /* NULL: none */
    struct file_identity file, data; /* zeroes: data lies in `file` */
    /* under the lock of the list */
    unsigned users; /* nodes that borrow from it */
    unsigned above; /* shared layers */
};

/* NULL when memory is short. */
struct shared_layers *shared_layers_new(void) MUST_USE;
void shared_layers_free(struct shared_layers *layers); /* NULL is allowed; it is empty */

/* What lies below `top` in a chain that was just opened, and that nobody reads yet, is shared with
 * other chains as far as it can be.  Nothing changes when memory is short. */
void shared_layers_join(struct node *top);

/* One that is open as `file` is to be opened (driver NULL: its format is told by its magic), over
 * which `above` (NULL: anything) lies: a node that stands for it in a chain of ctx, and is called
 * `shown`, with nothing below it yet.  NULL: there is none, or memory is short. */
struct node *shared_layer_attach(struct block_context *ctx,
                                 const struct shared_layer *above, struct storage *file,
                                 const struct driver *driver, const char *shown,
                                 const struct node_options *options);

/* For node_close: the node gives back what it borrows, which is closed when it was the last.  0 or
 * -errno of that. */
int shared_layer_leave(struct node *node);

/* Invariant 3.  0, or -EBUSY with diag. */
int shared_layer_take(struct node *node, struct diag *diag) MUST_USE;
/* It isn't written to after all. */
void shared_layer_return(struct node *node);

/* After node_set_below of a layer that nobody else reads, when everybody has left who could have
 * seen what lay below it. */
void shared_layer_forget_below(struct node *node);

/* The node that has what is open. */
static inline struct node *node_opened(struct node *node)
{
    return node->shared ? node->shared->node : node;
}

/* The node that remembers what is found out about this layer and those below. */
static inline struct node *node_merging(struct node *node)
{
    return node->shared && !atomic_load_explicit(&node->shared_alone, memory_order_acquire)
               ? node->shared->node
               : node;
}

#endif
