/* SPDX-License-Identifier: BSD-3-Clause */
/* Reference counts: the refcount table (resident) and its blocks (pages), entries of 1 to
 * 64 bits.  Private to this folder.
 *
 * Threads: functions marked META under mcache_meta(); refcount_load inside the gate,
 * outside META; the table changes only under the allocator's growth lock. */
#ifndef ALLOC_REFCOUNT_H
#define ALLOC_REFCOUNT_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/compiler.h"
#include "base/diag.h"
#include "mcache/mcache.h"

struct alloc;

/* A refcount table in memory; a replaced one lives until close, for readers that still hold
 * it. */
struct refcount_table {
    uint64_t offset; /* in the file */
    uint64_t n_entries;
    struct refcount_table *previous;
    _Atomic uint64_t words[];
};

struct refcounts {
    struct alloc *alloc; /* whose counts they are */
    uint32_t order;      /* log2 of an entry's bits */
    uint32_t block_bits; /* log2 of the entries in a block */
    uint32_t page_bits;  /* log2 of the entries in a page */
    _Atomic(struct refcount_table *) table;
    struct mcmap *table_map, *block_map;
    /* A block that has a place but is not in the table yet: its pages can be loaded. */
    _Atomic uint64_t pending_index, pending_offset;
    uint64_t tried_blocks; /* growth lock: how far blocks have been pending */
};

int refcounts_open(struct refcounts *refs, struct alloc *a, struct diag *diag) MUST_USE;
void refcounts_close(struct refcounts *refs);

static inline uint64_t refcount_block_of(const struct refcounts *refs, uint64_t cluster)
{
    return cluster >> refs->block_bits;
}

/* The host offset of a block, 0: none; values that can't be right give 0 too, with a
 * message. */
uint64_t refcount_block_offset(struct refcounts *refs, uint64_t block);

/* Loads the page with a cluster's count; -ENOENT when no block covers it. */
int refcount_load(struct refcounts *refs, uint64_t cluster) MUST_USE;

/* As refcount_load, for refcount_set: see mcmap_get_for_store. */
int refcount_load_for_store(struct refcounts *refs, uint64_t cluster) MUST_USE;

/* META: can the cluster's count be set, its page being in memory? */
bool refcount_storable(struct refcounts *refs, uint64_t cluster);

/* META, page present; storable for refcount_set. */
uint64_t refcount_get(struct refcounts *refs, uint64_t cluster);
void refcount_set(struct refcounts *refs, uint64_t cluster, uint64_t value,
                  enum mc_class cls);

/* Takes META with the cluster's page present under it, releasing META while it loads.  On
 * success META is held and refcount_get works for the clusters of the page. */
int refcount_lock_page(struct refcounts *refs, uint64_t cluster) MUST_USE;
/* The same, and refcount_set works, too. */
int refcount_lock_page_for_store(struct refcounts *refs, uint64_t cluster) MUST_USE;

/* Sets or gets the index-th entry of a block in disk order, in a buffer; the largest that an
 * entry can be. */
void refcount_pack(uint32_t order, uint8_t *block, uint64_t index, uint64_t value);

uint64_t refcount_unpack(uint32_t order, const uint8_t *block, uint64_t index);
uint64_t refcount_max(uint32_t order);

/* META: is anything of the block not in the file yet? */
bool refcount_block_is_unwritten(struct refcounts *refs, uint64_t block);
/* Of a block that is there: as mcmap_read_as_is. */
int refcount_read_block(struct refcounts *refs, uint64_t block, uint8_t *bytes) MUST_USE;

/* How many clusters from `cluster` on share its page. */
uint64_t refcount_run_in_page(const struct refcounts *refs, uint64_t cluster);

/* Growth lock: makes refcount_table_store for that block possible. */
int refcount_table_load_for_store(struct refcounts *refs, uint64_t block) MUST_USE;

/* Growth lock, META: the table's entry for a block. */
void refcount_table_store(struct refcounts *refs, uint64_t block, uint64_t offset);

/* Growth lock: a table of at least `min_entries` takes the place of the present one.  It
 * was written at `offset` and is durable; `table` holds its words. */
int refcounts_replace_table(struct refcounts *refs, struct refcount_table *table) MUST_USE;
struct refcount_table *refcount_table_new(uint64_t offset, uint64_t n_entries);

#endif
