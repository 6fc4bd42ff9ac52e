/* SPDX-License-Identifier: BSD-3-Clause */
/* Reading and changing refcounts, in cached pages of the refcount blocks. */
#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "base/bytes.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "base/log.h"
#include "qcow2/alloc/alloc.h"

struct refcount_table *refcount_table_new(uint64_t offset, uint64_t n_entries)
{
    struct refcount_table *t = calloc(1, sizeof *t + n_entries * sizeof t->words[0]);

    if (t) {
        t->offset = offset;
        t->n_entries = n_entries;
    }
    return t;
}

static struct refcount_table *current_table(struct refcounts *refs)
{
    return atomic_load_explicit(&refs->table, memory_order_acquire);
}

uint64_t refcount_block_offset(struct refcounts *refs, uint64_t block)
{
    struct refcount_table *t = current_table(refs);

    if (block >= t->n_entries)
        return 0;
    uint64_t entry = atomic_load_explicit(&t->words[block], memory_order_acquire);
    if (entry == 0)
        return 0;
    struct alloc *a = refs->alloc;
    if ((entry & RT_RESERVED) || !is_aligned(entry, alloc_cluster_size(a)) ||
        !alloc_inside_file(a, entry, alloc_cluster_size(a))) {
        log_error("%s: refcount table entry %" PRIu64 " (0x%" PRIx64
                  "): not the place of a refcount block",
                  a->node->filename, block, entry);
        alloc_met_corruption(a);
        return 0;
    }
    return entry;
}

static uint64_t locate_table(void *owner, uint64_t page_index)
{
    (void)page_index;
    return current_table(owner)->offset;
}

static uint64_t locate_page(void *owner, uint64_t page_index)
{
    struct refcounts *refs = owner;
    uint64_t first = page_index << refs->page_bits;
    uint64_t block = refcount_block_of(refs, first);
    uint64_t offset = refcount_block_offset(refs, block);

    if (offset == 0 && atomic_load(&refs->pending_offset) != 0 &&
        atomic_load(&refs->pending_index) == block)
        offset = atomic_load(&refs->pending_offset);
    if (offset == 0)
        return 0;
    uint64_t in_block = first & ((1ull << refs->block_bits) - 1);
    return offset + (in_block << refs->order) / 8;
}

static int read_table(struct refcounts *refs, struct diag *diag)
{
    struct alloc *a = refs->alloc;
    uint64_t bytes = (uint64_t)a->image.refcount_table_clusters << a->cluster_bits;
    struct refcount_table *t =
        refcount_table_new(a->image.refcount_table_offset, bytes / 8);

    if (!t)
        return diag_errno(diag, ENOMEM, "%s: refcount table", a->node->filename);
    CLEANUP_FREE uint64_t *raw = malloc(bytes);
    int err = raw ? storage_read(a->node->file, raw, t->offset, bytes) : -ENOMEM;
    if (err) {
        free(t);
        return diag_errno(diag, -err, "%s: reading the refcount table", a->node->filename);
    }
    for (uint64_t i = 0; i < bytes / 8; i++)
        atomic_init(&t->words[i], load_be64(&raw[i]));
    atomic_store(&refs->table, t);
    return 0;
}

int refcounts_open(struct refcounts *refs, struct alloc *a, struct diag *diag)
{
    *refs = (struct refcounts){.alloc = a, .order = a->image.refcount_order};
    refs->block_bits = a->cluster_bits + 3 - refs->order;
    uint32_t page_bytes = (uint32_t)MIN(alloc_cluster_size(a), 4096);
    uint32_t page_log = (uint32_t)__builtin_ctz(page_bytes);
    refs->page_bits = page_log + 3 - refs->order;

    int err = read_table(refs, diag);
    if (err)
        return err;
    struct refcount_table *t = current_table(refs);
    refs->table_map = mcmap_new_resident(a->node->mc, t->words, t->n_entries, MC_BE64,
                                         locate_table, refs);
    /* The map covers the largest refcount table there can be, so that it never has to grow. */
    uint64_t n_pages = (uint64_t)MAX_RT_BYTES / 8 << (refs->block_bits - refs->page_bits);
    refs->block_map =
        mcmap_new(a->node->mc, n_pages, page_bytes, MC_BE64, locate_page, refs);
    if (!refs->table_map || !refs->block_map)
        return diag_errno(diag, ENOMEM, "%s: refcounts", a->node->filename);
    return 0;
}

