/* SPDX-License-Identifier: BSD-3-Clause */
/* The set of host clusters that hold metadata of the image.  Guest data can't lie there, whatever
 * an L2 entry says; looking that up is the overlap check.  The set consists of a hash table of
 * cluster numbers, and of sorted ranges for the L1 tables of snapshots: a small sparse file can
 * claim very long ones.  Look-ups take no lock.
 *
 * Threads: meta_set_has and meta_set_has_any from any thread inside the gate; add and remove
 * under META, or with exclusive access to the image.  Private to this folder. */
#ifndef ALLOC_META_SET_H
#define ALLOC_META_SET_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/compiler.h"
#include "base/diag.h"

struct meta_table;

struct meta_ranges {
    size_t n;
    struct meta_range {
        uint64_t first;
        _Atomic uint64_t end; /* clusters [first, end); end == first: it was removed */
        uint32_t index;       /* which snapshot's table it is, for messages */
    } range[];                /* ascending, without overlap */
};

struct meta_set {
    _Atomic(struct meta_table *) table;   /* NULL: empty */
    _Atomic(struct meta_ranges *) ranges; /* owned; set before the image is written to */
};

bool meta_set_has(const struct meta_set *set, uint64_t cluster);

/* 0, -EEXIST when the cluster is in the set already, or -ENOMEM. */
int meta_set_add(struct meta_set *set, uint64_t cluster);
void meta_set_remove(struct meta_set *set, uint64_t cluster);
/* META: removes the range that begins at that cluster, if there is one. */
void meta_set_remove_range(struct meta_set *set, uint64_t first);
void meta_set_free(struct meta_set *set);

static inline bool meta_set_is_empty(const struct meta_set *set)
{
    return !atomic_load(&set->table);
}

/* Moves everything from `from` to `to`, which is empty; other threads may look at `to`. */
void meta_set_move(struct meta_set *to, struct meta_set *from);

/* Does any of n clusters hold metadata? */
bool meta_set_has_any(const struct meta_set *set, uint64_t first, uint64_t n);

/* The first cluster behind all that are in the set. */
uint64_t meta_set_end(const struct meta_set *set);

#endif
