/* SPDX-License-Identifier: BSD-3-Clause */
/* Allocating what a disk has grown by.  Layer: server. */
#ifndef CLI_RESIZE_PREALLOC_H
#define CLI_RESIZE_PREALLOC_H

#include <stdbool.h>

#include "block/node.h"

enum preallocation {
    PREALLOCATION_OFF,
    PREALLOCATION_METADATA, /* clusters have their place, the file has holes there */
    PREALLOCATION_FALLOC,   /* the filesystem has blocks for them */
    PREALLOCATION_FULL      /* zeroes are written to them */
};

/* Complains and returns an exit code. */
int preallocation_parse(const char *word, enum preallocation *out);
const char *preallocation_name(enum preallocation mode);

/* Has the image's format such a mode? */
bool preallocation_is_known(const struct node *node, enum preallocation mode);

/* From `old` to the end of the disk, which reads as zeroes; the disk has its old size again
 * when that fails.  0 or -errno with a sentence. */
int preallocate_growth(struct node *node, uint64_t old, enum preallocation mode,
                       struct diag *diag) MUST_USE;

#endif