void refcounts_close(struct refcounts *refs)
{
    mcmap_free(refs->table_map);
    mcmap_free(refs->block_map);
    struct refcount_table *t = atomic_load(&refs->table);
    while (t) {
        struct refcount_table *previous = t->previous;
        free(t);
        t = previous;
    }
}

int refcounts_replace_table(struct refcounts *refs, struct refcount_table *table)
{
    struct mcache *mc = refs->alloc->node->mc;
    struct mcmap *map =
        mcmap_new_resident(mc, table->words, table->n_entries, MC_BE64, locate_table, refs);
    if (!map)
        return -ENOMEM;
    struct mcmap *old = refs->table_map;
    table->previous = current_table(refs);
    {
        LOCK_GUARD(mcache_meta(mc));
        refs->table_map = map;
        atomic_store_explicit(&refs->table, table, memory_order_release);
    }
    mcmap_free(old);
    return 0;
}

int refcounts_change_table(struct refcounts *refs, struct refcount_table *table)
{
    struct refcount_table *t = current_table(refs);

    if (table->n_entries != t->n_entries)
        return refcounts_replace_table(refs, table);
    {
        LOCK_GUARD(mcache_meta(refs->alloc->node->mc));
        for (uint64_t i = 0; i < t->n_entries; i++)
            atomic_store_explicit(&t->words[i], atomic_load(&table->words[i]),
                                  memory_order_release);
        atomic_store(&t->offset, table->offset);
    }
    free(table);
    return 0;
}

static uint64_t page_of(const struct refcounts *refs, uint64_t cluster)
{
    return cluster >> refs->page_bits;
}

uint64_t refcount_run_in_page(const struct refcounts *refs, uint64_t cluster)
{
    uint64_t n = 1ull << refs->page_bits;

    return n - (cluster & (n - 1));
}

int refcount_load(struct refcounts *refs, uint64_t cluster)
{
    struct mc_page *page;

    if (refcount_block_of(refs, cluster) >= MAX_RT_BYTES / 8)
        return -ENOENT;
    return mcmap_get(refs->block_map, page_of(refs, cluster), &page);
}

int refcount_load_for_store(struct refcounts *refs, uint64_t cluster)
{
    if (refcount_block_of(refs, cluster) >= MAX_RT_BYTES / 8)
        return -ENOENT;
    return mcmap_get_for_store(refs->block_map, page_of(refs, cluster), NULL);
}

static bool is_present(struct refcounts *refs, uint64_t cluster)
{
    return mcmap_peek(refs->block_map, page_of(refs, cluster)) != NULL;
}

bool refcount_storable(struct refcounts *refs, uint64_t cluster)
{
    return mcmap_peek_for_store(refs->block_map, page_of(refs, cluster)) != NULL;
}

static int lock_page(struct refcounts *refs, uint64_t cluster,
                     int (*load)(struct refcounts *, uint64_t),
                     bool (*ready)(struct refcounts *, uint64_t))
{
    struct node *node = refs->alloc->node;
    struct lock *meta = mcache_meta(node->mc);

    for (;;) {
        /* Not every caller is inside the gate already, and the pool may evict this page for
         * another image at any time. */
        gate_ticket ticket = gate_enter(&node->ctx->gate);
        int err = load(refs, cluster);
        gate_leave(&node->ctx->gate, ticket);
        if (err)
            return err;
        lock_acquire(meta);
        if (ready(refs, cluster))
            return 0;
        lock_release(meta); /* the page was evicted in between */
    }
}

int refcount_lock_page(struct refcounts *refs, uint64_t cluster)
{
    return lock_page(refs, cluster, refcount_load, is_present);
}

int refcount_lock_page_for_store(struct refcounts *refs, uint64_t cluster)
{
    return lock_page(refs, cluster, refcount_load_for_store, refcount_storable);
}

