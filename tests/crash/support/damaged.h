/* SPDX-License-Identifier: BSD-3-Clause */
/* Images that need a repair, for tests that disturb it. */
#ifndef CRASH_DAMAGED_H
#define CRASH_DAMAGED_H

#include <stdbool.h>
#include <stddef.h>

#include "storage/storage.h"

#define SCENARIO_DISK (4u << 20)

struct scenario {
    const char *name, *format, *options;
    void (*damage)(struct storage *st);
    bool snapshot; /* taken before the damage; by qemu-img */
};

extern const struct scenario scenarios[];
extern const size_t scenario_count;

/* A damaged image, as a mem storage: something in every L2 table, and with a snapshot
 * clusters shared with it. */
struct storage *scenario_make(const struct scenario *s);

#endif
