/* SPDX-License-Identifier: BSD-3-Clause */
/* Memory through which transfers go whose own memory the kernel doesn't take.
 *
 * Large ones lie in huge pages where there are any: a device is told of each piece of memory
 * that lies by itself, and a MiB of small pages is up to 256 of them.  That is more than many
 * devices take in one request, and the whole queue of some virtual disks.  They are kept for the
 * next who needs one, as pages that are new to a process cost about as much as what is copied
 * to them.
 *
 * Threads: any.  Layer: storage. */
#ifndef STORAGE_BOUNCE_H
#define STORAGE_BOUNCE_H

#include <stdint.h>

/* The most that one has. */
#define BOUNCE_BYTES (1u << 20)

struct bounce {
    char *bytes;       /* NULL: no memory */
    uint64_t capacity; /* never 0 */
};

/* For transfers of `span` bytes, more than 0, or a part of them, at a multiple of a page and of
 * `align`, a power of two up to BOUNCE_BYTES.  Released with bounce_release. */
struct bounce bounce_new(uint64_t span, uint32_t align);

void bounce_release(struct bounce *b);

#endif
