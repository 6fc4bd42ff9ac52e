/* SPDX-License-Identifier: BSD-3-Clause */
/* The file of a layer below the top of a disk, opened once more, to be written to.
 *
 * Threads: the control lane's.  Layer: server. */
#ifndef SERVER_LAYER_WRITER_H
#define SERVER_LAYER_WRITER_H

#include <stdbool.h>

#include "base/compiler.h"
#include "base/diag.h"

struct node;

/* With its bitmaps, and ready to be changed; the layer has the lock of a writer
 * (node_lock_for_writing), and nothing below it is opened.  *out is the caller's to close.  0 or
 * -errno with diag. */
int layer_writer_open(struct node *layer, const _Atomic bool *give_up, struct node **out,
                      struct diag *diag) MUST_USE;

#endif
