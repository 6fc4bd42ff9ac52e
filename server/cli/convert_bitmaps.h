/* SPDX-License-Identifier: BSD-3-Clause */
/* `qimg convert --bitmaps`: copies the dirty bitmaps that are stored in an image into
 * another.  All functions complain and return an exit code.  Layer: server. */
#ifndef CLI_CONVERT_BITMAPS_H
#define CLI_CONVERT_BITMAPS_H

#include <stdbool.h>

#include "block/node.h"

/* Loads the source's bitmaps, and checks that they can be copied.  Inconsistent ones can't:
 * with skip they are left out with a warning. */
int convert_bitmaps_load(struct node *source, bool skip);

/* Before anything is written to the target: can it take the bitmaps that were loaded? */
int convert_bitmaps_check_target(struct node *source, struct node *target);

/* After the disk was copied and flushed: copies and stores the bitmaps.  Afterwards the
 * target can't be written to.  filename: the target's name in messages. */
int convert_bitmaps(struct node *source, struct node *target, const char *filename);

#endif
