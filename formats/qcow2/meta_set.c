#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "base/checked.h"
#include "base/log.h"
#include "qcow2/internal.h"

#define EMPTY    0 /* never used: ends a search */
#define DELETED  UINT64_MAX
#define MIN_BITS 8

/* Open addressing, at most half full; slots hold cluster + 1.  A table that became too
 * small lives on until the end, for those who still look at it: together they are no larger
 * than the last. */
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

bool meta_set_has(const struct meta_set *set, uint64_t cluster)
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
        if (meta_set_has(set, c))
            return true;
    return false;
}

uint64_t meta_set_end(const struct meta_set *set)
{
    const struct meta_table *t = atomic_load(&set->table);
    uint64_t end = 0;

    for (size_t s = 0; t && s < (size_t)1 << t->bits; s++) {
        uint64_t v = atomic_load(&t->slots[s]);
        if (v != DELETED)
            end = MAX(end, v);
    }
    return end;
}

static void insert(struct meta_table *t, uint64_t cluster)
{
    size_t s = slot_of(t, cluster);

    while (atomic_load_explicit(&t->slots[s], memory_order_relaxed) != EMPTY)
        s = next_slot(t, s);
    t->used++;
    atomic_store_explicit(&t->slots[s], cluster + 1, memory_order_relaxed);
}

/* A table with room for one more. */
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
            insert(larger, v - 1);
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
    insert(t, cluster);
    return 0;
}

void meta_set_remove(struct meta_set *set, uint64_t cluster)
{
    struct meta_table *t = atomic_load(&set->table);

    if (!meta_set_has(set, cluster))
        return;
    size_t s = slot_of(t, cluster);
    while (atomic_load(&t->slots[s]) != cluster + 1)
        s = next_slot(t, s);
    atomic_store_explicit(&t->slots[s], DELETED, memory_order_relaxed);
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
}

void qcow2_note_metadata(struct qcow2 *q, uint64_t host, uint64_t n)
{
    for (uint64_t i = 0; i < n; i++)
        if (meta_set_add(&q->metadata, (host >> q->cluster_bits) + i) == -ENOMEM)
            log_error("%s: out of memory: the overlap check misses the cluster at %" PRIu64,
                      q->node->filename, host + (i << q->cluster_bits));
}

/* ---- filling it at the start ---- */

static int claim(struct qcow2 *q, uint64_t host, uint64_t bytes, const char *what,
                 uint64_t index, struct diag *diag)
{
    uint64_t first = host >> q->cluster_bits;
    uint64_t n = div_round_up((host & (cluster_size(q) - 1)) + bytes, cluster_size(q));

    for (uint64_t c = first; c < first + n; c++) {
        int err = meta_set_add(&q->metadata, c);
        if (err == -EEXIST)
            return diag_set(diag, EINVAL,
                            "%s: %s %" PRIu64 ": the cluster at %" PRIu64
                            " also holds other metadata",
                            q->node->filename, what, index, c << q->cluster_bits);
        if (err)
            return diag_errno(diag, -err, "%s", q->node->filename);
    }
    return 0;
}

static int claim_refcounts(struct qcow2 *q, struct diag *diag)
{
    const struct refcount_table *t = atomic_load(&q->refs.table);
    int err = claim(q, t->offset, t->n_entries * 8, "refcount table", 0, diag);

    for (uint64_t b = 0; !err && b < t->n_entries; b++) {
        uint64_t offset = refcount_block_offset(&q->refs, b);
        if (offset)
            err = claim(q, offset, cluster_size(q), "refcount table entry", b, diag);
    }
    return err;
}

/* The table of an L1 entry.  `shared` has those of entries without the copied flag: two of
 * these may lead to one table, which is copied before it is changed. */
static int claim_table(struct qcow2 *q, struct meta_set *shared, uint32_t l1_index,
                       uint64_t entry, struct diag *diag)
{
    uint64_t cluster = (entry & L1_OFFSET) >> q->cluster_bits;

    if (entry & L1_COPIED)
        return claim(q, entry & L1_OFFSET, cluster_size(q), "L1 entry", l1_index, diag);
    int err = meta_set_add(shared, cluster);
    if (err == -EEXIST)
        return 0;
    if (err)
        return diag_errno(diag, -err, "%s", q->node->filename);
    return claim(q, entry & L1_OFFSET, cluster_size(q), "L1 entry", l1_index, diag);
}

static int claim_tables(struct qcow2 *q, struct diag *diag)
{
    struct meta_set shared = {NULL};
    int err = q->l1_size ? claim(q, atomic_load(&q->l1_offset), (uint64_t)q->l1_size * 8,
                                 "L1 table", 0, diag)
                         : 0;

    for (uint32_t i = 0; !err && i < q->l1_size; i++) {
        uint64_t entry = atomic_load(&q->l1[i]);
        /* What can't be a table is said when it is met. */
        if ((entry & L1_OFFSET) && is_aligned(entry & L1_OFFSET, cluster_size(q)))
            err = claim_table(q, &shared, i, entry, diag);
    }
    meta_set_free(&shared);
    return err;
}

static int claim_snapshots(struct qcow2 *q, struct diag *diag)
{
    int err = q->n_snapshots ? claim(q, q->header.snapshots_offset, q->snapshot_bytes,
                                     "snapshot table", 0, diag)
                             : 0;

    /* Their L2 tables may be shared with the active one, so only the L1 tables are claimed.
     */
    for (uint32_t i = 0; !err && i < q->n_snapshots; i++)
        if (q->snapshots[i].l1_size)
            err = claim(q, q->snapshots[i].l1_offset, (uint64_t)q->snapshots[i].l1_size * 8,
                        "L1 table of snapshot", i, diag);
    return err;
}

int qcow2_collect_metadata(struct qcow2 *q, struct diag *diag)
{
    int err = claim(q, 0, 1, "header", 0, diag);

    if (!err)
        err = claim_refcounts(q, diag);
    if (!err)
        err = claim_tables(q, diag);
    if (!err)
        err = claim_snapshots(q, diag);
    return err;
}
