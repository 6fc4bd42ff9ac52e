/* SPDX-License-Identifier: BSD-3-Clause */
/* The metadata set: a hash table, and sorted ranges. */
#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "base/checked.h"
#include "base/log.h"
#include "qcow2/alloc/alloc.h"

#define EMPTY    0 /* never used: ends a search */
#define DELETED  UINT64_MAX
#define MIN_BITS 8

/* A hash table with open addressing, at most half full; a slot holds cluster + 1.  When it
 * becomes too small it is replaced by one of twice the size.  The old one is kept until the set
 * is freed, as readers without a lock may still use it; all old ones together are no larger
 * than the present one. */
struct meta_table {
    struct meta_table *previous;
    uint32_t bits;
    size_t used; /* slots that aren't EMPTY */
    _Atomic uint64_t slots[];
};

static size_t slot_of(const struct meta_table *t, uint64_t cluster)
{
    return (size_t)((cluster * 0x9e3779b97f4a7c15u) >> (64 - t->bits));
}

static size_t next_slot(const struct meta_table *t, size_t slot)
{
    return (slot + 1) & (((size_t)1 << t->bits) - 1);
}

static struct meta_table *table_new(uint32_t bits)
{
    struct meta_table *t = calloc(1, sizeof *t + (sizeof t->slots[0] << bits));

    if (t)
        t->bits = bits;
    return t;
}

/* Does one of the clusters lie in one of the ranges? */
static bool in_ranges(const struct meta_ranges *ranges, uint64_t first, uint64_t n)
{
    size_t low = 0, high = ranges ? ranges->n : 0;

    /* Ranges before `low` end at `first` or earlier, those from `high` on end later. */
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (ranges->range[middle].end <= first)
            low = middle + 1;
        else
            high = middle;
    }
    for (; ranges && low < ranges->n && ranges->range[low].first < first + n; low++)
        if (ranges->range[low].end > MAX(first, ranges->range[low].first))
            return true;
    return false;
}

static bool in_table(const struct meta_set *set, uint64_t cluster)
{
    const struct meta_table *t = atomic_load_explicit(&set->table, memory_order_acquire);

    if (!t)
        return false;
    for (size_t s = slot_of(t, cluster);; s = next_slot(t, s)) {
        uint64_t v = atomic_load_explicit(&t->slots[s], memory_order_relaxed);
        if (v == cluster + 1)
            return true;
        if (v == EMPTY)
            return false;
    }
}

bool meta_set_has_any(const struct meta_set *set, uint64_t first, uint64_t n)
{
    for (uint64_t c = first; c < first + n; c++)
        if (in_table(set, c))
            return true;
    return in_ranges(atomic_load_explicit(&set->ranges, memory_order_acquire), first, n);
}

bool meta_set_has(const struct meta_set *set, uint64_t cluster)
{
    return meta_set_has_any(set, cluster, 1);
}

uint64_t meta_set_end(const struct meta_set *set)
{
    const struct meta_table *t = atomic_load(&set->table);
    const struct meta_ranges *ranges = atomic_load(&set->ranges);
    uint64_t end = ranges && ranges->n ? ranges->range[ranges->n - 1].end : 0;

    for (size_t s = 0; t && s < (size_t)1 << t->bits; s++) {
        uint64_t v = atomic_load(&t->slots[s]);
        if (v != DELETED)
            end = MAX(end, v);
    }
    return end;
}

static void insert_cluster(struct meta_table *t, uint64_t cluster)
{
    size_t s = slot_of(t, cluster);

    while (atomic_load_explicit(&t->slots[s], memory_order_relaxed) != EMPTY)
        s = next_slot(t, s);
    t->used++;
    atomic_store_explicit(&t->slots[s], cluster + 1, memory_order_relaxed);
}

/* Returns a table with room for one more cluster; NULL: no memory. */
static struct meta_table *make_room(struct meta_set *set)
{
    struct meta_table *t = atomic_load(&set->table);

    if (t && t->used < (size_t)1 << (t->bits - 1))
        return t;
    struct meta_table *larger = table_new(t ? t->bits + 1 : MIN_BITS);
    if (!larger)
        return NULL;
    for (size_t s = 0; t && s < (size_t)1 << t->bits; s++) {
        uint64_t v = atomic_load_explicit(&t->slots[s], memory_order_relaxed);
        if (v != EMPTY && v != DELETED)
            insert_cluster(larger, v - 1);
    }
    larger->previous = t;
    atomic_store_explicit(&set->table, larger, memory_order_release);
    return larger;
}

int meta_set_add(struct meta_set *set, uint64_t cluster)
{
    if (meta_set_has(set, cluster))
        return -EEXIST;
    struct meta_table *t = make_room(set);
    if (!t)
        return -ENOMEM;
    insert_cluster(t, cluster);
    return 0;
}

void meta_set_remove(struct meta_set *set, uint64_t cluster)
{
    struct meta_table *t = atomic_load(&set->table);

    if (!in_table(set, cluster))
        return;
    size_t s = slot_of(t, cluster);
    while (atomic_load(&t->slots[s]) != cluster + 1)
        s = next_slot(t, s);
    atomic_store_explicit(&t->slots[s], DELETED, memory_order_relaxed);
}

void meta_set_remove_range(struct meta_set *set, uint64_t first)
{
    struct meta_ranges *ranges = atomic_load(&set->ranges);

    for (size_t i = 0; ranges && i < ranges->n; i++)
        if (ranges->range[i].first == first)
            atomic_store(&ranges->range[i].end, first);
}

void meta_set_free(struct meta_set *set)
{
    struct meta_table *t = atomic_load(&set->table);

    while (t) {
        struct meta_table *previous = t->previous;
        free(t);
        t = previous;
    }
    atomic_store(&set->table, NULL);
    free(atomic_exchange(&set->ranges, NULL));
}

void meta_set_move(struct meta_set *to, struct meta_set *from)
{
    assert(meta_set_is_empty(to));
    atomic_store(&to->ranges, atomic_exchange(&from->ranges, NULL));
    atomic_store(&to->table, atomic_exchange(&from->table, NULL));
}

void alloc_note_metadata(struct alloc *a, uint64_t host, uint64_t n)
{
    for (uint64_t i = 0; i < n; i++)
        if (meta_set_add(&a->metadata, (host >> a->cluster_bits) + i) == -ENOMEM)
            log_error("%s: out of memory: the overlap check misses the cluster at %" PRIu64,
                      a->node->filename, host + (i << a->cluster_bits));
}
