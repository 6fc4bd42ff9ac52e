/* SPDX-License-Identifier: BSD-3-Clause */
/* `qimg convert --bitmaps`: the dirty bitmaps that an image keeps, copied into another.
 * All complain and return an exit code.  Layer: server. */
#ifndef CLI_CONVERT_BITMAPS_H
#define CLI_CONVERT_BITMAPS_H

#include <stdbool.h>

#include "block/node.h"

/* Loads them; CLI_OK when they can be copied.  What is inconsistent can't: with skip it is
 * said, and left out. */
int convert_bitmaps_load(struct node *source, bool skip);

/* Will the target have room for what was loaded?  Before anything is written to it. */
int convert_bitmaps_check_target(struct node *source, struct node *target);

/* After the disk was copied and flushed: copies and stores them.  Nothing is written to the
 * target, which is called `filename`, any more then. */
int convert_bitmaps(struct node *source, struct node *target, const char *filename);

#endif
