/* SPDX-License-Identifier: BSD-3-Clause */
/* Histograms of durations, and the sum over an export's stripes. */
#include "export_stats.h"

static unsigned bin_of(uint64_t ns)
{
    unsigned bin = 0;

    for (uint64_t end = EXPORT_FIRST_BIN_NS; ns >= end && bin < EXPORT_BINS - 1; end *= 2)
        bin++;
    return bin;
}

void export_op_sample(struct export_op_timer *timer)
{
    struct export_op_counters *c = timer->counters;
    uint64_t ns = clock_ns() - timer->began_ns;

    atomic_fetch_add_explicit(&c->sampled, 1, memory_order_relaxed);
    atomic_fetch_add_explicit(&c->sampled_ns, ns, memory_order_relaxed);
    atomic_fetch_add_explicit(&c->bin[bin_of(ns)], 1, memory_order_relaxed);
}

static uint64_t value_of(const _Atomic uint64_t *counter)
{
    return atomic_load_explicit(counter, memory_order_relaxed);
}

/* Extrapolates a sampled value to all n operations. */
static uint64_t scale(uint64_t value, uint64_t n, uint64_t sampled)
{
    return sampled ? (uint64_t)((double)value * (double)n / (double)sampled + 0.5) : 0;
}

static void add_stripe(const struct export_op_counters *c, struct export_op_totals *out)
{
    uint64_t begun = value_of(&c->begun), failed = value_of(&c->failed);
    uint64_t sampled = value_of(&c->sampled);

    out->done += begun > failed ? begun - failed : 0;
    out->failed += failed;
    out->bytes += value_of(&c->bytes);
    out->total_ns += scale(value_of(&c->sampled_ns), begun, sampled);
    for (unsigned i = 0; i < EXPORT_BINS; i++)
        out->bin[i] +=
            scale(atomic_load_explicit(&c->bin[i], memory_order_relaxed), begun, sampled);
}

void export_stats_read(const struct export_stats *stats, enum export_op op,
                       struct export_op_totals *out)
{
    *out = (struct export_op_totals){0};
    for (unsigned i = 0; i < GATE_STRIPES; i++)
        add_stripe(&stats->stripe[i].op[op], out);
}

uint64_t export_stats_write_end(const struct export_stats *stats)
{
    uint64_t highest = 0;

    for (unsigned i = 0; i < GATE_STRIPES; i++) {
        uint64_t end = value_of(&stats->stripe[i].write_end);
        highest = end > highest ? end : highest;
    }
    return highest;
}
