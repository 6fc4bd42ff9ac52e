/* SPDX-License-Identifier: BSD-3-Clause */
/* The mark in the header that says "the metadata on disk may be inconsistent": NEED_CHECK of
 * QED, the dirty bit of qcow2 with lazy refcounts.
 *
 *   CLEAR --begin--> WRITING --> SET --durable--> DURABLE --clear--> CLEARING --> CLEAR
 *
 * The bit is written before the first allocation changes a metadata word.  Groups that are
 * frozen before the bit is durable are strict, so that the barrier that makes it durable comes
 * before the table updates that it announces.  The idle timer clears it `delay` after the last
 * allocation has ended: new allocations wait, everything is committed, the bit is cleared and
 * flushed.  When that fails the bit stays set, and is cleared after the next quiet period; if
 * writing the bit failed, the next allocation writes it again.
 *
 * Threads: any; functions marked META under mcache_meta(); the others, which may do I/O,
 * outside it.  Layer: block. */
#ifndef BLOCK_DIRTY_MARK_H
#define BLOCK_DIRTY_MARK_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/compiler.h"
#include "base/housekeeper.h"

struct node;

enum mark_state {
    MARK_CLEAR,
    MARK_WRITING,
    MARK_SET,
    MARK_DURABLE,
    MARK_CLEARING,
    MARK_UNKNOWN, /* clearing failed: the file may have the bit or not */
};

struct dirty_mark {
    struct node *node;
    /* Writes the header with the bit on or off; doesn't flush.  Called without META.  Returns 0
     * or -errno. */
    int (*write_bit)(struct node *node, bool on);
    /* False: begin and end do nothing, as the image needs no mark. */
    _Atomic bool enabled;
    /* under META */
    bool given_up; /* the bit is no longer set, only cleared */
    enum mark_state state;
    unsigned in_flight;   /* allocations between begin and end */
    bool frozen_set;      /* the bit was in the file when the group was frozen */
    uint64_t last_end_ns; /* when the last allocation ended; housekeeper's clock */
    pthread_cond_t changed;
    struct timer timer;
};

/* already_set: the image was opened with the bit set (after a repair, or a volatile session). */
void dirty_mark_init(struct dirty_mark *mark, struct node *node,
                     int (*write_bit)(struct node *, bool), bool enabled, bool already_set);
void dirty_mark_destroy(struct dirty_mark *mark);

/* Before an allocation.  Returns 0: the bit is in the file, and is not cleared before
 * dirty_mark_end.  -errno: the header could not be written; don't call dirty_mark_end. */
int dirty_mark_begin(struct dirty_mark *mark) MUST_USE;

/* META: an allocation has ended: it was linked or released. */
void dirty_mark_end(struct dirty_mark *mark);

/* From the driver's mcache hooks (frozen: META). */
void dirty_mark_frozen(struct dirty_mark *mark);
void dirty_mark_durable(struct dirty_mark *mark);

/* META: does the mark require that the group of an allocation is strict? */
bool dirty_mark_needs_barrier(const struct dirty_mark *mark);

/* Commits everything, clears the bit and flushes.  With allocations in flight it waits if
 * `wait`, otherwise it returns -EBUSY.  Returns 0 when the bit is clear, or -errno. */
int dirty_mark_clear(struct dirty_mark *mark, bool wait) MUST_USE;

/* META: the bit could not be written, and changes continue without it: dirty_mark_begin
 * succeeds from now on without setting it.  Allocations in flight end as usual. */
void dirty_mark_give_up(struct dirty_mark *mark);

/* The clean end of a session, with nothing in flight: commits everything and clears the bit.
 * After a session whose flushes did nothing it syncs once, unless the user waived that: then
 * the mark stays.  To be called also if the mark isn't enabled. */
int dirty_mark_finish(struct dirty_mark *mark) MUST_USE;

#endif
