/* SPDX-License-Identifier: BSD-3-Clause */
/* The name that a user gave to a node.  It is shared by all who know the node by it, so that
 * one can ask whether anybody else does: as long as an open node bears it, it is in use.
 * Threads: any.  Layer: block. */
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

/* A letter, then letters, digits, '-', '.', '_'; not too long. */
bool node_name_is_well_formed(const char *text);

/* With one holder; NULL when memory is short.  The text must be well-formed. */
struct node_name *node_name_new(const char *text) MUST_USE;

/* One more holder; NULL is allowed, and returned. */
struct node_name *node_name_get(struct node_name *name);
/* One less, which the last one frees; NULL is allowed. */
void node_name_put(struct node_name *name);

/* Does anybody hold it but the caller? */
bool node_name_is_shared(const struct node_name *name);

#endif
