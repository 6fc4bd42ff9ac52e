/* SPDX-License-Identifier: BSD-3-Clause */
/* Counts what an export's clients have done: operations, bytes, failures, and how long operations
 * took.
 *
 * Counters are striped like those of the gate: a request counts in the stripe by which it entered,
 * so that threads don't share a cache line.  Each request costs two relaxed additions; one in
 * EXPORT_SAMPLE is timed, and its time stands for the others.
 *
 * Threads: any.  Layer: server. */
#ifndef SERVER_EXPORT_STATS_H
#define SERVER_EXPORT_STATS_H

#include <stdatomic.h>
#include <stdint.h>

#include "base/clock.h"
#include "base/compiler.h"
#include "base/gate.h"

enum export_op {
    EXPORT_READ,
    EXPORT_WRITE,
    EXPORT_ZERO,
    EXPORT_TRIM,
    EXPORT_FLUSH,
    EXPORT_OPS,
};

#define EXPORT_SAMPLE 16u

/* Histogram of durations: bin 0 is below EXPORT_FIRST_BIN_NS, each further bin is twice as wide,
 * and the last has everything longer. */
#define EXPORT_BINS         24u
#define EXPORT_FIRST_BIN_NS 2048u

struct export_op_counters {
    _Atomic uint64_t begun, bytes, failed, sampled, sampled_ns;
    _Atomic uint32_t bin[EXPORT_BINS]; /* sampled operations only */
};

struct export_stats {
    struct {
        _Alignas(64) struct export_op_counters op[EXPORT_OPS];
        _Atomic uint64_t write_end;
    } stripe[GATE_STRIPES];
};

/* One running operation. */
struct export_op_timer {
    struct export_op_counters *counters;
    uint64_t began_ns; /* 0: not timed */
};

/* `ticket`: the gate's, of this request. */
static inline struct export_op_timer export_op_begin(struct export_stats *stats,
                                                     gate_ticket ticket, enum export_op op)
{
    struct export_op_counters *counters = &stats->stripe[gate_ticket_stripe(ticket)].op[op];
    uint64_t before = atomic_fetch_add_explicit(&counters->begun, 1, memory_order_relaxed);

    return (struct export_op_timer){counters,
                                    UNLIKELY(before % EXPORT_SAMPLE == 0) ? clock_ns() : 0};
}

/* Called by export_op_end for a timed operation: counts its duration. */
void export_op_sample(struct export_op_timer *timer);

/* bytes: how much it moved; counted when err is 0. */
static inline void export_op_end(struct export_op_timer *timer, uint64_t bytes, int err)
{
    _Atomic uint64_t *counter =
        LIKELY(err == 0) ? &timer->counters->bytes : &timer->counters->failed;

    atomic_fetch_add_explicit(counter, LIKELY(err == 0) ? bytes : 1, memory_order_relaxed);
    if (UNLIKELY(timer->began_ns))
        export_op_sample(timer);
}

/* Notes that a write ended at this offset (bytes). */
static inline void export_note_write_end(struct export_stats *stats, gate_ticket ticket,
                                         uint64_t end)
{
    _Atomic uint64_t *highest = &stats->stripe[gate_ticket_stripe(ticket)].write_end;

    /* Without atomic update: a value that is lost to another thread of the same stripe is stored
     * again by the next write there. */
    if (UNLIKELY(atomic_load_explicit(highest, memory_order_relaxed) < end))
        atomic_store_explicit(highest, end, memory_order_relaxed);
}

/* All stripes together. */
struct export_op_totals {
    uint64_t done, bytes,
        failed;                /* done: without those that failed; those under way count */
    uint64_t total_ns;         /* estimated */
    uint64_t bin[EXPORT_BINS]; /* estimated: their sum is about done + failed */
};

void export_stats_read(const struct export_stats *stats, enum export_op op,
                       struct export_op_totals *out);
uint64_t export_stats_write_end(const struct export_stats *stats);

#endif
