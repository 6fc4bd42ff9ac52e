/* SPDX-License-Identifier: BSD-3-Clause */
/* A storage that calls back a test before it passes an access on to the storage below.
 *
 * The callbacks run on the thread that reads or writes.  That thread holds no lock that forbids
 * I/O.  Accesses made by a callback don't call back again. */
#ifndef CRASH_TAP_STORAGE_H
#define CRASH_TAP_STORAGE_H

#include <stdbool.h>
#include <stdint.h>

#include "storage/storage.h"

struct tap {
    void *opaque;
    /* Each may be NULL. */
    void (*before_read)(void *opaque, uint64_t off, uint64_t len);
    /* Also called before a zero or a truncate (off: the new size, len 0).  Returns 0, or the
     * -errno with which the call fails.  If it fails and *done was set to true, the change is
     * carried out nevertheless. */
    int (*before_write)(void *opaque, uint64_t off, uint64_t len, bool *done);
    int (*before_flush)(void *opaque);
};

/* Takes ownership of `below`.  `tap` must live as long as the new storage. */
struct storage *tap_storage_open(struct storage *below, const struct tap *tap);

#endif
