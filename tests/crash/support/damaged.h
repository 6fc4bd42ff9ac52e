/* SPDX-License-Identifier: BSD-3-Clause */
/* Damaged images, for tests that interrupt their repair. */
#ifndef CRASH_DAMAGED_H
#define CRASH_DAMAGED_H

#include <stdbool.h>
#include <stddef.h>

#include "storage/storage.h"

#define SCENARIO_DISK (4u << 20)

struct scenario {
    const char *name, *format, *options;
    void (*damage)(struct storage *st);
    bool snapshot; /* qemu-img makes one before the damage */
};

extern const struct scenario scenarios[];
extern const size_t scenario_count;

/* Makes a damaged image; returns a mem storage that the caller closes.  Every L2 table has
 * entries; with a snapshot some clusters are shared with it. */
struct storage *scenario_make(const struct scenario *s);

#endif