/* Where an entry lies in its page.  Entries of a byte or more are big-endian; smaller ones fill
 * each byte from its least significant bit (qcow2.rst, "Host cluster management"). */
struct entry_place {
    uint32_t word, shift;
    uint64_t mask;
};

static struct entry_place place_of(const struct refcounts *refs, uint64_t cluster)
{
    uint32_t bits = 1u << refs->order;
    uint64_t index = cluster & ((1ull << refs->page_bits) - 1);
    uint64_t bit = index << refs->order;
    uint32_t in_word = bit & 63;

    return (struct entry_place){
        .word = (uint32_t)(bit / 64),
        .shift = bits >= 8 ? 64 - in_word - bits : 56 - (in_word & 56) + (in_word & 7),
        .mask = bits == 64 ? ~0ull : (1ull << bits) - 1,
    };
}

void refcount_pack(uint32_t order, uint8_t *block, uint64_t index, uint64_t value)
{
    uint64_t bit = index << order;
    uint32_t bits = 1u << order;

    if (LIKELY(bits == 16)) {
        store_be16(block + index * 2, (uint16_t)value);
    } else if (bits >= 8) {
        for (uint32_t i = 0; i < bits / 8; i++)
            block[bit / 8 + i] = (uint8_t)(value >> (bits - 8 - 8 * i));
    } else {
        uint32_t mask = ((1u << bits) - 1) << (bit & 7);
        block[bit / 8] =
            (uint8_t)((block[bit / 8] & ~mask) | ((uint32_t)value << (bit & 7)));
    }
}

uint64_t refcount_unpack(uint32_t order, const uint8_t *block, uint64_t index)
{
    uint64_t bit = index << order, value = 0;
    uint32_t bits = 1u << order;

    if (LIKELY(bits == 16))
        return load_be16(block + index * 2);
    if (bits < 8)
        return (unsigned)(block[bit / 8] >> (bit & 7)) & ((1u << bits) - 1);
    for (uint32_t i = 0; i < bits / 8; i++)
        value = value << 8 | block[bit / 8 + i];
    return value;
}

uint64_t refcount_max(uint32_t order)
{
    return order == MAX_REFCOUNT_ORDER ? UINT64_MAX : (1ull << (1u << order)) - 1;
}

bool refcount_block_is_unwritten(struct refcounts *refs, uint64_t block)
{
    uint32_t bits = refs->block_bits - refs->page_bits;

    return mcmap_has_unwritten(refs->block_map, block << bits, 1ull << bits);
}

int refcount_read_block(struct refcounts *refs, uint64_t block, uint8_t *bytes)
{
    uint32_t bits = refs->block_bits - refs->page_bits;
    bool ignored;

    return mcmap_read_as_is(refs->block_map, block << bits, 1ull << bits,
                            refcount_block_offset(refs, block), bytes, &ignored);
}

uint64_t refcount_get(struct refcounts *refs, uint64_t cluster)
{
    struct mc_page *page = mcmap_peek(refs->block_map, page_of(refs, cluster));
    struct entry_place at = place_of(refs, cluster);

    assert(page);
    return mc_load(page, at.word) >> at.shift & at.mask;
}

void refcount_set(struct refcounts *refs, uint64_t cluster, uint64_t value,
                  enum mc_class cls)
{
    struct mc_page *page = mcmap_peek_for_store(refs->block_map, page_of(refs, cluster));
    struct entry_place at = place_of(refs, cluster);

    assert(page && value <= at.mask);
    uint64_t word = mc_load(page, at.word);
    word = (word & ~(at.mask << at.shift)) | value << at.shift;
    mcmap_store(page, at.word, word, cls);
}

int refcount_table_load_for_store(struct refcounts *refs, uint64_t block)
{
    return mcmap_get_for_store(refs->table_map,
                               block / mcmap_words_per_page(refs->table_map), NULL);
}

void refcount_table_store(struct refcounts *refs, uint64_t block, uint64_t offset)
{
    uint32_t per_page = mcmap_words_per_page(refs->table_map);
    struct mc_page *page = mcmap_peek_for_store(refs->table_map, block / per_page);

    assert(page);
    mcmap_store(page, (uint32_t)(block % per_page), offset, MC_LEAF);
}
