/* SPDX-License-Identifier: BSD-3-Clause */
/* Opens the file of a layer below the top of a disk a second time, for writing.
 *
 * Threads: the control lane's.  Layer: server. */
#ifndef SERVER_LAYER_WRITER_H
#define SERVER_LAYER_WRITER_H

#include <stdbool.h>

#include "base/compiler.h"
#include "base/diag.h"

struct node;

/* Opens the layer's file with its bitmaps, ready to be changed, without what lies below it.  The
 * layer must have a writer's lock (node_lock_for_writing).  The caller closes *out.  0 or -errno
 * with diag. */
int layer_writer_open(struct node *layer, const _Atomic bool *give_up, struct node **out,
                      struct diag *diag) MUST_USE;

#endif
