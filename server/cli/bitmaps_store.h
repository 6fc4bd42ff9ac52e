/* SPDX-License-Identifier: BSD-3-Clause */
/* Storing the dirty bitmaps of an image that a command changed.  Layer: server. */
#ifndef CLI_BITMAPS_STORE_H
#define CLI_BITMAPS_STORE_H

#include "block/node.h"

/* To close an image whose bitmaps can't be stored is no failure, as it says so itself.  Where
 * it is one, they are stored with this before.  Nothing can be written to the node any more
 * then; the image is called `filename`.  Complains and returns an exit code. */
int bitmaps_store(struct node *node, const char *filename);

#endif
