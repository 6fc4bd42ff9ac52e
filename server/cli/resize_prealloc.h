/* SPDX-License-Identifier: BSD-3-Clause */
/* Preallocates the space by which a disk has grown.  Layer: server. */
#ifndef CLI_RESIZE_PREALLOC_H
#define CLI_RESIZE_PREALLOC_H

#include <stdbool.h>

#include "block/node.h"

enum preallocation {
    PREALLOCATION_OFF,
    PREALLOCATION_METADATA, /* clusters are mapped; the file has holes there */
    PREALLOCATION_FALLOC,   /* the filesystem has allocated blocks for them */
    PREALLOCATION_FULL      /* zeroes are written to them */
};

/* Complains and returns an exit code. */
int preallocation_parse(const char *word, enum preallocation *out);
const char *preallocation_name(enum preallocation mode);

/* Does the image's format support the mode? */
bool preallocation_is_known(const struct node *node, enum preallocation mode);

/* Preallocates from `old` (bytes) to the end of the disk, which reads as zeroes.  On
 * failure the disk is shrunk to `old` again.  0 or -errno with diag. */
int preallocate_growth(struct node *node, uint64_t old, enum preallocation mode,
                       struct diag *diag) MUST_USE;

#endif
