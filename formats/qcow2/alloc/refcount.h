/* SPDX-License-Identifier: BSD-3-Clause */
/* Refcounts of 1 to 64 bits: the refcount table, which always stays in memory, and the refcount
 * blocks, which are cached in pages.  Private to this folder.
 *
 * Threads: functions marked META under mcache_meta(); refcount_load inside the gate and outside
 * META; the refcount table changes only under the allocator's growth lock. */
#ifndef ALLOC_REFCOUNT_H
#define ALLOC_REFCOUNT_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/compiler.h"
#include "base/diag.h"
#include "mcache/mcache.h"

struct alloc;

/* A refcount table in memory.  A table that was replaced by a longer one is kept until the image is
 * closed, as readers may still use it. */
struct refcount_table {
    _Atomic uint64_t offset; /* in the file */
    uint64_t n_entries;
    struct refcount_table *previous;
    _Atomic uint64_t words[];
};

struct refcounts {
    struct alloc *alloc; /* the allocator that they belong to */
    uint32_t order;      /* log2 of an entry's bits */
    uint32_t block_bits; /* log2 of the entries in a block */
    uint32_t page_bits;  /* log2 of the entries in a page */
    _Atomic(struct refcount_table *) table;
    struct mcmap *table_map, *block_map;
    /* A block that has a place in the file but isn't in the table yet; its pages can be
     * loaded. */
    _Atomic uint64_t pending_index, pending_offset;
    uint64_t tried_blocks; /* growth lock: one more than the highest index ever pending */
};

int refcounts_open(struct refcounts *refs, struct alloc *a, struct diag *diag) MUST_USE;
void refcounts_close(struct refcounts *refs);

static inline uint64_t refcount_block_of(const struct refcounts *refs, uint64_t cluster)
{
    return cluster >> refs->block_bits;
}

/* The host offset of a block, or 0 if there is none.  An impossible entry gives 0, too, and a
 * log message. */
uint64_t refcount_block_offset(struct refcounts *refs, uint64_t block);

/* Loads the page with a cluster's refcount.  0, -ENOENT when no block covers the cluster, or
 * -errno. */
int refcount_load(struct refcounts *refs, uint64_t cluster) MUST_USE;

/* The same before refcount_set; see mcmap_get_for_store. */
int refcount_load_for_store(struct refcounts *refs, uint64_t cluster) MUST_USE;

/* META: is the cluster's page in memory, and can it be stored to? */
bool refcount_storable(struct refcounts *refs, uint64_t cluster);

/* META, with the page in memory; for refcount_set it can be stored to. */
uint64_t refcount_get(struct refcounts *refs, uint64_t cluster);
void refcount_set(struct refcounts *refs, uint64_t cluster, uint64_t value,
                  enum mc_class cls);

/* Acquires META with the cluster's page in memory, loading it first if needed.  On success META
 * is held, and refcount_get may be called for all clusters of the page. */
int refcount_lock_page(struct refcounts *refs, uint64_t cluster) MUST_USE;
/* The same; refcount_set may be called, too. */
int refcount_lock_page_for_store(struct refcounts *refs, uint64_t cluster) MUST_USE;

/* Sets or gets the index-th entry of a refcount block in a buffer; the largest value that an entry
 * can have. */
void refcount_pack(uint32_t order, uint8_t *block, uint64_t index, uint64_t value);

uint64_t refcount_unpack(uint32_t order, const uint8_t *block, uint64_t index);
uint64_t refcount_max(uint32_t order);

/* META: has the block changes that aren't in the file yet? */
bool refcount_block_is_unwritten(struct refcounts *refs, uint64_t block);
/* Reads an existing block as mcmap_read_as_is does. */
int refcount_read_block(struct refcounts *refs, uint64_t block, uint8_t *bytes) MUST_USE;

/* How many clusters from `cluster` on have their refcounts in the same page. */
uint64_t refcount_run_in_page(const struct refcounts *refs, uint64_t cluster);

/* Growth lock: makes refcount_table_store for that block possible. */
int refcount_table_load_for_store(struct refcounts *refs, uint64_t block) MUST_USE;

/* Growth lock, META: the table's entry for a block. */
void refcount_table_store(struct refcounts *refs, uint64_t block, uint64_t offset);

/* Growth lock: `table` replaces the present refcount table.  It is durable at table->offset.  0 or
 * -ENOMEM. */
int refcounts_replace_table(struct refcounts *refs, struct refcount_table *table) MUST_USE;
/* The same; if `table` has the length of the present one, its words and place are copied to
 * that, so that repeated changes take no more memory.  On success `table` is freed or owned by
 * `refs`. */
int refcounts_change_table(struct refcounts *refs, struct refcount_table *table) MUST_USE;
struct refcount_table *refcount_table_new(uint64_t offset, uint64_t n_entries);

#endif
