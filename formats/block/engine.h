/* SPDX-License-Identifier: BSD-3-Clause */
/* What the parts of the request engine share: requests on ranges that were checked, inside
 * the gate.  Private to this folder. */
#ifndef BLOCK_ENGINE_H
#define BLOCK_ENGINE_H

#include <errno.h>

#include "block/node.h"

/* Copies of head and tail, and zeroes, move in pieces of at most this. */
#define ENGINE_CHUNK (1u << 20)

/* node.c: a node that has nothing yet but its name and the user's choices; NULL: no memory.
 * node_free frees what it has. */
struct node *node_new(struct block_context *ctx, const struct driver *driver,
                      const char *filename, const struct node_options *options);
void node_free(struct node *node);

/* read.c: the chain's view of a range. */
int engine_read(struct node *node, void *buf, uint64_t off, uint64_t len) MUST_USE;

/* status.c: as block_status. */
int engine_status(struct node *node, uint64_t off, uint64_t len,
                  struct block_status *out) MUST_USE;

/* write.c */

/* Writes; fua: in-place parts whose mapping is durable are written durably, and
 * *needs_commit says whether a commit must make the rest durable. */
int engine_write(struct node *node, const void *buf, uint64_t off, uint64_t len, bool fua,
                 bool *needs_commit) MUST_USE;

/* write_compressed.c: the same, but whole clusters are stored compressed when that makes
 * them smaller. */
int engine_write_compressed(struct node *node, const void *buf, uint64_t off, uint64_t len,
                            bool fua, bool *needs_commit) MUST_USE;

/* As block_write, of a range whose clusters the caller has locked. */
int engine_write_locked(struct node *node, const void *buf, uint64_t off,
                        uint64_t len) MUST_USE;

/* Zeroes of a range whose clusters the caller has locked, and of which the node has nothing:
 * by metadata where it can.  They last when another backing file comes below. */
int engine_zero_locked(struct node *node, uint64_t off, uint64_t len) MUST_USE;

/* Zero bytes through the write path; locked: the caller has locked the guest range. */
int engine_write_zeroes(struct node *node, uint64_t off, uint64_t len,
                        bool locked) MUST_USE;

/* What every change begins with, outside the gate.  0, or why it may not be made. */
static inline int engine_admit_change(struct node *node, uint64_t off, uint64_t len)
{
    int err = node_check_range(node, off, len);
    if (err)
        return err;
    if (!node->active)
        return -EROFS;
    return mcache_health(node->mc);
}

/* flush.c: a changing request on its way, inside the gate. */
struct engine_change {
    struct change what;
    gate_ticket ticket;
    struct observed seen;
};

/* After -ENOSPC: has clusters that were let go of made free, which takes a flush and the end
 * of all requests under way, a few seconds at most.  False: there are none, or who asks is
 * inside the gate itself; so there is no use in trying again. */
bool engine_make_room(struct node *node, unsigned flags) MUST_USE;

/* Enters the gate, has the image say that it changes (node_begin_change), and tells observers
 * of what is to come.  0, or -errno when one of them refuses it; it is to be ended in both
 * cases.  Inline: without observers nothing is left to be tested. */
static inline int engine_start_write(struct node *node, struct engine_change *change)
{
    change->ticket = gate_enter_to_change(&node->ctx->gate);
    /* Inside: who has the image say something else waits for those who are there. */
    int err = node_begin_change(node);
    if (UNLIKELY(err)) {
        change->seen.list = NULL;
        return err;
    }
    return observers_before(&node->observers, &change->seen, &change->what);
}

/* What ends it, err being how it went: tells observers, leaves the gate, notes the write,
 * relieves the cache, and commits when the request asked for durability. */
int engine_finish_write(struct node *node, struct engine_change *change, int err,
                        bool commit) MUST_USE;

#endif
