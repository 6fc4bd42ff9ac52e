/* SPDX-License-Identifier: BSD-3-Clause */
/* The L2 tables that the L1 tables lead to, in a list; private to this folder.
 *
 * It takes memory for each table once, however many entries lead there, and in the order
 * of the file it lets the tables be read from front to back. */
#ifndef CHECK_TABLES_H
#define CHECK_TABLES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/compiler.h"

struct l2_table {
    uint32_t cluster; /* where it is: a check looks at no more than INT32_MAX clusters */
    uint32_t active;  /* entries of the active L1 table that lead here */
    uint64_t weight;  /* those of all L1 tables */
    uint32_t index;   /* of the entry that leads here, where it is the only one */
};

/* Zero-initialised is empty. */
struct l2_tables {
    struct l2_table *list;
    size_t n, capacity;
    bool sorted; /* or empty */
};

/* Notes that entries lead to a table, of that index in as many L1 tables as they weigh.  0 or
 * -ENOMEM. */
int l2_tables_add(struct l2_tables *tables, uint64_t cluster, uint32_t index,
                  uint64_t weight, bool active) MUST_USE;

/* Brings the list into the order of the file, each table once. */
void l2_tables_sort(struct l2_tables *tables);

/* One that is in the list, which was sorted. */
const struct l2_table *l2_tables_find(const struct l2_tables *tables, uint64_t cluster);

void l2_tables_free(struct l2_tables *tables);

#endif
