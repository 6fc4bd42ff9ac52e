/* SPDX-License-Identifier: BSD-3-Clause */
/* Reads members of BlockStats. */
#include "stats_query.h"

#include <stdio.h>

const struct stats_op stats_ops[STATS_OPS] = {
    {"rd", "read", "rd_latency_histogram"},
    {"wr", "write", "wr_latency_histogram"},
    {"unmap", "trim", NULL},
    {"flush", "flush", "flush_latency_histogram"},
};

/* Values that are negative or no numbers count as 0. */
static uint64_t number_in(const json_t *object, const char *member)
{
    json_int_t value = json_integer_value(json_object_get(object, member));

    return value > 0 ? (uint64_t)value : 0;
}

uint64_t stats_of_op(const json_t *block_stats, const struct stats_op *op,
                     const char *pattern)
{
    char member[64];

    snprintf(member, sizeof member, pattern, op->name);
    return number_in(json_object_get(block_stats, "stats"), member);
}

uint64_t stats_of_work(const json_t *block_stats, const char *member)
{
    return number_in(json_object_get(block_stats, "x-qimg"), member);
}

const char *stats_name(const json_t *block_stats)
{
    const char *name = json_string_value(json_object_get(block_stats, "node-name"));

    return name ? name : "";
}
