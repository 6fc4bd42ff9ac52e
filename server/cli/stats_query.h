/* SPDX-License-Identifier: BSD-3-Clause */
/* What a server says of the requests it has served, in the words of the commands that show
 * it.  Threads: the main one.  Layer: server. */
#ifndef CLI_STATS_QUERY_H
#define CLI_STATS_QUERY_H

#include <stdint.h>

#include <jansson.h>

/* QMP's names of operations, which lead its members. */
struct stats_op {
    const char *name;   /* "rd" */
    const char *word;   /* "read" */
    const char *timing; /* the member with its histogram; NULL: none */
};

#define STATS_OPS 4u
extern const struct stats_op stats_ops[STATS_OPS];

/* The member of a BlockStats' `stats` that a pattern with the operation's name makes
 * ("%s_bytes"); 0: it isn't there. */
uint64_t stats_of_op(const json_t *block_stats, const struct stats_op *op,
                     const char *pattern);

/* A member of its `x-qimg`. */
uint64_t stats_of_work(const json_t *block_stats, const char *member);

/* The name of its disk, or of the node; "" when it has none. */
const char *stats_name(const json_t *block_stats);

#endif
