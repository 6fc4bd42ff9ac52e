/* SPDX-License-Identifier: BSD-3-Clause */
/* Areas: a table at the end of the file, directly followed by the refcount blocks that cover
 * the table and themselves.
 *
 * Ordinary growth (alloc_grow.c) puts each refcount block at the beginning of the range that it
 * covers, so no contiguous run of clusters is longer than that.  Two tables need more: a
 * new, larger refcount table needs its own refcount blocks before the header can point to it;
 * and with small clusters an L1 table can be longer than what one block covers. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "qcow2/alloc/alloc.h"

struct area {
    uint64_t start;                 /* cluster number */
    uint64_t table_clusters;        /* come first */
    uint64_t first_block, n_blocks; /* come next */
};

static uint64_t area_end(const struct area *area)
{
    return area->start + area->table_clusters + area->n_blocks;
}

/* Computes how many refcount blocks cover the table and themselves. */
static void add_blocks(const struct refcounts *refs, struct area *area)
{
    area->first_block = refcount_block_of(refs, area->start);
    area->n_blocks = 1;
    while (refcount_block_of(refs, area_end(area) - 1) >=
           area->first_block + area->n_blocks)
        area->n_blocks++;
}

/* Plans the area of a refcount table of at least `least` entries that begins at `start`. */
static int plan_refcount_table_at(struct alloc *a, uint64_t start, uint64_t least,
                                  struct area *area, uint64_t *n_entries)
{
    struct refcounts *refs = &a->refs;
    uint64_t per_cluster = alloc_cluster_size(a) / 8, most = MAX_RT_BYTES / 8;
    uint64_t twice = MIN(atomic_load(&refs->table)->n_entries * 2, most);
    uint64_t wanted = MAX(MAX(twice, least), refcount_block_of(refs, start) + 2);

    for (;;) {
        if (wanted > most)
            return -EFBIG;
        *area = (struct area){.start = start,
                              .table_clusters = div_round_up(wanted, per_cluster)};
        *n_entries = area->table_clusters * per_cluster;
        add_blocks(refs, area);
        if (area->first_block + area->n_blocks <= *n_entries)
            return *n_entries <= most ? 0 : -EFBIG;
        wanted = area->first_block + area->n_blocks;
    }
}

/* The first cluster from which on no cluster has a refcount: the end of the tail, or what lies
 * behind the range of the last refcount block.  A block that ordinary growth failed to create
 * counts as existing, because its pages are cached: those of another block in its place would
 * not be read. */
static uint64_t first_uncounted(const struct alloc *a)
{
    const struct refcounts *refs = &a->refs;
    const struct refcount_table *table = atomic_load(&refs->table);
    uint64_t blocks = table->n_entries;

    while (blocks > 0 && atomic_load(&table->words[blocks - 1]) == 0)
        blocks--;
    return MAX(a->tail.end >> a->cluster_bits, MAX(blocks, refs->tried_blocks)
                                                   << refs->block_bits);
}

/* Plans the area so that it doesn't overlap known metadata. */
static int plan_refcount_table(struct alloc *a, uint64_t least, struct area *area,
                               uint64_t *n_entries)
{
    const struct meta_set *metadata = &a->metadata;
    uint64_t start = first_uncounted(a);

    int err = plan_refcount_table_at(a, start, least, area, n_entries);
    if (err || !meta_set_has_any(metadata, start, area_end(area) - start))
        return err;
    return plan_refcount_table_at(a, meta_set_end(metadata), least, area, n_entries);
}

static int write_blocks(struct alloc *a, const struct area *area)
{
    struct refcounts *refs = &a->refs;
    CLEANUP_FREE uint8_t *block = malloc(alloc_cluster_size(a));
    if (!block)
        return -ENOMEM;

    for (uint64_t i = 0; i < area->n_blocks; i++) {
        uint64_t covers = (area->first_block + i) << refs->block_bits;
        memset(block, 0, alloc_cluster_size(a));
        for (uint64_t c = MAX(area->start, covers);
             c < MIN(area_end(area), covers + (1ull << refs->block_bits)); c++)
            refcount_pack(refs->order, block, c - covers, 1);
        uint64_t place = area->start + area->table_clusters + i;
        int err = storage_write(a->node->file, block, place << a->cluster_bits,
                                alloc_cluster_size(a), 0);
        if (err)
            return err;
    }
    return 0;
}

/* Makes the file long enough for the area, and writes its refcount blocks. */
static int write_area(struct alloc *a, const struct area *area)
{
    int err = alloc_extend_file(a, area_end(area) << a->cluster_bits);

    return err ? err : write_blocks(a, area);
}

/* To be called when an area failed: its bytes may lie where the tail continues, which then
 * doesn't read as zeroes any more. */
static void distrust_tail(struct alloc *a)
{
    LOCK_GUARD(mcache_meta(a->node->mc));
    a->tail.fresh_from = MAX(a->tail.fresh_from, atomic_load(&a->file_end));
}

