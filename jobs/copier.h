/* SPDX-License-Identifier: BSD-3-Clause */
/* Copies ranges from one node to another with a few worker threads, and locks what is in
 * flight: who works on which range of the disk.
 *
 * A range is locked from before its read to the end of its write, so that two writers never
 * meet on the target.  Callers lock whole chunks.
 *
 * Threads: every function from any thread; copier_free when nothing is in flight.  Layer:
 * jobs. */
#ifndef JOBS_COPIER_H
#define JOBS_COPIER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/compiler.h"
#include "base/range_lock.h"
#include "block/node.h"
#include "jobs/copy_range.h"

struct copier_config {
    struct node *source, *target;
    uint64_t buf_size;  /* bytes of buffers, at most */
    uint64_t max_range; /* bytes of one copy, at most */
    bool unmap;
    /* Optional: what is done with a range, instead of copying it from source to target; on a
     * worker's thread.  *result is filled but for what came of it. */
    void (*copy)(void *opaque, struct copy_result *result);
    /* The end of a copy, on a worker's thread, before its range is unlocked. */
    void (*done)(void *opaque, const struct copy_result *result);
    /* After `done`, when the range is unlocked and the worker can be had again. */
    void (*freed)(void *opaque);
    void *opaque;
};

struct copier;

struct copier *copier_new(const struct copier_config *config);

/* Copies that are begun from here on are of another source, with the same contents.  Any thread. */
void copier_set_source(struct copier *copier, struct node *source);
void copier_free(struct copier *copier);

/* For who writes to the target himself: waits until nobody who came earlier works on any of
 * the range, and locks it. */
void copier_lock_range(struct copier *copier, struct locked_range *range, uint64_t off,
                       uint64_t len);
void copier_unlock_range(struct copier *copier, struct locked_range *range);

/* Takes an idle worker and locks for it as much of [off, off+*len) from off on as nobody has
 * or waits for, at most max_range; *len is how much.  NULL when that is 0, or when no worker
 * is idle (*len unchanged). */
struct copy_worker *copier_begin(struct copier *copier, uint64_t off, uint64_t *len);
/* Takes an idle worker to flush the target, while others go on copying.  NULL: none is
 * idle, or one flushes. */
struct copy_worker *copier_begin_flush(struct copier *copier);
/* Lets it copy; its range is locked to the end of the copy.  Or lets it flush. */
void copier_go(struct copy_worker *worker);

bool copier_is_flushing(struct copier *copier);
/* Waits for the flush that was begun last; what came of it. */
int copier_flush_result(struct copier *copier);

/* Bytes that are locked, by whomever; and those of them that workers copy. */
uint64_t copier_in_flight(struct copier *copier);
uint64_t copier_copying(struct copier *copier);

/* Waits until no worker copies or flushes.  Nobody may let one go meanwhile. */
void copier_wait_in_flight(struct copier *copier);

#endif
