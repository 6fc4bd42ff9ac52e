/* SPDX-License-Identifier: BSD-3-Clause */
/* A storage that calls a test before each access to the one below it.
 *
 * The callbacks run on the thread that reads or writes, under no lock that forbids I/O, and
 * not for calls made from within them. */
#ifndef CRASH_TAP_STORAGE_H
#define CRASH_TAP_STORAGE_H

#include <stdbool.h>
#include <stdint.h>

#include "storage/storage.h"

struct tap {
    void *opaque;
    /* Each may be NULL. */
    void (*before_read)(void *opaque, uint64_t off, uint64_t len);
    /* Also before a zero or a truncate (off: the new size, len 0).  Returns 0, or the
     * -errno that the call fails with; *done: after it was carried out all the same. */
    int (*before_write)(void *opaque, uint64_t off, uint64_t len, bool *done);
    int (*before_flush)(void *opaque);
};

/* Takes `below`; tap must live as long. */
struct storage *tap_storage_open(struct storage *below, const struct tap *tap);

#endif
