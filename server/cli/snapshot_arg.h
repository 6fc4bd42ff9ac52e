/* SPDX-License-Identifier: BSD-3-Clause */
/* -l SNAPSHOT: an internal snapshot instead of the disk.  Layer: server. */
#ifndef CLI_SNAPSHOT_ARG_H
#define CLI_SNAPSHOT_ARG_H

#include "block/node.h"

/* Opens the snapshot that `text` names: an id, else a name, or
 * snapshot.id=ID,snapshot.name=NAME.  NULL: *out is the image itself.  Complains and
 * returns an exit code. */
int snapshot_arg_open(struct node *image, const char *text, struct node **out);

void snapshot_arg_close(struct node *image, struct node *opened);

#endif
