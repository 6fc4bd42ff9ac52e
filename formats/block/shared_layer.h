/* SPDX-License-Identifier: BSD-3-Clause */
/* An image that several chains of a process read as a layer.  It is open once, with one
 * descriptor (and lock) and one set of cached tables, as long as any of the chains uses it.
 *
 *     a.qcow2            b.qcow2                 the disks: not shared
 *        |                  |
 *     layer of a         layer of b              nodes of the chains: names, what lies below
 *        |       \        /   |
 *        |     [ base.qcow2 ] |                  the shared layer: its node has file, tables, state
 *        |             |      |
 *     layer of a       |   layer of b
 *                \     |   /
 *              [ root.qcow2 ]
 *
 * So a chain is always a list of nodes that it alone owns.  The node of a layer borrows file,
 * tables and state (as a snapshot's does, snapshot.h) from the node of the shared layer, which
 * lies in no chain.  A shared layer knows the shared layer below it, so that look-up results
 * for both (merged_map.h) are shared, too.
 *
 * If everything below an image is open already, chain_open only compares the names and
 * identities of the files.  Otherwise it opens the chain as if it were the only one, and then
 * closes what was open already.  So no open waits for another open, and an image that can't be
 * opened is reported by each chain's own attempt.
 *
 * A reader enters the gate of its own chain only.  These gates are members (gate.h) of the
 * shared layer's gate; a page that was evicted from the layer's tables is freed when all
 * members have passed.
 *
 * Invariants, cited by number:
 *   (1) a shared layer is never written to through its node, which isn't active; its file is
 *       open read-only;
 *   (2) two images are the same layer if they are the same file (and data file), opened in the
 *       same way, over the same layer (or nothing);
 *   (3) another node may write to such a file only while a single chain reads it
 *       (shared_layer_take); from then on no other chain can find it;
 *   (4) it is closed after the last node that borrows from it, and after the last shared layer
 *       above it.
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
    struct list link;  /* in the list of the process; by itself: can't be found */
    struct node *node; /* owned; has state, file and tables */
    struct block_context ctx;
    struct shared_layer *below;      /* NULL: none */
    struct file_identity file, data; /* zeroes: data lies in `file` */
    /* under the lock of the list */
    unsigned users; /* number of nodes that borrow from it */
    unsigned above; /* number of shared layers directly above it */
};

/* NULL when memory is short. */
struct shared_layers *shared_layers_new(void) MUST_USE;
void shared_layers_free(struct shared_layers *layers); /* NULL is allowed; must be empty */

/* Shares the layers below `top` with other chains, as far as possible.  The chain was just
 * opened, and no request reads it yet.  When memory is short nothing changes. */
void shared_layers_join(struct node *top);

/* Looks for a shared layer that is open in the way in which `file` is to be opened (driver
 * NULL: the format that its magic says), and which lies directly below `above` (NULL: below
 * anything).  Returns a node that borrows from it, for a chain of ctx, with the filename
 * `shown` and nothing below it yet.  NULL: there is none, or memory is short. */
struct node *shared_layer_attach(struct block_context *ctx,
                                 const struct shared_layer *above, struct storage *file,
                                 const struct driver *driver, const char *shown,
                                 const struct node_options *options);

/* For node_close: ends the borrowing.  The shared layer is closed after its last user; returns
 * 0 or -errno of that. */
int shared_layer_leave(struct node *node);

/* Before the file is written to (invariant 3): no chain can find the layer any more.  Returns
 * 0, or -EBUSY with diag if other chains use it. */
int shared_layer_take(struct node *node, struct diag *diag) MUST_USE;
/* Undoes shared_layer_take: the file isn't written to after all. */
void shared_layer_return(struct node *node);

/* After node_set_below of a layer that only this chain reads, when all requests that could have
 * seen the old layer below have left the gate: the shared layer lets go of it. */
void shared_layer_forget_below(struct node *node);

/* The node that has file, tables and state: the shared layer's or the node itself. */
static inline struct node *node_opened(struct node *node)
{
    return node->shared ? node->shared->node : node;
}

/* The node that keeps the look-up results for this layer and those below. */
static inline struct node *node_merging(struct node *node)
{
    return node->shared && !atomic_load_explicit(&node->shared_alone, memory_order_acquire)
               ? node->shared->node
               : node;
}

#endif
