/* SPDX-License-Identifier: BSD-3-Clause */
/* Internal functions of the request engine.  Their ranges have been checked and the caller is
 * inside the gate, unless noted.  Private to this folder. */
#ifndef BLOCK_ENGINE_H
#define BLOCK_ENGINE_H

#include <errno.h>

#include "block/node.h"

/* The largest piece in which head and tail of a cluster, and zeroes, are copied or written, in
 * bytes. */
#define ENGINE_CHUNK (1u << 20)

/* node.c: a node with nothing but its name and the user's options; NULL: memory is short.
 * node_free frees it and what it owns. */
struct node *node_new(struct block_context *ctx, const struct driver *driver,
                      const char *filename, const struct node_options *options);
void node_free(struct node *node);

/* read.c: reads a range as the chain shows it. */
int engine_read(struct node *node, void *buf, uint64_t off, uint64_t len) MUST_USE;

/* status.c: as block_status. */
int engine_status(struct node *node, uint64_t off, uint64_t len,
                  struct block_status *out) MUST_USE;

/* write.c */

/* Writes.  fua: parts that are written in place, and whose mapping is durable, are durable on
 * return; *needs_commit says whether a commit must make the rest durable. */
int engine_write(struct node *node, const void *buf, uint64_t off, uint64_t len, bool fua,
                 bool *needs_commit) MUST_USE;

/* write_compressed.c: as engine_write, but whole clusters are stored compressed if that makes
 * them smaller. */
int engine_write_compressed(struct node *node, const void *buf, uint64_t off, uint64_t len,
                            bool fua, bool *needs_commit) MUST_USE;

/* As block_write, for a range whose clusters the caller has locked. */
int engine_write_locked(struct node *node, const void *buf, uint64_t off,
                        uint64_t len) MUST_USE;

/* Makes a range read as zeroes, by metadata where possible.  The caller has locked its
 * clusters, and the node has no entries for it.  The range goes on reading as zeroes if it gets
 * another backing file. */
int engine_zero_locked(struct node *node, uint64_t off, uint64_t len) MUST_USE;

/* Writes zero bytes through the write path.  locked: the caller has locked the guest range. */
int engine_write_zeroes(struct node *node, uint64_t off, uint64_t len,
                        bool locked) MUST_USE;

/* The first step of every change, outside the gate.  Returns 0, or -errno if the node can't be
 * changed. */
static inline int engine_admit_change(struct node *node, uint64_t off, uint64_t len)
{
    int err = node_check_range(node, off, len);
    if (err)
        return err;
    if (!node->active)
        return -EROFS;
    return mcache_health(node->mc);
}

/* flush.c: a changing request in flight, inside the gate. */
struct engine_change {
    struct change what;
    gate_ticket ticket;
    struct observed seen;
};

/* After -ENOSPC: commits, and waits a few seconds at most for the requests in flight to end, so
 * that unlinked clusters become free.  False: there are none, or the caller is inside the gate
 * itself (BLOCK_INSIDE), or they could not be freed: trying again is useless. */
bool engine_make_room(struct node *node, unsigned flags) MUST_USE;

/* Enters the gate, records in the image that it changes (node_begin_change), and tells
 * observers what is going to change.  Returns 0, or -errno if an observer refuses it.
 * engine_finish_write has to be called in both cases.  Inline, so that without observers it is
 * one test. */
static inline int engine_start_write(struct node *node, struct engine_change *change)
{
    change->ticket = gate_enter_to_change(&node->ctx->gate);
    /* Inside the gate: a driver that sets node->changed to false then waits for those inside. */
    int err = node_begin_change(node);
    if (UNLIKELY(err)) {
        change->seen.list = NULL;
        return err;
    }
    return observers_before(&node->observers, &change->seen, &change->what);
}

/* Ends a change whose result is err: tells observers, leaves the gate, notes the write,
 * relieves the cache, and commits if the request asked for durability.  Returns err, or -errno
 * of the commit. */
int engine_finish_write(struct node *node, struct engine_change *change, int err,
                        bool commit) MUST_USE;

#endif
