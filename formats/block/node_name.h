/* SPDX-License-Identifier: BSD-3-Clause */
/* The name that a user gave to a node, with a reference count.  Everything that knows the node
 * by this name holds a reference, so that one can tell whether the name is in use.  Threads:
 * any.  Layer: block. */
#ifndef BLOCK_NODE_NAME_H
#define BLOCK_NODE_NAME_H

#include <stdatomic.h>
#include <stdbool.h>

#include "base/compiler.h"

#define NODE_NAME_MAX 31u /* bytes, as in QEMU */

struct node_name {
    _Atomic unsigned holders;
    char text[NODE_NAME_MAX + 1];
};

/* A letter, then letters, digits, '-', '.', '_'; at most NODE_NAME_MAX bytes. */
bool node_name_is_well_formed(const char *text);

/* Returns a name with one reference; NULL when memory is short.  The text must be well-formed. */
struct node_name *node_name_new(const char *text) MUST_USE;

/* Takes a reference; NULL is allowed, and returned. */
struct node_name *node_name_get(struct node_name *name);
/* Drops a reference; the last one frees the name.  NULL is allowed. */
void node_name_put(struct node_name *name);

/* Are there other references than the caller's? */
bool node_name_is_shared(const struct node_name *name);

#endif
