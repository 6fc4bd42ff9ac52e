/* SPDX-License-Identifier: BSD-3-Clause */
/* Dirty bitmaps on the control socket, and actions on them.  Threads: the control thread;
 * actions on the lane's.  Layer: server. */
#ifndef SERVER_CONTROL_BITMAPS_H
#define SERVER_CONTROL_BITMAPS_H

#include <jansson.h>

struct control_type;
struct node;
struct transaction_kind;

/* An array with a BlockDirtyInfo for each of the node's bitmaps. */
json_t *control_describe_bitmaps(struct node *node);
extern const struct control_type control_bitmap_info; /* the type of one */

/* A bitmap: its name, or an object with `node` and `name`. */
extern const struct control_type control_bitmap_source;

extern const struct transaction_kind bitmap_add_kind, bitmap_remove_kind, bitmap_clear_kind,
    bitmap_enable_kind, bitmap_disable_kind, bitmap_merge_kind;

#endif
