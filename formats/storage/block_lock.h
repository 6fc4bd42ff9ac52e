/* SPDX-License-Identifier: BSD-3-Clause */
/* Holds on ranges of a file, for accesses that the kernel can't make atomic: a writer that
 * reads a block, changes a part and writes it back holds it exclusively; a writer of whole
 * blocks shares it with its like, but not with the former.
 *
 * Overlapping holds of which one is exclusive are granted in the order of arrival.  The
 * mutex is held only to look at the list; what is held spans I/O.  A thread holds at most
 * one range of a lock at a time, so nobody can deadlock.  Private to this folder. */
#ifndef STORAGE_BLOCK_LOCK_H
#define STORAGE_BLOCK_LOCK_H

#include <stdbool.h>
#include <stdint.h>

#include "base/list.h"
#include "base/lock.h"

struct block_lock {
    struct lock lock;
    /* under lock */
    struct list holds; /* struct block_hold.link, granted or waiting, in order of arrival */
    unsigned waiting;
    pthread_cond_t released;
};

enum hold_mode { HOLD_SHARED, HOLD_EXCLUSIVE };

/* On the holder's stack. */
struct block_hold {
    struct list link;
    uint64_t start, end;
    enum hold_mode mode;
};

void block_lock_init(struct block_lock *bl);
void block_lock_destroy(struct block_lock *bl);

/* Waits until no earlier hold stands in the way of [start, end). */
void block_lock_acquire(struct block_lock *bl, struct block_hold *hold, uint64_t start,
                        uint64_t end, enum hold_mode mode);
void block_lock_release(struct block_lock *bl, struct block_hold *hold);

#endif
