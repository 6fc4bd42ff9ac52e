/* SPDX-License-Identifier: BSD-3-Clause */
/* A list of the L2 tables to which L1 tables point.  Private to this folder.
 *
 * A table takes memory once, however many entries point to it.  Sorted by offset, the list lets
 * the tables be read from the front of the file to its end. */
#ifndef CHECK_TABLES_H
#define CHECK_TABLES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/compiler.h"

struct l2_table {
    uint32_t cluster; /* its place; a check handles at most INT32_MAX clusters */
    uint32_t active;  /* how many entries of the disk's L1 table point here */
    uint64_t weight;  /* how many entries of all L1 tables do */
    uint32_t index;   /* the index of the entry that points here, if it is the only one */
};

/* Empty when zero-initialised. */
struct l2_tables {
    struct l2_table *list;
    size_t n, capacity;
    bool sorted; /* by cluster, without duplicates */
};

/* Adds a table, to which the entry `index` of `weight` L1 tables points.  0 or -ENOMEM. */
int l2_tables_add(struct l2_tables *tables, uint64_t cluster, uint32_t index,
                  uint64_t weight, bool active) MUST_USE;

/* Sorts the list by cluster and merges duplicates. */
void l2_tables_sort(struct l2_tables *tables);

/* Finds a table that is in the list; the list is sorted. */
const struct l2_table *l2_tables_find(const struct l2_tables *tables, uint64_t cluster);

void l2_tables_free(struct l2_tables *tables);

#endif
