/* SPDX-License-Identifier: BSD-3-Clause */
/* A store that passes everything on to another, counts the calls, fails chosen ones, and
 * can hold writes up so that a test sees which of them run at the same time.
 *
 * The *plan* says what shall go wrong and has the counters; it belongs to the test and
 * outlives the storages that use it.
 *
 *     struct fault_plan plan;
 *     fault_plan_init(&plan);
 *     fault_plan_fail(&plan, FAULT_WRITE, 3, ENOSPC, FAULT_ONCE);
 *     struct storage *st = fault_storage_new(mem_storage_share(mine), &plan);
 *
 * What comes through storage.c counts as the store sees it: with no_flush there is no
 * flush, a storage_writev of more than STORAGE_MAX_IOV elements is several writes, and a
 * zero that fails with ENOTSUP is followed by writes.
 *
 * Threads: every function from any thread; init and destroy alone. */
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
    FAULT_ONCE_TORN,  /* a write: the first half of its sectors arrives, then it fails */
    FAULT_ONCE_AFTER, /* the call does all its work, then it fails */
};

struct fault_rule {
    uint64_t nth; /* 1 is the first call counted after the rule was set; 0: no rule */
    uint64_t base;
    int err;
    enum fault_how how;
};

struct fault_plan {
    struct lock lock;
    /* under lock */
    struct fault_rule rules[FAULT_KINDS];
    uint64_t calls[FAULT_KINDS];
    uint64_t bytes_written; /* asked, not done */
    uint64_t injected;
    uint64_t fua_writes, holes;
    uint64_t delay_ns, delay_min_bytes, reply_delay_ns, discard_delay_ns;
    unsigned gather, gather_timeout_ms;
    uint64_t gather_min_bytes;
    unsigned in_flight, most_in_flight;
    pthread_cond_t arrived;
    /* What somebody else does behind each read, before its caller goes on; set while there are
     * none.  NULL: nothing. */
    void (*behind_read)(void *opaque);
    void *behind_read_opaque;
};

void fault_plan_init(struct fault_plan *plan);
void fault_plan_destroy(struct fault_plan *plan);

/* The nth call of that kind from now on fails with err (a positive errno).  One rule for
 * each kind; a new one replaces it. */
void fault_plan_fail(struct fault_plan *plan, enum fault_kind kind, uint64_t nth, int err,
                     enum fault_how how);

/* Nothing fails any more; counters stay. */
void fault_plan_heal(struct fault_plan *plan);

/* Calls since init or the last reset; failed ones count. */
uint64_t fault_plan_calls(struct fault_plan *plan, enum fault_kind kind);
uint64_t fault_plan_bytes_written(struct fault_plan *plan);
uint64_t fault_plan_fua_writes(struct fault_plan *plan);
/* Zeroes that may unmap. */
uint64_t fault_plan_holes(struct fault_plan *plan);
/* How many calls were made to fail. */
uint64_t fault_plan_injected(struct fault_plan *plan);
void fault_plan_reset_counters(struct fault_plan *plan);

/* Each write of at least min_bytes sleeps before it is passed on: it is in flight
 * meanwhile, and not yet seen by the store below.  0 ns: none does. */
void fault_plan_delay_writes(struct fault_plan *plan, uint64_t ns, uint64_t min_bytes);

/* Each discard, and each zero that may unmap, sleeps before it is passed on. */
void fault_plan_delay_discards(struct fault_plan *plan, uint64_t ns);

/* The next write to be passed on returns so much later: it is done, and nobody knows. */
void fault_plan_delay_reply(struct fault_plan *plan, uint64_t ns);

/* Each write of at least min_bytes waits until n of them are in flight, or timeout_ms
 * passed. To show concurrency without measuring time: with n writers that can run at once,
 * fault_plan_most_in_flight is n and nobody waits for the timeout.  n 0: none waits. */
void fault_plan_gather_writes(struct fault_plan *plan, unsigned n, uint64_t min_bytes,
                              unsigned timeout_ms);

/* The most writes that ever were in flight at once, of those that delay or gather look at;
 * of all writes when neither is set. */
unsigned fault_plan_most_in_flight(struct fault_plan *plan);

/* Owns `below`, which is closed with it; borrows the plan. */
struct storage *fault_storage_new(struct storage *below, struct fault_plan *plan);

#endif
