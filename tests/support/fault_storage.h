/* SPDX-License-Identifier: BSD-3-Clause */
/* A storage that passes every call on to another one, counts the calls, fails chosen ones,
 * and can delay writes so that a test sees which of them run at the same time.
 *
 * The *plan* says which calls fail and holds the counters.  The test owns it; it must outlive
 * the storages that use it.
 *
 *     struct fault_plan plan;
 *     fault_plan_init(&plan);
 *     fault_plan_fail(&plan, FAULT_WRITE, 3, ENOSPC, FAULT_ONCE);
 *     struct storage *st = fault_storage_new(mem_storage_share(mine), &plan);
 *
 * The counters count calls of the storage's operations, not of the functions of storage.h,
 * which may differ: with no_flush there is no flush, a storage_writev of more than
 * STORAGE_MAX_IOV elements is several writes, and a zero that fails with ENOTSUP is followed
 * by writes.
 *
 * Threads: every function may be called from any thread, except init and destroy, which must
 * run alone. */
#ifndef SUPPORT_FAULT_STORAGE_H
#define SUPPORT_FAULT_STORAGE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/lock.h"
#include "storage/storage.h"

enum fault_kind {
    FAULT_READ,
    FAULT_WRITE,
    FAULT_ZERO,
    FAULT_DISCARD,
    FAULT_FLUSH,
    FAULT_TRUNCATE,
    FAULT_PREALLOCATE,
    FAULT_CHANGE, /* every kind but FAULT_READ: for "fail the n-th change, for all n" */
    FAULT_KINDS
};

enum fault_how {
    FAULT_ONCE,
    FAULT_FROM_THEN_ON,
    FAULT_ONCE_TORN,  /* a write: the first half of its sectors is written, then it fails */
    FAULT_ONCE_AFTER, /* the call is carried out completely and then reports the error */
};

struct fault_rule {
    uint64_t nth;  /* 1 is the first call counted after the rule was set; 0: no rule */
    uint64_t base; /* calls counted before the rule was set */
    int err;
    enum fault_how how;
};

struct fault_plan {
    struct lock lock;
    /* under lock */
    struct fault_rule rules[FAULT_KINDS];
    uint64_t calls[FAULT_KINDS];
    uint64_t bytes_written; /* as requested; failed writes count */
    uint64_t injected;
    uint64_t fua_writes, holes;
    uint64_t delay_ns, delay_min_bytes, reply_delay_ns, discard_delay_ns;
    unsigned gather, gather_timeout_ms;
    uint64_t gather_min_bytes;
    unsigned in_flight, most_in_flight;
    pthread_cond_t arrived;
    /* Called after each read has been carried out and before it returns, so that a test can
     * change the storage at that moment.  NULL: not called.  Set while no read is running. */
    void (*behind_read)(void *opaque);
    void *behind_read_opaque;
};

void fault_plan_init(struct fault_plan *plan);
void fault_plan_destroy(struct fault_plan *plan);

/* The nth call of that kind from now on fails with err (a positive errno).  Each kind has
 * one rule; a new rule replaces the old one. */
void fault_plan_fail(struct fault_plan *plan, enum fault_kind kind, uint64_t nth, int err,
                     enum fault_how how);

/* Removes all rules; the counters stay. */
void fault_plan_heal(struct fault_plan *plan);

/* Calls since init or the last reset of the counters, including failed ones. */
uint64_t fault_plan_calls(struct fault_plan *plan, enum fault_kind kind);
uint64_t fault_plan_bytes_written(struct fault_plan *plan);
uint64_t fault_plan_fua_writes(struct fault_plan *plan);
/* Calls of zero with STORAGE_MAY_UNMAP. */
uint64_t fault_plan_holes(struct fault_plan *plan);
/* How many calls a rule made fail. */
uint64_t fault_plan_injected(struct fault_plan *plan);
void fault_plan_reset_counters(struct fault_plan *plan);

/* Each write of at least min_bytes sleeps for ns before it is passed on: it is in flight,
 * but the storage below hasn't seen it yet.  0 ns: no delay. */
void fault_plan_delay_writes(struct fault_plan *plan, uint64_t ns, uint64_t min_bytes);

/* Each discard, and each zero that may unmap, sleeps for ns before it is passed on. */
void fault_plan_delay_discards(struct fault_plan *plan, uint64_t ns);

/* The next write that was carried out (one only) returns ns later: the bytes are in the
 * storage below, but the writer doesn't know it yet. */
void fault_plan_delay_reply(struct fault_plan *plan, uint64_t ns);

/* Each write of at least min_bytes waits until n such writes have been in flight at once, or
 * until timeout_ms have passed.  This shows concurrency without measuring time: if n writers
 * can run at once, fault_plan_most_in_flight returns n and no write waits for the timeout.
 * n is 0: no write waits. */
void fault_plan_gather_writes(struct fault_plan *plan, unsigned n, uint64_t min_bytes,
                              unsigned timeout_ms);

/* The largest number of writes that were in flight at once.  Counts the writes large enough
 * for delay_writes or gather_writes, or all writes when neither is set. */
unsigned fault_plan_most_in_flight(struct fault_plan *plan);

/* Takes ownership of `below`, which is closed with the new storage; borrows the plan. */
struct storage *fault_storage_new(struct storage *below, struct fault_plan *plan);

#endif
