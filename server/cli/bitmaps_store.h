/* SPDX-License-Identifier: BSD-3-Clause */
/* Stores the dirty bitmaps of an image that a command has changed.  Layer: server. */
#ifndef CLI_BITMAPS_STORE_H
#define CLI_BITMAPS_STORE_H

#include "block/node.h"

/* image_close doesn't fail when bitmaps can't be stored; it only logs that.  A command for
 * which that is a failure calls this before.  Afterwards the node can't be written to.
 * filename: the image's name in messages.  Complains and returns an exit code. */
int bitmaps_store(struct node *node, const char *filename);

#endif
