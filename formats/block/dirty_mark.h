/* SPDX-License-Identifier: BSD-3-Clause */
/* The mark in the header that says "bookkeeping on disk may be behind": NEED_CHECK of QED,
 * the dirty bit of qcow2 with lazy refcounts.
 *
 *   CLEAR --begin--> WRITING --> SET --durable--> DURABLE --clear--> CLEARING --> CLEAR
 *
 * The bit is written before the first allocation changes a word; groups frozen before the
 * bit was durable are strict, so its barrier stands before every table update that it
 * announces. The idle timer clears it `delay` after the last allocation ended: new
 * allocations wait, everything is committed, the bit is cleared and flushed.  A
 * failure keeps it set, to be tried again after the next quiet period; when it was the
 * writing of the bit that failed, the next allocation writes it anew.
 *
 * Threads: any; functions marked META under it, all others, which may do I/O, outside.  Layer:
 * block.
 */
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
    /* Writes the header with the bit on or off; doesn't flush.  Under no META. */
    int (*write_bit)(struct node *node, bool on);
    /* False: begin and end do nothing (backing file, eager refcounts). */
    _Atomic bool enabled;
    /* under META */
    bool given_up; /* the bit is not set any more, only cleared */
    enum mark_state state;
    unsigned in_flight;
    bool frozen_set; /* the frozen group started with the bit in the file */
    uint64_t last_end_ns;
    pthread_cond_t changed;
    struct timer timer;
};

/* already_set: the image came with the bit (a repaired or volatile one). */
void dirty_mark_init(struct dirty_mark *mark, struct node *node,
                     int (*write_bit)(struct node *, bool), bool enabled, bool already_set);
void dirty_mark_destroy(struct dirty_mark *mark);

/* Before an allocation: the bit is in the file when it returns 0, and the clearing of the
 * mark waits for dirty_mark_end.  -errno: the header could not be written, and nothing waits. */
int dirty_mark_begin(struct dirty_mark *mark) MUST_USE;

/* META: the allocation that began is linked or released. */
void dirty_mark_end(struct dirty_mark *mark);

/* From the driver's mcache hooks (frozen: META). */
void dirty_mark_frozen(struct dirty_mark *mark);
void dirty_mark_durable(struct dirty_mark *mark);

/* META: must the group of an allocation be strict for the mark's sake? */
bool dirty_mark_needs_barrier(const struct dirty_mark *mark);

/* Commits everything, clears the bit and flushes; waits for allocations in flight when
 * `wait`, else returns -EBUSY while there are any.  0 when it is clear. */
int dirty_mark_clear(struct dirty_mark *mark, bool wait) MUST_USE;

/* META: the bit could not be written, and changes go on without; who began before ends as
 * ever, and who failed to begin begins again. */
void dirty_mark_give_up(struct dirty_mark *mark);

/* The clean end of a session, with nothing in flight: commits everything and clears the
 * bit.  A session whose flushes were void gets its one real sync here, unless the user
 * waived it: then the mark stays.  Also to be called where the mark isn't enabled. */
int dirty_mark_finish(struct dirty_mark *mark) MUST_USE;

#endif
