/* SPDX-License-Identifier: BSD-3-Clause */
/* Keeps what commands set on exports and closing the images would lose: limits, cache and discard
 * choices, bitmaps in memory.  It is kept while another server has the images, in case this one
 * takes them back.
 *
 * If the file of an image was touched meanwhile, the image counts as changed: then each bitmap
 * that records gets everything dirty.  Bitmaps of layers below the top aren't kept.
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

/* Before the images are closed; nobody may use them. */
void handover_kept_take(struct handover_kept *kept, struct export_table *table);

/* After the images were closed: notes size and times of their files. */
void handover_kept_note_files(struct handover_kept *kept);

/* After the images were opened again.  Failures are logged.  Afterwards nothing is kept any more.
 */
void handover_kept_give_back(struct handover_kept *kept, struct export_table *table,
                             struct throttle_groups *groups);

/* Drops what is kept.  A second call does nothing. */
void handover_kept_free(struct handover_kept *kept);

#endif
