/* SPDX-License-Identifier: BSD-3-Clause */
/* The host clusters that hold metadata of the image: guest data can't lie there, whatever
 * an L2 entry says (the overlap check).  A hash set of cluster numbers, and sorted ranges
 * for what an image may claim much of in a file that holds little (L1 tables of snapshots
 * in holes); a lookup takes no lock.
 *
 * Threads: meta_set_has from any thread inside the gate; add and remove under META, or
 * alone with the image.  Private to this folder. */
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
        _Atomic uint64_t end; /* clusters, [first, end); [first, first): was removed */
        uint32_t index;       /* of what lies there, for messages */
    } range[];                /* ascending, without overlap */
};

struct meta_set {
    _Atomic(struct meta_table *) table;   /* NULL: empty */
    _Atomic(struct meta_ranges *) ranges; /* owned; set before the image is written to */
};

bool meta_set_has(const struct meta_set *set, uint64_t cluster);

/* -EEXIST when it is there already, -ENOMEM. */
int meta_set_add(struct meta_set *set, uint64_t cluster);
void meta_set_remove(struct meta_set *set, uint64_t cluster);
/* Of the ranges, the one that begins there, if there is one.  META. */
void meta_set_remove_range(struct meta_set *set, uint64_t first);
void meta_set_free(struct meta_set *set);

static inline bool meta_set_is_empty(const struct meta_set *set)
{
    return !atomic_load(&set->table);
}

/* `to` is empty, and others may be looking at it. */
void meta_set_move(struct meta_set *to, struct meta_set *from);

/* Does any of n clusters hold metadata? */
bool meta_set_has_any(const struct meta_set *set, uint64_t first, uint64_t n);

/* First cluster after all of them. */
uint64_t meta_set_end(const struct meta_set *set);

#endif
