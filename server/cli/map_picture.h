/* SPDX-License-Identifier: BSD-3-Clause */
/* `qimg map --svg`: a picture of where a disk's data lies.  Layer: server. */
#ifndef CLI_MAP_PICTURE_H
#define CLI_MAP_PICTURE_H

#include <stdint.h>

struct node;

/* Prints an SVG picture of the bytes [start, end) of the disk.  It has one row for each layer
 * of the chain, with what the disk has from that layer, and one for each internal snapshot,
 * with what the snapshot has in the image itself.  Complains and returns an exit code. */
int map_picture_print(struct node *node, uint64_t start, uint64_t end);

#endif
