/* SPDX-License-Identifier: BSD-3-Clause */
/* Bounce buffers: memory for transfers (O_DIRECT) whose own memory the kernel can't use.
 *
 * Large buffers lie in huge pages if possible.  A device gets an address for each piece of
 * contiguous memory, and 1 MiB of small pages is up to 256 pieces: more than many devices take
 * in one request, and the whole queue of some virtual disks.  Large buffers are kept for reuse,
 * because pages that are new to a process cost about as much as copying the data to them.
 *
 * Threads: any.  Layer: storage. */
#ifndef STORAGE_BOUNCE_H
#define STORAGE_BOUNCE_H

#include <stdint.h>

/* The largest size of a buffer. */
#define BOUNCE_BYTES (1u << 20)

struct bounce {
    char *bytes;       /* NULL: memory is short */
    uint64_t capacity; /* bytes; never 0 */
};

/* Returns a buffer for transfers of `span` bytes (more than 0) or for a part of them, aligned
 * to a page and to `align`, a power of two up to BOUNCE_BYTES.  To be released with
 * bounce_release. */
struct bounce bounce_new(uint64_t span, uint32_t align);

void bounce_release(struct bounce *b);

#endif
