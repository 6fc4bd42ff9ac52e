/* SPDX-License-Identifier: BSD-3-Clause */
/* `qimg map --svg`: where a disk's bytes lie, as a picture.  Layer: server. */
#ifndef CLI_MAP_PICTURE_H
#define CLI_MAP_PICTURE_H

#include <stdint.h>

struct node;

/* Prints an SVG picture of [start, end) of the disk: a row for each layer of the chain, with
 * what the
 * disk has from it, and one for each internal snapshot, with what it has in the image itself.
 * Complains and returns an exit code. */
int map_picture_print(struct node *node, uint64_t start, uint64_t end);

#endif
