/* SPDX-License-Identifier: BSD-3-Clause */
/* Dirty bitmaps as the control socket shows them.  Threads: the control thread.  Layer:
 * server. */
#ifndef SERVER_CONTROL_BITMAPS_H
#define SERVER_CONTROL_BITMAPS_H

#include <jansson.h>

struct node;

/* An array with a BlockDirtyInfo for each of the node's bitmaps. */
json_t *control_describe_bitmaps(struct node *node);

#endif