static int write_table(struct alloc *a, const struct refcount_table *table)
{
    CLEANUP_FREE uint8_t *raw = malloc(table->n_entries * 8);
    if (!raw)
        return -ENOMEM;
    for (uint64_t i = 0; i < table->n_entries; i++)
        store_be64(raw + i * 8, atomic_load(&table->words[i]));
    return storage_write(a->node->file, raw, table->offset, table->n_entries * 8, 0);
}

/* Writes the area, and then the header that points to it; each is durable before the next step.
 */
static int write_refcount_table(struct alloc *a, const struct area *area,
                                struct refcount_table *table)
{
    uint32_t clusters = (uint32_t)(table->n_entries * 8 >> a->cluster_bits);

    int err = write_area(a, area);
    if (err)
        return err;
    err = write_table(a, table);
    if (err)
        return err;
    err = node_light_barrier(a->node);
    return err ? err
               : a->image.move_refcount_table(a->image.owner, table->offset, clusters);
}

int alloc_grow_refcount_table(struct alloc *a, uint64_t least)
{
    struct area area;
    uint64_t n_entries;

    /* After this commit no entry of the old table waits to be written, and none is added. */
    int err = mcache_commit(a->node->mc, MC_COMMIT_EVERYTHING);
    if (!err)
        err = plan_refcount_table(a, least, &area, &n_entries);
    if (err)
        return err;

    struct refcount_table *old = atomic_load(&a->refs.table);
    struct refcount_table *table =
        refcount_table_new(area.start << a->cluster_bits, n_entries);
    if (!table)
        return -ENOMEM;
    for (uint64_t i = 0; i < old->n_entries; i++)
        atomic_init(&table->words[i], atomic_load(&old->words[i]));
    for (uint64_t i = 0; i < area.n_blocks; i++)
        atomic_init(&table->words[area.first_block + i],
                    (area.start + area.table_clusters + i) << a->cluster_bits);
    err = write_refcount_table(a, &area, table);
    if (!err) {
        err = refcounts_replace_table(&a->refs, table);
        if (err) /* the header points to a table that isn't in use here */
            mcache_poison(a->node->mc);
    }
    if (err) {
        free(table);
        distrust_tail(a);
        return err;
    }
    LOCK_GUARD(mcache_meta(a->node->mc));
    a->tail.next = a->tail.end = area_end(&area) << a->cluster_bits;
    alloc_note_metadata(a, table->offset, area.table_clusters + area.n_blocks);
    alloc_unlink(a, old->offset, old->n_entries * 8 >> a->cluster_bits);
    return 0;
}

/* ---- a table that one refcount block can't cover ---- */

/* Plans the area behind all known metadata. */
static struct area plan_wide_table(struct alloc *a, uint64_t n)
{
    struct area area = {.start = first_uncounted(a), .table_clusters = n};
    add_blocks(&a->refs, &area);
    if (meta_set_has_any(&a->metadata, area.start, area_end(&area) - area.start)) {
        area.start = meta_set_end(&a->metadata);
        add_blocks(&a->refs, &area);
    }
    return area;
}

/* Enters the blocks of an area, which are durable, into the refcount table. */
static int publish_blocks(struct alloc *a, const struct area *area)
{

    for (uint64_t i = 0; i < area->n_blocks; i++) {
        int err = refcount_table_load_for_store(&a->refs, area->first_block + i);
        if (err)
            return err;
    }
    uint64_t place = (area->start + area->table_clusters) << a->cluster_bits;
    LOCK_GUARD(mcache_meta(a->node->mc));
    for (uint64_t i = 0; i < area->n_blocks; i++)
        refcount_table_store(&a->refs, area->first_block + i,
                             place + (i << a->cluster_bits));
    alloc_note_metadata(a, place, area->n_blocks);
    alloc_abandon_tail(a);
    a->tail.next = a->tail.end = area_end(area) << a->cluster_bits;
    return 0;
}

/* Writes the area; its blocks are durable before the refcount table points to them. */
static int make_wide_table(struct alloc *a, const struct area *area)
{
    int err = write_area(a, area);
    if (err)
        return err;
    err = node_light_barrier(a->node);
    return err ? err : publish_blocks(a, area);
}

int alloc_wide_table(struct alloc *a, uint64_t n, uint64_t *host)
{
    struct area area = plan_wide_table(a, n);
    uint64_t needed = area.first_block + area.n_blocks;

    if (needed > atomic_load(&a->refs.table)->n_entries) {
        {
            LOCK_GUARD(mcache_meta(a->node->mc));
            alloc_abandon_tail(a);
        }
        /* A larger refcount table brings its own area, and so moves the place of this one. */
        int err = alloc_grow_refcount_table(a, 2 * needed);
        if (err)
            return err;
        area = plan_wide_table(a, n);
    }
    if (area.first_block + area.n_blocks > atomic_load(&a->refs.table)->n_entries)
        return -EFBIG;
    int err = make_wide_table(a, &area);
    if (err) {
        distrust_tail(a);
        return err;
    }
    *host = area.start << a->cluster_bits;
    return 0;
}
