/* SPDX-License-Identifier: BSD-3-Clause */
/* The end of an image file, where fresh clusters come from.
 *
 *        next           durable        end
 *   ------|----- fresh ----|-------------|        (fresh_from <= next on a growing file,
 *                                                  unless growth failed half-way)
 *
 * [MAX(next, fresh_from), end) was added by growing the file and reads as zeroes.  Below
 * `durable` the growth, and whatever bookkeeping the driver stored for it before the group
 * was frozen, is durable: links to clusters there need no barrier when they replace zeroes
 * (a *relaxed* group).  Growth takes ever larger steps, so that it is rare; what was not
 * used is given back at close.
 *
 * Threads: functions marked META under mcache_meta(node->mc); tail_grow under the driver's
 * RANK_GROWTH lock and not under META.  Layer: block. */
#ifndef BLOCK_TAIL_H
#define BLOCK_TAIL_H

#include <stdbool.h>
#include <stdint.h>

#include "base/compiler.h"

struct node;

struct tail {
    uint64_t next;       /* first byte not handed out; cluster aligned */
    uint64_t end;        /* first byte beyond the file; cluster aligned */
    uint64_t fresh_from; /* from here on the bytes were added by this session, and nobody
                            wrote to them before they were taken */
    uint64_t durable;    /* growth durable up to here */
    uint64_t frozen_end; /* `end` when the group being written was frozen */
    uint64_t taken;      /* bytes handed out in this session: sets the step of growth */
    uint32_t cluster_size;
};

/* start: the end of the last cluster in use, cluster aligned; file_size: as it is now.
 * Bytes between them are not taken for fresh. */
void tail_init(struct tail *tail, uint32_t cluster_size, uint64_t start,
               uint64_t file_size);

/* META: takes up to `bytes` (whole clusters) of what the file has; returns how many it took
 * (0: tail_grow first), at *offset.  *fresh: they read as zeroes. */
uint64_t tail_take(struct tail *tail, uint64_t bytes, uint64_t *offset, bool *fresh);

/* META: is a link to [.., host_end) free of the leaf barrier, bookkeeping and growth
 * durable? */
bool tail_settled(const struct tail *tail, uint64_t host_end);

/* META: how far tail_grow would move the end for an allocation of `bytes`: the driver may
 * cut it (to a refcount block's reach) before it grows. */
uint64_t tail_next_end(const struct tail *tail, uint64_t bytes);

/* Grows the file to new_end; takes META itself to publish it.  0 or -errno (-ENOSPC on a
 * store of fixed size, -EFBIG). */
int tail_grow(struct tail *tail, struct node *node, uint64_t new_end) MUST_USE;

/* META: tail_grow's second half, for a driver that grows the file itself and must store its
 * bookkeeping for the new clusters before they can be taken. */
void tail_publish(struct tail *tail, uint64_t new_end);

/* META: it ends at new_end, between next and end: what lies behind isn't counted any more. */
void tail_cut(struct tail *tail, uint64_t new_end);

/* From the driver's mcache hooks (frozen: META). */
void tail_frozen(struct tail *tail);
void tail_durable(struct tail *tail, struct node *node);

#endif
