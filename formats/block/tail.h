/* SPDX-License-Identifier: BSD-3-Clause */
/* The end of an image file, where fresh clusters come from.
 *
 *        next           durable        end
 *   ------|----- fresh ----|-------------|        (fresh_from <= next on a growing file,
 *                                                  unless growth failed half-way)
 *
 * [MAX(next, fresh_from), end) was added by growing the file and reads as zeroes.  Up to
 * `durable`, the growth and the refcounts that the driver stored for it are durable: links to
 * clusters there need no barrier before them if they replace zeroes (a *relaxed* group).  The
 * file grows in ever larger steps, so that it grows rarely; what wasn't used is given back at
 * close.
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
    uint64_t next; /* first byte not handed out; cluster aligned */
    uint64_t end;  /* first byte beyond the file; cluster aligned */
    /* Bytes from here on were added in this session and have not been written to before they
     * are taken. */
    uint64_t fresh_from;
    uint64_t durable;    /* the growth is durable up to here */
    uint64_t frozen_end; /* `end` when the group being written was frozen */
    uint64_t taken;      /* bytes taken in this session: determines the step of growth */
    uint32_t cluster_size;
};

/* start: the end of the last cluster in use, cluster aligned; file_size: the present size.  The
 * bytes between them don't count as fresh. */
void tail_init(struct tail *tail, uint32_t cluster_size, uint64_t start,
               uint64_t file_size);

/* META: takes up to `bytes` (whole clusters) from the tail, at *offset.  Returns how many bytes
 * it took (0: call tail_grow first).  *fresh: they read as zeroes. */
uint64_t tail_take(struct tail *tail, uint64_t bytes, uint64_t *offset, bool *fresh);

/* META: are the growth and the refcounts up to host_end durable, so that a link to clusters
 * before it needs no barrier? */
bool tail_settled(const struct tail *tail, uint64_t host_end);

/* META: the new end that tail_grow would choose for an allocation of `bytes`. The driver may
 * choose a smaller one (what a refcount block covers). */
uint64_t tail_next_end(const struct tail *tail, uint64_t bytes);

/* Grows the file to new_end; takes META itself to publish it.  Returns 0 or -errno (-ENOSPC on
 * a store of fixed size, -EFBIG). */
int tail_grow(struct tail *tail, struct node *node, uint64_t new_end) MUST_USE;

/* META: the second half of tail_grow, for a driver that grows the file itself and has to store
 * refcounts for the new clusters before they can be taken. */
void tail_publish(struct tail *tail, uint64_t new_end);

/* META: the file now ends at new_end, between next and end. */
void tail_cut(struct tail *tail, uint64_t new_end);

/* From the driver's mcache hooks (frozen: META). */
void tail_frozen(struct tail *tail);
void tail_durable(struct tail *tail, struct node *node);

#endif
