/* What the disk consists of, for who isn't a command.  Threads: the control thread.
 * Layer: server. */
#ifndef SERVER_CONTROL_QUERY_H
#define SERVER_CONTROL_QUERY_H

#include <jansson.h>

#include "control_cmds.h"

/* The data of BLOCK_IMAGE_CORRUPTED for the first image of the chain that is marked so;
 * NULL: none is. */
json_t *control_find_corruption(struct control_context *ctx);

#endif
