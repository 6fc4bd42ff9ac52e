/* SPDX-License-Identifier: BSD-3-Clause */
/* Members of query-blockstats, for the commands that show them.  Threads: the main one.
 * Layer: server. */
#ifndef CLI_STATS_QUERY_H
#define CLI_STATS_QUERY_H

#include <stdint.h>

#include <jansson.h>

/* One kind of operation. */
struct stats_op {
    const char *name;   /* QMP's prefix: "rd" */
    const char *word;   /* for people: "read" */
    const char *timing; /* the member with its histogram; NULL: none */
};

#define STATS_OPS 4u
extern const struct stats_op stats_ops[STATS_OPS];

/* A member of `stats` in a BlockStats; pattern: with %s for the operation's name, as
 * "%s_bytes".  0 if there is none. */
uint64_t stats_of_op(const json_t *block_stats, const struct stats_op *op,
                     const char *pattern);

/* A member of `x-qimg`.  0 if there is none. */
uint64_t stats_of_work(const json_t *block_stats, const char *member);

/* The name of its node; "" if it has none. */
const char *stats_name(const json_t *block_stats);

#endif
