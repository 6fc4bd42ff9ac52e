/* SPDX-License-Identifier: BSD-3-Clause */
/* What a disk consists of, for who isn't a command.  Threads: the control thread.
 * Layer: server. */
#ifndef SERVER_CONTROL_QUERY_H
#define SERVER_CONTROL_QUERY_H

#include <jansson.h>

#include "control_cmds.h"

/* The data of BLOCK_IMAGE_CORRUPTED for the first image of the export's chain in which a
 * request met what can't be right; `fatal`: only for one that can't be written to any more
 * for that.  NULL: there is none. */
json_t *control_find_corruption(struct served_export *exp, bool fatal);

#endif
