/* SPDX-License-Identifier: BSD-3-Clause */
/* What commands said of exports, and closing their images would forget: limits, how they are open,
 * bitmaps in memory.  Kept while another server has the images, for when nothing comes of that.
 *
 * An image that was touched meanwhile was changed, for all that is known: a bitmap that records has
 * everything dirty then.  Bitmaps of layers below the top aren't kept.
 *
 * Threads: one at a time.  Layer: server. */
#ifndef SERVER_HANDOVER_KEPT_H
#define SERVER_HANDOVER_KEPT_H

#include "base/list.h"

struct export_table;
struct throttle_groups;

struct handover_kept {
    struct list exports; /* struct kept_export */
};

void handover_kept_init(struct handover_kept *kept);

/* Before the images are closed; nobody uses them. */
void handover_kept_take(struct handover_kept *kept, struct export_table *table);

/* When they are closed: how they are then. */
void handover_kept_note_files(struct handover_kept *kept);

/* When they are open.  Where that isn't possible it is logged.  None is kept any more. */
void handover_kept_give_back(struct handover_kept *kept, struct export_table *table,
                             struct throttle_groups *groups);

/* Nobody wants it any more.  Again: does nothing. */
void handover_kept_free(struct handover_kept *kept);

#endif
