/* SPDX-License-Identifier: BSD-3-Clause */
/* Looks for corruption in a disk's images.  Threads: the control thread.  Layer: server. */
#ifndef SERVER_CONTROL_QUERY_H
#define SERVER_CONTROL_QUERY_H

#include <jansson.h>

#include "control_cmds.h"

/* The data of BLOCK_IMAGE_CORRUPTED for the first image of the export's chain in which a
 * request met an invalid table entry.  fatal: only if the image can't be written to any
 * more because of that.  NULL: none. */
json_t *control_find_corruption(struct served_export *exp, bool fatal);

#endif
