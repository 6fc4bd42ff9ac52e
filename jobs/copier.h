/* SPDX-License-Identifier: BSD-3-Clause */
/* Copies ranges from one node to another with a few worker threads, and locks the ranges in
 * flight.
 *
 * A range is locked from before its read until the end of its write, so that the target never has
 * two writers in one place.  Callers lock whole chunks (a mirror's granularity).
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
    uint64_t buf_size;  /* bytes: at most, of all buffers */
    uint64_t max_range; /* bytes: at most, of one copy */
    bool unmap;         /* zeroes may become holes on the target */
    /* Optional: called on a worker's thread instead of copying the range from source to target.
     * result->off and ->len are set; it sets the rest. */
    void (*copy)(void *opaque, struct copy_result *result);
    /* At the end of a copy, on a worker's thread, before its range is unlocked. */
    void (*done)(void *opaque, const struct copy_result *result);
    /* After `done`, when the range is unlocked and the worker is idle. */
    void (*freed)(void *opaque);
    void *opaque;
};

struct copier;

/* NULL when memory is short, or no thread can be started. */
struct copier *copier_new(const struct copier_config *config);
void copier_free(struct copier *copier); /* NULL is allowed */

/* Copies that begin from now on read another source, with the same contents. */
void copier_set_source(struct copier *copier, struct node *source);

/* For callers that write to the target themselves: waits until all earlier users of any part of the
 * range have ended, and locks it. */
void copier_lock_range(struct copier *copier, struct locked_range *range, uint64_t off,
                       uint64_t len);
void copier_unlock_range(struct copier *copier, struct locked_range *range);

/* Takes an idle worker and locks for it the beginning of [off, off+*len), as far as nobody has
 * it locked or waits for it, at most max_range.  *len: how much that is.  NULL when that is 0,
 * or, with *len unchanged, when no worker is idle. */
struct copy_worker *copier_begin(struct copier *copier, uint64_t off, uint64_t *len);
/* Takes an idle worker to flush the target while others go on copying.  NULL: no worker is idle, or
 * one is flushing. */
struct copy_worker *copier_begin_flush(struct copier *copier);
/* Starts the worker's copy (its range is unlocked at the end), or its flush. */
void copier_go(struct copy_worker *worker);

bool copier_is_flushing(struct copier *copier);
/* Waits for the flush that was started last, and returns its result: 0 or -errno. */
int copier_flush_result(struct copier *copier);

/* Bytes that are locked by anybody; and bytes that workers are copying. */
uint64_t copier_in_flight(struct copier *copier);
uint64_t copier_copying(struct copier *copier);

/* Waits until no worker copies or flushes.  Nobody may start one meanwhile. */
void copier_wait_in_flight(struct copier *copier);

#endif
